from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference

from cxrlt_cli.artifacts import RunDir, read_predictions, write_predictions
from cxrlt_cli.commands.evaluate import Settings, evaluated
from cxrlt_cli.commands.evaluate.of_run import Asked
from cxrlt_cli.data.manifest import Prepared, content_hash, load_prepared
from cxrlt_cli.decisions import cross_fitted

Cxrlt = Callable[..., Any]
COUNT = 400


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


def decided(run: RunDir, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated posteriors and default decisions of dev, each patient judged by the others."""
    labels, _, posteriors = truth(run, prepared)
    prevalence = prepared.stats(prepared.rows("train")).prevalence
    patients = read_predictions(run.predictions("dev")).patient_id
    return cross_fitted(labels, np.log(posteriors / (1 - posteriors)), patients, prevalence=prevalence)


# -- the figures ---------------------------------------------------------------------------------------------------


def test_figures_of_classes_are_scikit_learns(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    shown = cxrlt("evaluate", run.path, "--json").json["runs"][0]["classes"]
    labels, logits, _ = truth(run, prepared)
    posteriors, decisions = decided(run, prepared)
    for index, name in enumerate(factories.CLASSES[:3]):
        known = labels[:, index] >= 0
        label, logit, decision = labels[known, index], logits[known, index], decisions[known, index]
        row = shown[index]
        assert row["name"] == name
        assert row["positives"] == label.sum()
        assert row["negatives"] == (label == 0).sum()
        assert row["ap"] == pytest.approx(reference.average_precision_score(label, logit), abs=1e-12)
        assert row["auroc"] == pytest.approx(reference.roc_auc_score(label, logit), abs=1e-12)
        assert row["f1"] == pytest.approx(reference.f1_score(label, decision), abs=1e-12)
        at_half = posteriors[known, index] >= 0.5
        assert row["f1_at_half"] == pytest.approx(reference.f1_score(label, at_half), abs=1e-12)
        assert row["brier"] == pytest.approx(reference.brier_score_loss(label, posteriors[known, index]), abs=1e-9)


def test_overall_figures_are_scikit_learns(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    one = cxrlt("evaluate", run.path, "--json").json["runs"][0]
    labels, logits, posteriors = truth(run, prepared)
    decisions = decided(run, prepared).decisions
    known = labels >= 0
    columns = [(labels[k, c], logits[k, c]) for c, k in enumerate(known.T) if (labels[:, c] == 1).any()]
    aps = [reference.average_precision_score(*column) for column in columns]
    areas = [reference.roc_auc_score(*column) for column in columns]
    micro = reference.f1_score(labels[known] == 1, decisions[known])
    plain = reference.f1_score(labels[known] == 1, posteriors[known] >= 0.5)
    overall = one["overall"]
    assert overall["macro_ap"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert overall["macro_auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert overall["micro_f1"] == pytest.approx(micro, abs=1e-12)
    assert one["before_calibration"]["micro_f1_at_half"] == pytest.approx(plain, abs=1e-12)
    assert one["decisions"] == {"how": "cross-fitted", "calibration": "platt", "threshold": "expected-f1"}
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
    factories.shuffle(run.predictions("dev"))
    assert cxrlt("evaluate", run.path, "--json").json == before


def test_a_dataset_with_its_classes_in_another_order_gives_the_same(
    cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path
) -> None:
    order = [3, 1, 0, 2]
    names = [factories.CLASSES[c] for c in order]
    other = factories.make_dataset(tmp_path / "data", count=COUNT, classes=names, labels=prepared.labels[:, order])
    figures = []
    for data in (prepared, other):
        counts = {"positives": (90, 60, 20, 4), "negatives": (110, 140, 180, 196)}
        run = factories.make_run(tmp_path / data.classes[0], data, weights=False, classes=factories.CLASSES, **counts)
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
    assert ", on dev (fold 2) of data: 20 images" in cxrlt("evaluate", run.path, "--resamples", 0).out


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
    assert "test-time augmentation 'flip'" in cxrlt("evaluate", run.path, "--tta", "flip").out
    assert cxrlt("evaluate", run.path, "--tta", "flip", "--json").json["runs"][0]["tta"] == "flip"


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
        "import atexit, sys; from cxrlt_cli.cli import main; "
        "sys.argv = ['cxrlt', 'evaluate', sys.argv[1], '--json', '--no-report']; "
        "atexit.register(lambda: sys.stderr.write(' '.join({name.split('.')[0] for name in sys.modules}))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    loaded = set(done.stderr.split())
    assert "pyarrow" in loaded
    assert loaded & {"torch", "torchvision", "timm", "PIL", "sklearn", "cxrlt_plugins"} == set()
    assert json.loads(done.stdout)["runs"][0]["images"] == 100


# -- several runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def second(prepared: Prepared, tmp_path: Path) -> RunDir:
    made = factories.make_run(tmp_path / "runs" / "second", prepared, weights=False)
    factories.write_logits(made, prepared, "dev", seed=7)
    return made


def test_runs_stand_side_by_side_in_the_order_given(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", second.path, run.path, "--resamples", 0)
    rows = [line.split() for line in done.out.splitlines() if line.split()[:1] in (["second"], ["first"])]
    assert [row[0] for row in rows] == ["second", "first"]
    alone = [cxrlt("evaluate", path, "--json").json["runs"][0]["overall"] for path in (second.path, run.path)]
    assert [row[1] for row in rows] == [f"{figures['macro_ap']:.3f}"[1:] for figures in alone]


def test_the_same_note_is_not_said_twice(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", run.path, second.path)
    assert done.out.count("Without a positive here") == 1
    assert done.err == ""


def test_runs_of_one_name_are_told_apart_by_their_paths(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "b" / "first")
    done = cxrlt("evaluate", "runs/first", "b/first", "--resamples", 20)
    assert [
        line.split()[0] for line in done.out.splitlines() if "first [" in line or line[:7] in ("runs/fi", "b/first")
    ][:2] == ["runs/first", "b/first"]


def test_runs_on_different_images_are_flagged(cxrlt: Cxrlt, tmp_path: Path) -> None:
    labels = np.zeros((60, 4), np.int8)
    labels[:8], labels[20:23, 0] = 1, 1  # of "effusion" 5 in fold 0 and 6 in fold 1
    prepared = factories.make_dataset(tmp_path / "data", count=60, folds=2, labels=labels)
    runs = []
    for fold in (0, 1):
        made = factories.make_run(tmp_path / f"fold{fold}", prepared, weights=False, data={"fold": fold})
        factories.write_logits(made, prepared, "dev", fold=fold)
        runs.append(made.path)
    done = cxrlt("evaluate", *runs, "--json")
    assert "warning: the runs were evaluated on different images" in done.err
    assert done.json["same_images"] is False
    assert done.json["comparisons"] == []
    assert cxrlt("evaluate", *runs, "--report", "both.html").code == 0
    assert re.search(r"effusion +head +5 to 6 ", cxrlt("evaluate", *runs).out)
    assert re.search(r"effusion +5 to 6 ", re.sub(r"<[^>]*>|\s", " ", Path("both.html").read_text(encoding="utf-8")))


def test_runs_with_different_classes_leave_gaps(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    labels = np.tile(np.array([[1, 0], [0, 1]], np.int8), (20, 1))
    other = factories.make_dataset(tmp_path / "other", count=40, classes=("effusion", "goiter"), labels=labels)
    second = factories.make_run(tmp_path / "runs" / "other", other, weights=False)
    factories.write_logits(second, other, "dev")
    done = cxrlt("evaluate", run.path, second.path)
    assert done.code == 0, done.err
    rows = [re.split(" {2,}", line.strip()) for line in done.out.splitlines()]
    cells = {row[0]: row for row in rows}
    assert len(cells["effusion"]) == 5
    assert len(cells["goiter"]) == len(cells["nodule"]) == 4
    assert "difference" not in done.out


# -- intervals, differences, subsets -------------------------------------------------------------------------------


def test_everything_has_an_interval(cxrlt: Cxrlt, run: RunDir) -> None:
    one = cxrlt("evaluate", run.path, "--resamples", 200, "--json").json["runs"][0]
    assert set(one["intervals"]) == set(one["overall"])
    assert {name: set(figures) for name, figures in one["group_intervals"].items()} == {
        name: set(figures) - {"classes"} for name, figures in one["groups"].items()
    }
    first, absent = one["classes"][0], one["classes"][3]
    for name in ("ap", "auroc", "f1", "precision", "recall", "f1_at_half", "brier", "slope", "intercept"):
        low, high = first["intervals"][name]
        assert low <= first[name] <= high
    assert first["undefined_resamples"] == {}
    assert absent["intervals"]["ap"] == [None, None]
    assert absent["undefined_resamples"]["ap"] == 1
    assert one["patients"] == 50
    assert set(one["bias"]) == {"macro_ap", "ece", "macro_ece"}
    assert set(one["group_bias"]) == set(one["groups"])


def test_figures_before_calibration_have_intervals_too(cxrlt: Cxrlt, run: RunDir) -> None:
    one = cxrlt("evaluate", run.path, "--resamples", 100, "--json").json["runs"][0]
    figures, intervals = one["before_calibration"], one["before_calibration_intervals"]
    assert set(figures) == set(intervals)
    for name, (low, high) in intervals.items():
        assert low <= figures[name] <= high, name
    assert intervals["ece"] != one["intervals"]["ece"]
    line = next(line for line in cxrlt("evaluate", run.path).out.splitlines() if "Before calibration" in line)
    assert line.count("[") == 3
    assert "before_calibration_intervals" not in cxrlt("evaluate", run.path, "--resamples", 0, "--json").json["runs"][0]


def test_the_seed_decides_the_intervals_and_nothing_else(cxrlt: Cxrlt, run: RunDir) -> None:
    first, again, other = (
        cxrlt("evaluate", run.path, "--resamples", 50, "--seed", seed, "--json").json["runs"][0] for seed in (1, 1, 2)
    )
    assert first == again
    assert first["overall"] == other["overall"]
    assert first["intervals"]["macro_ap"] != other["intervals"]["macro_ap"]


def test_no_resamples_mean_no_intervals(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", run.path, second.path, "--resamples", 0, "--json").json
    assert "intervals" not in done["runs"][0]
    assert "intervals" not in done["runs"][0]["classes"][0]
    assert done["comparisons"] == []
    shown = cxrlt("evaluate", run.path, "--resamples", 0).out
    assert "[" not in shown
    assert "In brackets" not in shown


def test_runs_are_compared_with_the_first_in_pairs(cxrlt: Cxrlt, run: RunDir, second: RunDir) -> None:
    done = cxrlt("evaluate", run.path, second.path, "--resamples", 300, "--json").json
    (compared,) = done["comparisons"]
    assert (compared["run"], compared["minus"]) == (str(second.path), str(run.path))
    values = [one["overall"]["macro_ap"] for one in done["runs"]]
    found = compared["overall"]["macro_ap"]
    assert found["value"] == pytest.approx(values[1] - values[0], abs=1e-12)
    assert found["low"] < found["value"] < found["high"]
    assert 1 / 301 <= found["p"] <= 1
    assert 0 < found["detectable"] < 1
    rows = {row["name"]: row["ap"] for row in compared["classes"]}
    ps = sorted((row["p"], row["p_holm"]) for row in rows.values() if row["p"] is not None)
    assert ps[0][1] == pytest.approx(min(1, 3 * ps[0][0]))  # three classes have positives
    assert rows["hernia"] == dict.fromkeys(("value", "low", "high", "p", "detectable", "p_holm"))


def test_differences_of_hardly_any_positives_stay_between_minus_1_and_1(cxrlt: Cxrlt, tmp_path: Path) -> None:
    labels = np.zeros((COUNT, 2), np.int8)
    labels[::2, 0] = labels[4, 1] = labels[13, 1] = 1  # two patients of dev
    prepared = factories.make_dataset(tmp_path / "data", count=COUNT, classes=("effusion", "hernia"), labels=labels)
    for name, of_hernia in (("first", (9, -9)), ("second", (-9, 8))):
        run = factories.make_run(tmp_path / name, prepared, weights=False)
        made = factories.write_logits(run, prepared, "dev")
        made.logits[labels[prepared.rows("dev"), 1] == 1, 1] = of_hernia
        write_predictions(run.predictions("dev"), made)
    asked = ("evaluate", "first", "second", "--resamples", 100)
    (compared,) = cxrlt(*asked, "--json").json["comparisons"]
    found = compared["classes"][1]["ap"]
    assert -1 == found["low"] < found["value"] < found["high"] == 1
    assert found["detectable"] > 1
    shown = next(line for line in cxrlt(*asked).out.splitlines() if line.startswith("hernia"))
    assert re.search(r"\[-1\.00, 1\.00\] +>1 ", shown)


def test_a_run_and_its_copy_do_not_differ(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    (compared,) = cxrlt("evaluate", run.path, tmp_path / "copy", "--resamples", 100, "--json").json["comparisons"]
    assert all(found["value"] == 0 and found["p"] == 1 for found in compared["overall"].values())


def test_subsets_go_by_view_and_by_the_columns_of_the_source(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    one = cxrlt("evaluate", run.path, "--resamples", 20, "--json").json["runs"][0]
    by_view = {part["value"]: part for part in one["subsets"] if part["by"] == "view"}
    assert set(by_view) == {"AP", "PA"}
    labels, logits, _ = truth(run, prepared)
    chosen = prepared.frame["view"].iloc[prepared.rows("dev")].eq("PA").to_numpy(bool)
    columns = [(labels[chosen, c], logits[chosen, c]) for c in range(4)]
    aps = [reference.average_precision_score(y[y >= 0], s[y >= 0]) for y, s in columns if (y == 1).any()]
    assert by_view["PA"]["images"] == chosen.sum() == 50
    assert by_view["PA"]["overall"]["macro_ap"] == pytest.approx(np.mean(aps), abs=1e-12)
    assert by_view["PA"]["intervals"]["macro_ap"][0] < np.mean(aps)


def test_patients_seen_in_training_are_a_subset(cxrlt: Cxrlt, prepared: Prepared, tmp_path: Path) -> None:
    """Where a published split shares patients: here the first ten dev patients are ten of train."""
    shutil.copytree(prepared.path, tmp_path / "data")
    table = pq.read_table(tmp_path / "data" / "manifest.parquet")
    patients = np.array(table["patient_id"].to_pylist(), object)
    patients[prepared.rows("dev")[:20]] = patients[prepared.rows("train")[:20]]
    at = table.column_names.index("patient_id")
    table = table.set_column(at, table.field(at), pa.array(patients, table.field(at).type))
    info = {k: v for k, v in json.loads((prepared.path / "dataset.json").read_text()).items() if k != "content_hash"}
    pq.write_table(table, tmp_path / "data" / "manifest.parquet")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**info, "content_hash": content_hash(table, info)}))
    shared = load_prepared(tmp_path / "data")
    made = factories.make_run(tmp_path / "runs" / "shared", shared, weights=False)
    factories.write_logits(made, shared, "dev")
    one = cxrlt("evaluate", made.path, "--resamples", 20, "--json").json["runs"][0]
    parts = {part["value"]: part for part in one["subsets"] if part["by"] == "patient"}
    assert {value: (part["images"], part["patients"]) for value, part in parts.items()} == {
        "seen in training": (20, 10),
        "unseen": (80, 40),
    }
    labels, logits = shared.labels[shared.rows("dev")][20:], read_predictions(made.predictions("dev")).logits[20:]
    known = [(labels[labels[:, c] >= 0, c], logits[labels[:, c] >= 0, c]) for c in range(4)]
    aps = [reference.average_precision_score(*column) for column in known if (column[0] == 1).any()]
    assert parts["unseen"]["overall"]["macro_ap"] == pytest.approx(np.mean(aps), abs=1e-12)


def test_predictions_with_another_augmentation_are_scored(cxrlt: Cxrlt, run: RunDir, prepared: Prepared) -> None:
    plain = cxrlt("evaluate", run.path, "--resamples", 0, "--json").json["runs"][0]["overall"]["macro_ap"]
    kept = read_predictions(run.predictions("dev"))
    write_predictions(run.predictions("dev", "flip"), replace(kept, logits=kept.logits[::-1].copy()))
    flipped = cxrlt("evaluate", run.path, "--tta", "flip", "--resamples", 0, "--json").json["runs"][0]
    assert flipped["overall"]["macro_ap"] != plain
    assert cxrlt("evaluate", run.path, "--resamples", 0, "--json").json["runs"][0]["overall"]["macro_ap"] == plain


def test_scored_carries_what_a_report_needs(run: RunDir, prepared: Prepared) -> None:
    (scored,) = evaluated([run.path], Asked(), Settings(resamples=10))
    labels, logits, posteriors = truth(run, prepared)
    np.testing.assert_array_equal(scored.of.labels, labels)
    np.testing.assert_array_equal(scored.of.scores, logits)
    np.testing.assert_allclose(scored.of.uncalibrated, posteriors, atol=1e-12)
    np.testing.assert_array_equal(scored.of.decisions, decided(run, prepared).decisions)
    assert len(scored.of.image_id) == len(scored.of.view) == len(scored.of.patient_id) == 100
    assert scored.replicates.resamples == 10


# -- how it looks --------------------------------------------------------------------------------------------------


def test_the_headline_says_what_was_evaluated_on_what(cxrlt: Cxrlt, run: RunDir) -> None:
    first, header, _, everything, *rest = cxrlt("evaluate").out.splitlines()
    assert first == f"{Path('runs/first')}, epoch 3, on dev of data: 100 images"
    assert header.split() == ["training", "prevalence", "classes", "mAP", "chance", "AUROC", "F1"]
    assert everything.split()[:2] == ["all", "4"]
    assert [line.split(",")[0] for line in rest[:4]] == ["head", "medium", "tail", "rare"]
    assert "In brackets: 95 % intervals from 1,000 resamples of 50 patients." in rest


def test_a_figure_and_its_interval_share_a_cell(cxrlt: Cxrlt, run: RunDir) -> None:
    one = cxrlt("evaluate", run.path, "--json").json["runs"][0]
    line = next(line for line in cxrlt("evaluate", run.path).out.splitlines() if line.startswith("all "))
    value, (low, high) = one["overall"]["macro_ap"], one["intervals"]["macro_ap"]
    assert low < value < high
    assert (
        f" {value:.3f} [{low:.3f}-{high:.3f}] ".replace(" 0.", " .").replace("[0.", "[.").replace("-0.", "-.") in line
    )


def test_thirty_classes_fit_a_hundred_columns(tmp_path: Path) -> None:
    from cxrlt_cli.submission import CLASSES

    prepared = factories.make_dataset(tmp_path / "data", count=120, classes=CLASSES)
    counts = {"positives": tuple(43585 // (c + 1) for c in range(30)), "negatives": (128815,) * 30}
    run = factories.make_run(tmp_path / "run", prepared, weights=False, **counts)
    factories.write_logits(run, prepared, "dev")
    rows = ("all ", "head,", "medium,", "tail,", "rare,", "─", *CLASSES)
    lines = on_a_terminal(["evaluate", str(run.path), "--resamples", "50"], columns=100)
    tables = [line for line in lines if line.startswith(rows)]
    subsets = [line for line in lines if line.startswith("view ")]
    assert len(tables) == 5 + 5 + 30 + 4  # no row is broken over lines
    assert len(subsets) == 2
    assert all(len(line) <= 100 for line in tables + subsets)
    assert sum("mAP comes out too high" in line for line in lines) == 2  # below the first table, and that of subsets
    other = factories.make_run(tmp_path / "a_longer_name", prepared, weights=False, **counts)
    factories.write_logits(other, prepared, "dev", seed=2)
    lines = on_a_terminal(["evaluate", str(run.path), str(other.path), "--resamples", "50"], columns=100)
    compared = [line for line in lines if line.startswith((*CLASSES, "a_longer_name", "run "))]
    assert len(compared) == 30 + 2 + 1 + 7
    assert all(len(line) <= 100 for line in compared)


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
