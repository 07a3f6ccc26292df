"""Stacking (Wolpert 1992): a logistic regression of each class on the members' log-odds, shrunk to equal weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxrlt_cli.combine.scales import LARGEST, Scale, fit_scales, scaled
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.decisions import patient_codes, patient_folds
from cxrlt_cli.logistic import Array, sigmoid, softplus

Labels = npt.NDArray[np.int8]

#: S.d. of a coefficient about 1/M before labels are seen, as a share of 1/M; and of an intercept about 0.
SPREAD, OFFSET = 0.5, 0.5


def fit_stack(
    labels: Labels,
    log_odds: Array,
    patients: Sequence[str],
    scales: tuple[Scale, ...],
    *,
    folds: int = 5,
    seed: int = 0,
) -> tuple[Array, Array]:
    """Coefficients (M, C) and intercepts (C,), from log-odds (M, N, C) whose scales are cross-fitted by patient.

    The regression must not see a scale that was fitted to the very labels it predicts: it would trust it too much.
    """
    u = np.empty(log_odds.shape)
    if patient_codes(patients).max(initial=0) == 0:
        u = scaled(fit_scales(scales, labels, log_odds), log_odds)
    else:
        fold = patient_folds(labels, patients, folds, seed)
        for part in range(int(fold.max()) + 1):
            rest, own = fold != part, fold == part
            maps = fit_scales(scales, labels[rest], log_odds[:, rest])
            u[:, own] = scaled(maps, log_odds[:, own])
    return stack(labels, u)


def stack(labels: Labels, log_odds: Array) -> tuple[Array, Array]:
    """The most probable coefficients of ``logit P = b_c + sum_m a_mc u_m`` under normal priors.

    ``a_mc ~ N(1/M, (SPREAD/M)^2)`` and ``b_c ~ N(0, OFFSET^2)``: a class without positives, or without any label, gets
    nearly or exactly equal weights.

    Args:
        labels: (N, C): 1, 0, or -1 where unknown.
        log_odds: (M, N, C) on one scale.

    Returns:
        (M, C) and (C,).
    """
    members, classes = len(log_odds), labels.shape[1]
    found = np.empty((members + 1, classes))
    for c in range(classes):
        known = labels[:, c] != UNKNOWN
        design = np.vstack([log_odds[:, known, c], np.ones(known.sum())]).clip(-LARGEST, LARGEST)
        found[:, c] = _regression(design, (labels[known, c] == 1).astype(np.float64))
    return found[:-1], found[-1]


def _regression(design: Array, positive: Array) -> Array:
    """Newton's method with halved steps, for (K, n) regressors of which the last is constant: (K,)."""
    members = len(design) - 1
    centre = np.append(np.full(members, 1 / members), 0.0)
    precision = np.append(np.full(members, (members / SPREAD) ** 2), OFFSET**-2)

    def loss(theta: Array) -> float:
        v = theta @ design
        return float((softplus(v) - positive * v).sum() + 0.5 * (precision * (theta - centre) ** 2).sum())

    theta, value = centre, loss(centre)
    for _ in range(100):
        p = sigmoid(theta @ design)
        gradient = design @ (p - positive) + precision * (theta - centre)
        step = np.linalg.solve((design * (p * (1 - p))) @ design.T + np.diag(precision), gradient)
        share = 1.0
        while loss(theta - share * step) > value and share > 1e-9:
            share /= 2
        theta = theta - share * step
        value = loss(theta)
        if np.abs(share * step).max() < 1e-10:
            break
    return theta
