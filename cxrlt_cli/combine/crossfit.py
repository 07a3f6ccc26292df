"""What a combination is worth: each patient is scored by what the other patients' labels taught, all of it.

Scales, weights and the choice of the best single member are made anew in every fold. What is compared was therefore
never fitted to the labels it is compared on, neither the ensemble nor its rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.combine.methods import Combiner, fit_combiner
from cxrlt_cli.combine.scales import Scale, scaled
from cxrlt_cli.combine.scores import Judge, best_of, judge_members
from cxrlt_cli.decisions import patient_folds
from cxrlt_cli.logistic import Array

Labels = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class CrossCombined:
    """Out-of-fold log-odds of N images and C classes.

    Attributes:
        judged: (N, C) of the ensemble.
        single: (N, C) of the single member that was best on the other folds.
        mean: (N, C) of the plain mean of posteriors.
        members: (M, N, C) of every member, on the scale the other folds taught.
        chosen: the best single member of each of K folds.
        fold: (N,) the fold of each image.
        combiners: of each fold, fitted on the others.
        final: fitted on everything.
    """

    judged: Array
    single: Array
    mean: Array
    members: Array
    chosen: tuple[int, ...]
    fold: npt.NDArray[np.int64]
    combiners: tuple[Combiner, ...]
    final: Combiner


def cross_combined(
    labels: Labels,
    log_odds: Array,
    patients: Sequence[str],
    scales: tuple[Scale, ...],
    method: str = "greedy",
    *,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> CrossCombined:
    """Fit a combination on all images, and once without each fold of the patients.

    Args:
        labels, log_odds, patients, scales, method: as in ``fit_combiner``.
        folds: parts the patients are dealt to, also within a fold.
        seed: of the folds.
        progress: told how many of the ``folds + 1`` combinations are fitted.

    Raises:
        DataError: there is one patient only.
        ValueError: there is no such method.
    """
    fold = patient_folds(labels, patients, folds, seed)
    owners = np.asarray(patients, dtype=object)
    judged, single, mean = (np.empty(labels.shape) for _ in range(3))
    members = np.empty(log_odds.shape)
    combiners, chosen = [], []
    for part in range(int(fold.max()) + 1):
        rest, own = fold != part, fold == part
        teaching = owners[rest].tolist()
        made = fit_combiner(labels[rest], log_odds[:, rest], teaching, scales, method, folds=folds, seed=seed)
        best = best_of(judge_members(Judge(labels[rest]), scaled(made.maps, log_odds[:, rest])))
        members[:, own] = scaled(made.maps, log_odds[:, own])
        judged[own], single[own] = made(log_odds[:, own]), members[best, own]
        mean[own] = plain_mean(made)(log_odds[:, own])
        combiners.append(made)
        chosen.append(best)
        if progress is not None:
            progress(len(combiners))
    final = fit_combiner(labels, log_odds, patients, scales, method, folds=folds, seed=seed)
    return CrossCombined(judged, single, mean, members, tuple(chosen), fold, tuple(combiners), final)


def plain_mean(combiner: Combiner) -> Combiner:
    """The mean of posteriors on the scales of a combination."""
    members, classes = combiner.weights.shape
    return Combiner("mean", combiner.maps, np.full((members, classes), 1 / members), np.zeros(classes))


def by_fold(combiners: Sequence[Combiner], fold: npt.NDArray[np.int64], log_odds: npt.ArrayLike) -> Array:
    """Log-odds (N, C) of images of K folds, each from the combination that was fitted without its fold.

    Args:
        combiners: K.
        fold: (N,)
        log_odds: (M, N, C) of the members after their links.
    """
    u = np.asarray(log_odds, dtype=np.float64)
    made = np.empty(u.shape[1:])
    for part, combiner in enumerate(combiners):
        made[fold == part] = combiner(u[:, fold == part])
    return made
