from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from cxrlt_cli.artifacts import RunDir, read_predictions, write_predictions
from cxrlt_cli.data.manifest import Prepared

Cxrlt = Callable[..., Any]
COUNT = 400


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """100 dev images; "hernia" has no positive there, and some labels of "mass" are unknown."""
    rng = np.random.default_rng(3)
    labels = (rng.random((COUNT, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.int8)
    dev = np.flatnonzero(np.arange(COUNT) // 2 % 4 == 2)
    labels[dev, 3] = 0
    labels[dev[:10], 2] = -1
    return factories.make_dataset(tmp_path_factory.mktemp("made") / "data", count=COUNT, labels=labels)


@pytest.fixture
def run(prepared: Prepared, tmp_path: Path) -> RunDir:
    made = factories.make_run(tmp_path / "runs" / "first", prepared, weights=False)
    factories.write_logits(made, prepared, "dev")
    return made


def truth(run: RunDir, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits and posteriors of dev."""
    logits = read_predictions(run.predictions("dev")).logits
    return prepared.labels[prepared.rows("dev")], logits, factories.expected_posteriors(logits)


# -- the figures ---------------------------------------------------------------------------------------------------


def test_figures_of_classes_are_scikit_learns(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    shown = cxrlt("evaluate", run.path, "--json").json["runs"][0]["classes"]
    labels, logits, posteriors = truth(run, prepared)
    for index, name in enumerate(factories.CLASSES[:3]):
        known = labels[:, index] >= 0
        label, logit, decision = labels[known, index], logits[known, index], posteriors[known, index] >= 0.5
        row = shown[index]
        assert row["name"] == name
        assert row["positives"] == label.sum()
        assert row["negatives"] == (label == 0).sum()
        assert row["ap"] == pytest.approx(reference.average_precision_score(label, logit), abs=1e-12)
        assert row["auroc"] == pytest.approx(reference.roc_auc_score(label, logit), abs=1e-12)
        assert row["f1"] == pytest.approx(reference.f1_score(label, decision), abs=1e-12)


def test_overall_figures_are_scikit_learns(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    one = cxrlt("evaluate", run.path, "--json").json["runs"][0]
    labels, logits, posteriors = truth(run, prepared)
    known = labels >= 0
    columns = [(labels[k, c], logits[k, c]) for c, k in enumerate(known.T) if (labels[:, c] == 1).any()]
    aps = [reference.average_precision_score(*column) for column in columns]
    areas = [reference.roc_auc_score(*column) for column in columns]
    micro = reference.f1_score(labels[known] == 1, posteriors[known] >= 0.5)
    overall = one["overall"]
    assert overall["macro_ap"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert overall["macro_auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert overall["micro_f1"] == pytest.approx(micro, abs=1e-12)
    assert overall["chance_ap"] == pytest.approx(np.mean([column[0].mean() for column in columns]), abs=1e-12)
    assert one["images"] == 100


def test_groups_follow_the_training_prevalence_of_the_card(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    counts = {"positives": (900, 50, 5, 2), "negatives": (100, 950, 995, 998)}
    run = factories.make_run(tmp_path / "run", prepared, weights=False, **counts)
    factories.write_logits(run, prepared, "dev")
    shown = cxrlt("evaluate", run.path, "--json").json["runs"][0]
    assert [row["group"] for row in shown["classes"]] == ["head", "medium", "tail", "tail"]
    assert [shown["groups"][name]["classes"] for name in ("head", "medium", "tail")] == [1, 1, 2]


def test_classes_without_positives_are_left_out_and_named(cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("evaluate", run.path)
    assert done.code == 0, done.err
    assert "Without a positive here, and left out of mAP, F1 and AUROC: hernia." in done.out


def test_absent_zero_counts_them_as_scikit_learn_does(cxrlt: Cxrlt, run: RunDir) -> None:
    skipped, zero = (cxrlt("evaluate", run.path, "--absent", how, "--json").json for how in ("skip", "zero"))
    for name in ("macro_ap", "macro_f1"):
        kept, counted = (data["runs"][0]["overall"][name] for data in (skipped, zero))
        assert counted == pytest.approx(kept * 3 / 4, abs=1e-12)
    assert "hernia" in skipped["runs"][0]["undefined"]["ap"]
    assert "counted as 0 in mAP and F1" in cxrlt("evaluate", run.path, "--absent", "zero").out


# -- matching by name and identifier -------------------------------------------------------------------------------


def test_rows_and_columns_are_matched_by_name(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    before = cxrlt("evaluate", run.path, "--json").json
    kept = read_predictions(run.predictions("dev"))
    rows, columns = np.random.default_rng(0).permutation(len(kept.image_id)), [2, 0, 3, 1]
    shuffled = replace(
        kept,
        classes=tuple(kept.classes[c] for c in columns),
        image_id=[kept.image_id[row] for row in rows],
        patient_id=[kept.patient_id[row] for row in rows],
        logits=kept.logits[rows][:, columns],
    )
    write_predictions(run.predictions("dev"), shuffled)
    assert cxrlt("evaluate", run.path, "--json").json == before


def test_a_dataset_with_its_classes_in_another_order_gives_the_same(
    cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path
) -> None:
    order = [3, 1, 0, 2]
    names = [factories.CLASSES[c] for c in order]
    other = factories.make_dataset(tmp_path / "data", count=COUNT, classes=names, labels=prepared.labels[:, order])
    figures = []
    for data in (prepared, other):
        run = factories.make_run(tmp_path / data.classes[0], data, weights=False, classes=factories.CLASSES)
        made = factories.write_logits(run, prepared, "dev")
        write_predictions(run.predictions("dev"), made)
        figures.append(cxrlt("evaluate", run.path, "--json").json["runs"][0]["overall"])
    assert figures[0] == figures[1]


def changed(run: RunDir, drop: int, add: list[str]) -> None:
    kept = read_predictions(run.predictions("dev"))
    ids = kept.image_id[drop:] + add
    logits = np.concatenate([kept.logits[drop:], np.zeros((len(add), 4), np.float32)])
    write_predictions(run.predictions("dev"), replace(kept, image_id=ids, patient_id=["p"] * len(ids), logits=logits))


def test_missing_and_further_images_are_named(cxrlt: Cxrlt, run: RunDir) -> None:
    changed(run, 2, ["stranger.png"])
    done = cxrlt("evaluate", run.path)
    assert done.code == 5
    assert "2 are missing (image_004.png, image_005.png)" in done.err
    assert "1 are not in the dataset (stranger.png)" in done.err


def test_an_image_that_stands_twice_is_an_error(cxrlt: Cxrlt, run: RunDir) -> None:
    changed(run, 0, ["image_004.png"])
    done = cxrlt("evaluate", run.path)
    assert done.code == 5
    assert "more than once" in done.err


def test_a_split_without_known_labels_cannot_be_evaluated(cxrlt: Cxrlt, tmp_path: Path) -> None:
    labels = np.full((16, 4), -1, np.int8)
    labels[:4] = 1
    prepared = factories.make_dataset(tmp_path / "data", count=16, labels=labels)
    run = factories.make_run(tmp_path / "run", prepared, weights=False)
    done = cxrlt("evaluate", run.path, "--split", "test")
    assert done.code == 3
    assert "no label is known in the split 'test'" in done.err
    assert "cxrlt predict" in done.err


def test_a_run_of_a_fold_is_evaluated_on_its_own_dev_images(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=60, folds=3)
    run = factories.make_run(tmp_path / "run", prepared, weights=False, data={"fold": 2})
    made = factories.write_logits(run, prepared, "dev", fold=2)
    done = cxrlt("evaluate", run.path, "--json")
    assert done.code == 0, done.err
    assert done.json["runs"][0]["images"] == len(made.image_id) == len(prepared.rows("dev", fold=2))


# -- predictions that are not there --------------------------------------------------------------------------------


def test_predictions_are_made_when_there_are_none(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=24)
    run = factories.make_run(tmp_path / "run", prepared)
    done = cxrlt("evaluate", run.path, "--split", "test", "--json")
    assert done.code == 0, done.err
    assert "has no predictions of the split 'test': making them" in done.err
    assert run.predictions("test").exists()
    again = cxrlt("evaluate", run.path, "--split", "test", "--json")
    assert "making them" not in again.err
    assert again.json == done.json


def test_predictions_of_earlier_weights_are_made_again(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=24)
    run = factories.make_run(tmp_path / "run", prepared)
    cxrlt("predict", run.path, "--split", "test")
    factories.rewrite_card(run.model, epoch=9, score=0.7)
    done = cxrlt("evaluate", run.path, "--split", "test")
    assert "was trained on since its predictions" in done.err
    assert "making them" not in cxrlt("evaluate", run.path, "--split", "test").err


def test_augmented_predictions_are_said_to_be_so(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=24)
    run = factories.make_run(tmp_path / "run", prepared, augment=("flip",))
    cxrlt("predict", run.path, "--split", "dev", "--tta", "flip")
    assert "test-time augmentation 'flip'" in cxrlt("evaluate", run.path).out
    assert cxrlt("evaluate", run.path, "--json").json["runs"][0]["tta"] == "flip"


def test_another_dataset_has_predictions_of_its_own(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=24)
    other = factories.make_dataset(tmp_path / "other", count=40, seed=4)
    run = factories.make_run(tmp_path / "run", prepared)
    factories.write_logits(run, prepared, "dev")
    done = cxrlt("evaluate", run.path, "--data", other.path, "--json")
    assert done.code == 0, done.err
    shown = done.json["runs"][0]
    assert shown["images"] == len(other.rows("dev"))
    assert shown["dataset"]["hash"] == other.content_hash


def test_a_run_without_a_link_is_warned_about(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    run = factories.make_run(tmp_path / "run", prepared, weights=False, linked=False)
    factories.write_logits(run, prepared, "dev")
    done = cxrlt("evaluate", run.path)
    assert done.code == 0
    assert "has no posterior link" in done.err


def test_neither_torch_nor_an_image_library_is_loaded(run: RunDir, tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from cxrlt_cli.cli import main; sys.argv = ['cxrlt', 'evaluate', sys.argv[1], '--json']; "
        "atexit.register(lambda: sys.stderr.write(' '.join({name.split('.')[0] for name in sys.modules}))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(done.stderr.split())
    assert "pyarrow" in loaded
    assert loaded & {"torch", "torchvision", "timm", "PIL", "sklearn", "scipy", "cxrlt_plugins"} == set()
    assert json.loads(done.stdout)["runs"][0]["images"] == 100


# -- several runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def second(prepared: Prepared, tmp_path: Path) -> RunDir:
    made = factories.make_run(tmp_path / "runs" / "second", prepared, weights=False)
    factories.write_logits(made, prepared, "dev", seed=7)
    return made


def test_runs_stand_side_by_side_in_the_order_given(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", second.path, run.path)
    header = next(line for line in done.out.splitlines() if "second" in line)
    assert header.split() == ["second", "first"]
    alone = [cxrlt("evaluate", path, "--json").json["runs"][0]["overall"] for path in (second.path, run.path)]
    assert [f"{figures['macro_ap']:.4f}" for figures in alone] == next(
        line.split()[1:] for line in done.out.splitlines() if line.split()[:1] == ["mAP"]
    )


def test_the_same_note_is_not_said_twice(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", run.path, second.path)
    assert done.out.count("Without a positive here") == 1
    assert done.err == ""


def test_runs_of_one_name_are_told_apart_by_their_paths(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "b" / "first")
    done = cxrlt("evaluate", "runs/first", "b/first")
    header = next(line for line in done.out.splitlines() if "b/first" in line)
    assert header.split() == ["runs/first", "b/first"]


def test_runs_on_different_images_are_flagged(cxrlt: Cxrlt, tmp_path: Path) -> None:
    prepared = factories.make_dataset(tmp_path / "data", count=60, folds=2)
    runs = []
    for fold in (0, 1):
        made = factories.make_run(tmp_path / f"fold{fold}", prepared, weights=False, data={"fold": fold})
        factories.write_logits(made, prepared, "dev", fold=fold)
        runs.append(made.path)
    done = cxrlt("evaluate", *runs, "--json")
    assert "warning: the runs were evaluated on different images" in done.err
    assert done.json["same_images"] is False


def test_runs_with_different_classes_leave_gaps(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    labels = np.tile(np.array([[1, 0], [0, 1]], np.int8), (20, 1))
    other = factories.make_dataset(tmp_path / "other", count=40, classes=("effusion", "goiter"), labels=labels)
    second = factories.make_run(tmp_path / "runs" / "other", other, weights=False)
    factories.write_logits(second, other, "dev")
    done = cxrlt("evaluate", run.path, second.path)
    assert done.code == 0, done.err
    cells = {line.split()[0]: line.split() for line in done.out.splitlines() if line.strip()}
    assert len(cells["effusion"]) == 5
    assert len(cells["goiter"]) == len(cells["nodule"]) == 4


# -- how it looks --------------------------------------------------------------------------------------------------


def test_the_headline_says_what_was_evaluated_on_what(cxrlt: Cxrlt, run: RunDir) -> None:
    first, header, _, everything, *rest = cxrlt("evaluate").out.splitlines()
    assert first == f"{Path('runs/first')}, epoch 3, on dev of data: 100 images"
    assert header.split()[-7:] == ["AUROC", "F1", "micro", "F1", "ECE", "class", "ECE"]
    assert everything.split()[:2] == ["all", "4"]
    assert [line.split(",")[0] for line in rest[:3]] == ["head", "medium", "tail"]


def test_thirty_classes_fit_a_hundred_columns(tmp_path: Path) -> None:
    from cxrlt_cli.submission import CLASSES

    prepared = factories.make_dataset(tmp_path / "data", count=120, classes=CLASSES)
    counts = {"positives": tuple(43585 // (c + 1) for c in range(30)), "negatives": (128815,) * 30}
    run = factories.make_run(tmp_path / "run", prepared, weights=False, **counts)
    factories.write_logits(run, prepared, "dev")
    lines = on_a_terminal(["evaluate", str(run.path)], columns=100)
    tables = [line for line in lines if line.startswith(("all ", "head,", "medium,", "tail,", "─", *CLASSES))]
    assert len(tables) == 4 + 2 + 30  # no row is broken over lines
    assert all(len(line) <= 100 for line in tables)


def on_a_terminal(arguments: list[str], columns: int) -> list[str]:
    """The lines of stdout on a terminal of this width."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen([sys.executable, "-m", "cxrlt_cli", *arguments], stdout=theirs, env=environment)
    os.close(theirs)
    read = b""
    try:
        while block := os.read(ours, 65536):
            read += block
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 0
    plain = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", read.decode())
    return [line.rstrip() for line in plain.replace("\r\n", "\n").splitlines()]
