"""Do 95 % intervals hold the truth 95 % of the time? Simulated patients, scores whose true AP and AUROC are known.

A patient has one to four images. Findings and scores of one patient are alike: a label is the patient's own seven times
in ten, and half the variance of a score is the patient's. Scores are normal, with a mean higher by ``SHIFT`` where the
finding is present.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from cxrlt_cli.bootstrap import interval, interval_of, on_logit_scale, paired, reflected, replicates
from cxrlt_cli.metrics import auroc, average_precision

PREVALENCE = np.array([0.4, 0.2, 0.1])
SHIFT = 1.5
PATIENTS, DATASETS, RESAMPLES = 350, 600, 300


def true_auroc() -> float:
    """P(positive above negative) of two normal variables."""
    return NormalDist().cdf(SHIFT / math.sqrt(2))


def true_ap(prevalence: float) -> float:
    """The area under precision over recall, by the trapezoid rule over a fine grid of thresholds."""
    normal = NormalDist()
    grid = np.linspace(-8, 8 + SHIFT, 4001)
    recall = np.array([1 - normal.cdf(t - SHIFT) for t in grid])
    false_rate = np.array([1 - normal.cdf(t) for t in grid])
    flagged = prevalence * recall + (1 - prevalence) * false_rate
    precision = np.divide(prevalence * recall, flagged, out=np.ones_like(recall), where=flagged > 1e-15)
    return float(-(np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def simulate(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (N, C), scores (N, C) and patients (N,)."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(PATIENTS), rng.integers(1, 5, PATIENTS))
    shape = (len(patient), len(PREVALENCE))
    own = rng.random((PATIENTS, shape[1])) < PREVALENCE
    labels = np.where(rng.random(shape) < 0.7, own[patient], rng.random(shape) < PREVALENCE)
    alike = rng.normal(size=(PATIENTS, shape[1]))[patient]
    return labels.astype(np.int8), SHIFT * labels + math.sqrt(0.5) * (alike + rng.normal(size=shape)), patient


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth = {"ap": np.array([true_ap(share) for share in PREVALENCE]), "auroc": np.full(3, true_auroc())}
    held = {name: np.zeros(4) for name in truth}
    for seed in range(DATASETS):
        labels, scores, patient = simulate(seed)
        points = {"ap": average_precision(labels, scores), "auroc": auroc(labels, scores)}
        reps = replicates(labels, scores, patient, resamples=RESAMPLES, seed=seed)
        for name, true in truth.items():
            low, high = interval_of(name, points[name], reps.per_class[name])
            held[name][:3] += (low <= true) & (true <= high)
            macro = f"macro_{name}"
            low, high = interval_of(macro, points[name].mean(), reps.overall[macro])
            held[name][3] += low <= true.mean() <= high
    for name, counts in held.items():
        share = counts / DATASETS
        assert 0.93 <= share[:3].mean() <= 0.97, (name, share)
        assert ((share >= 0.91) & (share <= 0.98)).all(), (name, share)  # one share has a standard error of 0.01


@pytest.mark.slow
def test_resampling_images_instead_of_patients_would_not_do() -> None:
    """Why patients are the clusters: intervals from images alone are too narrow."""
    held = 0
    for seed in range(200):
        labels, scores, patient = simulate(seed)
        reps = replicates(labels[:, :1], scores[:, :1], np.arange(len(patient)), resamples=RESAMPLES, seed=seed)
        low, high = interval(reps.per_class["auroc"][:, 0])
        held += bool(low <= true_auroc() <= high)
    assert held / 200 < 0.91


@pytest.mark.slow
def test_paired_intervals_and_p_values_hold_too() -> None:
    """Two equally good sets of scores: no difference, found in one case of twenty."""
    held = found = 0
    for seed in range(200):
        labels, scores, patient = simulate(seed)
        others = SHIFT * labels + (scores - SHIFT * labels) * 0.6
        others += 0.8 * np.random.default_rng(10_000 + seed).normal(size=labels.shape)
        first, second = (replicates(labels, s, patient, resamples=RESAMPLES, seed=seed) for s in (scores, others))
        points = [auroc(labels, s).mean() for s in (scores, others)]
        difference = paired(points[0], points[1], first.overall["macro_auroc"], second.overall["macro_auroc"])
        held += bool(difference.low <= 0 <= difference.high)
        found += bool(difference.p < 0.05)
    assert 0.92 <= held / 200 <= 0.98
    assert 0.02 <= found / 200 <= 0.08


def test_intervals_on_the_logit_scale_by_hand() -> None:
    reps = np.array([0.7, 0.8, 0.9, 0.8, np.nan])
    spread = 1.959964 * np.std([0.7, 0.8, 0.9, 0.8], ddof=1) / (0.8 * 0.2)
    for end, side in zip(on_logit_scale(0.8, reps), (-1, 1), strict=True):
        assert math.log(end / (1 - end)) == pytest.approx(math.log(4) + side * spread, abs=1e-5)
    assert on_logit_scale(1.0, reps[:4]) == interval(reps[:4])
    both = on_logit_scale(np.array([0.5, np.nan]), np.full((4, 2), [[0.5, np.nan]]))
    np.testing.assert_allclose(both, [[0.5, np.nan], [0.5, np.nan]])


def test_calibration_errors_are_reflected() -> None:
    reps = np.linspace(0.10, 0.30, 401)
    low, high = interval(reps)
    assert reflected(0.15, reps) == (pytest.approx(max(0.3 - high, 0)), pytest.approx(0.3 - low))
    assert reflected(0.10, reps) == (0, 0.10)
    assert interval_of("ece", 0.15, reps) == reflected(0.15, reps)
    assert interval_of("macro_ece", 0.15, reps) == reflected(0.15, reps)
    assert interval_of("micro_f1", 0.15, reps) == interval(reps)
    for name in ("ap", "auroc", "macro_ap", "macro_auroc", "macro_f1"):
        assert interval_of(name, 0.15, reps) == on_logit_scale(0.15, reps)
