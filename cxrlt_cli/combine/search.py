"""Weights that rank well: greedy selection, and a search on the simplex, both steadied over folds of the patients.

Macro average precision has no gradient, and on a few positives its maximum is mostly luck. So each search is made
several times, each time without one fold of the patients, and the weights are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from cxrlt_cli.combine.scores import Judge, best_of, better
from cxrlt_cli.decisions import patient_codes, patient_folds
from cxrlt_cli.logistic import Array

Labels = npt.NDArray[np.int8]
Search = Callable[[Labels, Array], Array]

#: Members that are selected, one after the other, before the best number of them is taken.
ROUNDS = 20
#: The search on the simplex ends with steps below this.
FINEST = 0.02


def greedy(labels: Labels, log_odds: Array) -> Array:
    """Ensemble selection with replacement (Caruana et al., ICML 2004).

    Again and again the member is added that makes macro average precision highest, the first such one where several
    do; of the ``ROUNDS`` ensembles the best one is taken, the smallest of equal ones.

    Args:
        labels: (N, C).
        log_odds: (M, N, C) on one scale.

    Returns:
        (M,) shares of the selections; equal ones where no class has a positive.
    """
    judge, members = Judge(labels), len(log_odds)
    counts, total = np.zeros(members), np.zeros(log_odds.shape[1:])
    best, kept = np.nan, np.ones(members)
    for _ in range(ROUNDS):
        # a sum ranks as the mean does
        scores = [judge.macro_ap(total + own) for own in log_odds]
        chosen = best_of(scores)
        counts[chosen] += 1
        total += log_odds[chosen]
        if better(scores[chosen], best):
            best, kept = scores[chosen], counts.copy()
    return np.asarray(kept / kept.sum())


def on_the_simplex(labels: Labels, log_odds: Array) -> Array:
    """Weights >= 0 that sum to 1, by a pattern search for macro average precision that starts from equal ones.

    A step moves a share of the weight towards one member, or takes that share of a member's weight away; the best of
    these steps is taken where it helps, and where none does the share is halved, from 1/2 down to ``FINEST``.

    Args:
        labels: (N, C).
        log_odds: (M, N, C) on one scale.

    Returns:
        (M,)
    """
    judge, members = Judge(labels), len(log_odds)
    weights = np.full(members, 1 / members)
    best, share = judge.macro_ap(np.tensordot(weights, log_odds, axes=1)), 0.5
    while share >= FINEST and members > 1:
        steps = _steps(weights, share)
        scores = [judge.macro_ap(np.tensordot(step, log_odds, axes=1)) for step in steps]
        chosen = best_of(scores)
        if better(scores[chosen], best):
            best, weights = scores[chosen], steps[chosen]
        else:
            share /= 2
    return weights


def _steps(weights: Array, share: float) -> list[Array]:
    made = []
    for member in np.eye(len(weights)):
        made.append((1 - share) * weights + share * member)
        less = weights * (1 - share * member)
        if less.sum() > 0:
            made.append(less / less.sum())
    return made


def bagged(
    search: Search, labels: Labels, log_odds: Array, patients: Sequence[str], *, folds: int = 5, seed: int = 0
) -> Array:
    """The mean of the weights (M,) that a search finds without each fold of the patients in turn.

    With one patient only, what it finds on all images.
    """
    if patient_codes(patients).max(initial=0) == 0:
        return search(labels, log_odds)
    fold = patient_folds(labels, patients, folds, seed)
    found = [search(labels[fold != part], log_odds[:, fold != part]) for part in range(int(fold.max()) + 1)]
    return np.asarray(np.mean(found, axis=0))
