"""Kinds of intervals, and the moments of replicates they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

#: Numbers that differ by less are equal ones, added up in another order.
ROUNDING = 1e-12


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


def on_logit_scale(point: npt.ArrayLike, reach: npt.ArrayLike, bias: npt.ArrayLike = 0.0) -> tuple[Any, Any]:
    """An interval symmetric in logit(figure), mapped back: ``logit(p) - (b -+ reach) / (p (1 - p))``.

    Near 0 and 1 the distribution of a share is skewed, and an interval symmetric in the figure, or in the percentiles
    of its replicates, misses the truth more often than it says (Qin and Hotilovac, 2008, for AUROC).

    Args:
        point: (...) p, the figure of all images, in [0, 1].
        reach: (...) half the width that the interval would have on the plain scale.
        bias: (...) b, by how much p is too large; the interval is moved, not the figure.

    Returns:
        Lower and upper end, strictly between 0 and 1; p itself where p is 0 or 1.
    """
    p = np.asarray(point, dtype=np.float64)
    inside = (p > 0) & (p < 1)
    kept = np.where(inside, p, 0.5)
    slope, centre = 1 / (kept * (1 - kept)), np.log(kept / (1 - kept))
    moved = [centre + (side * np.asarray(reach) - bias) * slope for side in (-1, 1)]
    low, high = (np.where(inside | np.isnan(p), 1 / (1 + np.exp(-np.clip(end, -700, 700))), p) for end in moved)
    return np.where(np.isnan(p), p, low)[()], np.where(np.isnan(p), p, high)[()]


def at_the_end(point: npt.ArrayLike, patients: npt.ArrayLike, level: float = 0.95, *, f1: bool = False) -> Any:
    """The interval of a figure that is 0 or 1: every resample says the same, but n patients leave room for others.

    If the share q of patients among whom it fails (or succeeds) were larger than ``1 - ((1 - level) / 2)^(1/n)``, not
    to see one of them would be rarer than the level allows (Clopper and Pearson, 1934). Recall is at most q; F1, with
    nothing called but hits, at most ``2 q / (1 + q)``; AP and AUROC of 1 at least 1 - q.

    Args:
        point: (...) the figure.
        patients: (...) n; nan comes back where it is 0.
        level: nominal coverage.
        f1: whether the figure is F1.
    """
    count = np.asarray(patients, np.float64)
    with np.errstate(divide="ignore"):
        share = np.where(count > 0, 1 - ((1 - level) / 2) ** (1 / np.maximum(count, 1e-9)), np.nan)
    high = np.asarray(point) == 1
    room = 2 * share / (1 + share) if f1 else share
    return np.where(high, 1 - share, 0 * share)[()], np.where(high, 1 + 0 * share, room)[()]


def leaning(figures: Array, reach: Array) -> tuple[float, float]:
    """How much further than an even one the interval of an average reaches below and above.

    The interval of a class leans, being even on the logit scale only; in a sum the distances to either end are added
    in squares.

    Args:
        figures: (K,) of the classes, between 0 and 1.
        reach: (K,) half the width that their intervals would have on the plain scale.
    """
    if not len(figures):
        return 1.0, 1.0
    low, high = on_logit_scale(figures, reach)
    even = np.hypot.reduce(reach)
    return float(np.hypot.reduce(figures - low) / even), float(np.hypot.reduce(high - figures) / even)


def of_an_error(point: Array, reach: Array, bias: Array, quantile: npt.ArrayLike) -> tuple[Any, Any]:
    """The interval of a calibration error: wider below than above.

    Chance can only enlarge a sum of absolute differences. By how much depends on the true differences, which are
    not known: between nothing, where all are large, and ``folded_bias``. So the upper end takes no bias off; the lower
    end takes it all off, with half of it as its own standard error. Such intervals hold the truth more often than they
    say.

    Args:
        point: (...) the error found.
        reach: (...) half the width without any bias.
        bias: (...) from ``folded_bias``.
        quantile: (...) of Student's t that ``reach`` contains.
    """
    below = bias + np.hypot(reach, np.asarray(quantile) * bias / 2)
    return np.maximum(point - below, 0)[()], np.minimum(point + reach, 1)[()]


def folded_bias(differences: Array) -> Array:
    """By how much chance enlarges the sum of the absolute values of K differences.

    With the standard deviation s of a difference among its replicates, and their mean d, the true difference is taken
    to be ``m = sqrt(max(d^2 - s^2, 0))``, as ``E d^2 = m^2 + s^2``. Its absolute value is then too large by the mean
    of a folded normal variable (Leone, Nelson and Nottingham, 1961) less m.

    Args:
        differences: (R, ..., K) replicates.

    Returns:
        (...) the sum over K.
    """
    mean, spread = moments(differences)
    true = np.sqrt(np.maximum(mean**2 - spread**2, 0))
    return np.asarray(np.where(spread > 0, folded(true, spread) - true, 0.0).sum(axis=-1))


def folded(mean: Array, deviation: Array) -> Array:
    """The mean of a folded normal variable, ``E|mean + deviation Z|`` for a standard normal Z; ``mean`` >= 0.

    >>> folded(np.array([0.0, 1.0]), np.array([1.0, 0.0])).round(4).tolist()
    [0.7979, 1.0]
    """
    from scipy.special import ndtr

    ratio = mean / np.where(deviation > 0, deviation, np.nan)
    found = deviation * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * (1 - 2 * ndtr(-ratio))
    return np.asarray(np.where(deviation > 0, found, mean))


def student(share: float, freedom: npt.ArrayLike) -> Array:
    """A quantile of Student's t; of the normal distribution for infinite degrees of freedom."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.asarray(freedom, np.float64), share))


def deviation(values: Array) -> Array:
    """Standard deviation (...) of what is defined among (R, ...), 0 for mere rounding; nan for fewer than two."""
    return moments(values)[1]


def moments(values: Array) -> tuple[Array, Array]:
    """Mean, 0 where nothing is defined, and ``deviation``."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    mean = np.where(defined, values, 0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(defined, (values - mean) ** 2, 0).sum(axis=0)
    spread = np.sqrt(squares / np.maximum(count - 1, 1))
    spread = np.where(spread > ROUNDING * np.maximum(np.abs(mean), 1), spread, 0)
    return mean, np.where(count > 1, spread, np.nan)


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
