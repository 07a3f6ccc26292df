"""The metrics against scikit-learn, and where scikit-learn has no answer, against the definition."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from cxrlt_cli.errors import DataError
from cxrlt_cli.metrics import (
    auroc,
    average_precision,
    brier,
    confusion,
    ece,
    evaluate,
    flat_ece,
    group_of,
    recalibration,
)

EXACT = {"rtol": 0, "atol": 1e-12}


def sklearn_per_class(metric, labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A scikit-learn metric on each class's known labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array(
            [
                metric(y[y >= 0], v[y >= 0]) if (y >= 0).any() else np.nan
                for y, v in zip(labels.T, values.T, strict=True)
            ]
        )


def draw(rows: int, seed: int, *, levels: int | None = None, unknown: float = 0.2, dtype=np.float64):
    """Random labels and scores; ``levels`` makes that many distinct scores."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, 6)) < [0.5, 0.2, 0.1, 0.02, 0.9, 0.4]).astype(np.int8)
    scores = rng.normal(size=labels.shape) + labels
    if levels:
        scores = np.round(scores * levels / 6)
    labels[rng.random(labels.shape) < unknown] = -1
    return labels, scores.astype(dtype)


# against scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 40, 5, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_ranking_metrics_agree_with_sklearn(levels: int | None, dtype) -> None:
    labels, scores = draw(3000, 1, levels=levels, dtype=dtype)
    np.testing.assert_allclose(
        average_precision(labels, scores), sklearn_per_class(average_precision_score, labels, scores), **EXACT
    )
    np.testing.assert_allclose(auroc(labels, scores), sklearn_per_class(roc_auc_score, labels, scores), **EXACT)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_ranking_metrics_agree_with_sklearn_on_small_tied_tables(data) -> None:
    shape = (data.draw(st.integers(1, 12)), 2)
    labels = data.draw(arrays(np.int8, shape, elements=st.integers(-1, 1)))
    scores = data.draw(arrays(np.float64, shape, elements=st.sampled_from([-np.inf, -1.5, 0.0, 5e-324, 1.0, 1e300])))
    finite = np.nan_to_num(scores)
    expected = sklearn_per_class(average_precision_score, labels, finite)
    expected[~(labels == 1).any(axis=0)] = np.nan
    np.testing.assert_allclose(average_precision(labels, scores), expected, **EXACT)
    expected = sklearn_per_class(roc_auc_score, labels, finite)
    np.testing.assert_allclose(auroc(labels, scores), expected, **EXACT)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_decisions_agree_with_sklearn(data) -> None:
    shape = (data.draw(st.integers(1, 12)), 3)
    labels = data.draw(arrays(np.int8, shape, elements=st.integers(0, 1)))
    decisions = data.draw(arrays(np.bool_, shape))
    counts = confusion(labels, decisions)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, zero_division=0)
    absent = ~(labels == 1).any(axis=0)
    for got, expected in ((counts.precision, precision), (counts.recall, recall), (counts.f1, f1)):
        np.testing.assert_allclose(got, np.where(absent, np.nan, expected), **EXACT)
    if labels.any():
        micro = f1_score(labels, decisions, average="micro", zero_division=0)
        assert counts.micro_f1 == pytest.approx(micro, abs=1e-12)
    else:
        assert math.isnan(counts.micro_f1)


def test_brier_agrees_with_sklearn() -> None:
    labels, scores = draw(500, 2)
    posteriors = 1 / (1 + np.exp(-scores))
    np.testing.assert_allclose(
        brier(labels, posteriors), sklearn_per_class(brier_score_loss, labels, posteriors), **EXACT
    )


def test_unknown_labels_are_left_out_of_decisions() -> None:
    labels = np.array([[1], [0], [-1], [-1], [1]], np.int8)
    counts = confusion(labels, np.array([[True], [True], [True], [False], [False]]))
    assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (1, 1, 1)
    assert counts.f1.tolist() == [0.5]


@pytest.mark.parametrize("constant", [0.0, -3.5, np.inf])
def test_constant_scores_rank_by_chance(constant: float) -> None:
    labels = np.array([[1], [0], [0], [1], [0], [-1]], np.int8)
    scores = np.full(labels.shape, constant)
    assert average_precision(labels, scores).tolist() == [0.4]
    assert auroc(labels, scores).tolist() == [0.5]


@pytest.mark.parametrize(("label", "ap"), [(1, 1.0), (0, math.nan), (-1, math.nan)])
def test_one_image(label: int, ap: float) -> None:
    labels, scores = np.array([[label]], np.int8), np.zeros((1, 1))
    np.testing.assert_equal(average_precision(labels, scores), [ap])
    np.testing.assert_equal(auroc(labels, scores), [math.nan])


def test_row_order_changes_nothing() -> None:
    labels, scores = draw(400, 3, levels=6)
    posteriors = 1 / (1 + np.exp(-scores))
    shuffled = np.random.default_rng(0).permutation(len(labels))
    for metric, values in ((average_precision, scores), (auroc, scores), (ece, posteriors), (brier, posteriors)):
        np.testing.assert_allclose(metric(labels[shuffled], values[shuffled]), metric(labels, values), **EXACT)


# calibration ----------------------------------------------------------------------------------------------------------


def test_ece_of_equal_bins_by_hand() -> None:
    posteriors = np.array([0.1, 0.2, 0.3, 0.4, 0.7, 0.9])[:, None]
    labels = np.array([0, 0, 1, 0, 1, 1], np.int8)[:, None]
    # three bins of two: means .15 against 0, .35 against .5, .8 against 1
    assert ece(labels, posteriors, bins=3)[0] == pytest.approx((0.15 + 0.15 + 0.2) / 3)


def test_ece_keeps_equal_posteriors_together() -> None:
    labels = np.array([0] * 90 + [1] * 10, np.int8)[:, None]
    assert ece(labels, np.full((100, 1), 0.1))[0] == pytest.approx(0, abs=1e-12)
    assert ece(labels, np.full((100, 1), 0.4))[0] == pytest.approx(0.3)


def test_ece_of_calibrated_posteriors_is_near_zero_and_of_wrong_ones_is_not() -> None:
    rng = np.random.default_rng(4)
    posteriors = rng.beta(1, 3, (20_000, 2))
    labels = (rng.random(posteriors.shape) < posteriors).astype(np.int8)
    assert (ece(labels, posteriors) < 0.02).all()
    assert flat_ece(labels, posteriors) < 0.01
    assert (ece(labels, np.sqrt(posteriors)) > 0.15).all()


def test_flat_ece_has_equal_width_bins_closed_above() -> None:
    posteriors = np.array([[0.0, 0.2], [0.5, 0.6], [0.7, 1.0]])
    labels = np.array([[0, 1], [1, 0], [0, 1]], np.int8)
    # bins (0, .5] with .0, .2, .5 and labels 0, 1, 1; (.5, 1] with .6, .7, 1 and labels 0, 0, 1
    assert flat_ece(labels, posteriors, bins=2) == pytest.approx((abs(2 - 0.7) + abs(1 - 2.3)) / 6)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_flat_ece_follows_its_definition(bins: int) -> None:
    labels, scores = draw(700, 5)
    posteriors = 1 / (1 + np.exp(-scores))
    known = labels >= 0
    p, y, expected = posteriors[known], labels[known], 0.0
    for low in np.arange(bins) / bins:
        inside = (p > low) & (p <= low + 1 / bins)
        if inside.any():
            expected += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    assert flat_ece(labels, posteriors, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_without_known_labels_is_undefined() -> None:
    labels = np.full((4, 2), -1, np.int8)
    labels[:, 1] = 0
    posteriors = np.full((4, 2), 0.25)
    np.testing.assert_equal(ece(labels, posteriors), [math.nan, 0.25])
    np.testing.assert_equal(brier(labels, posteriors), [math.nan, 0.0625])
    assert math.isnan(flat_ece(labels[:, :1], posteriors[:, :1]))


def test_recalibration_agrees_with_sklearn() -> None:
    labels, scores = draw(2000, 11)
    posteriors = 1 / (1 + np.exp(0.7 - 1.6 * scores))
    slopes, intercepts = recalibration(labels, posteriors)
    for c in range(6):
        known = labels[:, c] >= 0
        fit = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000)
        fit.fit((1.6 * scores[known, c] - 0.7)[:, None], labels[known, c])
        assert slopes[c] == pytest.approx(fit.coef_[0, 0], abs=1e-5)
        assert intercepts[c] == pytest.approx(fit.intercept_[0], abs=1e-5)


def test_recalibration_of_calibrated_posteriors_is_the_identity() -> None:
    rng = np.random.default_rng(12)
    log_odds = rng.normal(-1, 2, (40_000, 2))
    labels = (rng.random(log_odds.shape) < 1 / (1 + np.exp(-log_odds))).astype(np.int8)
    slopes, intercepts = recalibration(labels, 1 / (1 + np.exp(-log_odds)))
    np.testing.assert_allclose(slopes, 1, atol=0.05)
    np.testing.assert_allclose(intercepts, 0, atol=0.05)
    halved, shifted = recalibration(labels, 1 / (1 + np.exp(-(2 * log_odds + 3))))
    np.testing.assert_allclose(halved, slopes / 2, atol=1e-6)  # the same line in other units
    np.testing.assert_allclose(shifted, intercepts - 1.5 * slopes, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "posteriors"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),  # separated
        ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]),  # separated the wrong way round
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]),  # but for a tie
        ([0, 1, 0, 1], [0.3, 0.3, 0.3, 0.3]),  # all equal
        ([0, 0, 0, -1], [0.1, 0.2, 0.8, 0.9]),  # no positive
        ([1, 1, -1, 1], [0.1, 0.2, 0.8, 0.9]),  # no negative
        ([-1, -1, -1, -1], [0.1, 0.2, 0.8, 0.9]),
    ],
)
def test_recalibration_without_a_finite_line_is_undefined(labels: list[int], posteriors: list[float]) -> None:
    slope, intercept = recalibration(np.array(labels, np.int8)[:, None], np.array(posteriors)[:, None])
    assert math.isnan(slope[0])
    assert math.isnan(intercept[0])


def test_recalibration_stands_posteriors_of_0_and_1() -> None:
    labels = np.array([0, 1, 0, 1, 1, 0], np.int8)[:, None]
    slope, intercept = recalibration(labels, np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.3])[:, None])
    assert np.isfinite([slope, intercept]).all()


# the whole evaluation -------------------------------------------------------------------------------------------------

NAMES = ("Effusion", "Mass", "Hernia", "Azygos lobe")
PREVALENCE = (0.3, 0.05, 0.004, 0.002)


def table(rows: int = 300):
    """Four classes; the last has no positives, one label in ten is unknown."""
    rng = np.random.default_rng(6)
    labels = (rng.random((rows, 4)) < [0.3, 0.1, 0.05, 0]).astype(np.int8)
    scores = (rng.normal(size=labels.shape) + 2 * labels).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = -1
    return labels, scores, 1 / (1 + np.exp(1.5 - scores.astype(np.float64)))


def test_absent_class_is_skipped_and_named() -> None:
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    expected = sklearn_per_class(average_precision_score, labels[:, :3], scores[:, :3])
    np.testing.assert_allclose(result.per_class["ap"], [*expected, np.nan], **EXACT)
    assert result.overall["macro_ap"] == pytest.approx(expected.mean(), abs=1e-12)
    assert result.undefined["ap"] == result.undefined["auroc"] == result.undefined["f1"] == ("Azygos lobe",)
    assert "brier" not in result.undefined


def test_absent_class_counts_zero_as_in_sklearn() -> None:
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE, absent="zero")
    expected = sklearn_per_class(average_precision_score, labels, scores)
    assert expected[3] == 0
    np.testing.assert_allclose(result.per_class["ap"], expected, **EXACT)
    assert result.overall["macro_ap"] == pytest.approx(expected.mean(), abs=1e-12)
    f1 = sklearn_per_class(lambda y, p: f1_score(y, p >= 0.5, zero_division=0), labels, posteriors)
    assert result.overall["macro_f1"] == pytest.approx(f1.mean(), abs=1e-12)
    assert math.isnan(result.per_class["auroc"][3])
    assert result.undefined["ap"] == ("Azygos lobe",)


def test_overall_figures_agree_with_the_parts() -> None:
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    assert result.overall["macro_auroc"] == pytest.approx(np.nanmean(auroc(labels, scores)), abs=1e-12)
    assert result.overall["macro_ece"] == pytest.approx(ece(labels, posteriors).mean(), abs=1e-12)
    assert result.overall["macro_brier"] == pytest.approx(brier(labels, posteriors).mean(), abs=1e-12)
    assert result.overall["ece"] == flat_ece(labels, posteriors)
    assert result.overall["micro_f1"] == confusion(labels, posteriors >= 0.5).micro_f1


def test_chance_is_the_mean_prevalence_of_the_classes_averaged() -> None:
    labels, scores, posteriors = table(20_000)
    shares = np.array([(column == 1).sum() / (column >= 0).sum() for column in labels.T])
    skipped = evaluate(labels, scores, posteriors, NAMES, PREVALENCE).overall["chance_ap"]
    counted = evaluate(labels, scores, posteriors, NAMES, PREVALENCE, absent="zero").overall["chance_ap"]
    assert skipped == pytest.approx(shares[:3].mean())
    assert counted == pytest.approx(shares.mean())
    noise = np.random.default_rng(0).normal(size=labels.shape)
    by_chance = evaluate(labels, noise, posteriors, NAMES, PREVALENCE).overall["macro_ap"]
    assert by_chance == pytest.approx(skipped, rel=0.05)


def test_groups_go_by_training_prevalence() -> None:
    assert group_of([0.5, 0.1001, 0.10, 0.01, 0.0099, 0]).tolist() == [
        "head", "head", "medium", "medium", "tail", "tail",
    ]  # fmt: skip
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    assert result.group == ("head", "medium", "tail", "tail")
    assert [result.counts[name] for name in ("head", "medium", "tail")] == [1, 1, 2]
    assert result.groups["tail"]["macro_ap"] == result.per_class["ap"][2]
    assert result.groups["head"]["chance_ap"] == pytest.approx((labels[:, 0] == 1).sum() / (labels[:, 0] >= 0).sum())


def test_rare_classes_are_a_group_besides() -> None:
    labels, scores, posteriors = table()
    positives = (labels == 1).sum(axis=0)
    assert ((positives < 20) == [False, False, True, True]).all()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    assert result.counts == {"head": 1, "medium": 1, "tail": 2, "rare": 2}
    assert result.groups["rare"] == result.groups["tail"]


def test_given_decisions_are_judged_and_those_at_half_stand_beside() -> None:
    labels, scores, posteriors = table()
    decisions = posteriors >= 0.3
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE, decisions=decisions)
    np.testing.assert_array_equal(result.per_class["f1"], confusion(labels, decisions).f1)
    np.testing.assert_array_equal(result.per_class["f1_at_half"], confusion(labels, posteriors >= 0.5).f1)
    assert result.overall["micro_f1"] == confusion(labels, decisions).micro_f1
    assert result.overall["micro_f1_at_half"] == confusion(labels, posteriors >= 0.5).micro_f1
    plain = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    assert plain.overall["macro_f1"] == plain.overall["macro_f1_at_half"]


def test_empty_group_and_no_images_are_undefined_not_errors() -> None:
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, [0.3] * 4)
    assert math.isnan(result.groups["tail"]["macro_ap"])
    empty = evaluate(labels[:0], scores[:0], posteriors[:0], NAMES, PREVALENCE)
    assert all(value is None for name, value in empty.summary().items() if name != "chance_ap")


def test_json_is_whole_and_has_no_nan() -> None:
    labels, scores, posteriors = table()
    result = evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    again = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert again["overall"] == result.summary()
    assert again["images"] == 300
    assert [row["name"] for row in again["classes"]] == list(NAMES)
    absent = again["classes"][3]
    assert (absent["ap"], absent["positives"], absent["group"]) == (None, 0, "tail")
    assert absent["negatives"] == (labels[:, 3] == 0).sum()
    assert again["classes"][0]["auroc"] == result.per_class["auroc"][0]


@pytest.mark.parametrize(
    ("score", "posterior", "message"),
    [(math.nan, 0.5, "the score is nan"), (0.0, math.nan, "the posterior is nan"), (0.0, 1.5, "the posterior is 1.5")],
)
def test_values_that_cannot_be_evaluated_are_data_errors(score: float, posterior: float, message: str) -> None:
    labels, scores, posteriors = table()
    scores[7, 2], posteriors[7, 2] = score, posterior
    with pytest.raises(DataError, match=message) as error:
        evaluate(labels, scores, posteriors, NAMES, PREVALENCE)
    assert error.value.where == "row 7, class Hernia"
