"""AP and AUROC of many resamples from one sort.

A resample is a whole weight for each image, and weights do not change the order of the scores. So a class is sorted
once; what is left of a resample is to add up weights between the thresholds at which a positive is gained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.metrics import Ranked

from .draws import Clusters, Weights, all_but_a_share

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

#: Above this share of cut places, adding up every image is faster than adding up stretches.
_DENSE = 0.03
#: Weights worked on at a time, so that intermediate arrays stay in the cache.
_AT_A_TIME = 1 << 18
#: Shares of the patients that are left out in turn.
_SHARES = 20


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of one class at which a positive is gained, G of them; n labelled images, highest score first.

    Attributes:
        order: (n,) rows of the images.
        positives: rows of the positives, in that order.
        first: (G,) the first of the positives at each threshold.
        cuts: (K,) ascending places 0 to n between which weights are added up.
        end: (G,) which cut ends the images at each threshold.
        mixed: (M,) the thresholds at which negatives are gained too.
        start: (M,) which cut begins them.
    """

    order: Places
    positives: Places
    first: Places
    cuts: Places
    end: Places
    mixed: Places
    start: Places


def thresholds(ranked: Ranked) -> Thresholds:
    """Find the thresholds of a sorted class."""
    places = np.flatnonzero(ranked.positive)
    group = np.searchsorted(ranked.ends, places)
    holding, first, gained = np.unique(group, return_index=True, return_counts=True)
    ends = ranked.ends[holding] + 1
    starts = np.where(holding > 0, ranked.ends[holding - 1] + 1, 0) if holding.size else ends
    mixed = np.flatnonzero(ends - starts > gained)
    cuts = np.unique(np.concatenate([[0, len(ranked.order)], ends, starts[mixed]]))
    return Thresholds(
        order=ranked.order,
        positives=ranked.order[places],
        first=first,
        cuts=cuts,
        end=np.searchsorted(cuts, ends),
        mixed=mixed,
        start=np.searchsorted(cuts, starts[mixed]),
    )


def ranking_replicates(at: Thresholds, weights: Weights) -> tuple[Array, Array]:
    """AP and AUROC of one class in B resamples.

    Args:
        at: its thresholds.
        weights: (B, N) how often each image occurs.

    Returns:
        Two arrays (B,), nan in resamples without positives; AUROC also in those without negatives. Equal to the
        metrics of the repeated rows.
    """
    block = max(1, _AT_A_TIME // max(len(at.order), 1))
    parts = [_block(at, weights[row : row + block]) for row in range(0, len(weights), block)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def ap_jackknife(classes: Sequence[Thresholds], patients: Clusters) -> tuple[Array, Array]:
    """By how much the AP of each class is too large on average, and its variance, from leaving out shares of patients.

    AP in a sample is larger than in the population, as each positive stands above itself: by 0.05 with seven positive
    patients, where the AP is 0.12. In a macro average of many classes that adds up while the spread averages out. And
    a bootstrap shows a few per cent less spread than there is, as it draws positives twice. With G shares left out in
    turn, the bias is ``(G - 1) (mean of the APs without one - AP)`` (Quenouille, 1956) and the variance ``(G - 1) / G``
    times their sum of squares around their mean (Tukey, 1958).

    Returns:
        Bias (C,) and variance (C,), 0 for a class without positives. A share that holds all positives of a class is not
        left out of it; the others then tell what fewer negatives do, which with so few positives is most of the bias.
    """
    if not classes:
        return np.empty(0), np.empty(0)
    shares = min(_SHARES, patients.count)
    values = np.stack([ranking_replicates(at, all_but_a_share(patients, shares))[0] for at in classes], axis=1)
    without, defined = values[1:], ~np.isnan(values[1:])
    mean = np.where(defined, without, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    squares = np.where(defined, (without - mean) ** 2, 0).sum(axis=0)
    bias = np.where(defined.any(axis=0), (shares - 1) * (mean - values[0]), 0.0)
    return bias, (shares - 1) / shares * squares


def _block(at: Thresholds, weights: Weights) -> tuple[Array, Array]:
    undefined = np.full(len(weights), np.nan)
    if not at.positives.size:
        return undefined, undefined
    upto = _added_up(np.take(weights, at.order, axis=1, mode="clip"), at.cuts)
    gained = _gained(np.take(weights, at.positives, axis=1, mode="clip"), at.first)
    reached = np.cumsum(gained, axis=1)
    images = np.take(upto, at.end, axis=1, mode="clip").astype(np.float64)
    positives, everything = reached[:, -1].copy(), upto[:, -1].astype(np.float64)
    negatives = everything - positives
    # pairs of a positive and a negative below it: those with any negative, less those with one above or beside it
    below = positives * negatives + _dot(gained, reached) - _dot(gained, images)
    if at.mixed.size:
        beside = images[:, at.mixed] - upto[:, at.start] - gained[:, at.mixed]
        below += _dot(gained[:, at.mixed], beside) / 2
    np.maximum(images, 1, out=images)  # 0 only where nothing is gained
    np.divide(reached, images, out=reached)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _dot(gained, reached) / positives, below / (positives * negatives)


def _dot(a: Array, b: Array) -> Array:
    """Row by row products added up: (B, G) and (B, G) -> (B,)."""
    return np.asarray(np.einsum("bg,bg->b", a, b))


def _gained(positives: Weights, first: Places) -> Array:
    """The weight of the positives (B, P) gained at each threshold: (B, G)."""
    if len(first) == positives.shape[1]:
        return positives.astype(np.float64)
    return np.asarray(np.add.reduceat(positives, first, axis=1, dtype=np.float64))


def _added_up(falling: Weights, cuts: Places) -> npt.NDArray[np.integer]:
    """The sum of the weights (B, n) before each cut: (B, K)."""
    sums = np.zeros((len(falling), len(cuts)), _wide_enough(falling))
    if len(cuts) > _DENSE * falling.shape[1]:
        every = np.cumsum(falling, axis=1, dtype=sums.dtype)
        sums[:, 1:] = np.take(every, cuts[1:] - 1, axis=1, mode="clip")
    else:
        np.cumsum(np.add.reduceat(falling, cuts[:-1], axis=1, dtype=sums.dtype), axis=1, out=sums[:, 1:])
    return sums


def _wide_enough(weights: Weights) -> type[np.int32] | type[np.int64]:
    """int32, which is twice as fast, where no sum of uint8 can overflow it."""
    return np.int32 if weights.shape[1] < 2**23 else np.int64
