"""Combining members: by hand, by brute force, and with the labels of judged patients out of reach."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from factories import make_card, make_dataset
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss

from cxrlt_cli.calibration import Calibration, fit_calibration, identity
from cxrlt_cli.combine import (
    COMBINATIONS,
    Combiner,
    Ensemble,
    Judge,
    Member,
    Scale,
    cross_combined,
    diversity,
    greedy,
    on_the_simplex,
    read_ensemble,
    stack,
    write_ensemble,
)
from cxrlt_cli.combine.crossfit import by_fold
from cxrlt_cli.combine.methods import KNOTS, distribution, fit_combiner, rank_of
from cxrlt_cli.combine.search import ROUNDS, bagged
from cxrlt_cli.combine.stacking import OFFSET, SPREAD
from cxrlt_cli.decisions import patient_folds
from cxrlt_cli.errors import DataError, RunError
from cxrlt_cli.logistic import logit, sigmoid
from cxrlt_cli.metrics import average_precision, mean_defined

PLAIN = Scale("none", np.array([0.3, 0.2, 0.1]))


def cohort(
    seed: int = 0, images: int = 120, members: int = 3, classes: int = 3
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels with unknown ones, log-odds (M, N, C) of members of differing worth, two images a patient."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, classes)) < np.resize([0.4, 0.2, 0.1], classes)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.05] = -1
    skill = np.linspace(0.6, 1.6, members)[:, None, None]
    log_odds = rng.normal(size=(members, images, classes)) + skill * (labels == 1) - 1
    return labels, log_odds, [f"p{row // 2}" for row in range(images)]


def combiner(method: str, members: int, classes: int = 1, **more: object) -> Combiner:
    weights = np.full((members, classes), 1 / members)
    return Combiner(method, (identity(classes),) * members, weights, np.zeros(classes), **more)  # type: ignore[arg-type]


# -- methods by hand -----------------------------------------------------------------------------------------------


def column(*values: float) -> np.ndarray:
    """Log-odds of posteriors, one a member, for one image and one class."""
    return logit(np.array(values)).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("method", "posterior"),
    [
        ("mean", (0.9 + 0.5 + 0.2) / 3),
        ("geometric", (0.9 * 0.5 * 0.2) ** (1 / 3)),
        ("logit-mean", sigmoid((math.log(9) + 0 + math.log(0.25)) / 3)),
        ("greedy", sigmoid((math.log(9) + 0 + math.log(0.25)) / 3)),
    ],
)
def test_posteriors_by_hand(method: str, posterior: float) -> None:
    made = combiner(method, 3)(column(0.9, 0.5, 0.2))
    assert sigmoid(made)[0, 0] == pytest.approx(posterior, abs=1e-12)


def test_weights_by_hand() -> None:
    weights = np.array([[0.75], [0.25]])
    u = column(0.8, 0.1)
    expected = {
        "mean": 0.75 * 0.8 + 0.25 * 0.1,
        "geometric": 0.8**0.75 * 0.1**0.25,
        "weighted": sigmoid(0.75 * math.log(4) - 0.25 * math.log(9)),
        "stacking": sigmoid(0.75 * math.log(4) - 0.25 * math.log(9) + 0.5),
    }
    for method, posterior in expected.items():
        intercept = np.array([0.5 if method == "stacking" else 0.0])
        made = Combiner(method, (identity(1),) * 2, weights, intercept)(u)
        assert sigmoid(made)[0, 0] == pytest.approx(float(posterior), abs=1e-12), method


def test_a_member_without_weight_has_no_say() -> None:
    weights = np.array([[1.0], [0.0]])
    u = np.array([[[1.5]], [[-400.0]]])
    for method in ("mean", "weighted", "geometric"):
        assert Combiner(method, (identity(1),) * 2, weights, np.zeros(1))(u)[0, 0] == pytest.approx(1.5, abs=1e-12)


@pytest.mark.parametrize("method", COMBINATIONS)
def test_extreme_log_odds_stay_finite_and_in_order(method: str) -> None:
    values = np.array([-1e4, -600.0, -40.0, 0.0, 30.0, 35.0, 600.0, 1e4])
    u = np.tile(values[None, :, None], (2, 1, 1))
    ranks = ((distribution(values),),) * 2 if method == "rank" else ()
    made = combiner(method, 2, ranks=ranks)(u)[:, 0]
    assert np.isfinite(made).all()
    assert (np.diff(made) >= 0).all()
    assert (np.diff(made)[2:5] > 0).all()  # 30 and 35 differ, although both are 1 in float32


def test_the_mean_is_exact_where_posteriors_round_to_1() -> None:
    # 1 - (1 - p) / 2 with 1 - p = exp(-50): log-odds 50 + log 2, which sigmoid and back could not tell
    made = combiner("mean", 2)(np.array([[[50.0]], [[499.0]]]))
    assert made[0, 0] == pytest.approx(50 + math.log(2), abs=1e-9)


def test_members_are_brought_to_one_scale_first() -> None:
    maps = (Calibration("platt", ("platt",), np.array([[2.0, 2.0]]), np.array([1.0])), identity(1))
    made = Combiner("logit-mean", maps, np.full((2, 1), 0.5), np.zeros(1))(np.array([[[0.5]], [[4.0]]]))
    assert made[0, 0] == pytest.approx((2 * 0.5 + 1 + 4) / 2)


# -- ranks ---------------------------------------------------------------------------------------------------------


def test_mid_ranks_by_hand() -> None:
    knots = distribution(np.array([3.0, 1.0, 3.0, 2.0]))
    np.testing.assert_allclose(knots, [[1, 0.125], [2, 0.375], [3, 0.75]])
    np.testing.assert_allclose(rank_of(np.array([1.0, 1.5, 3.0]), knots), [0.125, 0.25, 0.75])


def test_values_beyond_the_known_ones_still_differ() -> None:
    knots = distribution(np.arange(10.0))
    above = rank_of(np.array([9.0, 10.0, 12.0]), knots)
    np.testing.assert_allclose(above, 1 - 0.05 * np.exp([0, -1, -3]))
    np.testing.assert_allclose(rank_of(np.array([0.0, -2.0]), knots), 0.05 * np.exp([0, -2]))


def test_the_mean_rank_by_hand() -> None:
    ranks = ((distribution(np.array([0.0, 1.0])),), (distribution(np.array([0.0, 1.0, 2.0, 3.0])),))
    made = combiner("rank", 2, ranks=ranks)(np.array([[[1.0]], [[0.0]]]))
    assert sigmoid(made)[0, 0] == pytest.approx((0.75 + 0.125) / 2, abs=1e-12)


def test_ranks_do_not_mind_rising_maps_of_a_member() -> None:
    labels, u, patients = cohort()
    bent = np.stack([u[0], np.sinh(u[1]), 3 * u[2] + 5])
    made = [fit_combiner(labels, each, patients, (PLAIN,) * 3, "rank")(each) for each in (u, bent)]
    np.testing.assert_allclose(made[0], made[1], atol=1e-9)


def test_long_distributions_are_kept_compactly() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    knots = distribution(values)
    assert len(knots) <= KNOTS
    exact = (np.arange(20_000) + 0.5) / 20_000
    found = rank_of(np.sort(values), knots)
    assert np.abs(logit(found) - logit(exact)).max() < 0.05  # both tails too


# -- scores and searches -------------------------------------------------------------------------------------------


def test_the_judge_is_scikit_learn() -> None:
    labels, log_odds, _ = cohort(3)
    scores = log_odds[0].round(1)  # ties
    known = labels >= 0
    expected = [average_precision_score(labels[k, c], scores[k, c]) for c, k in enumerate(known.T)]
    assert Judge(labels).macro_ap(scores) == pytest.approx(np.mean(expected), abs=1e-12)


def test_classes_without_positives_are_left_out() -> None:
    labels = np.array([[1, 0], [0, 0]], np.int8)
    assert Judge(labels).macro_ap(np.array([[2.0, 1], [1, 2]])) == 1
    assert math.isnan(Judge(np.zeros((2, 1), np.int8)).macro_ap(np.ones((2, 1))))


def macro_ap(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(mean_defined(average_precision(labels, scores)))


def brute_greedy(labels: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The selections written out as sequences of members."""
    sequence: list[int] = []
    found = []
    for _ in range(ROUNDS):
        options = [[*sequence, m] for m in range(len(u))]
        scores = [round(macro_ap(labels, u[option].mean(axis=0)), 10) for option in options]
        sequence = options[int(np.argmax(scores))]
        found.append((max(scores), sequence))
    best = max(found, key=lambda pair: (pair[0], -len(pair[1])))[1]
    return np.bincount(best, minlength=len(u)) / len(best)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_selection_is_what_its_definition_says(seed: int) -> None:
    labels, u, _ = cohort(seed, images=40)
    np.testing.assert_allclose(greedy(labels, u), brute_greedy(labels, u))


def test_greedy_finds_the_best_of_all_small_ensembles_where_members_complete_each_other() -> None:
    # two members, each right about its own class; a third one that is noise
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.int8)
    right = np.where(labels == 1, 1.0, -1.0)
    u = np.stack([right * [1, 0] + [[0, 0.1], [0, -0.1], [0, -0.2], [0, 0.2]], right * [0, 1], -0.1 * right])
    weights = greedy(labels, u)
    all_of = [option for size in (1, 2, 3) for option in itertools.combinations_with_replacement(range(3), size)]
    best = max(macro_ap(labels, u[list(option)].mean(axis=0)) for option in all_of)
    assert macro_ap(labels, np.tensordot(weights, u, axes=1)) == best == 1
    assert weights[2] == 0


def test_the_best_single_member_is_never_left_behind() -> None:
    for seed in range(5):
        labels, u, _ = cohort(seed, images=60)
        singles = [macro_ap(labels, own) for own in u]
        for search in (greedy, on_the_simplex):
            weights = search(labels, u)
            assert weights.min() >= 0
            assert weights.sum() == pytest.approx(1)
            reference = max(singles) if search is greedy else macro_ap(labels, u.mean(axis=0))
            assert macro_ap(labels, np.tensordot(weights, u, axes=1)) >= reference - 1e-12


def test_the_search_on_the_simplex_comes_near_a_fine_grid() -> None:
    labels, u, _ = cohort(1, images=80, members=2)
    grid = max(macro_ap(labels, (1 - w) * u[0] + w * u[1]) for w in np.linspace(0, 1, 201))
    found = macro_ap(labels, np.tensordot(on_the_simplex(labels, u), u, axes=1))
    start = macro_ap(labels, u.mean(axis=0))
    assert found > start + 0.5 * (grid - start)


def test_without_positives_the_weights_are_equal() -> None:
    labels, u = np.zeros((10, 2), np.int8), np.random.default_rng(0).normal(size=(3, 10, 2))
    for search in (greedy, on_the_simplex):
        np.testing.assert_allclose(search(labels, u), 1 / 3)


def test_bags_leave_out_one_fold_of_the_patients_each() -> None:
    labels, u, patients = cohort(2)
    fold = patient_folds(labels, patients, 4, 7)
    by_hand = np.mean([greedy(labels[fold != k], u[:, fold != k]) for k in range(4)], axis=0)
    np.testing.assert_allclose(bagged(greedy, labels, u, patients, folds=4, seed=7), by_hand)
    np.testing.assert_allclose(bagged(greedy, labels, u, ["one"] * len(labels)), greedy(labels, u))


# -- stacking ------------------------------------------------------------------------------------------------------


def test_stacking_is_a_penalised_logistic_regression() -> None:
    """scikit-learn's L2 penalty is about 0, so the prior's centre goes into an offset by a change of variables."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(2, 400, 1))
    labels = (rng.random((400, 1)) < sigmoid(1.4 * u[0] - 0.2 * u[1] + 0.3)).astype(np.int8)
    weights, intercept = stack(labels, u)
    sd = np.array([SPREAD / 2, SPREAD / 2, OFFSET])
    centre = np.array([0.5, 0.5, 0.0])

    def objective(theta: np.ndarray) -> float:
        v = theta[0] * u[0, :, 0] + theta[1] * u[1, :, 0] + theta[2]
        return log_loss(labels[:, 0], sigmoid(v), normalize=False) + 0.5 * (((theta - centre) / sd) ** 2).sum()

    found = np.append(weights[:, 0], intercept)
    for direction in np.vstack([np.eye(3), -np.eye(3)]):
        assert objective(found) <= objective(found + 1e-4 * direction)
    free = LogisticRegression(C=np.inf).fit(u[:, :, 0].T, labels[:, 0]).coef_[0]
    assert (np.abs(weights[:, 0] - 0.5) < np.abs(free - 0.5)).all()  # shrunk to equal weights
    assert ((weights[:, 0] - 0.5) * (free - 0.5) > 0).all()


def test_a_class_that_teaches_nothing_gets_equal_weights() -> None:
    u = np.random.default_rng(0).normal(size=(4, 30, 2))
    labels = np.full((30, 2), -1, np.int8)
    labels[0, 1], labels[1, 1] = 1, 0
    weights, intercept = stack(labels, u)
    np.testing.assert_allclose(weights[:, 0], 0.25)
    assert intercept[0] == 0
    np.testing.assert_allclose(weights[:, 1], 0.25, atol=0.05)


def test_separated_labels_and_extreme_log_odds_end() -> None:
    u = np.array([[-400.0, -300, 300, 400], [400, 300, -300, -400]])[:, :, None]
    weights, intercept = stack(np.array([[0], [0], [1], [1]], np.int8), u)
    assert np.isfinite(weights).all()
    assert np.isfinite(intercept).all()
    assert weights[0, 0] > weights[1, 0]


# -- out of fold ---------------------------------------------------------------------------------------------------

FITTED = tuple(Scale("platt", np.array([0.3, 0.2, 0.1])) for _ in range(3))


def apart_from_level(scores: np.ndarray, everywhere: np.ndarray) -> np.ndarray:
    """Scores without the level of their class: what places images of all folds among each other."""
    return np.asarray((scores - everywhere.mean(axis=0)) / everywhere.std(axis=0))


@pytest.mark.parametrize("method", COMBINATIONS)
def test_labels_of_judged_patients_are_never_used(method: str) -> None:
    labels, u, patients = cohort(5)
    made = cross_combined(labels, u, patients, FITTED, method, folds=3)
    own = made.fold == 1
    changed = labels.copy()
    changed[own] = np.random.default_rng(1).permutation(changed[own])
    rest = ~own
    # folds depend on the labels; what is asked is what the fold's own combination was taught
    again = fit_combiner(
        changed[rest], u[:, rest], [name for name, kept in zip(patients, rest, strict=True) if kept], FITTED, method,
        folds=3,
    )  # fmt: skip
    by_hand = apart_from_level(again(u[:, own]), again(u))
    np.testing.assert_allclose(apart_from_level(made.judged[own], made.final(u)), by_hand, atol=1e-9)
    np.testing.assert_array_equal(by_fold(made.combiners, made.fold, u), made.judged)


def test_permuting_the_labels_of_judged_patients_leaves_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, u, patients = cohort(5)
    fold = patient_folds(labels, patients, 3, 0)
    monkeypatch.setattr("cxrlt_cli.combine.crossfit.patient_folds", lambda *_: fold)  # folds held as they are
    own = fold == 2
    changed = labels.copy()
    changed[own] = np.random.default_rng(1).permutation(changed[own])
    assert (changed != labels).any()
    for method in ("greedy", "stacking"):
        before, after = (cross_combined(each, u, patients, FITTED, method, folds=3) for each in (labels, changed))
        for name in ("judged", "single", "mean"):
            old, new = getattr(before, name), getattr(after, name)
            moved = [distance_from_a_line(old[own, c], new[own, c]) for c in range(3)]
            assert max(moved) < 1e-9
            # the others were taught by these labels; one member alone stays on a line whatever its scale
            if name != "single":
                assert max(distance_from_a_line(old[~own, c], new[~own, c]) for c in range(3)) > 1e-3


def distance_from_a_line(x: np.ndarray, y: np.ndarray) -> float:
    """How far y is from a rising line of x; infinite where the line falls."""
    slope, shift = np.polyfit(x, y, 1)
    return float(np.abs(slope * x + shift - y).max()) if slope > 0 else math.inf


@pytest.mark.parametrize("method", COMBINATIONS)
def test_folds_are_on_the_level_of_the_whole(method: str) -> None:
    labels, u, patients = cohort(5)
    made = cross_combined(labels, u, patients, FITTED, method, folds=3)
    whole = made.final(u)
    for one in made.combiners:
        np.testing.assert_allclose(one(u).mean(axis=0), whole.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(one(u).std(axis=0), whole.std(axis=0), atol=1e-12)


@pytest.mark.parametrize("method", ["greedy", "logit-mean", "stacking"])
def test_scales_of_folds_cost_one_model_nothing(method: str) -> None:
    """Out of fold, two members that say the same are worth what either is alone: scales keep the order of images."""
    labels, u, patients = cohort(7, members=1)
    twice = np.stack([u[0], 3 * u[0] - 2])
    made = cross_combined(labels, twice, patients, FITTED[:2], method)
    alone = macro_ap(labels, u[0])
    assert macro_ap(labels, made.single) == pytest.approx(alone, abs=1e-12)
    assert macro_ap(labels, made.judged) == pytest.approx(alone, abs=1e-12)


def test_folds_may_choose_single_members_of_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that put all images in the same order are one rival, whichever of them a fold takes."""
    labels, u, patients = cohort(7, members=1)
    alike = np.stack([u[0], np.sinh(u[0]), np.arctan(u[0])])
    turns = iter([0, 1, 2, 0, 1])
    monkeypatch.setattr("cxrlt_cli.combine.crossfit.best_of", lambda _: next(turns))
    made = cross_combined(labels, alike, patients, FITTED, "mean")
    assert set(made.chosen) == {0, 1, 2}
    assert macro_ap(labels, made.single) == pytest.approx(macro_ap(labels, u[0]), abs=1e-12)


def test_a_class_that_nobody_tells_apart_is_levelled_too() -> None:
    labels, u, patients = cohort(3)
    u[:, :, 1] = 0.5
    made = cross_combined(labels, u, patients, FITTED, "greedy", folds=3)
    assert np.isfinite(made.judged).all()
    assert np.ptp(made.judged[:, 1]) < 1e-9


def test_the_best_single_member_is_chosen_by_the_other_folds() -> None:
    labels, u, patients = cohort(4)
    made = cross_combined(labels, u, patients, (PLAIN,) * 3, "mean", folds=4)
    for k, chosen in enumerate(made.chosen):
        rest, own = made.fold != k, made.fold == k
        assert chosen == int(np.argmax([macro_ap(labels[rest], each[rest]) for each in u]))
        share = (rankdata(u[chosen], axis=0) - 0.5) / len(labels)
        np.testing.assert_allclose(sigmoid(made.single[own]), share[own], atol=1e-12)
    assert len({patients[row] for row in np.flatnonzero(made.fold == 0)} & set(np.array(patients)[made.fold == 1])) == 0
    np.testing.assert_allclose(sigmoid(made.mean), sigmoid(u).mean(axis=0), atol=1e-12)
    np.testing.assert_array_equal(made.mean, made.judged)


def test_scales_are_fitted_within_folds_and_fixed_ones_are_kept() -> None:
    labels, u, patients = cohort(6)
    fixed = fit_calibration(labels, u[0] * 2, PLAIN.prevalence, "platt")
    scales = (Scale("platt", PLAIN.prevalence, fixed), *FITTED[:2])
    made = cross_combined(labels, u, patients, scales, "logit-mean", folds=3)
    rest = made.fold != 0
    assert made.combiners[0].maps[0] is fixed
    by_hand = fit_calibration(labels[rest], u[1, rest], PLAIN.prevalence, "platt")
    np.testing.assert_array_equal(made.combiners[0].maps[1].slopes, by_hand.slopes)
    everyone = fit_calibration(labels, u[1], PLAIN.prevalence, "platt")
    np.testing.assert_array_equal(made.final.maps[1].slopes, everyone.slopes)


def test_one_patient_cannot_be_cross_fitted() -> None:
    labels, u, _ = cohort(images=10)
    with pytest.raises(DataError, match="one patient"):
        cross_combined(labels, u, ["p"] * 10, (PLAIN,) * 3, "mean")


def test_averaging_calibrated_scales_beats_averaging_raw_ones() -> None:
    """One member shouts: its log-odds are ten times too large, and it knows less."""
    rng = np.random.default_rng(0)
    labels = (rng.random((800, 3)) < 0.2).astype(np.int8)
    loud, good = (rng.normal(size=labels.shape) + skill * labels for skill in (0.5, 2.0))
    u, patients = np.stack([10 * loud, good]), [str(row) for row in range(800)]
    raw, fair = (cross_combined(labels, u, patients, (each,) * 2, "mean") for each in (PLAIN, FITTED[0]))
    assert macro_ap(labels, fair.judged) > macro_ap(labels, raw.judged) + 0.1


# -- diversity -----------------------------------------------------------------------------------------------------


def test_diversity_by_hand() -> None:
    u = np.array([[[1.0, 0], [2, 0], [3, 0]], [[1.0, 5], [3, 5], [2, 5]]])
    called = np.array([[[1, 0], [1, 0], [0, 0]], [[1, 1], [0, 0], [0, 0]]], bool)
    (pair,) = diversity(u, called)
    assert pair.correlation == pytest.approx(0.5)  # of the first class; the second one does not vary
    assert pair.disagreement == pytest.approx(2 / 6)
    assert pair.called_by_one == pytest.approx(2 / 3)


def test_nothing_called_and_nothing_varying_is_undefined() -> None:
    (pair,) = diversity(np.zeros((2, 4, 1)), np.zeros((2, 4, 1), bool))
    assert math.isnan(pair.correlation)
    assert math.isnan(pair.called_by_one)
    assert pair.disagreement == 0


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["greedy", "rank", "stacking"])
def test_what_is_written_is_read(method: str, tmp_path: Path) -> None:
    labels, u, patients = cohort(1)
    steps = {1: np.array([[-1.0, 0.1], [1.0, 0.8]])}
    isotonic = Calibration("isotonic", ("platt", "isotonic", "shared"), np.ones((3, 2)), np.zeros(3), steps)
    scales = (Scale("isotonic", PLAIN.prevalence, isotonic), *FITTED[:2])
    made = cross_combined(labels, u, patients, scales, method, folds=3)
    member = Member("../a", "/x/a", "a", "train", "00", 3, None, "none")
    before = Ensemble(
        (member,) * 3, method, made.final, made.combiners, 5, "dev", "hash", None, ("PA",), {"calibration": "platt"}
    )
    card = make_card(make_dataset(tmp_path / "data", count=16))
    path = tmp_path / "ensemble.safetensors"
    write_ensemble(path, before, card)
    content = path.read_bytes()
    after = read_ensemble(path)
    assert (after.members, after.method, after.seed, after.views) == (before.members, method, 5, ("PA",))
    np.testing.assert_array_equal(after.final(u), made.final(u))
    np.testing.assert_array_equal(by_fold(after.by_fold, made.fold, u), made.judged)
    write_ensemble(path, after, card)
    assert path.read_bytes() == content


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ensemble.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match="not a readable ensemble"):
        read_ensemble(path)
