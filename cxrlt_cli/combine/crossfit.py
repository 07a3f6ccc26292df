"""What a combination is worth: each patient is scored by what the other patients' labels taught, all of it.

Scales, weights and the choice of the best single member are made anew in every fold. What is compared was therefore
never fitted to the labels it is compared on, neither the ensemble nor its rivals.

Scores of all folds are ranked together, so they need one level. The scale of a fold whose own patients hold many
positives of a class was learned from fewer, and sets that class lower for all of the fold: against the truth, so that
even one model by itself would lose average precision (Parker, Guenter and Bedo, BMC Bioinformatics 2007).

The best single member may be another one in another fold, with scores of another shape. A line would leave images of
these folds out of order, a loss that no use of either member has and that the ensemble would seem to gain. So of single
members ranks are compared, which know no shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cxrlt_cli.combine.methods import Combiner, fit_combiner, mid_ranks
from cxrlt_cli.combine.scales import Scale
from cxrlt_cli.combine.scores import Judge, best_of, judge_members
from cxrlt_cli.decisions import patient_folds
from cxrlt_cli.logistic import Array, logit

Labels = npt.NDArray[np.int8]

#: Log-odds of a smaller s.d. do not differ.
_CONSTANT = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class CrossCombined:
    """Out-of-fold log-odds of N images and C classes.

    Attributes:
        judged: (N, C) of the ensemble.
        single: (N, C) of the single member that was best on the other folds: of its mid-ranks among all images.
        mean: (N, C) of the plain mean of posteriors.
        chosen: the best single member of each of K folds.
        fold: (N,) the fold of each image.
        combiners: of each fold, fitted on the others and brought to the level of ``final``.
        final: fitted on everything.
    """

    judged: Array
    single: Array
    mean: Array
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
    combiners, chosen = [], []
    for part in range(int(fold.max()) + 1):
        rest = fold != part
        teaching = owners[rest].tolist()
        made = fit_combiner(labels[rest], log_odds[:, rest], teaching, scales, method, folds=folds, seed=seed)
        combiners.append(made)
        chosen.append(best_of(judge_members(Judge(labels[rest]), log_odds[:, rest])))
        if progress is not None:
            progress(len(combiners))
    final = fit_combiner(labels, log_odds, patients, scales, method, folds=folds, seed=seed)
    means = [plain_mean(made) for made in combiners]
    own = levelled(combiners, final, log_odds)
    single = singled(log_odds, chosen, fold)
    mean = by_fold(levelled(means, plain_mean(final), log_odds), fold, log_odds)
    return CrossCombined(by_fold(own, fold, log_odds), single, mean, tuple(chosen), fold, own, final)


def levelled(combiners: Sequence[Combiner], final: Combiner, log_odds: Array) -> tuple[Combiner, ...]:
    """Combinations of K folds whose log-odds over all images have, class by class, the mean and s.d. of ``final``.

    No label is asked. All folds come to the same level, so that which level it is moves no rank.

    Args:
        combiners: K, each fitted without its fold.
        final: fitted on everything.
        log_odds: (M, N, C) of the members after their links, of all images.
    """
    wanted = final(log_odds)
    made = []
    for one in combiners:
        found = one(log_odds)
        spread = found.std(axis=0)
        slope = np.where(spread > _CONSTANT, wanted.std(axis=0) / np.maximum(spread, _CONSTANT), 1.0)
        shift = wanted.mean(axis=0) - slope * found.mean(axis=0)
        made.append(replace(one, slope=slope * one.slope, intercept=slope * one.intercept + shift))
    return tuple(made)


def singled(log_odds: Array, chosen: Sequence[int], fold: npt.NDArray[np.int64]) -> Array:
    """Log-odds (N, C) of the mid-ranks that images have among all images, by the member chosen for their fold.

    Args:
        log_odds: (M, N, C) of the members after their links.
        chosen: K members.
        fold: (N,)
    """
    made = np.empty(log_odds.shape[1:])
    for part, member in enumerate(chosen):
        for c, values in enumerate(log_odds[member].T):
            points, share = mid_ranks(values)
            made[fold == part, c] = logit(share[np.searchsorted(points, values[fold == part])])
    return made


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
