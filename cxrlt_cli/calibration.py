"""Calibration: maps of log-odds, fitted to labels, class by class and with strength borrowed from the other classes.

The posterior link comes first, so every map starts from log-odds u that would be right if training had reached its
optimum. Four of the five maps are one family, Kull et al. 2017 (beta calibration)::

    v = a log s + b (-log(1 - s)) + c,    s = sigmoid(u),    a, b > 0

with a = b it is ``a u + c`` (Platt 1999), with c = 0 as well temperature scaling (Guo et al. 2017, T = 1/a). The
slopes are fitted as exponentials, so no map ever turns a ranking round.

**Shrinkage.** A class with three positives cannot teach two numbers. Platt and beta are fitted as a hierarchical model.
The map is written about the class's log-odds k in training::

    v = k + exp(alpha) (u - k) + beta        (an image that says nothing, u = k, keeps the prior)

and ``alpha_c ~ N(shared alpha, sd^2)``, ``beta_c ~ N(shared beta, sd^2)``. The shared values and the s.d. between
classes are estimated together with the maps: EM with a Gaussian approximation of each class (empirical Bayes; Breslow
and Clayton 1993 for the approximation). So a class with thousands of positives follows its own labels, one with three
takes nearly the shared values, and how near depends on how much the classes differ. ``Shrinkage`` holds the priors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.logistic import Array, logit, sigmoid, softplus

Labels = npt.NDArray[np.int8]
Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
METHODS: tuple[str, ...] = get_args(Method)

#: Positives from which isotonic regression is worth its steps; a class with fewer gets Platt's map.
ENOUGH_FOR_ISOTONIC = 1000
#: What a class without a positive or without a negative gets: the shared map.
SHARED = "shared"

_LARGEST_LOG_SLOPE = 5.0
_ROUNDS, _STEPS = 60, 50


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """Prior beliefs of the hierarchical fit. Log slopes and intercepts are in natural logarithms of odds.

    Attributes:
        shared: s.d. of the shared log slope and of the shared intercept about the identity map.
        slope: s.d. of a class's log slope about the shared one, as expected before seeing data.
        intercept: s.d. of a class's intercept about the shared one, likewise.
        weight: how many classes that expectation is worth; infinite keeps it as it is.
    """

    shared: float = 1.0
    slope: float = 0.25
    intercept: float = 0.5
    weight: float = 4.0


#: Maximum likelihood for every class by itself.
NO_SHRINKAGE = Shrinkage(math.inf, math.inf, math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A map of log-odds for each of C classes.

    Attributes:
        method: what was asked for.
        used: what each class got: a method, or "shared" for a class that has nothing to teach.
        slopes: (C, 2) the slopes a and b of the family above.
        intercepts: (C,) its c.
        steps: for isotonic classes, by position: (K, 2) knots of log-odds u, ascending, and their posteriors.
    """

    method: str
    used: tuple[str, ...]
    slopes: Array
    intercepts: Array
    steps: Mapping[int, Array] = field(default_factory=dict)

    def __call__(self, log_odds: npt.ArrayLike) -> Array:
        """Log-odds (N, C) -> calibrated log-odds (N, C); never falling in any class."""
        u = np.asarray(log_odds, dtype=np.float64)
        a, b = self.slopes.T
        mapped = b * u + self.intercepts
        if (a != b).any():
            mapped -= (a - b) * softplus(-u)
        for c, knots in self.steps.items():
            mapped[:, c] = logit(np.interp(u[:, c], knots[:, 0], knots[:, 1]))
        return np.asarray(mapped)


def identity(classes: int) -> Calibration:
    """The map that changes nothing."""
    return Calibration("none", ("none",) * classes, np.ones((classes, 2)), np.zeros(classes))


def fit_calibration(
    labels: Labels,
    log_odds: npt.ArrayLike,
    prevalence: npt.ArrayLike,
    method: str = "platt",
    shrinkage: Shrinkage | None = None,
) -> Calibration:
    """Fit a map of log-odds to labels.

    Args:
        labels: (N, C): 1, 0, or -1 where unknown; unknown entries are left out.
        log_odds: (N, C) finite, after the posterior link.
        prevalence: (C,) in (0, 1), share of positives in training: where the maps of Platt and beta turn.
        method: one of ``METHODS``. "temperature" is one slope for all classes, by maximum likelihood but for a wide
            prior. "isotonic" needs ``ENOUGH_FOR_ISOTONIC`` positives in a class, and that many negatives; other
            classes get "platt".
        shrinkage: priors of "platt" and "beta"; default: ``Shrinkage()``.

    Returns:
        The map; ``used`` says what each class got.

    Raises:
        ValueError: the method does not exist, or the log-odds are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration {method!r}; there are {', '.join(METHODS)}")
    u = np.asarray(log_odds, dtype=np.float64)
    if not np.isfinite(u).all():
        raise ValueError("log-odds are not finite")
    if method == "none":
        return identity(labels.shape[1])
    if method == "temperature":
        return _temperature(labels, u)
    if method == "isotonic":
        return _isotonic(labels, u, prevalence, shrinkage or Shrinkage())
    return _hierarchical(labels, u, logit(prevalence), method, shrinkage or Shrinkage())


# -- Platt and beta ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Problem:
    """Logistic regressions of C classes side by side: ``v = offset + sum_k exp(theta_k) x_k + theta_K``.

    Attributes:
        positive: (N, C) labels, 0 where unknown.
        known: (N, C) 1.0 or 0.0.
        features: K arrays (N, C).
        offset: (C,)
    """

    positive: Array
    known: Array
    features: tuple[Array, ...]
    offset: Array

    def design(self, theta: Array) -> list[Array]:
        """The derivatives of v by each parameter: K + 1 arrays that broadcast to (N, C)."""
        slopes = np.exp(theta[:, :-1]).T
        return [*(slope * x for slope, x in zip(slopes, self.features, strict=True)), np.ones((1, 1))]

    def mapped(self, theta: Array) -> Array:
        """v, (N, C)."""
        return np.asarray(sum(self.design(theta)[:-1]) + self.offset + theta[:, -1])

    def loss(self, theta: Array, mean: Array, precision: Array) -> Array:
        """(C,) negative log posterior, up to a constant."""
        v = self.mapped(theta)
        fit = (self.known * (softplus(v) - self.positive * v)).sum(axis=0)
        return np.asarray(fit + 0.5 * (precision * (theta - mean) ** 2).sum(axis=1))

    def slope_and_curvature(self, theta: Array, mean: Array, precision: Array) -> tuple[Array, Array, Array]:
        """The gradient (C, K+1), the Hessian (C, K+1, K+1) and its expectation, the Fisher information."""
        design, p = self.design(theta), sigmoid(self.mapped(theta))
        residual, weight = self.known * (p - self.positive), self.known * p * (1 - p)
        pull = np.stack([(d * residual).sum(axis=0) for d in design], axis=1)
        expected = np.stack([np.stack([(d * e * weight).sum(axis=0) for e in design]) for d in design])
        # a hair on the diagonal: a class whose labels are separated has no curvature left
        diagonal = np.eye(len(design))
        fisher = expected.transpose(2, 0, 1) + (precision[:, None, :] + 1e-9) * diagonal
        bend = pull.copy()
        bend[:, -1] = 0  # the intercept enters v as it is, slopes enter as exponentials
        return pull + precision * (theta - mean), fisher + bend[:, None, :] * diagonal, fisher


@dataclass(frozen=True, slots=True)
class _Prior:
    """Independent normal priors of the parameters: mean and 1 / variance, (C, K+1) or what broadcasts to it."""

    mean: Array
    precision: Array


def _maximise(problem: _Problem, theta: Array, prior: _Prior) -> tuple[Array, Array]:
    """The most probable parameters (C, K+1) and their variances (C, K+1): Newton's method, steps halved."""
    mean, precision = prior.mean, prior.precision
    loss = problem.loss(theta, mean, precision)
    for _ in range(_STEPS):
        gradient, hessian, fisher = problem.slope_and_curvature(theta, mean, precision)
        bowl = np.linalg.eigvalsh(hessian)[:, 0] > 1e-9
        curvature = np.where(bowl[:, None, None], hessian, fisher)
        step = -np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        shorter = np.asarray(step / np.maximum(1, np.abs(step).max(axis=1, keepdims=True)), dtype=np.float64)
        before, (theta, loss) = theta, _walk(problem, theta, shorter, loss, prior)
        if np.abs(theta - before).max(initial=0) < 1e-8:
            break
    fisher = problem.slope_and_curvature(theta, mean, precision)[2]
    return theta, np.diagonal(np.linalg.inv(fisher), axis1=1, axis2=2)


def _walk(problem: _Problem, theta: Array, step: Array, loss: Array, prior: _Prior) -> tuple[Array, Array]:
    """Take the longest of 30 halvings of the step that does not raise the loss, for every class by itself."""
    share = np.ones((len(theta), 1))
    for _ in range(30):
        there = theta + share * step
        there[:, :-1] = np.clip(there[:, :-1], -_LARGEST_LOG_SLOPE, _LARGEST_LOG_SLOPE)
        new = problem.loss(there, prior.mean, prior.precision)
        worse = new > loss
        if not worse.any():
            break
        share[worse] /= 2
    there[worse], new[worse] = theta[worse], loss[worse]
    return there, new


def _teaching(labels: Labels) -> npt.NDArray[np.bool_]:
    """(C,) whether a class has a positive and a negative."""
    return np.asarray((labels == 1).any(axis=0) & (labels == 0).any(axis=0))


def _hierarchical(labels: Labels, u: Array, prior: Array, method: str, shrinkage: Shrinkage) -> Calibration:
    """Platt's or the beta map, shrunk as the module says."""
    taught = _teaching(labels)
    chosen, k = labels[:, taught], prior[taught]
    features = tuple(x - at for x, at in zip(_basis(u[:, taught], method), _basis(k, method), strict=True))
    problem = _Problem((chosen == 1).astype(np.float64), (chosen != UNKNOWN).astype(np.float64), features, k)
    theta, shared = _empirical_bayes(problem, shrinkage)
    everyone = np.tile(shared, (labels.shape[1], 1))
    everyone[taught] = theta
    slopes, beta = np.exp(everyone[:, :-1]), everyone[:, -1]
    # from "about the prior" back to the plain form: c = k + beta - sum_k slope_k x_k(prior)
    at_prior = np.stack(_basis(prior, method), axis=1)
    intercepts = prior + beta - (slopes * at_prior).sum(axis=1)
    used = tuple(method if own else SHARED for own in taught.tolist())
    return Calibration(method, used, np.repeat(slopes, 2, axis=1)[:, [0, -1]], intercepts)


def _basis(u: Array, method: str) -> list[Array]:
    """What the slopes multiply: u itself, or log s and -log(1 - s)."""
    return [u] if method == "platt" else [-softplus(-u), softplus(u)]


def _empirical_bayes(problem: _Problem, shrinkage: Shrinkage) -> tuple[Array, Array]:
    """The parameters of the classes (C, K+1) and the shared ones (K+1,)."""
    slopes = len(problem.features)
    expected = np.array([shrinkage.slope] * slopes + [shrinkage.intercept])
    mean, spread = np.zeros(slopes + 1), expected
    classes = problem.positive.shape[1]
    theta = np.zeros((classes, slopes + 1))
    if not classes:
        return theta, mean
    for _ in range(_ROUNDS):
        theta, variance = _maximise(problem, theta, _Prior(mean, np.tile(spread**-2, (classes, 1))))
        before = np.append(mean, spread)
        mean, spread = _update(theta, variance, spread, expected, shrinkage)
        if np.isinf(spread).all() or np.abs(np.append(mean, spread) - before).max() < 1e-3:
            break
    return theta, mean


def _update(theta: Array, variance: Array, spread: Array, expected: Array, shrinkage: Shrinkage) -> tuple[Array, Array]:
    """The M step: shared values under a normal prior, spreads under a scaled inverse chi-square."""
    classes = len(theta)
    precision = spread**-2
    shared = shrinkage.shared**-2
    mean = precision * theta.sum(axis=0) / np.maximum(classes * precision + shared, 1e-300)
    if math.isinf(shrinkage.weight):
        return mean, spread
    squares = ((theta - mean) ** 2 + variance).sum(axis=0)
    return mean, np.sqrt((shrinkage.weight * expected**2 + squares) / (shrinkage.weight + classes))


def _temperature(labels: Labels, u: Array) -> Calibration:
    """One slope for all entries; its logarithm has the prior N(0, 1), which matters where labels are separated."""
    known = labels != UNKNOWN
    positive, x = (labels[known] == 1).astype(np.float64), u[known]
    classes = labels.shape[1]
    if not positive.any() or positive.all():
        return Calibration("temperature", (SHARED,) * classes, np.ones((classes, 2)), np.zeros(classes))
    problem = _Problem(positive[:, None], np.ones((len(x), 1)), (x[:, None],), np.zeros(1))
    # the intercept is held at 0 by a prior without width
    theta, _ = _maximise(problem, np.zeros((1, 2)), _Prior(np.zeros((1, 2)), np.array([[1.0, 1e15]])))
    slope = float(np.exp(theta[0, 0]))
    return Calibration("temperature", ("temperature",) * classes, np.full((classes, 2), slope), np.zeros(classes))


# -- isotonic ------------------------------------------------------------------------------------------------------


def _isotonic(labels: Labels, u: Array, prevalence: npt.ArrayLike, shrinkage: Shrinkage) -> Calibration:
    smooth = _hierarchical(labels, u, logit(prevalence), "platt", shrinkage)
    fewest = np.minimum((labels == 1).sum(axis=0), (labels == 0).sum(axis=0))
    chosen = np.flatnonzero(fewest >= ENOUGH_FOR_ISOTONIC).tolist()
    steps = {c: _knots(labels[:, c], u[:, c]) for c in chosen}
    used = tuple("isotonic" if c in steps else before for c, before in enumerate(smooth.used))
    return Calibration("isotonic", used, smooth.slopes, smooth.intercepts, steps)


def _knots(labels: Labels, u: Array) -> Array:
    """(K, 2): the ends of every level and the posterior there, kept half an image away from 0 and 1."""
    known = labels != UNKNOWN
    x, y = pool_adjacent_violators(u[known], labels[known])
    ends = np.ones(len(x), bool)
    ends[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    half = 0.5 / (int(known.sum()) + 1)
    return np.column_stack([x[ends], np.clip(y[ends], half, 1 - half)])


def pool_adjacent_violators(scores: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Array, Array]:
    """The never falling function of the scores that is nearest to the values in squares (Ayer et al. 1955).

    Args:
        scores: (N,); equal ones are one point.
        values: (N,)

    Returns:
        The G distinct scores, ascending, and the function there.
    """
    x, group = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    weights = np.bincount(group).astype(np.float64)
    means = np.bincount(group, weights=np.asarray(values, dtype=np.float64)) / np.maximum(weights, 1)
    return x, _pooled(means.tolist(), weights.tolist())


def _pooled(means: Sequence[float], weights: Sequence[float]) -> Array:
    levels: list[tuple[float, float, int]] = []  # mean, weight, points
    for mean, weight in zip(means, weights, strict=True):
        level = (mean, weight, 1)
        while levels and levels[-1][0] >= level[0]:
            m, w, n = levels.pop()
            total = w + level[1]
            level = ((m * w + level[0] * level[1]) / total, total, n + level[2])
        levels.append(level)
    return np.repeat([level[0] for level in levels], [level[2] for level in levels])
