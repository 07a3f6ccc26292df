"""``cxrlt predict --tta``: each strategy, what is refused, what is kept, and the choice by ``auto``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cxrlt_cli.artifacts import RunDir, read_predictions
from cxrlt_cli.commands import choose_tta
from cxrlt_cli.commands.opening import read_stamp
from cxrlt_cli.data.manifest import Prepared

Cxrlt = Callable[..., Any]
Install = Callable[..., Path]
COUNT = 48
EVERYTHING = ("rotate", "shift", "scale", "flip", "brightness", "contrast", "gamma")
STRATEGIES = {"none": 1, "flip": 2, "light": 3, "medium": 7, "heavy": 19, "multi-scale": 3, "five-crop": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    """A dataset, and a run on it that saw every augmentation; tests copy the run."""
    root = tmp_path_factory.mktemp("made")
    prepared = factories.make_dataset(root / "data", count=COUNT)
    return prepared, factories.make_run(root / "run", prepared, augment=EVERYTHING).path


def forgetful(run: RunDir, *augment: str) -> None:
    """Let the network have seen these augmentations only."""
    factories.rewrite_card(run.model, augment=list(augment))


# -- each strategy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_split_is_kept_under_the_name_of_its_strategy(cxrlt: Cxrlt, run: RunDir, name: str) -> None:
    plain = run.predictions("test")
    plain.parent.mkdir()
    plain.write_bytes(b"the default predictions")
    done = cxrlt("predict", run.path, "--split", "test", "--tta", name, "--json")
    assert done.code == 0, done.err
    assert done.json["tta"] == name
    kept = Path(done.json["predictions"])
    assert kept.name == ("test.parquet" if name == "none" else f"test.tta-{name}.parquet")
    assert read_stamp(kept)["tta"] == name
    assert np.isfinite(read_predictions(kept).logits).all()
    assert name == "none" or plain.read_bytes() == b"the default predictions"


def test_the_recipes_own_strategy_is_the_default_file(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    run = factories.make_run(tmp_path / "light", prepared, augment=EVERYTHING, tta={"name": "light", "angle": 3.0})
    assert cxrlt("predict", run.path, "--split", "test").code == 0
    own = read_predictions(run.predictions("test"))
    assert cxrlt("predict", run.path, "--split", "test", "--tta", "none").code == 0
    assert cxrlt("predict", run.path, "--split", "test", "--tta", "light").code == 0
    assert sorted(path.name for path in run.predictions("test").parent.iterdir()) == [
        "test.parquet",
        "test.tta-none.parquet",
    ]
    again, plain = read_predictions(run.predictions("test")), read_predictions(run.predictions("test", "none"))
    np.testing.assert_array_equal(again.logits, own.logits)
    assert np.abs(plain.logits - own.logits).max() > 1e-3


def test_the_logit_is_the_mean_over_views_made_one_by_one(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    from cxrlt_cli import registry
    from cxrlt_cli.model import load_model

    assert cxrlt("predict", run.path, "--split", "test", "--tta", "heavy").code == 0
    kept = read_predictions(run.predictions("test", "heavy"))
    pixels = factories.make_pixels(COUNT)[prepared.rows("test")]
    images = torch.from_numpy(pixels).float()[:, None] / 255
    model = load_model(run.model)[0].eval()
    with torch.inference_mode():
        outputs = [model(view.apply(image[None])) for image in images for view in registry.build("tta", "heavy").views]
    expected = torch.stack(outputs).reshape(len(images), 19, -1).mean(1).numpy()
    np.testing.assert_allclose(kept.logits, expected, rtol=1e-4, atol=1e-4)


def test_a_name_with_its_distribution_is_a_file_name(cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "cxrlt:light", "--json")
    assert Path(done.json["predictions"]).name == "test.tta-cxrlt%3Alight.parquet"
    assert read_predictions(run.predictions("test", "cxrlt:light")).image_id


# -- refusals ------------------------------------------------------------------------------------------------------


def test_what_training_never_saw_is_named_with_the_views_that_need_it(cxrlt: Cxrlt, run: RunDir) -> None:
    forgetful(run, "rotate", "shift")
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "heavy")
    assert done.code == 2
    assert "'heavy' needs a network trained with brightness, contrast, gamma, scale" in done.err
    assert "'zoom in', 'zoom out', 'brighter' and 9 more" in done.err
    assert "augment.brightness and augment.contrast and augment.gamma and augment.scale" in done.err
    assert not run.predictions("test", "heavy").exists()
    assert cxrlt("predict", run.path, "--split", "test", "--tta", "light").code == 0
    assert cxrlt("predict", run.path, "--split", "test", "--tta", "heavy", "--force").code == 0


def test_ranks_are_refused_for_files(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    run = factories.make_run(tmp_path / "ranks", prepared, augment=EVERYTHING, tta={"name": "light", "merge": "rank"})
    factories.write_images(tmp_path / "images", factories.image_ids(4), factories.make_pixels(4))
    done = cxrlt("predict", run.path, tmp_path / "images")
    assert done.code == 2
    assert "'light' ranks images against each other" in done.err
    assert cxrlt("predict", run.path, tmp_path / "images", "--force").code == 0
    assert cxrlt("predict", run.path, "--split", "test").code == 0
    plain = cxrlt("predict", run.path, "--split", "test", "--tta", "none")
    assert plain.code == 0
    ranked, own = read_predictions(run.predictions("test")), read_predictions(run.predictions("test", "none"))
    np.testing.assert_allclose(np.sort(ranked.logits, axis=0).mean(0), own.logits.mean(0), rtol=1e-5)


# -- before training -----------------------------------------------------------------------------------------------

UNUSABLE = {
    "what training would not show": ("name: flip", 2, "needs augment.flip, which training would not have"),
    "a geometric mean of logits": ("name: light, merge: geometric", 4, "augmentation light: a geometric mean"),
    "an option out of range": ("name: five-crop, share: 1.5", 4, "augmentation five-crop: the option 'share' is 1.5"),
}


@pytest.mark.parametrize("case", list(UNUSABLE))
@pytest.mark.parametrize("dry", [True, False])
def test_a_recipes_strategy_is_checked_before_training(
    cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path, case: str, dry: bool
) -> None:
    tta, code, said = UNUSABLE[case]
    options = ["--set", f"data.path={prepared.path}", "--set", f"predict.tta={{{tta}}}", "--set", "augment.rotate=5"]
    out = tmp_path / "never"
    done = cxrlt("train", "demo_phantom", *options, "--out", out, *(["--dry-run"] if dry else []))
    assert done.code == code
    assert said in done.err
    assert not out.exists()


# -- auto ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples: these tests are about what happens, not about chance."""
    monkeypatch.setattr(choose_tta, "RESAMPLES", 20)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views and images of every inference."""
    seen: list[int] = []
    before = choose_tta.view_logits

    def counted(run: Any, images: Any, rows: Any, setting: Any, *, views: Any, emit: Any) -> Any:
        seen.append(len(views))
        return before(run, images, rows, setting, views=views, emit=emit)

    monkeypatch.setattr(choose_tta, "view_logits", counted)
    return seen


def test_auto_tries_everything_once_chooses_and_predicts(
    cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int]
) -> None:
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert done.code == 0, done.err
    choice = done.json["tta_choice"]
    assert {one["name"]: one["views"] for one in choice["strategies"]} == STRATEGIES
    assert passes == [27]  # of 41 views, 14 are shared
    assert choice == json.loads(run.tta.read_text())
    assert done.json["tta"] == choice["chosen"] in STRATEGIES
    assert read_predictions(Path(done.json["predictions"])).logits.size
    costs = [one["views"] for one in choice["strategies"]]
    assert costs == sorted(costs)
    assert choice["images"] == 12
    assert len(choice["cross_fitted"]["by_fold"]) == 5
    said = " ".join(done.err.split())
    for line in ("five-crop", "95 % interval", "Chosen on some patients and scored on the others, the choice gains"):
        assert line in said
    assert ("No gain is beyond chance" in said) == (choice["chosen"] == "none")


def test_the_choice_has_decisions_of_its_own(
    cxrlt: Cxrlt, run: RunDir, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = choose_tta.choose
    monkeypatch.setattr(choose_tta, "choose", lambda *args, **more: replace(real(*args, **more), name="light"))
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert done.code == 0, done.err
    assert done.json["fitted_on"]["tta"] == done.json["tta"] == "light"
    kept = run.predictions("dev", "light")
    by_auto, made = read_predictions(kept), read_stamp(kept)
    assert made["tta"] == "light"
    assert not run.predictions("dev").exists()
    assert cxrlt("predict", run.path, "--split", "dev", "--tta", "light").code == 0
    alone = read_predictions(kept)
    assert (alone.image_id, alone.patient_id) == (by_auto.image_id, by_auto.patient_id)
    np.testing.assert_allclose(by_auto.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert read_stamp(kept) == made


def test_the_scores_are_those_of_predictions_made_alone(
    cxrlt: Cxrlt, run: RunDir, quick: None, prepared: Prepared
) -> None:
    choice = cxrlt("predict", run.path, "--split", "dev", "--tta", "auto", "--json").json["tta_choice"]
    labels = prepared.labels[prepared.rows("dev")]
    known = labels.any(axis=0)
    for name in ("none", "medium", "multi-scale"):
        cxrlt("predict", run.path, "--split", "dev", "--tta", name)
        logits = read_predictions(run.predictions("dev", None if name == "none" else name)).logits
        (one,) = [one for one in choice["strategies"] if one["name"] == name]
        assert one["macro_ap"] == pytest.approx(average_precision_score(labels[:, known], logits[:, known]), abs=1e-6)


def test_the_choice_is_remembered_for_the_same_weights_and_made_anew_for_others(
    cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int], tmp_path: Path
) -> None:
    factories.write_images(tmp_path / "images", factories.image_ids(3), factories.make_pixels(3))
    first = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json").json
    again = cxrlt("predict", run.path, tmp_path / "images", "--tta", "auto", "--json")
    assert again.json["tta_choice"] == first["tta_choice"]
    assert "Remembered from an earlier call" in again.err
    assert len(passes) == 1
    factories.rewrite_card(run.model, epoch=4)
    assert cxrlt("predict", run.path, "--split", "test", "--tta", "auto").code == 0
    assert len(passes) == 2


def test_a_damaged_choice_is_made_anew(cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int]) -> None:
    first = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json").json
    run.tta.write_text("{torn")
    again = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert again.code == 0, again.err
    assert again.json["tta_choice"] == first["tta_choice"] == json.loads(run.tta.read_text())
    assert len(passes) == 2


def test_a_choice_that_cannot_be_kept_is_used_all_the_same(
    cxrlt: Cxrlt, run: RunDir, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    real = choose_tta.choose
    monkeypatch.setattr(choose_tta, "choose", lambda *args, **more: replace(real(*args, **more), name="light"))
    monkeypatch.setattr(choose_tta, "write_json", refused)
    monkeypatch.setattr(choose_tta, "write_predictions", refused)
    factories.write_images(tmp_path / "images", factories.image_ids(3), factories.make_pixels(3))
    done = cxrlt("predict", run.path, tmp_path / "images", "--tta", "auto", "--json")
    assert done.code == 0, done.err
    assert done.json["tta"] == "light"
    assert " ".join(done.err.split()).count("cannot be kept: Permission denied") == 2


def test_auto_leaves_out_what_training_never_saw_and_says_so(
    cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int]
) -> None:
    forgetful(run, "rotate", "scale")
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    choice = done.json["tta_choice"]
    assert [one["name"] for one in choice["strategies"]] == ["none", "light", "multi-scale"]
    assert choice["left_out"]["medium"] == "needs augment.shift"
    assert choice["left_out"]["flip"] == "needs augment.flip"
    assert "needs augment.flip" in done.err
    assert passes == [5]
    forced = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--force", "--json").json
    assert forced["tta_choice"]["left_out"] == {}
    assert passes == [5, 27]


def test_auto_without_anything_to_try_takes_the_plain_images(cxrlt: Cxrlt, run: RunDir, passes: list[int]) -> None:
    forgetful(run)
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert done.code == 0, done.err
    assert done.json["tta"] == "none"
    assert done.json["tta_choice"]["strategies"] == []
    assert passes == []
    assert run.predictions("test").exists()


def test_auto_takes_the_recipes_options_for_its_own_strategy(
    cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path, quick: None, passes: list[int]
) -> None:
    tta = {"name": "multi-scale", "factors": [0.8, 0.9, 1.1, 1.2]}
    run = factories.make_run(tmp_path / "own", prepared, augment=("scale",), tta=tta)
    choice = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json").json["tta_choice"]
    assert {one["name"]: one["views"] for one in choice["strategies"]} == {"none": 1, "multi-scale": 5}
    assert passes == [5]


def test_auto_needs_labelled_dev_images(cxrlt: Cxrlt, tmp_path: Path) -> None:
    labels = np.full((COUNT, 4), -1, np.int8)
    prepared = factories.make_dataset(tmp_path / "data", count=COUNT, labels=labels)
    run = factories.make_run(tmp_path / "run", prepared, augment=EVERYTHING)
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto")
    assert done.code == 3
    assert "nothing to choose by" in done.err
    assert not run.tta.exists()


def test_auto_needs_dev_images_of_several_patients(
    cxrlt: Cxrlt, run: RunDir, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    real = choose_tta.column

    def of_one(frame: Any, name: str, rows: Any) -> list[str]:
        return ["p"] * len(rows) if name == "patient_id" else real(frame, name, rows)

    monkeypatch.setattr(choose_tta, "column", of_one)
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto")
    assert done.code == 3
    assert "of one patient" in done.err
    assert "Name a test-time augmentation with --tta" in done.err
    assert passes == []


def test_auto_needs_the_runs_own_dataset_unless_it_has_chosen(
    cxrlt: Cxrlt, run: RunDir, quick: None, tmp_path: Path
) -> None:
    other = factories.make_dataset(tmp_path / "other", count=COUNT, seed=5)
    info = json.loads(run.run_json.read_text())
    gone = {**info, "dataset": {**info["dataset"], "path": "gone"}}
    run.run_json.write_text(json.dumps(gone))
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--data", other.path)
    assert done.code == 3
    assert "is not there" in done.err
    run.run_json.write_text(json.dumps(info))
    first = cxrlt("predict", run.path, "--split", "dev", "--tta", "auto", "--json")
    assert first.code == 0
    run.run_json.write_text(json.dumps(gone))
    second = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--data", other.path, "--json")
    assert second.code == 0
    assert second.json["tta_choice"] == first.json["tta_choice"]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("options", [("--tta", "auto"), ("--calibration", "beta"), ("--threshold", "prevalence")])
def test_what_dev_decides_for_files_finds_a_dataset_that_has_moved(
    cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path, options: tuple[str, str]
) -> None:
    assert cxrlt("predict", run.path, "--split", "dev").code == 0
    info = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**info, "dataset": {**info["dataset"], "path": "gone"}}))
    factories.write_images(tmp_path / "images", factories.image_ids(3), factories.make_pixels(3))
    lost = cxrlt("predict", run.path, tmp_path / "images", *options)
    assert lost.code == 3
    assert "Give the directory it is in now with --data DIR" in lost.err
    found = cxrlt("predict", run.path, tmp_path / "images", *options, "--data", prepared.path)
    assert found.code == 0, found.err


# -- plugins of others ---------------------------------------------------------------------------------------------

PLUGIN = """
import torch
from cxrlt_cli.contracts import TestTimeAugmentation as T, View

SIZE, MADE = {size}, []
IDENTITY = View("identity", lambda images: images)


class Moved:
    def __call__(self, images):
        return torch.roll(images, 2, -1)


def moved():
    MADE.append(Moved())  # kept, so that none gets the place in memory of another
    return MADE[-1]


def narrow(images):
    if images.shape[-1] == SIZE:
        raise ValueError("no table of weights for this size")
    return images


def build():
    return {made}
"""

BROKEN = {
    "begins with the identity": 'T((View("dark", lambda x: x * 0.5), View("dim", lambda x: x * 0.7)))',
    "keeps shape and range": 'T((IDENTITY, View("cut", lambda x: x[..., :-4])))',
    "views are pure": 'T((IDENTITY, View("half", lambda x: x.mul_(0.5))))',
    "names what it needs": 'T((IDENTITY, View("same", lambda x: x, needs=["gamma"])))',
    "says where it is valid": 'T((IDENTITY, View("same", lambda x: x, classes="Mass")))',
    "merges as the host can": 'T((IDENTITY, View("same", lambda x: x)), merge="average")',
}


def install_strategy(install: Install, made: str) -> None:
    code = PLUGIN.format(size=factories.SIZE, made=made)
    install("cxrlt-other", "[cxrlt.tta]\nother = other_tta:build\n", {"other_tta": code})


@pytest.mark.parametrize("rule", list(BROKEN))
def test_a_strategy_that_breaks_its_contract_is_refused(cxrlt: Cxrlt, run: RunDir, install: Install, rule: str) -> None:
    """All of these would give predictions, wrong ones, or a traceback."""
    install_strategy(install, BROKEN[rule])
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "other", "--force")
    assert done.code == 4
    assert f"'other' (other_tta:build, of cxrlt-other 1.0) breaks the rule '{rule}'" in " ".join(done.err.split())
    assert "plugins check cxrlt-other:other" in " ".join(done.err.split())
    assert not run.predictions("test", "other").exists()


def test_auto_leaves_out_what_is_broken_and_goes_on(
    cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int], install: Install
) -> None:
    forgetful(run, "rotate")
    install_strategy(install, BROKEN["views are pure"])
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert done.code == 0, done.err
    assert done.json["tta_choice"]["left_out"]["other"] == "is broken"
    assert [one["name"] for one in done.json["tta_choice"]["strategies"]] == ["none", "light"]
    assert "writes to the images it is given" in " ".join(done.err.split())
    assert passes == [3]


def test_a_view_that_cannot_take_images_of_this_size_is_named(
    cxrlt: Cxrlt, run: RunDir, quick: None, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrlt_cli.testing.views.SIZE", factories.SIZE // 2)  # what the kit shows it, it can take
    forgetful(run, "rotate")
    install_strategy(install, 'T((IDENTITY, View("narrow", narrow)))')
    done = cxrlt("predict", run.path, "--split", "test", "--tta", "other")
    assert done.code == 4
    assert f"the view 'narrow' of the test-time augmentation fails with images of {factories.SIZE} x" in done.err
    assert "no table of weights for this size" in done.err
    auto = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
    assert auto.code == 0, auto.err
    assert auto.json["tta_choice"]["left_out"]["other"] == "is broken"


def test_auto_leaves_out_outputs_that_are_not_finite(
    cxrlt: Cxrlt, run: RunDir, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranked as if nan were the lowest score, they would have a score like any other."""
    forgetful(run, "rotate", "flip")
    before = choose_tta.view_logits

    def overflowing(*args: Any, views: Any, **more: Any) -> Any:
        made = before(*args, views=views, **more)
        made[[view.name for view in views].index("flip"), 0, 0] = np.inf
        return made

    monkeypatch.setattr(choose_tta, "view_logits", overflowing)
    for _ in range(2):  # made, and remembered
        choice = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json").json["tta_choice"]
        assert [one["name"] for one in choice["strategies"]] == ["none", "light"]
        assert choice["left_out"]["flip"] == "outputs that are not finite"


def test_a_choice_is_remembered_beside_views_without_a_text_of_their_own(
    cxrlt: Cxrlt, run: RunDir, quick: None, passes: list[int], install: Install
) -> None:
    """Their ``repr`` holds the place in memory, which is another one every time."""
    install_strategy(install, 'T((IDENTITY, View("moved", moved())))')
    for _ in range(2):
        done = cxrlt("predict", run.path, "--split", "test", "--tta", "auto", "--json")
        assert {"name": "other", "views": 2}.items() <= done.json["tta_choice"]["strategies"][2].items()
    assert len(passes) == 1


# -- where one has to be named -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [(), ("--gap",)])
def test_evaluate_wants_the_name_of_a_strategy(cxrlt: Cxrlt, run: RunDir, gap: tuple[str, ...]) -> None:
    done = cxrlt("evaluate", run.path, "--tta", "auto", *gap)
    assert done.code == 2
    assert f"cxrlt predict {run.path} --split dev --tta auto" in " ".join(done.err.split()).replace("- ", "-")
    assert not run.tta.exists()
