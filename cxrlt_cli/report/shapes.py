"""The numbers behind the drawings of one class: precision over recall, reliability, figures over thresholds.

Labels are (N,): 1, 0, or -1 where unknown; unknown ones take no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.metrics.calibration import equal_count_bins
from cxrlt_cli.metrics.ranking import hits, rank

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

#: A curve of more steps than this is averaged.
MOST_STEPS = 60
#: Bins of a reliability curve, and the images each has at least.
BINS, IN_A_BIN = 10, 25
#: Thresholds at which figures are drawn.
THRESHOLDS = 49


class Steps(NamedTuple):
    """A step function: edges (n + 1) from 0 to 1, heights (n) between them."""

    edges: Array
    heights: Array


def precision_over_recall(labels: Labels, scores: npt.NDArray[np.floating]) -> Steps:
    """Precision at each recall reached; the area below is average precision, exactly.

    With more than ``MOST_STEPS`` steps, the mean precision in so many intervals of recall, which keeps the area.

    Args:
        labels: (N,).
        scores: (N,), higher for the finding.

    Returns:
        No steps where there is no positive.
    """
    ranked = rank(labels, scores)
    reached, gained = hits(ranked)
    if not reached.size or not reached[-1]:
        return Steps(np.zeros(1), np.zeros(0))
    keep = gained > 0
    recall = np.append(0.0, reached[keep] / reached[-1])
    precision = reached[keep] / (ranked.ends[keep] + 1)
    if len(precision) <= MOST_STEPS:
        return Steps(recall, precision)
    area = np.append(0.0, np.cumsum(np.diff(recall) * precision))
    edges = np.linspace(0, 1, MOST_STEPS + 1)
    return Steps(edges, np.diff(np.interp(edges, recall, area)) * MOST_STEPS)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of about equally many images, from the lowest posterior up; (b,) each.

    Attributes:
        posterior: mean posterior.
        share: share of positives.
        low: lower end of the 95 % interval of the share (Wilson).
        high: upper end.
        images: how many.
    """

    posterior: Array
    share: Array
    low: Array
    high: Array
    images: npt.NDArray[np.int64]


def reliability(labels: Labels, posteriors: Array) -> Reliability:
    """What share of the images of each bin has the finding: labels (N,), posteriors (N,) in [0, 1]."""
    known = labels != UNKNOWN
    positive, posterior = labels[known] == 1, posteriors[known]
    wanted = int(np.clip(len(posterior) // IN_A_BIN, 1, BINS))
    place = (
        np.unique(equal_count_bins(posterior, wanted), return_inverse=True)[1] if len(posterior) else np.zeros(0, int)
    )
    images = np.bincount(place)
    hit = np.bincount(place, weights=positive)
    low, high = wilson(hit, images)
    return Reliability(
        posterior=np.bincount(place, weights=posterior) / images,
        share=hit / images,
        low=low,
        high=high,
        images=images,
    )


def wilson(hits: npt.ArrayLike, images: npt.ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """The score interval of a share (Wilson, 1927): hits (...) among images (...) > 0 -> low, high (...)."""
    k, n = np.asarray(hits, np.float64), np.asarray(images, np.float64)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4)
    return np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1)


class AtThresholds(NamedTuple):
    """Figures of calling a finding from each threshold on: (t,) each; precision is nan where nothing is called."""

    thresholds: Array
    f1: Array
    precision: Array
    recall: Array


def at_thresholds(labels: Labels, posteriors: Array) -> AtThresholds:
    """F1, precision and recall over thresholds evenly spread in log-odds: labels (N,), posteriors (N,) in [0, 1].

    Nothing at all where there is no positive.
    """
    reach = math.log(999)
    thresholds = 1 / (1 + np.exp(-np.linspace(-reach, reach, THRESHOLDS)))
    of_positives, of_negatives = np.sort(posteriors[labels == 1]), np.sort(posteriors[labels == 0])
    count = len(of_positives)
    if not count:
        return AtThresholds(*(np.zeros(0),) * 4)
    true = count - np.searchsorted(of_positives, thresholds)
    false = len(of_negatives) - np.searchsorted(of_negatives, thresholds)
    called = true + false
    precision = np.where(called > 0, true / np.maximum(called, 1), np.nan)
    return AtThresholds(thresholds, 2 * true / (called + count), precision, true / count)
