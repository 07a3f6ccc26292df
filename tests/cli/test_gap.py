"""``cxrlt evaluate --gap`` as users meet it: the waterfall, where its inputs are from, and what is not estimated."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pytest

from cxrlt_cli.artifacts import RunDir, read_predictions, write_lines, write_predictions
from cxrlt_cli.commands import decide
from cxrlt_cli.commands.evaluate import gap_kept, gap_run
from cxrlt_cli.commands.evaluate.gap_show import gap_waterfall
from cxrlt_cli.commands.learned_from import seen
from cxrlt_cli.commands.opening import open_run
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.events import silent
from cxrlt_cli.gap import COMPONENTS
from cxrlt_cli.metrics import average_precision, mean_defined

Cxrlt = Callable[..., Any]
COUNT = 400
KEPT = 3  # the epoch of ``factories.make_card``


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    """A dataset, and a run on it with predictions of dev and test and with its epochs; tests copy the run."""
    root = tmp_path_factory.mktemp("gap")
    prepared = factories.make_dataset(root / "data", count=COUNT)
    run = factories.make_run(root / "run", prepared, weights=False)
    kept = factories.write_logits(run, prepared, "dev").logits
    factories.write_logits(run, prepared, "test", seed=1)
    rng = np.random.default_rng(0)
    write_epochs(run, prepared, [kept + rng.normal(size=kept.shape).astype(np.float32) for _ in range(2)] + [kept])
    return prepared, run.path


def write_epochs(run: RunDir, prepared: Prepared, logits: list[Any]) -> None:
    """What training keeps of its epochs."""
    labels, lines = prepared.labels[prepared.rows("dev")], []
    for epoch, each in enumerate(logits, start=1):
        run.epoch_logits(epoch).parent.mkdir(parents=True, exist_ok=True)
        np.save(run.epoch_logits(epoch), each)
        lines.append({"epoch": epoch, "macro_ap": float(mean_defined(average_precision(labels, each)))})
    write_lines(run.metrics, lines)


def step(outcome: Any, name: str, figure: str = "macro_ap") -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in outcome["gap"][figure]["steps"] if each["name"] == name)
    return found


def test_the_waterfall_adds_up_and_meets_the_test_score(cxrlt: Cxrlt, run: RunDir) -> None:
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "100", "--json").json
    for figure in told["gap"].values():
        changes = [each["change"] or 0 for each in figure["steps"]]
        assert [each["name"] for each in figure["steps"]] == list(COMPONENTS)
        assert figure["start"] + sum(changes) == pytest.approx(figure["expected"])
        assert all(each["why"] for each in figure["steps"] if each["change"] is None)
        assert figure["observed"] is not None
    assert told["gap"]["macro_ap"]["observed_inside"]
    assert step(told, "checkpoint")["change"] <= 0
    assert step(told, "checkpoint", "macro_f1")["low"] <= step(told, "checkpoint", "macro_f1")["high"]
    assert sum(told["epochs_chosen"]) == pytest.approx(1)
    assert step(told, "patients")["why"] == "0 by construction: no patient of these images is in training"
    assert step(told, "labels")["change"] is None


def test_people_read_it_from_top_to_bottom(cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("evaluate", run.path, "--gap", "--resamples", "50")
    assert done.code == 0
    shown = [line.strip() for line in done.out.splitlines()]
    order = ["on dev", "best epoch chosen here", "prevalence as in test", "expected on test", "observed on test"]
    places = [next(row for row, line in enumerate(shown) if line.startswith(start)) for start in order]
    assert places == sorted(places)
    assert "exact labels: not estimated: no exact labels are known; give them with --exact-labels." in done.out
    assert max(len(line) for line in shown if "  " in line) <= 100  # the tables; sentences wrap by themselves


def test_no_torch_is_loaded(run: RunDir, prepared: Prepared) -> None:
    code = "import sys; from cxrlt_cli.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    arguments = ["evaluate", str(run.path), "--gap", "--resamples", "20", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["target"] == "test"


def test_exact_labels_from_a_table(cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path) -> None:
    """A reader who disagrees about every third image of dev with effusion."""
    rows = prepared.rows("dev")
    effusion = prepared.labels[rows, 0].copy()
    effusion[np.flatnonzero(effusion == 1)[::3]] = 0
    names = prepared.frame["image_id"].iloc[rows].tolist()
    table = tmp_path / "exact.csv"
    table.write_text("image_id,effusion\n" + "".join(f"{n},{v}\n" for n, v in zip(names, effusion, strict=True)))
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "50", "--exact-labels", table, "--json").json
    assert step(told, "labels")["change"] < -0.01
    assert told["notes"][0] == f"exact labels: {table}"
    assert told["classes"] == ["effusion"]
    shown = cxrlt("evaluate", run.path, "--gap", "--resamples", "20", "--exact-labels", table, "--no-report")
    assert "from dev to test, 1 class\n" in shown.out
    assert "or no exact labels of both kinds; or none in test): nodule, mass, hernia." in shown.out
    assert (
        "There are exact labels for no image of test; elsewhere those of the dataset are taken for exact." in shown.out
    )
    table.write_text("image_id,effusion,mass\n" + "".join(f"{n},0,0.5\n" for n in names))
    refused = cxrlt("evaluate", run.path, "--gap", "--exact-labels", table)
    assert refused.code == 3
    assert "the column of the class 'mass' does not hold labels, but '0.5', for instance" in refused.err
    table.write_text("image_id,oedema\n" + "".join(f"{n},0\n" for n in names))
    refused = cxrlt("evaluate", run.path, "--gap", "--exact-labels", table)
    assert refused.code == 3
    assert "holds no column of labels for a class of the run" in refused.err


@pytest.fixture
def elsewhere(prepared: Prepared, tmp_path: Path) -> RunDir:
    """A run on another dataset, whose training images show two of three patients of ``prepared``: better known ones."""
    folded = factories.make_dataset(tmp_path / "folded", count=COUNT, folds=3)
    run = factories.make_run(tmp_path / "elsewhere", folded, weights=False, data={"fold": 0})
    for seed, split in enumerate(("dev", "test")):
        kept = factories.write_logits(run, prepared, split, seed=seed)
        seen = np.array([int(name[1:]) % 3 > 0 for name in kept.patient_id])
        labels = prepared.labels[prepared.rows(split)]
        better = replace(kept, logits=(kept.logits + 4 * labels * seen[:, None]).astype(np.float32))
        write_predictions(open_run(run.path).predictions(prepared, split, None), better)
        run.predictions(split).unlink()
    return run


def test_patients_seen_in_training(cxrlt: Cxrlt, prepared: Prepared, elsewhere: RunDir) -> None:
    """Of another dataset, dev is scored without the patients the run has learned from, and so is test."""
    asked = ("evaluate", elsewhere.path, "--gap", "--data", prepared.path, "--resamples", "50", "--no-report")
    told = cxrlt(*asked, "--json").json
    assert step(told, "patients")["change"] < -0.02
    assert step(told, "patients", "macro_auroc")["change"] < -0.02
    assert told["gap"]["macro_ap"]["observed_inside"]
    assert "66 of the 100 images of test are of patients in training: left out" in told["notes"]
    found = cxrlt("evaluate", elsewhere.path, "--data", prepared.path, "--resamples", "0", "--no-report", "--json").json
    patients = {each["value"] for each in found["runs"][0]["subsets"] if each["by"] == "patient"}
    assert patients == {"seen in training", "unseen"}


def test_patients_of_another_dataset_without_that_of_training(
    cxrlt: Cxrlt, prepared: Prepared, elsewhere: RunDir
) -> None:
    (elsewhere.path.parent / "folded").rename(elsewhere.path.parent / "gone")
    asked = ("evaluate", elsewhere.path, "--gap", "--data", prepared.path, "--resamples", "20", "--no-report")
    told = cxrlt(*asked, "--json").json
    assert step(told, "patients")["change"] is None
    assert "the dataset the run was trained on is not at hand" in step(told, "patients")["why"]


def test_another_dataset_without_a_patient_of_training(
    cxrlt: Cxrlt, prepared: Prepared, elsewhere: RunDir, tmp_path: Path
) -> None:
    """Patients of other datasets are told by their identifiers, and those of their images."""
    mine = open_run(elsewhere.path)
    names = [f"q{k}" for k in range(4)]
    assert not np.asarray(seen(mine, prepared, ["a", "b", "c", "d"], names)).any()
    known = seen(mine, prepared, ["a", "image_002.png", "c", "d"], ["q", "q", "p1", ""])
    assert known is not None
    assert known.tolist() == [True, True, True, False]  # image_002 is of p1, who is in training


def test_exact_labels_of_reported_findings_only(cxrlt: Cxrlt, run: RunDir, prepared: Prepared, tmp_path: Path) -> None:
    rows = prepared.rows("dev")
    names = prepared.frame["image_id"].iloc[rows].to_numpy()[prepared.labels[rows, 0] == 1]
    table = tmp_path / "again.csv"
    table.write_text("image_id,effusion\n" + "".join(f"{name},{k % 2}\n" for k, name in enumerate(names)))
    done = cxrlt("evaluate", run.path, "--gap", "--exact-labels", table)
    assert done.code == 3
    assert "and exact labels of both kinds" in " ".join(done.err.split())


def test_a_stated_prevalence(cxrlt: Cxrlt, run: RunDir) -> None:
    def asked(share: str) -> Any:
        stated = ("--target-prevalence", f"effusion={share},nodule=0.3")
        return cxrlt("evaluate", run.path, "--gap", "--resamples", "50", "--json", *stated).json

    low, high = asked("0.1"), asked("0.9")
    assert step(low, "prevalence")["change"] < 0 < step(high, "prevalence")["change"]
    assert step(low, "prevalence", "macro_auroc")["change"] == pytest.approx(0, abs=1e-12)
    assert "prevalence of test: as stated" in low["notes"]


def test_a_target_without_labels(cxrlt: Cxrlt, tmp_path: Path) -> None:
    """Its prevalence is estimated from predictions where these are there, and said to be unknown where not."""
    whole = factories.make_dataset(tmp_path / "whole", count=COUNT)
    labels = whole.labels.copy()
    labels[whole.rows("test")] = -1
    prepared = factories.make_dataset(tmp_path / "data", count=COUNT, labels=labels)
    run = factories.make_run(tmp_path / "runs" / "blind", prepared, weights=False)
    factories.write_logits(run, prepared, "dev")
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "50", "--json").json
    assert step(told, "prevalence")["change"] is None
    assert "cxrlt predict RUN --split test" in step(told, "prevalence")["why"]
    asked = cxrlt("evaluate", run.path, "--gap", "--resamples", "20", "--target-prevalence", "estimate", "--json").json
    assert step(asked, "prevalence")["why"].startswith("no predictions of test are there")
    assert told["gap"]["macro_ap"]["observed"] is None
    assert told["gap"]["macro_ap"]["prediction"] is not None  # how many images there are is known
    factories.write_logits(run, prepared, "test", seed=1)
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "50", "--json").json
    assert step(told, "prevalence")["change"] is not None
    assert "prevalence of test: estimated from its predictions" in told["notes"]


@pytest.mark.parametrize("harm", ["absent", "of another training", "damaged", "average"])
def test_epochs_that_cannot_be_used(harm: str, cxrlt: Cxrlt, run: RunDir) -> None:
    first = run.epoch_logits(1)
    if harm == "absent":
        first.unlink()
    elif harm == "of another training":
        np.save(first, -np.load(first))
    elif harm == "damaged":
        first.write_bytes(first.read_bytes()[:200])
    else:
        run.run_json.write_text(json.dumps({**run.info(), "average": {"kind": "swa", "epochs": [1, 2]}}))
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "20", "--json").json
    assert step(told, "checkpoint")["change"] is None
    assert ("average of epochs" if harm == "average" else "dev-epochs") in step(told, "checkpoint")["why"]
    assert told["epochs_chosen"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--resamples", "1"), "1 resamples are too few for --gap"),
        (("--split", "test"), "'test' is on both sides of the gap"),
        (("--target", "tset"), "there is no split 'tset'"),
        (("--target", "dev"), "'dev' is on both sides of the gap\nGive two different splits."),
        (("second",), "--gap takes one run"),
        (("--labels", "exact.csv"), "--gap is about a run"),
        (("--target-prevalence", "efusion=0.1"), "Did you mean 'effusion'?"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], message: str, cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("evaluate", run.path, *arguments, "--gap")
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("option", ["--target=test", "--exact-labels=exact.csv", "--target-prevalence=estimate"])
def test_its_options_are_refused_without_it(option: str, cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("evaluate", run.path, option)
    assert done.code == 2
    assert f"{option.partition('=')[0]} goes with --gap only" in done.err


def test_the_report_of_the_run_shows_the_waterfalls(cxrlt: Cxrlt, run: RunDir) -> None:
    told = cxrlt("evaluate", run.path, "--gap", "--resamples", "20", "--json").json
    assert told["report"] == str(run.report)
    text = run.report.read_text(encoding="utf-8")
    assert "What this score is worth on test" in text
    assert text.count('<div class="falls" role="img"') == len(told["gap"])
    for figure in ("macro_ap", "macro_auroc", "macro_f1"):
        one = told["gap"][figure]
        assert f"{one['start']:.3f} on dev, {one['expected']:.3f} expected, {one['observed']:.3f} observed" in text
    assert "Exact labels: not estimated: no exact labels are known" in text
    assert 'id="classes"' in text  # the evaluation itself is there, too


def worth_in(report: Path) -> str:
    """The section of a report that says what the score is worth; empty where there is none."""
    found = re.search(r'<h2 id="worth">.*?(?=<h2 )', report.read_text(encoding="utf-8"), re.S)
    return found[0] if found else ""


def test_further_reports_of_the_same_predictions_show_it_again(cxrlt: Cxrlt, run: RunDir) -> None:
    assert cxrlt("evaluate", run.path, "--gap", "--resamples", "20").code == 0
    first = worth_in(run.report)
    done = cxrlt("evaluate", run.path, "--resamples", "2")
    assert done.code == 0
    assert "gap.json" not in done.err
    added = f"<li>Found on {time.strftime('%Y-%m-%d')}.</li>\n"
    assert worth_in(run.report).replace(added, "") == first
    assert added not in first
    assert cxrlt("evaluate", run.path, "--split", "test", "--resamples", "2").code == 0
    assert not worth_in(run.path / "report.test.html")


def predict_anew(run: RunDir, prepared: Prepared) -> None:
    factories.write_logits(run, prepared, "dev", seed=5)


def decide_anew(run: RunDir, prepared: Prepared) -> None:
    assert decide.run(run.path, threshold="0.5").code == 0


def damage(run: RunDir, prepared: Prepared) -> None:
    path = run.path / "gap.json"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "says"),
    [(predict_anew, "is of other predictions"), (decide_anew, "is of other predictions"), (damage, "cannot be read")],
)
def test_a_gap_that_no_longer_holds_is_left_out(
    change: Callable[[RunDir, Prepared], None], says: str, cxrlt: Cxrlt, run: RunDir, prepared: Prepared
) -> None:
    assert cxrlt("evaluate", run.path, "--gap", "--resamples", "20").code == 0
    change(run, prepared)
    done = cxrlt("evaluate", run.path, "--resamples", "2")
    assert done.code == 0
    assert f"gap.json {says}" in " ".join(done.err.split())
    assert not worth_in(run.report)


def test_figures_without_a_value_are_kept_as_such(run: RunDir, tmp_path: Path) -> None:
    found = gap_run.explained([run.path], gap_run.Sought(), resamples=20)
    falls = dict(found.gap.waterfalls)
    falls["ece"] = replace(falls["ece"], start=float("nan"), prediction=None)
    found = replace(found, gap=replace(found.gap, waterfalls=falls), observed={**found.observed, "ece": float("nan")})
    gap_kept.keep(found, tmp_path / "report.html", silent)
    json.loads((tmp_path / "gap.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    again = gap_kept.kept(found.of, tmp_path / "report.html", silent)
    assert again is not None
    assert repr(again.gap.waterfalls) == repr(falls)  # repr, as nan is not equal to itself
    assert repr(again.observed) == repr(found.observed)


def test_the_report_can_go_elsewhere_or_nowhere(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    asked = ("evaluate", run.path, "--gap", "--resamples", "20")
    assert "report" not in cxrlt(*asked, "--no-report", "--json").json
    assert cxrlt(*asked, "--report", tmp_path / "gap.html").code == 0
    assert "is worth on test" in (tmp_path / "gap.html").read_text(encoding="utf-8")
    assert cxrlt(*asked, "--split", "test", "--target", "dev").code == 0
    assert "is worth on dev" in (run.path / "report.test.html").read_text(encoding="utf-8")
    assert not run.report.exists()
    refused = cxrlt(*asked, "--report", "gap.txt")
    assert refused.code == 2
    assert "the report is an .html file" in refused.err


def test_reports_get_the_same_numbers(run: RunDir) -> None:
    found = gap_run.explained([run.path], gap_run.Sought(), resamples=20)
    drawn = gap_waterfall(found, "macro_ap")
    assert drawn["heading"] == "mAP"
    assert drawn["expected"] == found.gap.waterfalls["macro_ap"].expected
    json.dumps(drawn, allow_nan=False)
    assert len(read_predictions(run.predictions("dev")).image_id) == COUNT // 4
