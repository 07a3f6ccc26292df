"""Decisions: kept whole on disk, honest when cross-fitted, moved to another prevalence, better than a search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cxrlt_cli.calibration import ENOUGH_FOR_ISOTONIC, METHODS
from cxrlt_cli.decisions import (
    ENOUGH_TO_ESTIMATE,
    SKETCH,
    Decisions,
    cross_fitted,
    estimate_prevalence,
    fit_decisions,
    left_open,
    patient_folds,
    read_decisions,
    write_decisions,
)
from cxrlt_cli.errors import DataError, RunError, UsageError
from cxrlt_cli.logistic import logit, sigmoid
from cxrlt_cli.thresholds import searched_f1

NAMES = ("effusion", "a/b: 'ü'", "mass")
PREVALENCE = np.array([0.4, 0.1, 0.02])


def drawn(seed: int, count: int = 600, prevalence: np.ndarray = PREVALENCE) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels, log-odds that are right, and patients of two images each."""
    rng = np.random.default_rng(seed)
    u = bayes_log_odds(labels := (rng.random((count, len(prevalence))) < prevalence).astype(np.int8), prevalence, rng)
    return labels, u, [f"p{row // 2}" for row in range(count)]


def bayes_log_odds(labels: np.ndarray, prevalence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scores N(0, 1) and N(2, 1) of negatives and positives, as log-odds of the posterior."""
    return np.asarray(2 * (rng.normal(size=labels.shape) + 2 * labels) - 2 + logit(prevalence))


def f1(labels: np.ndarray, called: np.ndarray) -> float:
    return float(2 * ((labels == 1) & called).sum() / max((labels == 1).sum() + called.sum(), 1))


def fitted(seed: int = 0, count: int = 600, **options: object) -> Decisions:
    labels, u, patients = drawn(seed, count)
    return fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE, **options)  # type: ignore[arg-type]


# -- fitting -------------------------------------------------------------------------------------------------------


def test_what_they_were_fitted_on_is_counted() -> None:
    labels, u, patients = drawn(0)
    labels[:10] = -1
    found = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE)
    assert found.positives == tuple((labels == 1).sum(axis=0))
    assert found.negatives == tuple((labels == 0).sum(axis=0))
    owners = np.array(patients)
    assert found.patients == tuple(len(set(owners[labels[:, c] == 1])) for c in range(3))


def test_platt_holds_for_the_prevalence_it_was_fitted_on() -> None:
    labels, u, patients = drawn(1, 4000)
    found = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE / 3)
    np.testing.assert_allclose(found.prevalence, found.calibrated(u).mean(axis=0))
    np.testing.assert_allclose(found.prevalence, labels.mean(axis=0), rtol=0.05)
    for method in ("none", "temperature"):
        kept = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE, calibration=method)
        np.testing.assert_array_equal(kept.prevalence, PREVALENCE)


def test_classes_that_got_something_else_are_named() -> None:
    labels, u, patients = drawn(2)
    labels[:, 2] = 0
    found = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE, threshold="searched-f1")
    assert (labels[:, 0] == 1).sum() >= 150 > (labels[:, 1] == 1).sum()
    assert found.fell_back() == {
        NAMES[1]: "threshold expected-f1",
        NAMES[2]: "calibration shared, threshold expected-f1",
    }
    assert fitted(calibration="none", threshold=0.5).fell_back() == {}


def test_refusals() -> None:
    with pytest.raises(UsageError, match="there is no threshold rule 'f1'"):
        fitted(threshold="f1")
    with pytest.raises(ValueError, match="unknown calibration"):
        fitted(calibration="plat")


def test_classes_are_selected_by_name() -> None:
    labels, u, patients = drawn(3, 6 * ENOUGH_FOR_ISOTONIC)
    found = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE, calibration="isotonic")
    assert set(found.calibration.steps) == {0}
    order = [2, 0]
    some = found.select([NAMES[c] for c in order])
    np.testing.assert_array_equal(some.calibrated(u[:, order]), found.calibrated(u)[:, order])
    np.testing.assert_array_equal(some.thresholds, found.thresholds[order])
    assert some.calibration.used == ("platt", "isotonic")
    with pytest.raises(KeyError):
        found.select(["goiter"])


# -- cross-fitting -------------------------------------------------------------------------------------------------


def test_folds_share_no_patient_and_spread_every_finding() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((3000, 6)) < [0.5, 0.2, 0.05, 0.01, 0.005, 0.002]).astype(np.int8)
    patients = [f"p{row}" for row in rng.integers(0, 1200, 3000)]
    fold = patient_folds(labels, patients)
    owners = np.array(patients)
    for name in set(patients):
        assert len(set(fold[owners == name])) == 1
    counts = np.array([(labels[fold == part] == 1).sum(axis=0) for part in range(5)])
    total = counts.sum(axis=0)
    assert (np.abs(counts - total / 5) <= np.maximum(3, 0.1 * total / 5)).all(), counts
    assert (counts[:, total >= 10] > 0).all(), counts
    sizes = np.bincount(fold)
    assert sizes.min() > 0.9 * sizes.max()


def test_five_patients_with_a_finding_go_to_five_folds() -> None:
    labels = np.zeros((200, 1), np.int8)
    labels[:5] = 1
    assert sorted(patient_folds(labels, [f"p{row}" for row in range(200)])[:5]) == [0, 1, 2, 3, 4]


def test_folds_are_a_function_of_the_seed() -> None:
    labels, _, patients = drawn(4)
    np.testing.assert_array_equal(patient_folds(labels, patients, seed=3), patient_folds(labels, patients, seed=3))
    assert (patient_folds(labels, patients, seed=3) != patient_folds(labels, patients, seed=4)).any()


def test_images_without_a_patient_are_patients_of_their_own() -> None:
    labels = np.zeros((10, 1), np.int8)
    assert sorted(np.bincount(patient_folds(labels, [""] * 10))) == [2] * 5


def test_one_patient_cannot_be_cross_fitted() -> None:
    labels, u, _ = drawn(5, 20)
    with pytest.raises(DataError, match="images of one patient"):
        cross_fitted(labels, u, ["p"] * 20, prevalence=PREVALENCE)


def test_two_patients_make_two_folds() -> None:
    labels, u, _ = drawn(5, 20)
    found = cross_fitted(labels, u, ["a", "b"] * 10, prevalence=PREVALENCE)
    assert np.isfinite(found.posteriors).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_patients_own_labels_have_no_part_in_what_it_is_given(method: str) -> None:
    """What is given to a fold is what fitting on the other folds gives."""
    labels, u, patients = drawn(6)
    fold = patient_folds(labels, patients)
    found = cross_fitted(labels, u, patients, prevalence=PREVALENCE, calibration=method)
    for part in range(5):
        rest = fold != part
        by_hand = fit_decisions(
            labels[rest],
            u[rest],
            [name for name, kept in zip(patients, rest, strict=True) if kept],
            classes=NAMES,
            prevalence=PREVALENCE,
            calibration=method,
        )
        posteriors = by_hand.calibrated(u[~rest])
        np.testing.assert_array_equal(found.posteriors[~rest], posteriors)
        np.testing.assert_array_equal(found.decisions[~rest], by_hand.decide(posteriors))


def test_cross_fitting_takes_the_flattery_away() -> None:
    """Without any signal, isotonic steps fitted and judged on the same images look good; cross-fitted they do not."""
    rng = np.random.default_rng(7)
    count = 2 * ENOUGH_FOR_ISOTONIC + 800
    labels = (rng.random((count, 1)) < 0.5).astype(np.int8)
    u = rng.normal(size=(count, 1))
    patients = [str(row) for row in range(count)]
    own = fit_decisions(
        labels, u, patients, classes=["x"], prevalence=[0.5], calibration="isotonic", threshold="searched-f1"
    )
    honest = cross_fitted(
        labels, u, patients, prevalence=[0.5], calibration="isotonic", threshold="searched-f1"
    ).posteriors

    def brier(posteriors: np.ndarray) -> float:
        return float(((posteriors - labels) ** 2).mean())

    assert brier(own.calibrated(u)) < 0.25 < brier(honest) < 0.26


def test_expected_f1_beats_a_search_on_few_positives() -> None:
    """The simulation behind the default: 5 positives to fit on, Gaussian scores, scored on new images.

    On the images it was made on, the search sees more than twice the F1 that it keeps.
    """
    rng = np.random.default_rng(8)
    share, kept = np.array([5 / 800]), {"expected": [], "searched": [], "promised": []}
    prior = logit(share)
    for _ in range(40):
        labels = np.zeros((800, 1), np.int8)
        labels[:5] = 1
        new = (rng.random((10_000, 1)) < share).astype(np.int8)
        u, new_u = (1.1 * (rng.normal(size=y.shape) + 1.1 * y) - 0.5 * 1.1**2 + prior for y in (labels, new))
        patients = [str(row) for row in range(800)]
        own = fit_decisions(labels, u, patients, classes=["x"], prevalence=share)
        kept["expected"].append(f1(new, own.decide(own.calibrated(new_u))))
        at = searched_f1(labels[:, 0] == 1, own.calibrated(u)[:, 0])
        kept["searched"].append(f1(new, own.calibrated(new_u) >= at))
        kept["promised"].append(f1(labels, own.calibrated(u) >= at))
    mean = {name: float(np.mean(values)) for name, values in kept.items()}
    assert mean["promised"] > 2 * mean["searched"], mean
    difference = np.subtract(kept["expected"], kept["searched"])
    assert difference.mean() > 3 * difference.std() / np.sqrt(len(difference)), mean


# -- another prevalence --------------------------------------------------------------------------------------------


def test_posteriors_move_to_the_prevalence_that_is_stated() -> None:
    new = np.array([0.1, 0.4, 0.2])
    own = fitted(9, 4000)
    rng = np.random.default_rng(10)
    labels = (rng.random((60_000, 3)) < new).astype(np.int8)
    u = bayes_log_odds(labels, PREVALENCE, rng)  # scores as before, said with the old prevalence
    moved = own.under(new)
    np.testing.assert_allclose(moved.calibrated(u).mean(axis=0), new, rtol=0.1)
    assert (np.abs(own.calibrated(u).mean(axis=0) - new) > 0.03).all()
    for c in range(3):
        found = {
            name: f1(labels[:, c], decisions.decide(decisions.calibrated(u))[:, c])
            for name, decisions in (("before", own), ("after", moved))
        }
        best = f1(labels[:, c], u[:, c] >= searched_f1(labels[:, c] == 1, u[:, c]))
        assert found["before"] < found["after"]
        assert found["after"] > 0.97 * best


@pytest.mark.parametrize("rule", ["expected-f1", "prevalence", "target-precision=0.7"])
def test_thresholds_are_those_of_images_with_that_prevalence(rule: str) -> None:
    """The moved thresholds, made from the kept distribution, are what fitting on such images would have given."""
    own = fitted(11, 8000, threshold=rule)
    rng = np.random.default_rng(12)
    new = np.array([0.2, 0.25, 0.1])
    labels = (rng.random((8000, 3)) < new).astype(np.int8)
    u = bayes_log_odds(labels, PREVALENCE, rng)
    patients = [str(row) for row in range(len(u))]
    there = fit_decisions(labels, u, patients, classes=NAMES, prevalence=PREVALENCE, threshold=rule)
    np.testing.assert_allclose(own.under(new).thresholds, there.thresholds, atol=0.06)


def test_rules_that_do_not_depend_on_prevalence_keep_their_decisions() -> None:
    _, u, _ = drawn(13)
    recall = fitted(13, threshold="target-recall=0.8")
    moved = recall.under(3 * PREVALENCE / 2)
    np.testing.assert_array_equal(moved.decide(moved.calibrated(u) * (1 + 1e-12)), recall.decide(recall.calibrated(u)))
    np.testing.assert_array_equal(fitted(threshold=0.3).under(PREVALENCE / 2).thresholds, 0.3)


def test_nan_leaves_a_class_as_it_is() -> None:
    _, u, _ = drawn(14)
    own = fitted(14)
    moved = own.under([np.nan, 0.3, np.nan])
    np.testing.assert_array_equal(moved.calibrated(u)[:, [0, 2]], own.calibrated(u)[:, [0, 2]])
    np.testing.assert_array_equal(moved.thresholds[[0, 2]], own.thresholds[[0, 2]])
    assert (moved.calibrated(u)[:, 1] > own.calibrated(u)[:, 1]).all()


def test_there_and_back_changes_nothing() -> None:
    _, u, _ = drawn(15)
    own = fitted(15)
    back = own.under(PREVALENCE / 3).under(own.prevalence)
    np.testing.assert_allclose(back.calibrated(u), own.calibrated(u), rtol=1e-9)
    np.testing.assert_allclose(back.thresholds, own.thresholds, rtol=0.02)


def test_prevalence_is_estimated_from_posteriors() -> None:
    rng = np.random.default_rng(16)
    new = np.array([0.1, 0.3, 0.08])
    labels = (rng.random((20_000, 3)) < new).astype(np.int8)
    v = bayes_log_odds(labels, PREVALENCE, rng)
    np.testing.assert_allclose(estimate_prevalence(v, PREVALENCE), labels.mean(axis=0), rtol=0.06)


def test_the_estimate_is_the_most_likely_prevalence() -> None:
    """EM with a faint prior ends where the likelihood of the scores has no slope."""
    rng = np.random.default_rng(17)
    labels = (rng.random((400, 1)) < 0.3).astype(np.int8)
    v, old = bayes_log_odds(labels, np.array([0.1]), rng), np.array([0.1])
    ratio = np.exp(v - logit(old))  # p(x | 1) / p(x | 0)
    grid = np.linspace(0.001, 0.999, 9981)
    likelihood = np.log(grid * ratio + 1 - grid).sum(axis=0)
    assert estimate_prevalence(v, old, strength=1e-6)[0] == pytest.approx(grid[likelihood.argmax()], abs=2e-4)


def test_the_estimate_is_reached_where_a_network_tells_little() -> None:
    """Among many images that hardly differ, a thousand plain steps of EM end far from where they lead."""
    rng, old, count = np.random.default_rng(19), 0.05, 50_000
    positive = rng.random(count) < 0.2
    v = logit(old) + 0.1 * (rng.standard_normal(count) + 0.1 * positive) - 0.005
    share = estimate_prevalence(v[:, None], [old], strength=1)[0]
    moved = sigmoid(v + logit(share) - logit(old))
    assert share == pytest.approx((moved.sum() + 1) / (count + 1 / old), rel=1e-9)
    # plain steps pass that test to five digits long before they arrive: the root itself
    low, high = -10.0, 5.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        rises = sigmoid(v + middle - logit(old)).sum() + 1 > (count + 1 / old) * sigmoid(middle)
        low, high = (middle, high) if rises else (low, middle)
    assert share == pytest.approx(float(sigmoid(low)), rel=1e-6)


def test_estimates_of_certain_posteriors_stay_inside() -> None:
    v = np.column_stack([np.full(60, 800.0), np.full(60, -800.0), np.repeat([800.0, -800.0], 30)])
    share = estimate_prevalence(v, [0.1, 0.1, 0.1], strength=1)
    np.testing.assert_allclose(share, [61 / 70, 1 / 70, 31 / 70], rtol=1e-6)


def test_an_estimate_is_left_open_where_it_scatters_by_a_factor_of_two() -> None:
    """The curvature says what the scatter of estimates from many sets of images is."""
    rng, old = np.random.default_rng(20), 0.1
    for separation, open_ in ((0.4, True), (2.0, False)):
        estimates, said = [], []
        for _ in range(60):
            positive = rng.random((800, 1)) < old
            score = rng.standard_normal((800, 1)) + separation * positive
            v = logit(old) + separation * score - separation**2 / 2
            estimates.append(estimate_prevalence(v, [old], strength=0.01))
            said.append(left_open(v, [old], estimates[-1])[0])
        assert (1.96 * logit(estimates).std() > np.log(2)) == open_
        assert np.mean(said) == pytest.approx(float(open_), abs=0.1)


def test_few_images_say_little_about_rare_findings() -> None:
    rng = np.random.default_rng(18)
    old = np.array([0.002])
    labels = np.zeros((100, 1), np.int8)
    v = bayes_log_odds(labels, old, rng)
    free = estimate_prevalence(v, old, strength=1e-9)[0]
    assert free < 1e-4 or free > 0.01
    assert 0.001 < estimate_prevalence(v, old)[0] < 0.004


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="49 images are too few"):
        estimate_prevalence(np.zeros((ENOUGH_TO_ESTIMATE - 1, 1)), [0.1])


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_read(tmp_path: Path, method: str) -> None:
    labels, u, patients = drawn(19, 4 * ENOUGH_FOR_ISOTONIC)
    made = fit_decisions(
        labels, u, patients, classes=NAMES, prevalence=PREVALENCE, calibration=method, provenance={"epoch": 3}
    ).under([0.3, np.nan, 0.1])
    write_decisions(tmp_path / "d.safetensors", made)
    read = read_decisions(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(read.calibrated(u), made.calibrated(u))
    np.testing.assert_array_equal(read.thresholds, made.thresholds)
    np.testing.assert_array_equal(read.under(PREVALENCE).thresholds, made.under(PREVALENCE).thresholds)
    assert read.provenance == {"epoch": 3}
    assert read.fell_back() == made.fell_back()
    assert (read.classes, read.rule, read.positives, read.patients) == (
        NAMES,
        "expected-f1",
        made.positives,
        made.patients,
    )
    assert all(len(sketch) <= SKETCH for sketch in read.sketch)


def test_the_file_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_decisions(tmp_path / name, fitted(20))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_numbers_stand_under_the_name_of_their_class(tmp_path: Path) -> None:
    made = fitted(21)
    write_decisions(tmp_path / "d", made)
    with safe_open(tmp_path / "d", framework="numpy") as file:
        assert file.get_tensor(f"map/{NAMES[1]}")[3] == made.thresholds[1]
        assert list(file.metadata()) == ["decisions"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "decisions.safetensors"
    with pytest.raises(RunError, match="there are no decisions"):
        read_decisions(path)
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="not a readable file of decisions"):
        read_decisions(path)
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(RunError, match="not a readable file of decisions"):
        read_decisions(path)
    write_decisions(path, fitted())
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        about = json.loads(file.metadata()["decisions"])
    save_file(tensors, path, metadata={"decisions": json.dumps({**about, "format": 99})})
    with pytest.raises(RunError, match="format 99"):
        read_decisions(path)
    tensors[f"map/{NAMES[0]}"][0] = np.nan
    save_file(tensors, path, metadata={"decisions": json.dumps(about)})
    with pytest.raises(RunError, match="not finite"):
        read_decisions(path)


DAMAGE = {
    "no two columns": ("sketch", np.zeros(3), "not two columns"),
    "an empty table": ("sketch", np.zeros((0, 2)), "not two columns"),
    "not finite": ("sketch", np.array([[np.nan, 1.0]]), "not finite"),
    "steps that are not finite": ("steps", np.array([[0.0, np.nan], [1.0, 0.5]]), "not finite"),
    "a slope that turns": ("map", np.array([-1.0, 1, 0, 0.5, 0.1, 0]), "out of its range"),
    "a threshold beyond 1": ("map", np.array([1.0, 1, 0, 7, 0.1, 0]), "out of its range"),
    "no prevalence": ("map", np.array([1.0, 1, 0, 0.5, 0, 0]), "not between 0 and 1"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "decisions.safetensors"
    write_decisions(path, fitted())
    with safe_open(path, framework="numpy") as file:
        tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    kind, values, message = DAMAGE[name]
    tensors[f"{kind}/{NAMES[0]}"] = values
    save_file(tensors, path, metadata=about)
    with pytest.raises(RunError, match=message):
        read_decisions(path)


def test_a_class_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "decisions.safetensors"
    write_decisions(path, replace(fitted(), classes=("twin", "twin", *NAMES[2:])))
    with pytest.raises(RunError, match="stands twice"):
        read_decisions(path)


def test_sigmoid_of_log_odds_is_the_posterior() -> None:
    _, u, _ = drawn(22)
    own = fitted(22).under([0.2, 0.2, 0.2])
    np.testing.assert_array_equal(own.calibrated(u), sigmoid(own.log_odds(u)))
