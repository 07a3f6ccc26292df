"""Figures of a ranking: average precision and the area under the ROC curve, tied scores at one threshold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The labelled images of one class, sorted once, from which every ranking metric follows.

    Attributes:
        order: (n,) rows whose label is known, highest score first.
        positive: (n,) whether they are labelled 1, in that order.
        ends: (g,) place of the last image of each group of equal scores.
    """

    order: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]


def rank(labels: Labels, scores: npt.NDArray[np.floating]) -> Ranked:
    """Sort one class: labels (N,) and scores (N,), none of them nan."""
    known = np.flatnonzero(labels != UNKNOWN)
    order = known[np.argsort(-scores[known], kind="stable")]
    falling = scores[order]
    last_of_its_score = np.append(falling[1:] != falling[:-1], True)[: len(order)]
    return Ranked(order, labels[order] == 1, np.flatnonzero(last_of_its_score))


def hits(ranked: Ranked) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positives among the images down to each threshold, and those gained at it: two arrays (g,)."""
    reached = np.cumsum(ranked.positive, dtype=np.int64)[ranked.ends]
    return reached, np.diff(reached, prepend=0)


def average_precision_of(ranked: Ranked) -> float:
    """Average precision of one sorted class, as ``average_precision`` gives it; nan without positives."""
    reached, gained = hits(ranked)
    if not reached.size or not reached[-1]:
        return math.nan
    return float((gained * (reached / (ranked.ends + 1))).sum() / reached[-1])


def auroc_of(ranked: Ranked) -> float:
    """Area under the ROC curve of one sorted class, as ``auroc`` gives it; nan without positives or negatives."""
    reached, gained = hits(ranked)
    positives = int(reached[-1]) if reached.size else 0
    negatives = len(ranked.order) - positives
    if not positives or not negatives:
        return math.nan
    negatives_here = np.diff(ranked.ends, prepend=-1) - gained
    return float((negatives_here * (reached - gained / 2)).sum() / (positives * negatives))


def average_precision(labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    """Average precision per class: ``sum_k (R_k - R_{k-1}) P_k`` over thresholds k, without interpolation.

    Args:
        labels: (N, C).
        scores: (N, C), higher for the finding.

    Returns:
        (C,) in [0, 1]; nan for a class without positives. By chance it is about the share of positives.
    """
    return _each(average_precision_of, labels, scores)


def auroc(labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    """Area under the ROC curve per class: P(a positive scores above a negative), ties counting one half.

    Args:
        labels: (N, C).
        scores: (N, C), higher for the finding.

    Returns:
        (C,) in [0, 1]; nan for a class without positives or without negatives.
    """
    return _each(auroc_of, labels, scores)


def _each(metric: Callable[[Ranked], float], labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    return np.array([metric(rank(labels[:, c], scores[:, c])) for c in range(labels.shape[1])], dtype=np.float64)
