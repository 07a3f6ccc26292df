"""Figures that are functions of weighted sums over images: those of decisions, Brier score, calibration.

What an image adds to each sum is a column of a matrix; the sums of all resamples are one product of weights and matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.metrics import BINS
from cxrlt_cli.metrics.calibration import equal_count_bins, equal_width_bins, log_odds_of, newton_terms, recalibrate

from .draws import Weights

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]
Decisions = npt.NDArray[np.bool_]

#: Rows of the matrix of a class, by what they add up; from "called at half" on they need posteriors.
_KNOWN, _POSITIVE, _CALLED, _HIT, _CALLED_AT_HALF, _HIT_AT_HALF, _SQUARE = range(7)
_GRADIENT, _CURVATURE, _BINS = slice(7, 9), slice(9, 12), slice(12, 12 + BINS)
_WITHOUT_POSTERIORS, _WITH_POSTERIORS = 4, 12 + BINS
#: Classes whose matrix exists at a time (27 rows of N doubles each: 150 MB for five classes and 143,000 images).
_CLASSES = 5
#: Weights turned into float64 at a time.
_AT_A_TIME = 1 << 22


@dataclass(frozen=True, slots=True)
class Judged:
    """What is judged: labels (N, C), and posteriors (N, C) and decisions (N, C) where there are any."""

    labels: Labels
    posteriors: Array | None
    decisions: Decisions | None


def sum_replicates(judged: Judged, weights: Weights, tick: Callable[[], None]) -> dict[str, Array]:
    """The figures of B resamples that need sums only.

    Args:
        judged: what is judged.
        weights: (B, N) how often each image occurs.
        tick: called after each class.

    Returns:
        Figure -> (B, C), nan where undefined, as in ``metrics.PER_CLASS``; further "chance" (B, C), "bins"
        (B, C, BINS), label less posterior in each bin that the calibration error adds up, and for all entries together
        "micro_f1" and so on (B,) and "flat_bins" (B, BINS).
    """
    parts: list[dict[str, Array]] = []
    counts: list[Array] = []
    images, classes = judged.labels.shape
    rows = _WITHOUT_POSTERIORS if judged.posteriors is None else _WITH_POSTERIORS
    matrix = np.empty((min(_CLASSES, classes), rows, images))
    for first in range(0, classes, _CLASSES):
        some = range(first, min(first + _CLASSES, classes))
        lines = [_line(judged, c) for c in some]
        for c, line, filled in zip(some, lines, matrix, strict=False):
            _fill(filled, judged, c, line)
        for sums, line in zip(_added_up(weights, matrix[: len(some)]), lines, strict=True):
            parts.append(_figures(sums, line, judged))
            counts.append(sums[:_SQUARE])
            tick()
    together = {name: np.stack([part[name] for part in parts], axis=1) for name in parts[0]}
    return together | _pooled(judged, weights, np.sum(counts, axis=0))


def _line(judged: Judged, c: int) -> Array:
    """Intercept and slope (2,) of the class's logistic recalibration; nan without posteriors or a finite line."""
    if judged.posteriors is None:
        return np.full(2, np.nan)
    known = judged.labels[:, c] != UNKNOWN
    slope, intercept = recalibrate(judged.labels[known, c] == 1, log_odds_of(judged.posteriors[known, c]))
    return np.array([intercept, slope])


def _fill(made: Array, judged: Judged, c: int, line: Array) -> None:
    """Write what each image adds to each sum of class c into ``made`` (rows, N)."""
    labels = judged.labels[:, c]
    known, positive = labels != UNKNOWN, labels == 1
    made[:] = 0
    made[_KNOWN], made[_POSITIVE] = known, positive
    if judged.decisions is not None:
        made[_CALLED], made[_HIT] = judged.decisions[:, c] & known, judged.decisions[:, c] & positive
    if judged.posteriors is None:
        return
    posterior = judged.posteriors[:, c]
    made[_CALLED_AT_HALF], made[_HIT_AT_HALF] = (posterior >= 0.5) & known, (posterior >= 0.5) & positive
    made[_SQUARE, known] = (posterior[known] - positive[known]) ** 2
    made[_BINS][equal_count_bins(posterior[known]), np.flatnonzero(known)] = positive[known] - posterior[known]
    if not np.isnan(line).any():
        gradient, curvature = newton_terms(line, log_odds_of(posterior[known]), positive[known])
        made[_GRADIENT, known], made[_CURVATURE, known] = gradient.T, curvature.T


def _added_up(weights: Weights, matrix: Array) -> Array:
    """Weights (B, N) times a matrix (..., rows, N): sums (..., rows, B)."""
    rows = matrix.reshape(-1, matrix.shape[-1])
    block = max(1, _AT_A_TIME // max(weights.shape[1], 1))
    floats = np.empty((min(block, len(weights)), weights.shape[1]))
    parts = []
    for first in range(0, len(weights), block):
        some = floats[: len(weights) - first]
        np.copyto(some, weights[first : first + block])
        parts.append(rows @ some.T)
    return np.concatenate(parts, axis=1).reshape(*matrix.shape[:-1], len(weights))


def _figures(sums: Array, line: Array, judged: Judged) -> dict[str, Array]:
    """The figures (B,) of one class, and its bins (B, BINS), from its sums (rows, B)."""
    known, positive = sums[_KNOWN], sums[_POSITIVE]
    with np.errstate(invalid="ignore", divide="ignore"):
        made = {"chance": positive / np.maximum(known, 1)}
        if judged.decisions is not None:
            called, hit = sums[_CALLED], sums[_HIT]
            made |= {
                "f1": np.where(positive > 0, 2 * hit / (called + positive), np.nan),
                "precision": np.where(positive > 0, hit / np.maximum(called, 1), np.nan),
                "recall": hit / positive,
            }
        if judged.posteriors is not None:
            called, hit = sums[_CALLED_AT_HALF], sums[_HIT_AT_HALF]
            intercept, slope = _one_step(sums, line)
            made |= {
                "f1_at_half": np.where(positive > 0, 2 * hit / (called + positive), np.nan),
                "brier": sums[_SQUARE] / known,
                "bins": (sums[_BINS] / known).T,
                "slope": slope,
                "intercept": intercept,
            }
    return made


def _one_step(sums: Array, line: Array) -> Array:
    """Intercept and slope (2, B) one Newton step of each resample away from those of all images.

    The one-step bootstrap (Moulton and Zeger, 1991): as exact to first order as iterating in every resample.
    """
    (g0, g1), (h00, h01, h11) = sums[_GRADIENT], sums[_CURVATURE]
    determinant = h00 * h11 - h01 * h01
    both = (sums[_POSITIVE] > 0) & (sums[_KNOWN] > sums[_POSITIVE]) & (determinant > 0)
    step = np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant
    return np.where(both, line[:, None] + step, np.nan)


def _pooled(judged: Judged, weights: Weights, counts: Array) -> dict[str, Array]:
    """The figures (B,) of all entries together, from the counts (rows, B) of all classes."""
    made = {}
    known, positive = counts[_KNOWN], counts[_POSITIVE]
    with np.errstate(invalid="ignore", divide="ignore"):
        if judged.decisions is not None:
            f1 = 2 * counts[_HIT] / (counts[_CALLED] + positive)
            made["micro_f1"] = np.where(positive > 0, f1, np.nan)
        if judged.posteriors is not None:
            f1 = 2 * counts[_HIT_AT_HALF] / (counts[_CALLED_AT_HALF] + positive)
            made["micro_f1_at_half"] = np.where(positive > 0, f1, np.nan)
            made["flat_bins"] = (_added_up(weights, _flat_matrix(judged.labels, judged.posteriors)) / known).T
    return made


def _flat_matrix(labels: Labels, posteriors: Array) -> Array:
    """What each image adds to label - posterior in each equal-width bin: (BINS, N)."""
    made = np.zeros((BINS, len(labels)))
    for c in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, c] != UNKNOWN)
        made[equal_width_bins(posteriors[known, c]), known] += (labels[known, c] == 1) - posteriors[known, c]
    return made
