"""The bootstrap against repeated rows and scikit-learn; intervals and tests against their definitions."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from cxrlt_cli.bootstrap import Resampled, holm, interval, p_text, paired, replicates
from cxrlt_cli.bootstrap.draws import clusters, weights
from cxrlt_cli.bootstrap.ranking import ranking_replicates, thresholds
from cxrlt_cli.metrics import evaluate, rank, recalibration

EXACT = {"rtol": 0, "atol": 1e-12}
NAMES = ("a", "b", "c", "d", "e", "f")


def draw(rows: int, seed: int, *, levels: int | None = None, unknown: float = 0.2):
    """Labels, scores, posteriors, patients of random size; the fifth class has very few positives."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, 6)) < [0.5, 0.2, 0.1, 0.9, 0.01, 0.4]).astype(np.int8)
    scores = rng.normal(size=labels.shape) + labels
    if levels:
        scores = np.round(scores * levels / 6)
    labels[rng.random(labels.shape) < unknown] = -1
    return labels, scores, 1 / (1 + np.exp(0.5 - scores)), rng.integers(0, rows // 3, rows).astype(str)


def repeated(patients: np.ndarray, resamples: int, seed: int = 0) -> list[np.ndarray]:
    """The rows of each resample, written out."""
    drawn = weights(clusters(patients), seed, 0, resamples)
    return [np.repeat(np.arange(len(patients)), times) for times in drawn]


# -- the draws -----------------------------------------------------------------------------------------------------


def test_a_resample_takes_whole_patients_as_many_as_there_are() -> None:
    patients = np.array(["x", "y", "x", "z", "y", "x"])
    for times in weights(clusters(patients), 3, 0, 50):
        assert times[0] == times[2] == times[5]
        assert times[1] == times[4]
        assert int(times[0]) + times[1] + times[3] == 3


def test_a_resample_does_not_depend_on_the_others_asked_for() -> None:
    drawn = clusters(np.arange(500) // 2)
    whole = weights(drawn, 7, 0, 20)
    np.testing.assert_array_equal(whole[5:9], weights(drawn, 7, 5, 9))
    assert (weights(drawn, 8, 0, 20) != whole).any()


def test_a_resample_is_the_same_for_rows_in_another_order() -> None:
    patients = np.array([f"p{k // 3}" for k in range(300)])
    rows = np.random.default_rng(0).permutation(300)
    np.testing.assert_array_equal(
        weights(clusters(patients), 0, 0, 4)[:, rows], weights(clusters(patients[rows]), 0, 0, 4)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 700])
def test_patients_are_drawn_evenly_and_independently(count: int) -> None:
    times = weights(clusters(np.arange(count)), 1, 0, 4000).astype(float)
    np.testing.assert_array_equal(times.sum(axis=1), count)
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=5 / math.sqrt(4000))
    np.testing.assert_allclose(times.var(axis=0).mean(), 1 - 1 / count, atol=0.02)


# -- figures of resamples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 30, 4])
def test_replicates_are_the_metrics_of_repeated_rows(levels: int | None) -> None:
    labels, scores, posteriors, patients = draw(400, 1, levels=levels)
    decisions = posteriors >= [0.5, 0.3, 0.1, 0.9, 0.05, 0.4]
    reps = replicates(
        labels, scores, patients, posteriors=posteriors, decisions=decisions, prevalence=[0.2] * 6, resamples=12
    )
    for r, rows in enumerate(repeated(patients, 12)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            truth = evaluate(labels[rows], scores[rows], posteriors[rows], NAMES, [0.2] * 6, decisions=decisions[rows])
        for name in ("ap", "auroc", "f1", "precision", "recall", "f1_at_half", "brier"):
            np.testing.assert_allclose(reps.per_class[name].values[r], truth.per_class[name], err_msg=name, **EXACT)
            assert reps.overall[f"macro_{name}"].values[r] == pytest.approx(truth.overall[f"macro_{name}"], abs=1e-12)
        for name in ("micro_f1", "micro_f1_at_half", "chance_ap", "ece"):
            assert reps.overall[name].values[r] == pytest.approx(truth.overall[name], abs=1e-12), name
        assert reps.groups["head"]["macro_ap"].values[r] == reps.overall["macro_ap"].values[r]


@pytest.mark.parametrize("levels", [None, 5])
def test_replicates_are_scikit_learns_with_sample_weight(levels: int | None) -> None:
    labels, scores, posteriors, patients = draw(600, 2, levels=levels, unknown=0)
    reps = replicates(labels, scores, patients, posteriors=posteriors, resamples=6)
    for r, times in enumerate(weights(clusters(patients), 0, 0, 6)):
        for c in (0, 1, 2, 3, 5):
            given_weights = {"sample_weight": times}
            y, s, p = labels[:, c], scores[:, c], posteriors[:, c]
            close = {
                "ap": average_precision_score(y, s, **given_weights),
                "auroc": roc_auc_score(y, s, **given_weights),
                "f1": f1_score(y, p >= 0.5, **given_weights),
                "brier": brier_score_loss(y, p, **given_weights),
            }
            for name, expected in close.items():
                assert reps.per_class[name].values[r, c] == pytest.approx(expected, abs=1e-12), name


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_weighted_ranking_on_small_tied_tables(data) -> None:
    count = data.draw(st.integers(1, 12))
    labels = data.draw(arrays(np.int8, count, elements=st.integers(-1, 1)))
    scores = data.draw(arrays(np.float64, count, elements=st.sampled_from([-1.5, 0.0, 1.0, 2.0])))
    times = data.draw(arrays(np.uint8, (3, count), elements=st.integers(0, 3)))
    aps, areas = ranking_replicates(thresholds(rank(labels, scores)), times)
    for row, ap, auroc in zip(times, aps, areas, strict=True):
        rows = np.repeat(np.arange(count), row)
        y, s = labels[rows], scores[rows]
        y, s = y[y >= 0], s[y >= 0]
        positives = int((y == 1).sum())
        expected_ap = average_precision_score(y, s) if positives else math.nan
        expected_auroc = roc_auc_score(y, s) if 0 < positives < len(y) else math.nan
        np.testing.assert_allclose([ap, auroc], [expected_ap, expected_auroc], **EXACT)


@pytest.mark.parametrize("dense", [0.0, 2.0])
def test_both_ways_of_adding_up_agree(dense: float, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores, _, patients = draw(500, 3, levels=20)
    usual = replicates(labels, scores, patients, resamples=8)
    monkeypatch.setattr("cxrlt_cli.bootstrap.ranking._DENSE", dense)
    monkeypatch.setattr("cxrlt_cli.bootstrap.ranking._AT_A_TIME", 700)
    monkeypatch.setattr("cxrlt_cli.bootstrap.resampling._BYTES", 1500)
    other = replicates(labels, scores, patients, resamples=8)
    for name in ("ap", "auroc"):
        np.testing.assert_array_equal(usual.per_class[name].values, other.per_class[name].values)


def test_calibration_errors_keep_the_bins_of_all_images() -> None:
    posteriors = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.9])[:, None]
    labels = np.array([0, 0, 1, 0, 1, 1], np.int8)[:, None]
    patients = np.arange(6)
    reps = replicates(labels, posteriors, patients, posteriors=posteriors, resamples=20)
    for r, times in enumerate(weights(clusters(patients), 0, 0, 20)):
        expected = np.abs(times * (labels - posteriors)[:, 0]).sum() / 6  # 15 bins: each image is alone in its own
        assert reps.per_class["ece"].values[r, 0] == pytest.approx(expected, abs=1e-12)
        assert reps.overall["ece"].values[r] == pytest.approx(expected, abs=1e-12)


def test_slope_and_intercept_are_nearly_those_of_repeated_rows() -> None:
    labels, scores, posteriors, patients = draw(3000, 4)
    reps = replicates(labels, scores, patients, posteriors=posteriors, resamples=40)
    slope, intercept = recalibration(labels, posteriors)
    for r, rows in enumerate(repeated(patients, 40)):
        exact_slope, exact_intercept = recalibration(labels[rows], posteriors[rows])
        moved = np.hypot(exact_slope - slope, exact_intercept - intercept)[[0, 1, 2, 3, 5]]
        missed = np.hypot(
            reps.per_class["slope"].values[r] - exact_slope, reps.per_class["intercept"].values[r] - exact_intercept
        )
        assert (missed[[0, 1, 2, 3, 5]] < 0.25 * moved + 0.01).all()


def test_undefined_resamples_are_counted_and_left_out_of_the_macro_average() -> None:
    labels = np.zeros((40, 2), np.int8)
    labels[::2, 0], labels[3, 1] = 1, 1  # one patient alone has the second finding
    scores = np.random.default_rng(0).normal(size=labels.shape)
    reps = replicates(labels, scores, np.arange(40), resamples=2000)
    share = reps.undefined("ap")
    assert share[0] == 0
    assert share[1] == pytest.approx((1 - 1 / 40) ** 40, abs=0.04)
    gone = np.isnan(reps.per_class["ap"].values[:, 1])
    alone = reps.per_class["ap"].values[gone, 0]
    np.testing.assert_array_equal(reps.overall["macro_ap"].values[gone], alone)
    counted = replicates(labels, scores, np.arange(40), resamples=2000, absent="zero")
    np.testing.assert_allclose(counted.overall["macro_ap"].values[gone], alone / 2, **EXACT)


def test_a_class_that_is_absent_or_unknown_is_undefined_throughout() -> None:
    labels, scores, posteriors, patients = draw(90, 5)
    labels[:, 1][labels[:, 1] == 1] = 0
    labels[:, 2] = -1
    reps = replicates(labels, scores, patients, posteriors=posteriors, resamples=5)
    for name in ("ap", "auroc", "f1", "precision", "recall", "slope"):
        assert np.isnan(reps.per_class[name].values[:, 1:3]).all(), name
    assert np.isnan(reps.per_class["brier"].values[:, 2]).all()
    assert not np.isnan(reps.per_class["brier"].values[:, 1]).any()


def test_rare_classes_are_a_group_by_their_positives_here() -> None:
    labels, scores, _, patients = draw(150, 6)
    reps = replicates(labels, scores, patients, prevalence=[0.5, 0.05, 0.001, 0.9, 0.001, 0.4], resamples=5)
    rare = (labels == 1).sum(axis=0) < 20
    assert rare.any()
    assert not rare.all()
    np.testing.assert_allclose(
        reps.groups["rare"]["macro_ap"].values, np.nanmean(reps.per_class["ap"].values[:, rare], axis=1), **EXACT
    )
    assert set(reps.groups) == {"head", "medium", "tail", "rare"}


def test_without_scores_the_other_figures_are_the_same() -> None:
    labels, scores, posteriors, patients = draw(300, 8)
    settings = {"posteriors": posteriors, "prevalence": [0.2] * 6, "absent": "zero", "resamples": 9}
    whole, some = (replicates(labels, given, patients, **settings) for given in (scores, None))
    assert some.resamples == 9
    for all_of, others, ranking in (
        (whole.per_class, some.per_class, {"ap", "auroc"}),
        (whole.overall, some.overall, {"macro_ap", "macro_auroc"}),
        (whole.groups["head"], some.groups["head"], {"macro_ap", "macro_auroc"}),
    ):
        assert all_of.keys() - others.keys() == ranking
        for name, one in others.items():
            np.testing.assert_array_equal(one.values, all_of[name].values)
            np.testing.assert_array_equal(one.reach(), all_of[name].reach())


@pytest.mark.parametrize("ranking", [True, False])
def test_progress_ends_at_the_number_of_resamples(ranking: bool) -> None:
    labels, scores, posteriors, patients = draw(60, 7)
    told: list[int] = []
    given = scores if ranking else None
    replicates(labels, given, patients, posteriors=posteriors, resamples=30, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 30


@pytest.mark.parametrize("resamples", [0, -1])
def test_no_resamples_are_refused(resamples: int) -> None:
    labels, scores, _, patients = draw(60, 7)
    with pytest.raises(ValueError, match="resamples"):
        replicates(labels, scores, patients, resamples=resamples)
    with pytest.raises(ValueError, match="nothing to compare the labels with"):
        replicates(labels, None, patients)


# -- intervals and tests -------------------------------------------------------------------------------------------


def test_interval_is_the_percentile_one() -> None:
    values = np.random.default_rng(0).normal(size=(999, 3))
    for level in (0.95, 0.5):
        expected = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        np.testing.assert_allclose(interval(values, level), expected, **EXACT)
    low, high = interval(values[:, 0])
    assert (float(low), float(high)) == pytest.approx(np.quantile(values[:, 0], [0.025, 0.975]))


def test_interval_leaves_out_what_is_undefined() -> None:
    values = np.random.default_rng(1).normal(size=(200, 2))
    values[::3, 0] = np.nan
    expected = np.quantile(values[~np.isnan(values[:, 0]), 0], [0.025, 0.975])
    low, high = interval(values)
    assert (low[0], high[0]) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_equal(interval(np.full((5, 2), np.nan)), ([math.nan] * 2, [math.nan] * 2))
    np.testing.assert_equal(interval(np.empty((0, 2))), ([math.nan] * 2, [math.nan] * 2))


def made_up(values: list[float] | np.ndarray, **how: float) -> Resampled:
    return Resampled("slope", np.asarray(values, float), **how)


def test_equal_predictions_have_no_difference() -> None:
    labels, scores, _, patients = draw(200, 8)
    reps = replicates(labels, scores, patients, resamples=50).per_class["ap"]
    points = evaluate(labels, scores, 1 / (1 + np.exp(-scores)), NAMES, [0.2] * 6).per_class["ap"]
    found = paired(points, points, reps, reps)
    for values, expected in ((found.value, 0), (found.p, 1), (found.low, 0), (found.high, 0), (found.detectable, 0)):
        np.testing.assert_array_equal(values[[0, 1, 2, 3, 5]], expected)


def test_a_comparison_by_hand() -> None:
    """The paired t test: degrees of freedom 1 / (1 / 6 + 1 / 3) = 2 from seven patients and four resamples."""
    few = made_up([2.0, 4.0, 1.0, -1.0], freedom=6, widening=1.5)
    found = paired(5.0, 3.0, few, made_up(np.zeros(4), freedom=9))
    error = 1.5 * np.std([2, 4, 1, -1], ddof=1)
    assert found.value == 2
    assert found.p == pytest.approx(2 * stats.t.sf(2 / error, 2))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 2, error))
    assert found.detectable == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * error)


def test_a_difference_that_no_resample_changes_is_not_judged() -> None:
    found = paired(1.0, 0.5, made_up(np.ones(50), freedom=0), made_up(np.full(50, 0.5), freedom=0))
    assert found.value == 0.5
    assert np.isnan([found.low, found.high, found.p, found.detectable]).all()
    found = paired(math.nan, 0.5, made_up(np.full(50, math.nan)), made_up(np.full(50, 0.5)))
    assert np.isnan([found.value, found.low, found.high, found.p, found.detectable]).all()


def test_rounding_is_no_spread() -> None:
    """The mean of a thousand times 11/12 is 11/12 less 1e-14."""
    found = paired(11 / 12, 0.0, made_up(np.full(1000, 11 / 12), freedom=0), made_up(np.zeros(1000), freedom=0))
    assert np.isnan([found.low, found.high, found.p, found.detectable]).all()


@settings(max_examples=100, deadline=None)
@given(st.floats(-5, 5), st.floats(0.01, 3), st.integers(1, 50))
def test_p_is_below_5_percent_exactly_where_the_interval_leaves_0_out(
    value: float, spread: float, freedom: int
) -> None:
    reps = made_up(spread * np.random.default_rng(0).normal(size=60), freedom=freedom)
    found = paired(value, 0.0, reps, made_up(np.zeros(60)))
    assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_p_values_without_a_difference_are_uniform() -> None:
    rng = np.random.default_rng(9)
    ps = []
    for _ in range(800):
        a, b = rng.normal(size=(2, 12))
        rows = rng.integers(0, 12, (300, 12))
        few = {"freedom": 11, "widening": math.sqrt(12 / 11)}
        drawn = (made_up(one[rows].mean(axis=1), **few) for one in (a, b))
        ps.append(float(paired(a.mean(), b.mean(), *drawn).p))
    assert 0.03 < np.mean(np.array(ps) < 0.05) < 0.07
    assert 0.45 < np.mean(np.array(ps) < 0.5) < 0.55


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(10)
    rows, nothing = rng.integers(0, 80, (300, 80)), made_up(np.zeros(300))
    first = rng.normal(size=80)
    detectable = float(paired(first.mean(), 0, made_up(first[rows].mean(axis=1)), nothing).detectable)
    assert detectable == pytest.approx(2.8 * first.std() / math.sqrt(80), rel=0.15)
    found = 0
    for _ in range(400):
        values = rng.normal(2.8016 / math.sqrt(80), 1, 80)
        found += bool(paired(values.mean(), 0, made_up(values[rows].mean(axis=1)), nothing).p < 0.05)
    assert 0.72 < found / 400 < 0.88


def test_p_values_are_never_told_as_zero() -> None:
    assert [p_text(p) for p in (0.0, 0.0009, 0.001, 0.05, 1.0, math.nan, None)] == [
        "< 0.001", "< 0.001", "0.001", "0.050", "1.000", "-", "-"
    ]  # fmt: skip


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .5 times 4 3 2 1, never falling, at most 1
    np.testing.assert_allclose(holm([0.03, 0.01, 0.5, 0.02, math.nan]), [0.06, 0.04, 0.5, 0.06, math.nan], **EXACT)
    np.testing.assert_allclose(holm([0.4, 0.9]), [0.8, 0.9], **EXACT)
    assert holm([math.nan]).tolist() != []
    assert holm([0.6, 0.6]).tolist() == [1, 1]
