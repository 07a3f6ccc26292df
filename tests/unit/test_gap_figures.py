"""Weighted figures and other prevalences against repeated rows, scikit-learn and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cxrlt_cli.gap import FIGURES, Judged, apart, point, resampled
from cxrlt_cli.metrics import confusion, flat_ece


def made(seed: int = 0, images: int = 60, classes: int = 3) -> Judged:
    """Coarse scores, so that many tie; unknown labels; decisions that ignore the posteriors."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([-1, 0, 0, 0, 1], (images, classes)).astype(np.int8)
    scores = np.round(rng.normal(size=labels.shape) + (labels == 1), 1)
    return Judged(labels, scores, 1 / (1 + np.exp(-scores)), rng.random(labels.shape) < 0.4)


def test_unweighted_figures_are_those_of_evaluate() -> None:
    one = made()
    found = point(one)
    for c in range(3):
        known = one.labels[:, c] >= 0
        truth, scores = one.labels[known, c], one.scores[known, c]
        assert found["macro_ap"][c] == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
        assert found["macro_auroc"][c] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(confusion(one.labels, one.decisions).f1)
    assert found["ece"] == pytest.approx([flat_ece(one.labels, one.posteriors)])


def test_a_resample_is_the_repeated_rows() -> None:
    one, rng = made(1), np.random.default_rng(1)
    times = rng.poisson(1.0, (4, len(one.labels))).astype(np.uint8)
    found = resampled(one, times)
    for row, counts in enumerate(times):
        rows = np.repeat(np.arange(len(counts)), counts)
        again = point(Judged(one.labels[rows], one.scores[rows], one.posteriors[rows], one.decisions[rows]))
        for name in FIGURES:
            assert found[name][row] == pytest.approx(again[name], abs=1e-12)


def test_weights_are_sample_weights() -> None:
    one, rng = made(2), np.random.default_rng(2)
    weights = rng.random(len(one.labels))
    found = point(Judged(one.labels, one.scores, one.posteriors, one.decisions, weights))
    known = one.labels[:, 1] >= 0
    arguments = (one.labels[known, 1], one.scores[known, 1])
    assert found["macro_ap"][1] == pytest.approx(average_precision_score(*arguments, sample_weight=weights[known]))
    assert found["macro_auroc"][1] == pytest.approx(roc_auc_score(*arguments, sample_weight=weights[known]))


def test_another_prevalence_is_other_weights_of_positives_and_negatives() -> None:
    one = made(3)
    share = np.array([0.05, 0.5, np.nan])
    found = point(Judged(one.labels, one.scores, one.posteriors, one.decisions, prevalence=share))
    same = point(one)
    for c in range(2):
        known = one.labels[:, c] >= 0
        truth, scores, called = one.labels[known, c], one.scores[known, c], one.decisions[known, c]
        old = truth.mean()
        weight = np.where(truth == 1, share[c] / old, (1 - share[c]) / (1 - old))
        assert found["macro_ap"][c] == pytest.approx(average_precision_score(truth, scores, sample_weight=weight))
        recall, wrong = called[truth == 1].mean(), called[truth == 0].mean()
        hit, false = share[c] * recall, (1 - share[c]) * wrong
        assert found["macro_f1"][c] == pytest.approx(2 * hit / (hit + false + share[c]))
    assert found["macro_auroc"] == pytest.approx(same["macro_auroc"])  # does not depend on prevalence
    assert found["macro_ap"][2] == pytest.approx(same["macro_ap"][2])  # nan: as it is


def test_resamples_stand_for_the_same_prevalence() -> None:
    one = made(4)
    share = np.array([0.2, 0.2, 0.2])
    moved = Judged(one.labels, one.scores, one.posteriors, one.decisions, prevalence=share)
    doubled = one.labels == 1  # repeating the positives of class 0 changes nothing of it
    times = np.where(doubled[:, :1], 2, 1).astype(np.uint8).T
    assert resampled(moved, times)["macro_ap"][0, 0] == pytest.approx(point(moved)["macro_ap"][0])


def test_a_prevalence_may_depend_on_the_resample() -> None:
    one, rng = made(5), np.random.default_rng(5)
    times = rng.poisson(1.0, (3, len(one.labels))).astype(np.uint8)
    shares = np.array([[0.1, np.nan, 0.2], [0.3, 0.4, 0.5], [0.6, 0.7, np.nan]])
    sides = (one.labels, one.scores, one.posteriors, one.decisions)
    found = resampled(Judged(*sides, prevalence=lambda weights: shares[: len(weights)]), times)
    for row, share in enumerate(shares):
        again = resampled(Judged(*sides, prevalence=share), times[row : row + 1])
        for name in FIGURES:
            assert found[name][row] == pytest.approx(again[name][0], abs=1e-12)


def test_bins_that_are_apart_add_up_to_the_error() -> None:
    one = made(6)
    found = apart(one, np.ones((1, len(one.labels)), np.uint8))
    assert found.shape == (1, 15)
    assert np.abs(found).sum() == pytest.approx(flat_ece(one.labels, one.posteriors))


def test_what_has_no_value_is_nan() -> None:
    labels = np.array([[0, 1, -1], [0, 1, -1], [0, 1, -1]], np.int8)
    scores = np.array([[1e30, 1e30, 0.0], [-1e30, 2.0, 0.0], [0.0, 3.0, 0.0]])
    found = point(Judged(labels, scores, np.full((3, 3), 0.5), np.ones((3, 3), bool), prevalence=np.full(3, 0.3)))
    assert np.isnan(found["macro_ap"][[0, 2]]).all()
    assert found["macro_ap"][1] == 1
    assert np.isnan(found["macro_auroc"]).all()
    assert np.isnan(found["macro_f1"][[0, 2]]).all()
    assert found["ece"] == pytest.approx([0.0])  # three of six entries are positive, all posteriors are one half
