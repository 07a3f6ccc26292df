"""From replicates to intervals, paired differences and p values."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Standard errors between no difference and one found with 80 % power by a two-sided test at 5 %: 1.960 + 0.842.
POWER = 2.8016
_ERRORS = frozenset({"ece", "macro_ece"})
_SHARES = ("ap", "auroc", "f1", "precision", "recall", "f1_at_half")
_ON_LOGIT_SCALE = frozenset({*_SHARES, *(f"macro_{name}" for name in _SHARES)})


def interval(replicates: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """The percentile interval: the middle ``level`` of the replicates that have a value.

    Args:
        replicates: (R, ...), nan where undefined.
        level: nominal coverage.

    Returns:
        Lower and upper end, each (...) (a number for (R,)); nan where no replicate has a value.
    """
    ordered = np.sort(np.asarray(replicates, dtype=np.float64), axis=0)  # nan comes last
    ends = ((1 - level) / 2, (1 + level) / 2)
    low, high = (_quantile(ordered, share) for share in ends)
    return low, high


def reflected(point: npt.ArrayLike, replicates: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """The basic interval: the percentile interval mirrored at the figure, cut at 0, widened to hold the figure.

    For calibration errors. Chance alone makes them larger, in a resample once more, so the replicates lie above the
    figure as the figure lies above the truth (Davison and Hinkley, 1997). With few images the figure itself is at the
    upper end.

    Args:
        point: (...) the figure of all images.
        replicates: (R, ...).
        level: nominal coverage.
    """
    value = np.asarray(point, dtype=np.float64)
    low, high = interval(replicates, level)
    return np.clip(2 * value - high, 0, value)[()], np.maximum(2 * value - low, value)[()]


def on_logit_scale(point: npt.ArrayLike, replicates: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """The normal interval of logit(figure), mapped back: ``logit(p) +- z s / (p (1 - p))``, s from the replicates.

    For AP and AUROC. Near 1, and with few positives, their distribution is skewed, and the percentile interval misses
    the truth more often than it says (Qin and Hotilovac, 2008, for AUROC). AP moreover is larger in resamples than in
    the sample, as positives occur in them several times. Where the figure is 0 or 1, it is the percentile interval.

    Args:
        point: (...) the figure of all images, in [0, 1].
        replicates: (R, ...).
        level: nominal coverage.
    """
    p, values = np.asarray(point, dtype=np.float64), np.asarray(replicates, dtype=np.float64)
    inside = (p > 0) & (p < 1)
    kept = np.where(inside, p, 0.5)
    reach = NormalDist().inv_cdf((1 + level) / 2) * _deviation(values) / (kept * (1 - kept))
    centre = np.log(kept / (1 - kept))
    ends = [1 / (1 + np.exp(-np.clip(centre + side * reach, -700, 700))) for side in (-1, 1)]
    low, high = (np.where(inside, own, other) for own, other in zip(ends, interval(values, level), strict=True))
    return low[()], high[()]


def interval_of(name: str, point: npt.ArrayLike, replicates: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
    """The interval of a figure by its name.

    ``reflected`` for calibration errors, ``on_logit_scale`` for AP, AUROC, F1, precision and recall and their averages
    (which move in a resample that leaves a class out), and the percentile ``interval`` for all else.
    """
    if name in _ERRORS:
        return reflected(point, replicates, level)
    if name in _ON_LOGIT_SCALE:
        return on_logit_scale(point, replicates, level)
    return interval(replicates, level)


def _quantile(ordered: Array, share: float) -> Any:
    """A quantile of sorted replicates (R, ...), between two of them linearly, nan at the end left out: (...)."""
    if not len(ordered):
        return np.full(ordered.shape[1:], np.nan)[()]
    count = (~np.isnan(ordered)).sum(axis=0)
    place = share * np.maximum(count - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    lower, upper = (np.take_along_axis(ordered, at[None], axis=0)[0] for at in (below, above))
    return np.asarray(lower + (place - below) * (upper - lower))[()]


@dataclass(frozen=True, slots=True)
class Difference:
    """A minus B, measured on the same images.

    Each is a number, or an array (C,) for figures of classes.

    Attributes:
        value: the difference.
        low: lower end of its interval.
        high: upper end.
        p: two-sided p value.
        detectable: the smallest true difference that would be found with 80 % power by a two-sided test at 5 %.
    """

    value: Any
    low: Any
    high: Any
    p: Any
    detectable: Any


def paired(
    point_a: npt.ArrayLike, point_b: npt.ArrayLike, reps_a: npt.ArrayLike, reps_b: npt.ArrayLike, level: float = 0.95
) -> Difference:
    """Compare two sets of predictions by their replicates in the same resamples.

    The p value is ``(1 + #) / (R + 1)``, where # counts the resamples whose difference lies at least as far from the
    observed difference as that lies from 0 (Davison and Hinkley, 1997): the spread of the resamples around the
    observed difference stands for the spread of the observed one around no difference. Equal predictions have p = 1.
    The smallest p is 1 / (R + 1).

    Args:
        point_a: figure of A on all images, a number or (C,).
        point_b: the same of B.
        reps_a: (R,) or (R, C) from ``replicates`` with the same patients and seed as ``reps_b``.
        reps_b: the same of B.
        level: nominal coverage of the interval.
    """
    value = np.asarray(point_a, dtype=np.float64) - np.asarray(point_b, dtype=np.float64)
    differences = np.asarray(reps_a, dtype=np.float64) - np.asarray(reps_b, dtype=np.float64)
    low, high = interval(differences, level)
    return Difference(value[()], low, high, _p_value(value, differences)[()], (POWER * _deviation(differences))[()])


def _p_value(value: Array, differences: Array) -> Array:
    defined = ~np.isnan(differences)
    slack = 1e-12  # equal figures added up in another order are equal
    with np.errstate(invalid="ignore"):
        beyond = (np.abs(differences - value) >= np.abs(value) - slack) & defined
    p = (1 + beyond.sum(axis=0)) / (1 + defined.sum(axis=0))
    return np.asarray(np.where(np.isnan(value) | ~defined.any(axis=0), np.nan, p))


def _deviation(differences: Array) -> Array:
    """Standard deviation (...) of what is defined among (R, ...); nan for fewer than two."""
    defined = ~np.isnan(differences)
    count = defined.sum(axis=0)
    mean = np.where(defined, differences, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(defined, (differences - mean) ** 2, 0).sum(axis=0)
    return np.asarray(np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan))


def holm(p: npt.ArrayLike) -> Array:
    """Holm's adjusted p values (1979): rejecting those below a level errs at most that often in the whole family.

    Args:
        p: (C,); nan takes no part.

    Returns:
        (C,) in [0, 1], nan where ``p`` is.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted
