"""``cxrlt ensemble`` as a user meets it, and what evaluate, predict and runs make of the result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pandas as pd
import pytest

from cxrlt_cli.artifacts import LOGIT, RunDir, read_predictions, write_json, write_predictions
from cxrlt_cli.combine import Scale, cross_combined, read_ensemble
from cxrlt_cli.commands import ensemble, predict
from cxrlt_cli.commands.opening import open_run, read_stamp, stamp
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import DataError, RunError, UsageError
from cxrlt_cli.metrics import average_precision, mean_defined

Cxrlt = Callable[..., Any]
COUNT = 240


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return factories.make_dataset(tmp_path_factory.mktemp("made") / "data", count=COUNT)


@pytest.fixture
def runs(prepared: Prepared, tmp_path: Path) -> list[Path]:
    """Three runs without networks, with predictions of dev."""
    made = []
    for number in range(3):
        run = factories.make_run(tmp_path / "runs" / f"r{number}", prepared, weights=False, score=0.5 + number / 10)
        factories.write_logits(run, prepared, "dev", seed=number)
        made.append(run.path)
    return made


def out_of_fold(prepared: Prepared, runs: list[Path], method: str) -> Any:
    """The combination by hand: the link of the factories, Platt's calibration."""
    labels, stats = prepared.labels[prepared.rows("dev")], prepared.stats(prepared.rows("train"))
    kept = [read_predictions(RunDir(run).predictions("dev")) for run in runs]
    u = np.stack([one.logits.astype(float) - np.arange(4) for one in kept])
    scales = (Scale("platt", np.array(stats.prevalence)),) * len(runs)
    return labels, cross_combined(labels, u, kept[0].patient_id, scales, method)


def macro_ap(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(mean_defined(average_precision(labels, scores)))


def test_the_gain_is_that_of_out_of_fold_scores(cxrlt: Cxrlt, runs: list[Path], prepared: Prepared) -> None:
    done = cxrlt("ensemble", *runs, "--resamples", "50", "--json")
    assert done.code == 0, done.err
    data = done.json
    labels, made = out_of_fold(prepared, runs, "greedy")
    kept = read_predictions(RunDir(Path(data["run"])).predictions("dev"))
    np.testing.assert_allclose(kept.logits, made.judged, rtol=1e-6)
    for rival, scores in (("single", made.single), ("mean", made.mean)):
        found = data["compared"][rival]["macro_ap"]
        assert found["ensemble"] == pytest.approx(macro_ap(labels, made.judged), abs=1e-9)
        assert found["rival"] == pytest.approx(macro_ap(labels, scores), abs=1e-9)
        assert found["difference"] == pytest.approx(found["ensemble"] - found["rival"])
        assert found["low"] <= found["difference"] + 0.2
        assert found["low"] <= found["high"]
        assert 0 < found["p"] <= 1
    assert [one["weight"] for one in data["members"]] == pytest.approx(made.final.weights.mean(axis=1).tolist())
    assert len(data["diversity"]) == 3
    assert Path(data["run"]).name == "ensemble-greedy"
    info = json.loads((Path(data["run"]) / "run.json").read_text())
    assert (info["kind"], info["status"], info["best"]["macro_ap"]) == ("ensemble", "finished", kept_score(data))


def kept_score(data: dict[str, Any]) -> float:
    return float(data["compared"]["single"]["macro_ap"]["ensemble"])


def test_predictions_are_enough(cxrlt: Cxrlt, runs: list[Path], prepared: Prepared, tmp_path: Path) -> None:
    """Where only tables were copied, everything that reads no image works; what reads one says which is missing."""
    shutil.copytree(prepared.path, tmp_path / "data", ignore=shutil.ignore_patterns("images"))
    for run in runs:
        info = json.loads((run / "run.json").read_text())
        write_json(run / "run.json", {**info, "dataset": {**info["dataset"], "path": str(tmp_path / "data")}})
    made = cxrlt("ensemble", *runs, "--resamples", "0", "--json")
    assert made.code == 0, made.err
    for command in (("decide",), ("evaluate", "--resamples", "0"), ("evaluate", "--gap", "--resamples", "9")):
        done = cxrlt(*command, made.json["run"])
        assert done.code == 0, done.err
    missing = cxrlt("evaluate", runs[0], "--split", "test")
    assert missing.code == 3
    assert "images/00000.npy: cannot be read" in missing.err


def test_it_is_told_in_tables_and_takes_a_split_without_torch(runs: list[Path], tmp_path: Path) -> None:
    probe = (
        "import sys\nfrom cxrlt_cli.cli import main\n"
        "for line in sys.argv[1:]:\n    sys.argv = ['cxrlt', *line.split()]\n    try:\n        main()\n"
        "    except SystemExit as end:\n        assert not end.code, end.code\n"
        "print('MODULES', *sorted({'torch', 'timm', 'sklearn'} & set(sys.modules)), file=sys.stderr)\n"
    )
    named = " ".join(f"runs/{run.name}" for run in runs)
    commands = [f"ensemble {named} --method mean --resamples 20 --out e", "evaluate e --resamples 0", "runs show e"]
    done = subprocess.run(
        [sys.executable, "-c", probe, *commands], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "MODULES"
    text = " ".join(done.stdout.split())
    assert "mAP minus best single member" in text
    assert "minus plain mean" not in text  # the plain mean is no rival of itself
    assert "mean of 3 members" in text
    assert "p: two-sided" in text
    report = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert "<dt>made by</dt><dd>ensemble (mean)</dd>" in report
    assert f"<dt>members</dt><dd>{', '.join(f'{run.name} (weight 0.333)' for run in runs)}</dd>" in report


def test_where_there_is_no_interval_a_dash_stands(cxrlt: Cxrlt, runs: list[Path]) -> None:
    done = cxrlt("ensemble", *runs, "--method", "mean", "--resamples", "1")
    assert done.code == 0, done.err
    assert "- to -" not in done.out


def test_evaluate_scores_the_out_of_fold_predictions(cxrlt: Cxrlt, runs: list[Path], prepared: Prepared) -> None:
    made = ensemble.run(runs, method="logit-mean", resamples=0).data
    assert "low" not in made["compared"]["single"]["macro_ap"]  # type: ignore[index]
    shown = cxrlt("evaluate", str(made["run"]), "--resamples", "0", "--json").json["runs"][0]
    labels, expected = out_of_fold(prepared, runs, "logit-mean")
    assert shown["overall"]["macro_ap"] == pytest.approx(macro_ap(labels, expected.judged), abs=1e-6)
    assert shown["decisions"]["how"] == "cross-fitted"
    listed = cxrlt("runs", "list", "--json").json["runs"]
    assert "ensemble-logit-mean" in {Path(row["path"]).name for row in listed}


@pytest.mark.parametrize("method", ["rank", "stacking", "weighted", "geometric"])
def test_every_method_makes_a_run(runs: list[Path], method: str) -> None:
    made = ensemble.run(runs[:2], method=method, resamples=0).data
    opened = open_run(Path(str(made["run"])))
    assert opened.ensemble is not None
    assert opened.ensemble.method == opened.ensemble.final.method == method
    assert opened.card.linked == (method != "rank")
    assert opened.dir.decisions.is_file()


# -- matching ------------------------------------------------------------------------------------------------------


def test_rows_and_columns_are_matched_by_name(runs: list[Path]) -> None:
    before = ensemble.run(runs, method="mean", resamples=0, out=runs[0].with_name("before")).data
    factories.shuffle(RunDir(runs[1]).predictions("dev"))
    after = ensemble.run(runs, method="mean", resamples=0, out=runs[0].with_name("after")).data
    assert before["compared"] == after["compared"]


def test_missing_extra_and_repeated_images_are_named(runs: list[Path]) -> None:
    path = RunDir(runs[1]).predictions("dev")
    kept = read_predictions(path)
    write_predictions(path, replace(kept, image_id=["stranger.png", *kept.image_id[1:]]))
    with pytest.raises(RunError) as error:
        ensemble.run(runs, resamples=0)
    assert f"1 are missing ({kept.image_id[0]}); 1 are not in the split (stranger.png)" in str(error.value)
    assert "r1" in error.value.where
    ids = [*kept.image_id, kept.image_id[0]]
    logits = np.concatenate([kept.logits, kept.logits[:1]])
    write_predictions(path, replace(kept, image_id=ids, patient_id=[*kept.patient_id, "p"], logits=logits))
    with pytest.raises(RunError, match="stand twice"):
        ensemble.run(runs, resamples=0, out=runs[0].with_name("other"))


def test_classes_that_differ_are_named(runs: list[Path], prepared: Prepared) -> None:
    names = ("effusion", "nodule", "mass", "other")
    odd = factories.make_run(runs[0].with_name("odd"), prepared, weights=False, classes=names)
    with pytest.raises(DataError, match="it lacks 'other'; the run does not know 'hernia'"):
        ensemble.run([runs[0], odd.path])


def test_a_member_counts_once(runs: list[Path]) -> None:
    shutil.copytree(runs[0], runs[0].with_name("copy"))
    for given, message in (
        ([runs[0]], "at least two"),
        ([runs[0], runs[1], runs[0]], "named twice"),
        ([runs[0], runs[0].with_name("copy")], "is a copy of"),
    ):
        with pytest.raises(UsageError, match=message):
            ensemble.run(given)


# -- leaks ---------------------------------------------------------------------------------------------------------


def test_a_member_of_another_fold_is_refused(cxrlt: Cxrlt, tmp_path: Path) -> None:
    folded = factories.make_dataset(tmp_path / "data", count=60, folds=3)
    made = []
    for fold in (0, 1):
        run = factories.make_run(tmp_path / f"f{fold}", folded, weights=False, data={"fold": fold}, epoch=fold + 1)
        factories.write_logits(run, folded, "dev", fold=fold)
        made.append(run.path)
    done = cxrlt("ensemble", *made)
    assert done.code == 3
    text = " ".join(done.err.split())
    assert "f1: was trained on 10 of the 10 patients of the split 'dev': p0, p12, p15, p18, p21" in text
    assert "same fold" in text
    assert not (tmp_path / "ensemble-greedy").exists()


def test_a_member_trained_on_another_dataset_with_these_patients_is_refused(runs: list[Path], tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "folded", count=COUNT, folds=2)  # fold 0 holds every dev patient
    run = factories.make_run(tmp_path / "runs" / "elsewhere", other, weights=False, data={"fold": 1})
    with pytest.raises(DataError, match=r"was trained on 30 of the 30 patients of the split 'dev': p10, p102"):
        ensemble.run([runs[0], run.path], resamples=0)


def test_a_head_is_judged_by_its_parents_patients_too(runs: list[Path], tmp_path: Path) -> None:
    folded = factories.make_dataset(tmp_path / "folded", count=COUNT, folds=2)
    parent = factories.make_run(tmp_path / "parent", folded, weights=False, data={"fold": 1})
    info = json.loads((runs[1] / "run.json").read_text())
    write_json(runs[1] / "run.json", {**info, "kind": "retrain-head", "parent": {"path": str(parent.path)}})
    with pytest.raises(DataError, match=r"through .*parent"):
        ensemble.run(runs, resamples=0)
    shutil.rmtree(parent.path)
    events: list[Any] = []
    ensemble.run(runs, method="mean", resamples=0, emit=events.append)
    assert any("cannot be checked" in getattr(event, "text", "") for event in events)


# -- the directory -------------------------------------------------------------------------------------------------


def test_the_same_again_is_not_made_again_and_another_one_is_refused(cxrlt: Cxrlt, runs: list[Path]) -> None:
    first = cxrlt("ensemble", *runs, "--method", "mean", "--resamples", "0", "--out", "e")
    assert first.code == 0, first.err
    again = cxrlt("ensemble", *runs, "--method", "mean", "--out", "e")
    assert "already made" in again.err
    other = cxrlt("ensemble", *runs[:2], "--method", "mean", "--out", "e")
    assert other.code == 5
    assert "--fresh" in other.err
    assert cxrlt("ensemble", *runs[:2], "--method", "mean", "--resamples", "0", "--out", "e", "--fresh").code == 0
    assert len(list(Path().glob("e.before-*"))) == 1
    assert cxrlt("ensemble", *runs, "--out", runs[0]).code == 2
    assert cxrlt("ensemble", *runs, "--method", "greedi").code == 2


def test_the_same_again_says_how_many_resamples_there_were(cxrlt: Cxrlt, runs: list[Path]) -> None:
    asked = ("ensemble", *runs, "--method", "mean", "--out", "e", "-q", "--resamples")
    assert cxrlt(*asked, "0").code == 0
    assert "already made" not in cxrlt(*asked, "0").err
    assert "warning: e is already made, with 0 resamples" in cxrlt(*asked, "20").err


def test_another_calibration_or_other_views_of_a_member_make_another_ensemble(
    cxrlt: Cxrlt, runs: list[Path], prepared: Prepared
) -> None:
    asked = ("ensemble", *runs, "--method", "mean", "--resamples", "0", "--out", "e")
    assert cxrlt(*asked).code == 0
    assert cxrlt("decide", runs[0], "--calibration", "temperature").code == 0
    stamp(RunDir(runs[2]).predictions("dev"), open_run(runs[2]).card, "light")
    done = cxrlt(*asked)
    assert done.code == 5
    assert "that have changed since: those of r0, r2" in " ".join(done.err.split())
    done = cxrlt(*asked, "--fresh", "--json")
    assert [one["calibration"] for one in done.json["members"]] == ["temperature", "platt", "platt"]
    assert [one["tta"] for one in done.json["members"]] == ["none", "none", "light"]
    assert "r2: its predictions of dev were made without 'none'" in " ".join(done.err.split())


def test_an_unfinished_one_is_told_from_a_training(cxrlt: Cxrlt, runs: list[Path]) -> None:
    assert cxrlt("ensemble", *runs, "--method", "mean", "--resamples", "0", "--out", "e").code == 0
    Path("e/ensemble.safetensors").unlink()
    for command in (("evaluate", "e"), ("predict", "e", "--split", "dev"), ("ensemble", "e", runs[0])):
        done = cxrlt(*command)
        assert done.code == 5
        assert "error: e: is not finished" in done.err
        assert "Run the same `cxrlt ensemble` again." in done.err


def test_a_dry_run_writes_nothing(cxrlt: Cxrlt, runs: list[Path]) -> None:
    RunDir(runs[2]).predictions("dev").unlink()
    done = cxrlt("ensemble", *runs, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert [row["predictions"] for row in done.json["members"]] == [True, True, False]
    assert not runs[0].with_name("ensemble-greedy").exists()


def test_an_ensemble_has_no_head_to_retrain(cxrlt: Cxrlt, runs: list[Path]) -> None:
    ensemble.run(runs, method="mean", resamples=0)
    done = cxrlt("retrain-head", runs[0].with_name("ensemble-mean"), "crt")
    assert done.code == 5
    assert "Name a member: r0, r1, r2." in done.err


def test_an_ensemble_may_be_a_member(runs: list[Path]) -> None:
    inner = Path(str(ensemble.run(runs[:2], method="mean", resamples=0).data["run"]))
    made = ensemble.run([inner, runs[2]], method="logit-mean", resamples=0, out=inner.with_name("outer")).data
    found = read_ensemble(inner.with_name("outer") / "ensemble.safetensors")
    assert [member.kind for member in found.members] == ["ensemble", "train"]
    assert [one["name"] for one in made["members"]] == ["ensemble-mean", "r2"]  # type: ignore[attr-defined]


# -- networks ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, list[Path], Path]:
    """Two real networks, of 32 and of 24 px, and a logit-mean of them."""
    root = tmp_path_factory.mktemp("networks")
    prepared = factories.make_dataset(root / "data", count=80)
    made = []
    for number, size in enumerate((32, 24)):
        run = factories.make_run(root / f"n{number}", prepared, image_size=size, score=0.1 * number)
        predict.run(run.path, [], split="dev")
        made.append(run.path)
    ensemble.run(made, method="stacking", resamples=0, out=root / "both")
    return prepared, made, root / "both"


def by_hand(paths: list[Path], both: Path, logits: list[np.ndarray]) -> np.ndarray:
    """What the ensemble has to say, from its members' logits."""
    u = np.stack([one.astype(float) - np.arange(4) for one in logits])
    return read_ensemble(both / "ensemble.safetensors").final(u)


def test_a_split_is_predicted_as_the_combination_of_the_members(
    networks: tuple[Prepared, list[Path], Path],
) -> None:
    prepared, members, both = networks
    predict.run(both, [], split="test")
    logits = []
    for member in members:
        predict.run(member, [], split="test")
        logits.append(read_predictions(RunDir(member).predictions("test")).logits)
    kept = read_predictions(RunDir(both).predictions("test"))
    np.testing.assert_allclose(kept.logits, by_hand(members, both, logits), rtol=1e-5, atol=1e-5)
    assert kept.image_id == prepared.frame["image_id"].iloc[prepared.rows("test")].tolist()
    assert read_stamp(RunDir(both).predictions("test"))["tta"] == "none"


def test_files_are_predicted_likewise_and_unreadable_ones_left_out(
    cxrlt: Cxrlt, networks: tuple[Prepared, list[Path], Path], tmp_path: Path
) -> None:
    _, members, both = networks
    factories.write_images(tmp_path / "images", ["a.png", "b.png", "c.png"], factories.make_pixels(3))
    (tmp_path / "images" / "b.png").write_bytes(b"no image")
    tables = []
    for run in (*members, both):
        done = cxrlt("predict", run, tmp_path / "images", "-o", f"{run.name}.csv")
        assert done.code == 3
        tables.append(pd.read_csv(f"{run.name}.csv"))
    logits = [table[[f"{name}{LOGIT}" for name in factories.CLASSES]].to_numpy() for table in tables]
    assert tables[2]["image_id"].tolist() == ["a.png", "c.png"]
    np.testing.assert_allclose(logits[2], by_hand(members, both, logits[:2]), rtol=1e-5, atol=1e-5)


def test_the_images_it_was_fitted_on_are_predicted_out_of_fold_again(
    networks: tuple[Prepared, list[Path], Path],
) -> None:
    _, _, both = networks
    path = RunDir(both).predictions("dev")
    before = read_predictions(path)
    path.unlink()
    predict.run(both, [], split="dev")
    after = read_predictions(path)
    assert after.image_id == before.image_id
    np.testing.assert_allclose(after.logits, before.logits, rtol=1e-4, atol=1e-4)


def test_a_head_that_dev_chose_keeps_its_cross_fitted_predictions_there(
    cxrlt: Cxrlt, networks: tuple[Prepared, list[Path], Path], tmp_path: Path
) -> None:
    prepared, members, _ = networks
    first, second = (RunDir(shutil.copytree(path, tmp_path / path.name)) for path in members)
    write_json(first.run_json, {**first.info(), "kind": "retrain-head", "method": "keep-best"})
    factories.write_logits(first, prepared, "dev")
    both = RunDir(tmp_path / "both")
    ensemble.run([first.path, second.path], method="mean", resamples=0, out=both.path)
    before = read_predictions(both.predictions("dev"))
    both.predictions("dev").unlink()
    done = cxrlt("predict", both.path, "--split", "dev")
    assert "is used as it is" in " ".join(done.err.split())
    np.testing.assert_allclose(read_predictions(both.predictions("dev")).logits, before.logits, rtol=1e-4, atol=1e-4)


def test_members_that_have_changed_or_gone_are_refused(
    networks: tuple[Prepared, list[Path], Path], tmp_path: Path
) -> None:
    _, members, both = networks
    root = Path(shutil.copytree(both.parent, tmp_path / "moved"))
    predict.run(root / "both", [], split="test")  # found from where they are now
    assert {member.path for member in read_ensemble(both / "ensemble.safetensors").members} == {"../n0", "../n1"}
    factories.rewrite_card(root / "n1" / "model.safetensors", epoch=9)
    with pytest.raises(RunError, match="has other weights than when"):
        predict.run(root / "both", [], split="test")
    with pytest.raises(UsageError, match="--tta auto chooses for one network"):
        predict.run(both, [], split="test", tta="auto")
    with pytest.raises(UsageError, match="needs a network trained with flip"):
        predict.run(both, [], split="test", tta="flip")
    lonely = Path(shutil.copytree(both, tmp_path / "far" / "away" / "both"))
    moved = members[1].rename(members[1].with_name("elsewhere"))
    try:
        with pytest.raises(RunError, match="the member 'n1' is not there any more"):
            predict.run(lonely, [], split="test", data=both.parent / "data")
    finally:
        moved.rename(members[1])


def test_predictions_of_other_weights_are_made_again(networks: tuple[Prepared, list[Path], Path]) -> None:
    _, members, both = networks
    path = RunDir(members[0]).predictions("dev")
    before = read_predictions(path).logits
    stamp(path, replace(open_run(members[0]).card, epoch=1), "none")
    write = replace(read_predictions(path), logits=before + 1)
    write_predictions(path, write)
    stamp(path, replace(open_run(members[0]).card, epoch=1), "none")
    events: list[Any] = []
    ensemble.run(members, method="mean", resamples=0, out=both.with_name("again"), emit=events.append)
    assert any("was trained on since its predictions" in getattr(event, "text", "") for event in events)
    np.testing.assert_allclose(read_predictions(path).logits, before, rtol=1e-5)


def test_unreadable_predictions_are_made_again(networks: tuple[Prepared, list[Path], Path]) -> None:
    _, members, both = networks
    path = RunDir(members[0]).predictions("dev")
    before = read_predictions(path).logits
    path.write_bytes(b"no table")
    events: list[Any] = []
    ensemble.run(members, method="mean", resamples=0, out=both.with_name("unreadable"), emit=events.append)
    assert any("has unreadable predictions of the split 'dev'" in getattr(event, "text", "") for event in events)
    np.testing.assert_allclose(read_predictions(path).logits, before, rtol=1e-5)


def test_members_of_datasets_of_other_sizes_meet_on_the_larger_one(tmp_path: Path) -> None:
    made = []
    for size in (24, 32):
        prepared = factories.make_dataset(tmp_path / f"d{size}", count=60, size=size)
        run = factories.make_run(tmp_path / f"n{size}", prepared, image_size=size, score=size / 100)
        predict.run(run.path, [], split="dev")
        made.append(run.path)
    done = ensemble.run(made, method="mean", resamples=0).data
    assert done["dataset"]["path"] == str(tmp_path / "d32")  # type: ignore[index]
    predict.run(Path(str(done["run"])), [], split="test")


def test_decisions_on_dev_wait_for_predictions_of_the_same_views(
    networks: tuple[Prepared, list[Path], Path],
) -> None:
    _, members, both = networks
    dev = RunDir(members[0]).predictions("dev")
    stamp(dev, open_run(members[0]).card, "light")
    try:
        ensemble.run(members, method="mean", split="test", resamples=0, out=both.with_name("other-views"))
    finally:
        stamp(dev, open_run(members[0]).card, "none")
    assert not RunDir(both.with_name("other-views")).predictions("dev").exists()


def test_combined_on_test_it_is_decided_on_dev(networks: tuple[Prepared, list[Path], Path]) -> None:
    _, members, both = networks
    out = both.with_name("on-test")
    ensemble.run(members, method="mean", split="test", resamples=0, out=out)
    made, kept = open_run(out), [read_predictions(RunDir(member).predictions("dev")).logits for member in members]
    assert made.dir.decisions.is_file()
    np.testing.assert_allclose(
        read_predictions(made.dir.predictions("dev")).logits, by_hand(members, out, kept), rtol=1e-5, atol=1e-5
    )
