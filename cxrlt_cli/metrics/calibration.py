"""Do posteriors mean what they say? Brier score, calibration errors, and the line that would correct them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN

from .ranking import Array, Labels

#: Bins of both calibration errors.
BINS = 15
#: Log-odds are cut here: float64 posteriors cannot come closer to 1.
_FURTHEST = 40.0
_STEPS = 100


def brier(labels: Labels, posteriors: Array) -> Array:
    """Mean squared difference of posterior and label per class (C,); nan where no label is known."""
    known = labels != UNKNOWN
    squares = np.where(known, (posteriors - labels) ** 2, 0).sum(axis=0)
    return np.where(known.any(axis=0), squares / np.maximum(known.sum(axis=0), 1), np.nan)


def ece(labels: Labels, posteriors: Array, bins: int = BINS) -> Array:
    """Expected calibration error per class, over bins of equal count.

    ``sum_b n_b / n |mean label - mean posterior|``. Equal posteriors share a bin, that of the lowest place among them,
    so the result does not depend on the order of the rows.

    Args:
        labels: (N, C).
        posteriors: (N, C) in [0, 1].
        bins: of about n / bins images each.

    Returns:
        (C,) in [0, 1]; nan where no label is known.
    """
    known = labels != UNKNOWN
    columns = ((labels[k, c], posteriors[k, c]) for c, k in enumerate(known.T))
    return np.array([ece_of(column_labels == 1, column, bins) for column_labels, column in columns], dtype=np.float64)


def ece_of(positive: npt.NDArray[np.bool_], posterior: Array, bins: int = BINS) -> float:
    """``ece`` of one class: positive (n,) and posterior (n,) of its known labels."""
    return _gap(equal_count_bins(posterior, bins), positive, posterior) if len(posterior) else math.nan


def equal_count_bins(posterior: Array, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The bin (n,) of each posterior (n,), 0 to bins - 1 from the lowest posterior up."""
    count = len(posterior)
    order = np.argsort(posterior, kind="stable")
    ascending = posterior[order]
    first_of_its_value = np.append(True, ascending[1:] != ascending[:-1])[:count]
    lowest = np.maximum.accumulate(np.where(first_of_its_value, np.arange(count), 0))
    places = np.empty(count, np.int64)
    places[order] = lowest * bins // max(count, 1)
    return places


def flat_ece(labels: Labels, posteriors: Array, bins: int = BINS) -> float:
    """Expected calibration error of all known entries together, over equal-width bins ``(b / bins, (b + 1) / bins]``.

    The figure of CXR-LT. Most entries are sure negatives, so it hides the rare classes: read ``ece`` beside it.
    """
    known = labels != UNKNOWN
    if not known.any():
        return math.nan
    return _gap(equal_width_bins(posteriors[known], bins), labels[known] == 1, posteriors[known])


def equal_width_bins(posterior: Array, bins: int = BINS) -> npt.NDArray[np.int64]:
    """The bin of each posterior, in an array of its shape: b for those in ``(b / bins, (b + 1) / bins]``."""
    return np.clip(np.ceil(posterior * bins).astype(np.int64) - 1, 0, bins - 1)


def _gap(place: npt.NDArray[np.int64], positive: npt.NDArray[np.bool_], posterior: Array) -> float:
    """Mean over entries of the distance between label and posterior, each averaged over its bin."""
    return float(np.abs(np.bincount(place, weights=positive - posterior)).sum() / len(place))


# -- logistic recalibration ----------------------------------------------------------------------------------------


def recalibration(labels: Labels, posteriors: Array) -> tuple[Array, Array]:
    """Slope and intercept per class of the logistic regression of the label on the posterior's log-odds.

    ``logit P(y = 1) = intercept + slope * logit(posterior)`` (Cox, Biometrika 1958). Slope 1 and intercept 0 mean
    calibrated; a slope below 1 means overconfident; a negative intercept at slope 1 means posteriors too high.

    Args:
        labels: (N, C).
        posteriors: (N, C) in [0, 1].

    Returns:
        Two arrays (C,): slope and intercept. nan where the most likely line is not finite: a class without positives
        or negatives, posteriors that separate them completely, or that are all equal.
    """
    fits = []
    for c in range(labels.shape[1]):
        known = labels[:, c] != UNKNOWN
        fits.append(recalibrate(labels[known, c] == 1, log_odds_of(posteriors[known, c])))
    slopes, intercepts = np.array(fits, dtype=np.float64).reshape(-1, 2).T
    return slopes, intercepts


def log_odds_of(posteriors: Array) -> Array:
    """log(p / (1 - p)), cut at 40 on both sides."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(np.log(posteriors) - np.log1p(-posteriors), -_FURTHEST, _FURTHEST))


def recalibrate(positive: npt.NDArray[np.bool_], log_odds: Array) -> tuple[float, float]:
    """``recalibration`` of one class, by Newton's method: positive (n,), log_odds (n,) -> slope, intercept."""
    if not _overlap(log_odds[positive], log_odds[~positive]):
        return math.nan, math.nan
    centre, width = float(log_odds.mean()), float(log_odds.std())
    x = (log_odds - centre) / width
    share = positive.mean()
    line = np.array([math.log(share / (1 - share)), 0.0])
    best = _log_likelihood(line, x, positive)
    for _ in range(_STEPS):
        step = newton_step(line, x, positive)
        if np.abs(step).max() < 1e-9:
            line = line + step
            break
        scale, new = 1.0, _log_likelihood(line + step, x, positive)
        while new < best - 1e-9 * abs(best) and scale > 1e-9:
            scale /= 2
            new = _log_likelihood(line + scale * step, x, positive)
        line, best = line + scale * step, new
    return float(line[1] / width), float(line[0] - line[1] * centre / width)


def _overlap(of_positives: Array, of_negatives: Array) -> bool:
    """Whether a finite line is the most likely one (Albert and Anderson, Biometrika 1984, for one variable)."""
    if not of_positives.size or not of_negatives.size:
        return False
    return bool(of_positives.min() < of_negatives.max() and of_negatives.min() < of_positives.max())


def _log_likelihood(line: Array, x: Array, positive: npt.NDArray[np.bool_]) -> float:
    z = line[0] + line[1] * x
    return float(-np.logaddexp(0, np.where(positive, -z, z)).sum())


def newton_step(line: Array, x: Array, positive: npt.NDArray[np.bool_]) -> Array:
    """The step (2,) of intercept and slope from ``line`` towards the most likely one."""
    error, spread = _errors(line, x, positive)
    leaning = spread * x
    g0, g1 = error.sum(), error @ x
    h00, h01, h11 = spread.sum(), leaning.sum(), leaning @ x
    determinant = h00 * h11 - h01 * h01
    if determinant <= 0:  # so far from the data that every image is sure
        return np.zeros(2)
    return np.array([(h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant])


def newton_terms(line: Array, x: Array, positive: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """What each image adds to a Newton step: to the gradient (n, 2), and to the curvature (n, 3) as 00, 01, 11."""
    error, spread = _errors(line, x, positive)
    return np.stack([error, error * x], axis=1), np.stack([spread, spread * x, spread * x * x], axis=1)


def _errors(line: Array, x: Array, positive: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
    """Label less probability, and the variance of the label, (n,) each."""
    q = 1 / (1 + np.exp(-np.clip(line[0] + line[1] * x, -700, 700)))
    return positive - q, q * (1 - q)
