"""Decisions as users meet them: made by training, kept, found again, made anew, moved to another prevalence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import pandas as pd
import pytest

from cxrlt_cli.artifacts import LOGIT, RunDir, read_predictions
from cxrlt_cli.commands import predict
from cxrlt_cli.commands.decide import after_training
from cxrlt_cli.commands.opening import open_run, stamp
from cxrlt_cli.commands.run_decisions import Asked, decisions_of, judged
from cxrlt_cli.commands.target_prevalence import parse_target
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.decisions import cross_fitted, fit_decisions, read_decisions
from cxrlt_cli.events import Event, Notice
from cxrlt_cli.recipe.load import load_recipe
from cxrlt_cli.recipe.write import dump_recipe

Cxrlt = Callable[..., Any]
COUNT = 240


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    """A dataset and a run on it with predictions of dev; tests copy the run."""
    root = tmp_path_factory.mktemp("made")
    prepared = factories.make_dataset(root / "data", count=COUNT)
    run = factories.make_run(root / "run", prepared)
    factories.write_logits(run, prepared, "dev")
    return prepared, run.path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    factories.write_images(folder, factories.image_ids(COUNT)[:60], factories.make_pixels(60))
    return folder


def on_dev(run: RunDir, prepared: Prepared) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, log-odds and patients of dev, by hand."""
    kept = read_predictions(run.predictions("dev"))
    labels = prepared.labels[prepared.rows("dev")]
    return labels, kept.logits.astype(float) - np.arange(len(kept.classes)), kept.patient_id


def events_of(run: RunDir, **options: Any) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    return decisions_of(open_run(run.path), emit=events.append, **options), events


# -- made and kept -------------------------------------------------------------------------------------------------


def test_decide_fits_on_dev_after_the_link_and_keeps_what_it_fits(
    cxrlt: Cxrlt, run: RunDir, prepared: Prepared
) -> None:
    done = cxrlt("decide", run.path, "--json")
    assert done.code == 0, done.err
    labels, u, patients = on_dev(run, prepared)
    card = open_run(run.path).card
    right = fit_decisions(labels, u, patients, classes=card.classes, prevalence=card.stats.prevalence)
    kept = read_decisions(run.decisions)
    np.testing.assert_allclose(kept.calibrated(u), right.calibrated(u), rtol=1e-12)
    np.testing.assert_allclose(kept.thresholds, right.thresholds)
    assert kept.provenance == {
        "split": "dev",
        "dataset": prepared.content_hash,
        "images": len(labels),
        "epoch": 3,
        "score": 0.5,
        "tta": "none",
        "linked": True,
    }
    assert [row["threshold"] for row in done.json["classes"]] == kept.thresholds.tolist()


def test_decide_shows_what_every_class_got(cxrlt: Cxrlt, run: RunDir) -> None:
    done = cxrlt("decide", "--calibration", "isotonic", "--threshold", "searched-f1")
    for word in (
        "calibration isotonic, threshold searched-f1",
        "platt",
        "expected-f1",
        "effusion",
        "decisions.safetensors",
    ):
        assert word in done.out
    assert read_decisions(run.decisions).calibration.method == "isotonic"


def test_decide_says_which_prevalence_posteriors_hold_for(cxrlt: Cxrlt, run: RunDir) -> None:
    assert "expected: mean calibrated posterior" in cxrlt("decide", run.path).out
    for calibration in ("none", "temperature"):
        done = " ".join(cxrlt("decide", run.path, "--calibration", calibration).out.split())
        assert "expected: share of positives in training, which these posteriors hold for" in done
        np.testing.assert_allclose(read_decisions(run.decisions).prevalence, open_run(run.path).card.stats.prevalence)


@pytest.mark.parametrize(("command", "default"), [("predict", "as the run keeps it"), ("decide", "the recipe's")])
def test_help_tells_the_defaults_of_each_command(cxrlt: Cxrlt, command: str, default: str) -> None:
    text = " ".join(cxrlt(command, "--help").out.split())
    assert f"beta or isotonic; default: {default}." in text
    assert f"target-precision=P or 0.5; default: {default}." in text


def test_the_recipe_says_how(cxrlt: Cxrlt, run: RunDir) -> None:
    text = run.recipe.read_text()
    assert "calibration: platt" in text
    run.recipe.write_text(
        text.replace("calibration: platt", "calibration: none").replace("expected-f1", "target-recall=0.8")
    )
    cxrlt("decide", run.path)
    kept = read_decisions(run.decisions)
    assert (kept.calibration.method, kept.rule) == ("none", "target-recall=0.8")


@pytest.mark.parametrize(
    ("written", "kept"), [("0.3", "0.3"), ("target-recall=0.9", "target-recall=0.9"), ("prevalence", "prevalence")]
)
def test_a_threshold_in_a_recipe_survives_writing(tmp_path: Path, written: str, kept: str) -> None:
    recipe = load_recipe("demo_phantom", [f"predict.threshold={written}"])
    assert recipe.predict.threshold == kept
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize("written", ["f1", "1.5", "target-recall", "0", "true"])
def test_a_threshold_that_is_none_is_refused_in_a_recipe(cxrlt: Cxrlt, written: str) -> None:
    done = cxrlt("train", "demo_phantom", "--set", f"predict.threshold={written}", "--dry-run")
    assert done.code == 2
    assert "predict.threshold" in done.err


def test_after_training_they_are_there_or_a_warning_says_why(run: RunDir) -> None:
    events: list[Event] = []
    after_training(run.path, events.append)
    assert not events
    assert read_decisions(run.decisions).rule == "expected-f1"
    run.predictions("dev").unlink()
    after_training(run.path, events.append)
    (notice,) = events
    assert isinstance(notice, Notice)
    assert notice.level == "warning"
    assert "there are no predictions" in notice.text


# -- found again ---------------------------------------------------------------------------------------------------


def test_they_are_made_once(run: RunDir) -> None:
    first, _ = events_of(run)
    written = run.decisions.stat().st_mtime_ns
    second, events = events_of(run)
    assert run.decisions.stat().st_mtime_ns == written
    assert not events
    np.testing.assert_array_equal(first.thresholds, second.thresholds)


def test_those_of_other_weights_are_made_anew(run: RunDir) -> None:
    before, _ = events_of(run)
    factories.rewrite_card(run.model, epoch=4)
    after, events = events_of(run)
    assert not events
    assert (before.provenance["epoch"], after.provenance["epoch"]) == (3, 4)
    assert read_decisions(run.decisions).provenance["epoch"] == 4


def test_without_predictions_or_dataset_there_are_none_and_a_warning(run: RunDir, tmp_path: Path) -> None:
    run.predictions("dev").unlink()
    found, (notice,) = events_of(run)
    assert found is None
    assert "there are no predictions to fit" in notice.text
    assert "called from 0.5 on" in notice.text


def test_kept_ones_need_neither_predictions_nor_dataset(run: RunDir) -> None:
    before, _ = events_of(run)
    run.predictions("dev").unlink()
    info = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps({**info, "dataset": {**info["dataset"], "path": "gone"}}))
    after, events = events_of(run)
    assert not events
    np.testing.assert_array_equal(before.thresholds, after.thresholds)


def test_a_damaged_file_is_an_error_with_its_cure(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    run.decisions.write_bytes(b"torn")
    done = cxrlt("predict", run.path, images)
    assert done.code == 5
    assert "cxrlt decide RUN" in done.err
    assert cxrlt("decide", run.path).code == 0
    assert cxrlt("predict", run.path, images).code == 0


def test_damaged_predictions_are_an_error_where_they_are_needed(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    run.predictions("dev").write_bytes(b"PAR1 no more")
    done = cxrlt("decide", run.path)
    assert done.code == 5
    assert "dev.parquet: cannot be read" in done.err
    assert cxrlt("predict", run.path, images, "--threshold", "prevalence").code == 5
    plain = cxrlt("predict", run.path, images, "--json")
    assert plain.code == 0
    assert "dev.parquet: cannot be read" in plain.err
    assert plain.json["fitted_on"] is None


def test_what_was_decided_outlives_other_views(cxrlt: Cxrlt, run: RunDir) -> None:
    cxrlt("decide", run.path, "--calibration", "beta", "--threshold", "target-recall=0.8")
    stamp(run.predictions("dev"), open_run(run.path).card, "flip")
    made, events = events_of(run)
    assert not events
    for one in (made, read_decisions(run.decisions)):
        assert (one.calibration.method, one.rule) == ("beta", "target-recall=0.8")
        assert one.provenance["tta"] == "flip"


def test_another_augmentation_has_its_own_where_dev_was_predicted_with_it(run: RunDir, prepared: Prepared) -> None:
    plain, _ = events_of(run)
    fallen, (notice,) = events_of(run, tta="flip")
    assert "test-time augmentation 'none'" in notice.text
    assert f"`cxrlt predict {run.path} --split dev --tta flip`" in notice.text
    np.testing.assert_array_equal(fallen.thresholds, plain.thresholds)
    factories.write_logits(run, prepared, "dev", seed=9)
    run.predictions("dev").rename(run.predictions("dev", "flip"))
    stamp(run.predictions("dev", "flip"), open_run(run.path).card, "flip")
    factories.write_logits(run, prepared, "dev")
    own, events = events_of(run, tta="flip")
    assert not events
    assert (own.thresholds != plain.thresholds).any()
    np.testing.assert_array_equal(read_decisions(run.decisions).thresholds, plain.thresholds)


def test_a_recipes_own_augmentation_is_missed_until_dev_is_predicted_with_it(run: RunDir) -> None:
    factories.rewrite_card(run.model, tta={"name": "flip"})
    after_training(run.path)  # with the plain predictions that training wrote
    _, (notice,) = events_of(run, tta="flip")
    assert "test-time augmentation 'none'" in notice.text
    assert f"`cxrlt predict {run.path} --split dev`" in notice.text
    stamp(run.predictions("dev"), open_run(run.path).card, "flip")
    made, events = events_of(run, tta="flip")
    assert not events
    assert made.provenance["tta"] == "flip"


def test_a_dataset_of_ones_own_can_teach_them(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=80, seed=5)
    early = cxrlt("decide", run.path, "--data", other.path)
    assert early.code == 5  # not predicted yet
    assert f"--split dev --data {other.path}`" in early.err
    assert cxrlt("predict", run.path, "--split", "dev", "--data", other.path).code == 0
    done = cxrlt("decide", run.path, "--data", other.path, "--json")
    assert done.code == 0, done.err
    assert done.json["fitted_on"]["dataset"] == other.content_hash
    assert done.json["fitted_on"]["images"] == 20


def test_those_of_ones_own_images_are_not_quietly_given_up(cxrlt: Cxrlt, run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=80, seed=5)
    cxrlt("predict", run.path, "--split", "dev", "--data", other.path)
    cxrlt("decide", run.path, "--data", other.path)
    before = run.decisions.read_bytes()
    shutil.copy(run.predictions("dev"), run.predictions("dev", "flip"))
    for options in ({"tta": "flip"}, {"tta": "flip", "asked": Asked(threshold="0.3")}):
        found, (notice,) = events_of(run, **options)
        assert found.provenance["dataset"] == other.content_hash
        assert "`cxrlt decide` was given" in notice.text
    found, (notice,) = events_of(run, asked=Asked(threshold="prevalence"))  # takes labels, and theirs are not here
    assert found.provenance["dataset"] == open_run(run.path).card.dataset
    assert "not on the images that `cxrlt decide` was given" in notice.text
    assert run.decisions.read_bytes() == before


def test_dev_is_judged_across_patients_and_other_splits_as_kept(run: RunDir, prepared: Prepared) -> None:
    labels, u, patients = on_dev(run, prepared)
    opened = open_run(run.path)
    own = decisions_of(opened)
    there = judged(opened, own, (prepared, "dev"), labels=labels, log_odds=u, patients=patients)
    right = cross_fitted(labels, u, patients, prevalence=opened.card.stats.prevalence)
    np.testing.assert_array_equal(there.posteriors, right.posteriors)
    np.testing.assert_array_equal(there.decisions, right.decisions)
    assert own is not None
    elsewhere = judged(opened, own, (prepared, "test"), labels=labels, log_odds=u, patients=patients)
    np.testing.assert_array_equal(elsewhere.posteriors, own.calibrated(u))
    none = judged(opened, None, (prepared, "dev"), labels=labels, log_odds=u, patients=patients)
    np.testing.assert_array_equal(none.decisions, none.posteriors >= 0.5)
    np.testing.assert_allclose(none.posteriors, 1 / (1 + np.exp(-u)))


# -- predict -------------------------------------------------------------------------------------------------------


def table_of(cxrlt: Cxrlt, *arguments: str | Path) -> pd.DataFrame:
    done = cxrlt("predict", *arguments, "-o", "out.parquet")
    assert done.code == 0, done.err
    return pd.read_parquet("out.parquet")


def columns(table: pd.DataFrame, ending: str) -> np.ndarray:
    return table[[name + ending for name in factories.CLASSES]].to_numpy()


def log_odds_of(table: pd.DataFrame) -> np.ndarray:
    return columns(table, LOGIT).astype(float) - np.arange(len(factories.CLASSES))


def test_predict_writes_calibrated_posteriors_and_decisions_by_threshold(
    cxrlt: Cxrlt, run: RunDir, images: Path
) -> None:
    table = table_of(cxrlt, run.path, images)
    own = read_decisions(run.decisions)  # made on demand
    posteriors = columns(table, ".posterior")
    np.testing.assert_allclose(posteriors, own.calibrated(log_odds_of(table)), rtol=1e-9)
    np.testing.assert_array_equal(columns(table, ".decision"), own.decide(posteriors))
    assert (columns(table, ".decision") != (posteriors >= 0.5)).any()
    data = cxrlt("predict", run.path, images, "--json").json
    np.testing.assert_allclose(data["posterior"], posteriors, rtol=1e-9)
    np.testing.assert_allclose(data["threshold"], own.thresholds)
    assert (data["calibration"], data["threshold_rule"]) == ("platt", "expected-f1")
    assert data["fitted_on"]["split"] == "dev"


def test_without_decisions_predict_warns_and_uses_link_and_half(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    run.predictions("dev").unlink()
    done = cxrlt("predict", run.path, images, "--json")
    assert "warning: " in done.err
    assert "no calibration and thresholds" in done.err
    assert done.json["fitted_on"] is None
    assert done.json["threshold"] == [0.5] * 4


def test_the_screen_shows_findings_by_the_threshold_of_the_class(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    out = cxrlt("predict", run.path, images).out
    assert "findings (posterior >= threshold of the" in out
    assert "findings (posterior >= 0.25)" in cxrlt("predict", run.path, images, "--threshold", "0.25").out


def test_another_calibration_or_threshold_is_for_the_call_only(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    cxrlt("decide", run.path)
    before = run.decisions.read_bytes()
    plain = table_of(cxrlt, run.path, images, "--calibration", "none", "--threshold", "0.5")
    np.testing.assert_allclose(
        columns(plain, ".posterior"), factories.expected_posteriors(columns(plain, LOGIT)), rtol=1e-9
    )
    recall = cxrlt("predict", run.path, images, "--threshold", "target-recall=0.9", "--json").json
    assert recall["threshold_rule"] == "target-recall=0.9"
    fixed = cxrlt("predict", run.path, images, "--threshold", "0.3", "--json").json
    kept = read_decisions(run.decisions)
    np.testing.assert_allclose(fixed["posterior"], kept.calibrated(np.array(fixed["logit"]) - np.arange(4)), rtol=1e-6)
    assert fixed["threshold"] == [0.3] * 4
    assert run.decisions.read_bytes() == before


def test_what_is_not_asked_for_is_as_the_run_keeps_it(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    cxrlt("decide", run.path, "--calibration", "beta", "--threshold", "prevalence")
    kept = read_decisions(run.decisions)
    for options, expected in (
        (["--threshold", "target-recall=0.9"], ("beta", "target-recall=0.9")),
        (["--calibration", "temperature"], ("temperature", "prevalence")),
        (["--threshold", "0.3"], ("beta", "0.3")),
    ):
        data = cxrlt("predict", run.path, images, *options, "--json").json
        assert (data["calibration"], data["threshold_rule"]) == expected
        if expected[0] == "beta":
            right = kept.calibrated(np.array(data["logit"]) - np.arange(4))
            np.testing.assert_allclose(data["posterior"], right, rtol=1e-6)


def test_what_is_asked_for_and_cannot_be_made_is_an_error(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    run.predictions("dev").unlink()
    done = cxrlt("predict", run.path, images, "--calibration", "beta")
    assert done.code == 5
    assert "--split dev" in done.err
    assert cxrlt("predict", run.path, images, "--calibration", "none", "--threshold", "0.4").code == 0
    assert cxrlt("predict", run.path, images, "--threshold", "f1").code == 2


def test_a_run_directory_that_cannot_be_written_is_used_all_the_same(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cxrlt_cli.commands.run_decisions.write_decisions", refused)
    found, (notice,) = events_of(run)
    assert found is not None
    assert "cannot be kept: Permission denied" in notice.text


# -- another prevalence --------------------------------------------------------------------------------------------


def test_a_stated_prevalence_moves_posteriors_and_thresholds(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    before = table_of(cxrlt, run.path, images)
    after = table_of(cxrlt, run.path, images, "--target-prevalence", "mass=0.5,hernia=0.3")
    own = read_decisions(run.decisions)
    moved = own.under([np.nan, np.nan, 0.5, 0.3])
    np.testing.assert_array_equal(columns(after, ".posterior")[:, :2], columns(before, ".posterior")[:, :2])
    np.testing.assert_allclose(columns(after, ".posterior"), moved.calibrated(log_odds_of(after)), rtol=1e-9)
    np.testing.assert_array_equal(columns(after, ".decision"), moved.decide(moved.calibrated(log_odds_of(after))))
    assert (columns(after, ".posterior")[:, 2:] > columns(before, ".posterior")[:, 2:]).all()
    (line,) = [
        line
        for line in cxrlt("predict", run.path, images, "--target-prevalence", "mass=0.5").out.splitlines()
        if line.startswith("mass ")
    ]
    only = own.under([np.nan, np.nan, 0.5, np.nan])
    shown = [own.prevalence[2], only.prevalence[2], own.thresholds[2], only.thresholds[2]]
    assert line.split() == ["mass", *(f"{number:.4f}" for number in shown)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "class,prevalence\nmass,0.5\nhernia,0.3\n"),
        ("p.csv", "mass,0.5\nhernia,0.3"),
        ("p.json", '{"mass": 0.5, "hernia": 0.3}'),
    ],
)
def test_a_file_says_the_same(cxrlt: Cxrlt, run: RunDir, images: Path, name: str, text: str) -> None:
    Path(name).write_text(text)
    left, right = (
        cxrlt("predict", run.path, images, "--target-prevalence", given, "--json").json
        for given in ("mass=0.5,hernia=0.3", name)
    )
    assert left["posterior"] == right["posterior"]
    assert left["target_prevalence"]["mass"] == right["target_prevalence"]["mass"] == 0.5


def test_every_class_of_many_can_be_stated() -> None:
    names = [f"finding {number}" for number in range(30)]
    text = ",".join(f"{name}=0.{number:03d}1" for number, name in enumerate(names))
    assert len(text) > 255  # longer than the name of a file can be
    np.testing.assert_allclose(parse_target(text, names).stated, np.arange(30) / 1000 + 0.0001)


def test_an_estimated_prevalence_is_that_of_the_moved_posteriors(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    data = cxrlt("predict", run.path, images, "--target-prevalence", "estimate", "--json").json
    own = read_decisions(run.decisions)
    share = np.array([data["target_prevalence"][name] for name in factories.CLASSES])
    # a fixed point: the mean of the posteriors, where the old share counts as images with ten positives
    expected = (np.sum(data["posterior"], axis=0) + 10) / (60 + 10 / own.prevalence)
    np.testing.assert_allclose(share, expected, rtol=1e-4)


def test_estimates_the_images_leave_open_are_named(cxrlt: Cxrlt, run: RunDir, images: Path) -> None:
    done = cxrlt("predict", run.path, images, "--target-prevalence", "estimate")
    err = " ".join(done.err.split())
    assert "may be off by more than a factor of two for" in err
    assert "mass" in err
    assert "factor of two" not in cxrlt("predict", run.path, images, "--target-prevalence", "mass=0.5").err


WRONG = {
    "an unknown class": ("mas=0.5", 2, "Did you mean 'mass'?"),
    "not a share": ("mass=1.5", 2, "is not a number between 0 and 1"),
    "no file": ("shares.csv", 2, "neither CLASS=VALUE nor a file"),
    "twice": ("mass=0.1,mass=0.2", 2, "stands twice"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_prevalence_that_cannot_be_read_is_refused(cxrlt: Cxrlt, run: RunDir, images: Path, name: str) -> None:
    given, code, message = WRONG[name]
    done = cxrlt("predict", run.path, images, "--target-prevalence", given)
    assert done.code == code
    assert message in " ".join(done.err.split())


def test_a_prevalence_is_not_estimated_from_a_few_images(run: RunDir, images: Path) -> None:
    from cxrlt_cli.errors import DataError

    with pytest.raises(DataError, match="3 images are too few"):
        predict.run(run.path, sorted(images.iterdir())[:3], target_prevalence="estimate")
