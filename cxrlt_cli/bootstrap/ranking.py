"""AP and AUROC of many resamples from one sort.

A resample is a whole weight for each image, and weights do not change the order of the scores. So a class is sorted
once; what is left of a resample is to add up weights between the thresholds at which a positive is gained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.metrics import Ranked

from .draws import Weights

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

#: Above this share of cut places, adding up every image is faster than adding up stretches.
_DENSE = 0.03
#: Weights worked on at a time, so that intermediate arrays stay in the cache.
_AT_A_TIME = 1 << 18


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
