from __future__ import annotations

import csv
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxrlt_cli.artifacts import LOGIT, RunDir, read_predictions
from cxrlt_cli.commands import predict
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.events import Advanced, Event
from cxrlt_cli.submission import CLASSES as CHALLENGE

Cxrlt = Callable[..., Any]
COUNT = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    """A dataset and a run on it; tests copy the run."""
    root = tmp_path_factory.mktemp("made")
    prepared = factories.make_dataset(root / "data", count=COUNT)
    return prepared, factories.make_run(root / "run", prepared).path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """The dataset's images as files."""
    factories.write_images(tmp_path / "images", factories.image_ids(COUNT), factories.make_pixels(COUNT))
    return tmp_path / "images"


def logits_of(table: pd.DataFrame) -> np.ndarray:
    return table[[name + LOGIT for name in factories.CLASSES]].to_numpy(np.float32)


# -- files ---------------------------------------------------------------------------------------------------------


def test_the_table_has_three_columns_a_class(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "-o", "out.csv")
    assert done.code == 0, done.err
    table = pd.read_csv("out.csv")
    endings = (".logit", ".posterior", ".decision")
    assert list(table) == ["image_id", *(name + ending for name in factories.CLASSES for ending in endings)]
    assert table["image_id"].tolist() == factories.image_ids(COUNT)


def test_posteriors_go_through_the_stored_link(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    cxrlt("predict", run.path, images, "-o", "out.parquet")
    table = pd.read_parquet("out.parquet")
    posteriors = table[[name + ".posterior" for name in factories.CLASSES]].to_numpy()
    decisions = table[[name + ".decision" for name in factories.CLASSES]].to_numpy()
    np.testing.assert_allclose(posteriors, factories.expected_posteriors(logits_of(table)), rtol=1e-9)
    np.testing.assert_array_equal(decisions, posteriors >= 0.5)
    assert 0 < decisions.mean() < 1


def test_csv_and_parquet_hold_the_same_numbers(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    cxrlt("predict", run.path, images, "-o", "a.csv")
    cxrlt("predict", run.path, images, "-o", "a.parquet")
    text, binary = pd.read_csv("a.csv"), pd.read_parquet("a.parquet")
    assert logits_of(text).dtype == np.float32
    np.testing.assert_array_equal(logits_of(text), logits_of(binary))
    for name in (name for name in binary if not name.endswith(LOGIT)):
        assert text[name].tolist() == binary[name].tolist()


def test_files_and_the_prepared_images_give_the_same_logits(
    cxrlt: Cxrlt, run: RunDir, images: Path, prepared: Prepared
) -> None:
    assert cxrlt("predict", run.path, images, "-o", "out.parquet").code == 0
    assert cxrlt("predict", run.path, "--split", "test").code == 0
    kept = read_predictions(run.predictions("test"))
    table = pd.read_parquet("out.parquet").set_index("image_id").loc[kept.image_id].reset_index()
    np.testing.assert_allclose(logits_of(table), kept.logits, rtol=1e-4, atol=1e-4)


def test_the_newest_run_is_taken_when_none_is_named(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", images, "--json")
    assert Path(done.json["run"]).resolve() == run.path.resolve()


def test_single_files_and_folders_mix_and_count_once(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images / "image_005.png", images, images / "image_003.png", "--json")
    names = done.json["image_id"]
    assert names[0] == "image_005.png"
    assert sorted(names) == factories.image_ids(COUNT)


def test_folders_are_walked_for_images(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    deep = images / "b" / "c"
    deep.mkdir(parents=True)
    shutil.copy(images / "image_000.png", deep / "deep.PNG")
    for name in ("notes.txt", "._image_000.png", "labels.csv"):
        (images / name).write_text("no image")
    hidden = images / ".thumbnails"
    hidden.mkdir()
    shutil.copy(images / "image_000.png", hidden / "small.png")
    (deep / "loop").symlink_to(images)
    names = cxrlt("predict", run.path, images, "--json").json["image_id"]
    assert names == [*factories.image_ids(COUNT), "deep.PNG"]


def test_files_of_one_name_are_called_by_their_paths(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        factories.write_images(tmp_path / "in" / folder, ["same.png", f"{folder}.png"], factories.make_pixels(2))
    names = cxrlt("predict", run.path, tmp_path / "in", "--json").json["image_id"]
    assert names == ["a.png", "a/same.png", "b.png", "b/same.png"]


def test_a_name_that_is_not_utf8_is_written_readably(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    shutil.copy(images / "image_000.png", str(images / "image_000.png").encode() + b"\xff.png")
    done = cxrlt("predict", run.path, images, "-o", "out.csv")
    assert done.code == 0, done.err
    assert r"image_000.png\xff.png" in pd.read_csv("out.csv")["image_id"].tolist()


def test_a_name_with_a_comma_and_quotes_survives_csv(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    name = 'left, "PA".png'
    (images / "image_000.png").rename(images / name)
    cxrlt("predict", run.path, images, "-o", "out.csv")
    assert name in pd.read_csv("out.csv")["image_id"].tolist()


def test_the_batch_size_does_not_matter(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    one, all_ = (cxrlt("predict", images, "--json", "--batch-size", size).json["logit"] for size in ("1", "24"))
    np.testing.assert_allclose(one, all_, rtol=1e-4, atol=1e-4)


def test_json_without_a_file_has_everything(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    data = cxrlt("predict", images, "--json").json
    assert data["classes"] == list(factories.CLASSES)
    logits = np.array(data["logit"], np.float32)
    np.testing.assert_allclose(data["posterior"], factories.expected_posteriors(logits), rtol=1e-9)
    np.testing.assert_array_equal(np.array(data["decision"]), np.array(data["posterior"]) >= 0.5)


def test_people_see_the_findings_of_the_first_images(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", images)
    assert "image_019.png" in done.out
    assert "image_020.png" not in done.out
    assert "and 4 more;" in done.out
    assert "findings (posterior >= 0.5)" in done.out


def test_an_image_with_everything_does_not_fill_the_screen(cxrlt: Cxrlt, tmp_path: Path) -> None:
    classes = [f"finding {number}" for number in range(9)]
    prepared = factories.make_dataset(tmp_path / "data", count=COUNT, classes=classes)
    run = factories.make_run(tmp_path / "run", prepared)
    done = cxrlt("predict", run.path, "--split", "test", "--calibration", "none", "--threshold", "1e-300")
    assert done.code == 0, done.err
    line = next(line for line in done.out.splitlines() if line.startswith("image_"))
    assert "and 3 more" in line
    assert line.count("finding") == 6


def test_a_loss_without_a_link_is_said_to_have_none(
    cxrlt: Cxrlt, prepared: Prepared, images: Path, tmp_path: Path
) -> None:
    run = factories.make_run(tmp_path / "unlinked", prepared, linked=False, loss={"name": "strange"})
    done = cxrlt("predict", run.path, images, "--json")
    assert "warning: " in done.err
    assert "the loss 'strange' has no posterior link" in done.err
    np.testing.assert_allclose(done.json["posterior"], 1 / (1 + np.exp(-np.array(done.json["logit"]))), rtol=1e-6)


# -- files that cannot be read -------------------------------------------------------------------------------------


def test_unreadable_files_are_named_and_left_out_and_nothing_else_is_lost(
    cxrlt: Cxrlt, run: RunDir, images: Path
) -> None:
    (images / "image_003.png").write_bytes(b"")
    whole = (images / "image_004.png").read_bytes()
    (images / "image_004.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (1, 1)).save(images / "image_005.png")
    done = cxrlt("predict", run.path, images, "-o", "out.csv", "--json")
    assert done.code == 3
    for name, reason in (("003", "empty"), ("004", "truncated"), ("005", "1 x 1 pixels")):
        assert any(f"image_{name}.png" in line and reason in line for line in done.err.splitlines())
    assert sorted(done.json["unreadable"]) == [f"image_00{number}.png" for number in (3, 4, 5)]
    good = [name for name in factories.image_ids(COUNT) if name not in done.json["unreadable"]]
    table = pd.read_csv("out.csv")
    assert table["image_id"].tolist() == good
    for name in done.json["unreadable"]:
        (images / name).unlink()
    clean = np.array(cxrlt("predict", run.path, images, "--json").json["logit"])
    np.testing.assert_allclose(logits_of(table), clean, rtol=1e-4, atol=1e-4)


def test_a_file_that_was_named_is_tried_whatever_it_is_called(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    (images / "image_000.png").rename(images / "scan")
    (images / "notes.txt").write_text("no image")
    done = cxrlt("predict", run.path, images / "scan", images / "notes.txt", "--json")
    assert done.code == 3
    assert done.json["image_id"] == ["scan"]
    assert "notes.txt is not an image" in done.err


def test_only_unreadable_files_write_nothing(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = cxrlt("predict", run.path, tmp_path / "a.png", "-o", "out.csv")
    assert done.code == 3
    assert "a.png: is empty" in done.err
    assert not Path("out.csv").exists()


def test_many_unreadable_files_are_not_all_listed(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    for number in range(30):
        (images / f"bad_{number}.png").write_bytes(b"x")
    done = cxrlt("predict", run.path, images, "-o", "out.csv")
    assert done.err.count("left out") == predict.NAMED
    assert "and 10 more unreadable files" in done.err


def test_a_folder_without_images_is_an_error(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cxrlt("predict", run.path, tmp_path / "empty")
    assert done.code == 3
    assert "there is no image file" in done.err


def test_a_path_that_does_not_exist_stops_before_any_work(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "image.png")
    assert done.code == 3
    assert "image.png: there is no such file or folder" in done.err


@pytest.mark.parametrize("whole", [True, False])
def test_weights_are_no_image_and_the_message_names_what_is_wanted(
    cxrlt: Cxrlt, run: RunDir, images: Path, tmp_path: Path, whole: bool
) -> None:
    (tmp_path / "alone").mkdir()
    alone = shutil.copy(run.model, tmp_path / "alone")
    done = cxrlt("predict", run.model if whole else alone, images)
    assert done.code == 2
    assert "is a file of weights" in done.err
    assert ("cxrlt predict " + str(run.path) in done.err) == whole
    assert ("load_model" in done.err) != whole
    folder = cxrlt("predict", tmp_path / "alone", images)
    assert folder.code == 5
    assert "is a run directory without its run.json" in folder.err


# -- splits --------------------------------------------------------------------------------------------------------


def test_a_split_is_kept_in_the_run_in_the_order_of_the_manifest(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    done = cxrlt("predict", run.path, "--split", "test", "-o", "out.csv")
    assert done.code == 0, done.err
    kept = read_predictions(run.predictions("test"))
    rows = prepared.rows("test")
    assert kept.classes == factories.CLASSES
    assert kept.image_id == prepared.frame["image_id"].iloc[rows].tolist()
    assert kept.patient_id == prepared.frame["patient_id"].iloc[rows].tolist()
    np.testing.assert_array_equal(logits_of(pd.read_csv("out.csv")), kept.logits)


def test_cross_fitted_predictions_of_dev_are_not_overwritten(
    cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path
) -> None:
    info = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**info, "kind": "retrain-head", "method": "keep-best"}))
    factories.write_logits(run, prepared, "dev")
    before = run.predictions("dev").read_bytes()
    done = cxrlt("predict", run.path, "--split", "dev", "-o", "out.csv", "--json")
    assert done.code == 0, done.err
    assert run.predictions("dev").read_bytes() == before
    assert "stays as it is" in done.err
    assert "predictions" not in done.json
    own = read_predictions(run.predictions("dev"))
    assert (logits_of(pd.read_csv("out.csv")) != own.logits).any()  # the table is the final head's
    assert Path(cxrlt("predict", run.path, "--split", "test", "--json").json["predictions"]).is_file()
    for leave in (lambda path: path.unlink(), lambda path: path.write_bytes(b"damaged")):
        leave(run.predictions("dev"))
        again = cxrlt("predict", run.path, "--split", "dev")
        assert "dev.parquet is not cross-fitted" in " ".join(again.err.split())
        assert read_predictions(run.predictions("dev")).image_id == own.image_id


def test_the_recipes_views_are_honoured(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    run = factories.make_run(tmp_path / "frontal", prepared, data={"views": ["PA"]}, views=("PA",))
    assert cxrlt("predict", run.path, "--split", "dev").code == 0
    rows = prepared.rows("dev", views=["PA"])
    assert 0 < len(rows) < len(prepared.rows("dev"))
    assert read_predictions(run.predictions("dev")).image_id == prepared.frame["image_id"].iloc[rows].tolist()


def test_the_recipes_fold_is_honoured(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=COUNT, folds=3)
    run = factories.make_run(tmp_path / "fold", prepared, data={"fold": 1})
    assert cxrlt("predict", run.path, "--split", "dev").code == 0
    rows = prepared.rows("dev", fold=1)
    assert set(rows) != set(prepared.rows("dev"))
    assert read_predictions(run.predictions("dev")).image_id == prepared.frame["image_id"].iloc[rows].tolist()


def test_the_dataset_is_found_from_above_the_run(cxrlt: Cxrlt, run: RunDir, tmp_path: Path, prepared: Prepared) -> None:
    shutil.copytree(prepared.path, tmp_path / "kept" / "data")
    info = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**info, "dataset": {**info["dataset"], "path": "kept/data"}}))
    (tmp_path / "elsewhere").mkdir()
    done = cxrlt("predict", run.path, "--split", "test")
    assert done.code == 0, done.err


def test_a_dataset_that_changed_is_refused_without_data(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=COUNT, seed=5)
    info = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**info, "dataset": {**info["dataset"], "path": str(other.path)}}))
    done = cxrlt("predict", run.path, "--split", "test")
    assert done.code == 3
    assert "is not what" in done.err
    assert "--data" in done.err


def test_another_dataset_goes_beside_the_runs_own(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=COUNT, seed=5)
    assert cxrlt("predict", run.path, "--split", "test").code == 0
    own = run.predictions("test").read_bytes()
    done = cxrlt("predict", run.path, "--split", "test", "--data", other.path, "--json")
    assert done.code == 0
    assert "is not the dataset" in done.err
    assert run.predictions("test").read_bytes() == own
    assert other.content_hash[:12] in Path(done.json["predictions"]).name


def test_the_same_dataset_elsewhere_is_the_runs_own(
    cxrlt: Cxrlt, run: RunDir, tmp_path: Path, prepared: Prepared
) -> None:
    shutil.copytree(prepared.path, tmp_path / "moved")
    done = cxrlt("predict", run.path, "--split", "test", "--data", tmp_path / "moved")
    assert done.code == 0
    assert "is not the dataset" not in done.err
    assert run.predictions("test").exists()


def test_classes_that_do_not_match_are_named(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=COUNT, classes=("effusion", "nodule", "hernia", "goiter"))
    done = cxrlt("predict", run.path, "--split", "test", "--data", other.path)
    assert done.code == 3
    assert "it lacks 'mass'; the run does not know 'goiter'" in done.err


def test_classes_in_another_order_are_matched_by_name(
    cxrlt: Cxrlt, run: RunDir, tmp_path: Path, prepared: Prepared
) -> None:
    order = [2, 0, 3, 1]
    other = factories.make_dataset(
        tmp_path / "other",
        count=COUNT,
        classes=[factories.CLASSES[i] for i in order],
        labels=prepared.labels[:, order],
    )
    done = cxrlt("predict", run.path, "--split", "test", "--data", other.path, "--json")
    assert done.code == 0
    assert done.json["classes"] == list(factories.CLASSES)


def test_images_smaller_than_the_network_saw_are_refused(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    small = factories.make_dataset(tmp_path / "small", count=COUNT, size=16)
    done = cxrlt("predict", run.path, "--split", "test", "--data", small.path)
    assert done.code == 3
    assert "--size 32" in done.err


def test_another_fit_is_warned_about(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    squashed = factories.make_dataset(tmp_path / "squashed", count=COUNT, fit="squash")
    done = cxrlt("predict", run.path, "--split", "test", "--data", squashed.path)
    assert done.code == 0
    assert "--fit squash" in done.err


def test_an_empty_split_is_an_error(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=4)
    run = factories.make_run(tmp_path / "run", prepared, weights=False)
    done = cxrlt("predict", run.path, "--split", "test")
    assert done.code == 3
    assert "there is no image in the split 'test'" in done.err


# -- test-time augmentation ----------------------------------------------------------------------------------------


def test_views_training_never_saw_are_refused(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "--tta", "flip", "-o", "out.csv")
    assert done.code == 2
    assert "trained with flip" in done.err
    assert "--force" in done.err
    assert not Path("out.csv").exists()


def test_force_averages_the_image_and_its_mirror_image(cxrlt: Cxrlt, run: RunDir, images: Path, tmp_path: Path) -> None:
    mirrored = tmp_path / "mirrored"
    factories.write_images(mirrored, factories.image_ids(COUNT), factories.make_pixels(COUNT)[:, :, ::-1])
    plain, mirror = (np.array(cxrlt("predict", folder, "--json").json["logit"]) for folder in (images, mirrored))
    both = cxrlt("predict", images, "--tta", "flip", "--force", "--json").json
    assert both["tta"] == "flip"
    np.testing.assert_allclose(both["logit"], (plain + mirror) / 2, rtol=1e-4, atol=1e-4)
    assert np.abs(plain - mirror).max() > 0.01


def test_the_recipes_augmentation_is_the_default(
    cxrlt: Cxrlt, prepared: Prepared, images: Path, tmp_path: Path
) -> None:
    run = factories.make_run(tmp_path / "flipped", prepared, augment=("flip",), tta={"name": "flip"})
    assert cxrlt("predict", run.path, images, "--json").json["tta"] == "flip"
    assert cxrlt("predict", run.path, images, "--json", "--tta", "none").json["tta"] == "none"


def test_an_unknown_augmentation_is_a_plugin_error(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "--tta", "flipp")
    assert done.code == 4
    assert "flip" in done.err


# -- the submission ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def challenger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the classes of the challenge, in another order, and one more."""
    root = tmp_path_factory.mktemp("challenger")
    prepared = factories.make_dataset(root / "data", count=COUNT, classes=["goiter", *reversed(CHALLENGE)])
    return factories.make_run(root / "run", prepared).path


def test_the_submission_has_the_challenges_form(cxrlt: Cxrlt, challenger: Path) -> None:
    done = cxrlt("predict", challenger, "--split", "test", "-o", "out.csv", "--submission")
    assert done.code == 0, done.err
    cxrlt("predict", challenger, "--split", "test", "-o", "all.csv")
    table = pd.read_csv("all.csv")
    with Path("out.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["ImageID", *CHALLENGE]
    assert [row[0] for row in rows] == table["image_id"].tolist()
    values = np.array([row[1:] for row in rows], np.float64)
    np.testing.assert_array_equal(values, table[[name + ".posterior" for name in CHALLENGE]].to_numpy())


def test_a_submission_of_a_folder_says_what_it_lacks(cxrlt: Cxrlt, challenger: Path, images: Path) -> None:
    (images / "image_007.png").write_bytes(b"")
    done = cxrlt("predict", challenger, images, "-o", "out.csv", "--submission")
    assert done.code == 3
    assert "the submission lacks 1 of the 24 images asked for" in done.err
    assert len(pd.read_csv("out.csv")) == COUNT - 1


def test_a_run_without_the_challenges_classes_cannot_submit(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "-o", "out.csv", "--submission")
    assert done.code == 3
    assert "lacks 30 of the 30 classes" in done.err
    assert "calcified densities" in done.err


# -- refusals, memory, interruption --------------------------------------------------------------------------------

USAGE = {
    "nothing to do": ([], "there is nothing to predict"),
    "both": (["images", "--split", "dev"], "files and --split are both given"),
    "data without a split": (["images", "--data", "x"], "--data names the dataset of a split"),
    "unknown format": (["images", "-o", "out.xlsx"], "Let it end in .csv or .parquet"),
    "a submission without a file": (["images", "--submission"], "--submission needs a file"),
    "a submission as Parquet": (["images", "--submission", "-o", "out.parquet"], "Let it end in .csv."),
    "a device that is none": (["images", "--device", "tpu"], "no device 'tpu'"),
}


@pytest.mark.parametrize("name", list(USAGE))
def test_what_cannot_be_meant_is_refused(cxrlt: Cxrlt, run: RunDir, images: Path, name: str) -> None:
    arguments, message = USAGE[name]
    done = cxrlt("predict", run.path, *arguments)
    assert done.code == 2
    assert message in done.err


def test_a_folder_cannot_be_written_over(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    Path("out.csv").mkdir()
    done = cxrlt("predict", run.path, images, "-o", "out.csv")
    assert done.code == 2
    assert "out.csv: is a directory" in done.err


def test_a_place_that_cannot_be_written_is_found_before_work(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    Path("file").write_text("")
    done = cxrlt("predict", run.path, images, "-o", "file/out.csv")
    assert done.code == 3
    assert "cannot be written" in done.err
    assert "predict" not in done.err.replace("cxrlt predict", "")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
def test_exhausted_memory_names_the_batch_size(
    cxrlt: Cxrlt, run: RunDir, images: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("cxrlt_cli.engine.infer.infer", exhausted)
    done = cxrlt("predict", run.path, images, "-o", "out.csv", "--batch-size", "16")
    assert done.code == 6
    assert "out of memory on cpu with a batch of 16 images of 32 px" in done.err
    assert "--batch-size 4" in done.err
    assert not Path("out.csv").exists()


def test_outputs_that_are_not_finite_are_an_error(
    cxrlt: Cxrlt, run: RunDir, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowed(*_: object, **__: object) -> np.ndarray:
        logits = np.zeros((1, COUNT, 4), np.float32)
        logits[0, 2, 1] = np.inf
        return logits

    monkeypatch.setattr("cxrlt_cli.engine.infer.infer", overflowed)
    done = cxrlt("predict", run.path, images)
    assert done.code == 6
    assert "image_002.png" in done.err


def test_an_interruption_leaves_neither_files_nor_threads(run: RunDir, images: Path, tmp_path: Path) -> None:
    before = set(tmp_path.rglob("*"))

    def interrupt(event: Event) -> None:
        if isinstance(event, Advanced):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict.run(run.path, [images], out=tmp_path / "out.csv", batch_size=4, emit=interrupt)
    assert set(tmp_path.rglob("*")) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cxrlt-")]
