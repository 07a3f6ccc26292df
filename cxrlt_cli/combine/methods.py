"""From the log-odds of members to the log-odds of the ensemble.

With weights w_m (which sum to 1, but for stacking), log-odds u_m on one scale and posteriors p_m = sigmoid(u_m):

==============  =========================================================  ====================================
name            posterior                                                  weights
==============  =========================================================  ====================================
``mean``        sum w_m p_m                                                equal
``logit-mean``  sigmoid(sum w_m u_m)                                       equal
``geometric``   prod p_m^w_m                                               equal
``rank``        sum w_m F_m(u_m), F_m the distribution of u_m where fitted  equal
``weighted``    sigmoid(sum w_m u_m)                                       searched on the simplex
``greedy``      sigmoid(sum w_m u_m)                                       how often a member was selected
``stacking``    sigmoid(b_c + sum a_mc u_m)                                logistic regression of each class
==============  =========================================================  ====================================

A mean rank is no posterior; its log-odds rank the images, and the ensemble's calibration makes posteriors of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.calibration import Calibration
from cxrlt_cli.combine.scales import Scale, fit_scales, scaled
from cxrlt_cli.combine.search import bagged, greedy, on_the_simplex
from cxrlt_cli.combine.stacking import fit_stack
from cxrlt_cli.logistic import Array, logit, softplus

Labels = npt.NDArray[np.int8]

#: The default comes first.
COMBINATIONS = ("greedy", "mean", "logit-mean", "rank", "weighted", "geometric", "stacking")
#: Most knots that keep the distribution of a member's log-odds in a class.
KNOTS = 1024


@dataclass(frozen=True, slots=True)
class Combiner:
    """A fitted combination of M members for C classes.

    Attributes:
        method: one of ``COMBINATIONS``.
        maps: M calibrations, which bring the members to one scale.
        weights: (M, C).
        intercept: (C,) added to the combined log-odds; 0 but for stacking, and where ``slope`` is not 1.
        ranks: of "rank": for each member and class the distribution of its log-odds, (K, 2): value and share below.
        slope: (C,) or a number, by which the combined log-odds are multiplied before; see ``crossfit.levelled``.
    """

    method: str
    maps: tuple[Calibration, ...]
    weights: Array
    intercept: Array
    ranks: tuple[tuple[Array, ...], ...] = ()
    slope: Array | float = 1.0

    def __call__(self, log_odds: npt.ArrayLike) -> Array:
        """Log-odds of the members after their links (M, N, C) -> log-odds of the ensemble (N, C), finite."""
        return np.asarray(self._combined(scaled(self.maps, log_odds)) * self.slope + self.intercept)

    def _combined(self, u: Array) -> Array:
        if self.method == "mean":
            return _mean_of_posteriors(u, self.weights)
        if self.method == "geometric":
            return _geometric(u, self.weights)
        if self.method == "rank":
            return _mean_of_ranks(u, self.weights, self.ranks)
        return np.asarray(np.einsum("mnc,mc->nc", u, self.weights))


def fit_combiner(
    labels: Labels,
    log_odds: Array,
    patients: Sequence[str],
    scales: tuple[Scale, ...],
    method: str = "greedy",
    *,
    folds: int = 5,
    seed: int = 0,
) -> Combiner:
    """Bring the members to one scale, and find weights.

    Args:
        labels: (N, C): 1, 0, or -1 where unknown.
        log_odds: (M, N, C), each member's after its link.
        patients: N identifiers.
        scales: of the M members.
        method: one of ``COMBINATIONS``.
        folds: of the patients, over which "greedy", "weighted" and "stacking" are steadied.
        seed: of those folds.

    Raises:
        ValueError: there is no such method.
    """
    if method not in COMBINATIONS:
        raise ValueError(f"unknown method {method!r}; there are {', '.join(COMBINATIONS)}")
    maps = fit_scales(scales, labels, log_odds)
    members, classes = len(log_odds), labels.shape[1]
    weights, intercept = np.full((members, classes), 1 / members), np.zeros(classes)
    if method in ("greedy", "weighted"):
        search = greedy if method == "greedy" else on_the_simplex
        found = bagged(search, labels, scaled(maps, log_odds), patients, folds=folds, seed=seed)
        weights = np.repeat(found[:, None], classes, axis=1)
    if method == "stacking":
        weights, intercept = fit_stack(labels, log_odds, patients, scales, folds=folds, seed=seed)
    ranks = _ranks(scaled(maps, log_odds)) if method == "rank" else ()
    return Combiner(method, maps, weights, intercept, ranks)


def _mean_of_posteriors(u: Array, weights: Array) -> Array:
    """log(sum w p) - log(sum w (1 - p)): right at both ends, where 1 - p is no number any more."""
    with np.errstate(divide="ignore"):
        w = np.log(weights)[:, None, :]
    return _log_sum(w - softplus(-u)) - _log_sum(w - softplus(u))


def _log_sum(logs: Array) -> Array:
    """log(sum exp(x)) over the members."""
    top = logs.max(axis=0)
    return np.asarray(top + np.log(np.exp(logs - top).sum(axis=0)))


def _geometric(u: Array, weights: Array) -> Array:
    log_posterior = -np.einsum("mnc,mc->nc", softplus(-u), weights)
    return np.asarray(log_posterior - np.log(-np.expm1(log_posterior)))


# -- ranks ---------------------------------------------------------------------------------------------------------


def _ranks(u: Array) -> tuple[tuple[Array, ...], ...]:
    """The distribution of every member and class among all images, labelled or not."""
    return tuple(tuple(distribution(own[:, c]) for c in range(own.shape[1])) for own in u)


def mid_ranks(values: Array) -> tuple[Array, Array]:
    """The distinct ones of N values, ascending, and the share of smaller values plus half that of equal ones."""
    points, counts = np.unique(values, return_counts=True)
    return points, (np.cumsum(counts) - counts / 2) / len(values)


def distribution(values: Array) -> Array:
    """The distribution of values (N,), N >= 1, as knots (K, 2) with K <= ``KNOTS``: value, mid-rank in (0, 1).

    With more distinct values than knots, those are kept that lie evenly in the log-odds of their rank: both tails are
    kept finely.
    """
    points, share = mid_ranks(values)
    if len(points) > KNOTS:
        odds = logit(share)
        kept = np.unique(np.searchsorted(odds, np.linspace(odds[0], odds[-1], KNOTS)).clip(0, len(points) - 1))
        points, share = points[kept], share[kept]
    return np.column_stack([points, share])


def rank_of(values: Array, knots: Array) -> Array:
    """Where values (N,) stand in a distribution (K, 2), in (0, 1): linear between knots.

    Beyond the ends the share that is left shrinks by 1/e with each unit of log-odds, as the tails of a logistic
    distribution do, so that values beyond all that were seen still differ.
    """
    points, share = knots.T
    inside = np.interp(values, points, share)
    below = np.exp(np.minimum(values - points[0], 0))
    above = np.exp(np.minimum(points[-1] - values, 0))
    return np.asarray(np.where(values > points[-1], 1 - (1 - share[-1]) * above, inside * below))


def _mean_of_ranks(u: Array, weights: Array, ranks: tuple[tuple[Array, ...], ...]) -> Array:
    """The log-odds of the weighted mean of ranks, kept 1e-12 from 0 and 1."""
    total = np.zeros(u.shape[1:])
    for own, mine, weight in zip(u, ranks, weights, strict=True):
        total += weight * np.column_stack([rank_of(own[:, c], knots) for c, knots in enumerate(mine)])
    return logit(np.clip(total, 1e-12, 1 - 1e-12))
