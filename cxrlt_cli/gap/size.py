"""What a score loses, or gains, by the number of images it is made on: AP and ECE of few of them are too high.

**AP.** Its bias falls as one over the number of positives, and is what AP gains in random halves of the patients (the
half-sample jackknife).

**ECE.** It adds up how far bins are off. Of a bin that is truly off by m, chance with a standard deviation of s makes
``E|m + s Z|``. The m of dev's bins are what they are off by, freed of the chance that is in it. Where all posteriors
are right, 0.8 to 1 of the effect is found; where they are wrong by about as much as chance, it is overdone.

AUROC has no such bias, and what F1 has is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap.draws import Clusters
from cxrlt_cli.bootstrap.intervals import folded
from cxrlt_cli.gap.evidence import Target
from cxrlt_cli.gap.figures import FIGURES, Judged, apart, point, resampled
from cxrlt_cli.metrics import mean_defined

Array = npt.NDArray[np.float64]
Times = npt.NDArray[np.uint8]

#: Halves of the patients from which the bias of AP is told.
HALVES = 200
#: Stands for 0 in denominators.
_TINY = 1e-300


def of_size(
    last: Judged, target: Target, drawn: Clusters, times: Times
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Changes of each class's figures (C,) or (1,), and the same in resamples (R, 1).

    Args:
        last: dev when all else is corrected.
        target: its ``images`` are known.
        drawn: dev's patients.
        times: (R, N) how often each image occurs in resamples of them.
    """
    error, error_reps = _of_ece(last, target.images or 0, times)
    nothing = {name: np.zeros(1) for name in FIGURES}
    still = {name: np.zeros((len(times), 1)) for name in FIGURES}
    return {**nothing, "macro_ap": _of_ap(last, target, drawn), "ece": error}, {**still, "ece": error_reps}


def _of_ap(last: Judged, target: Target, drawn: Clusters) -> Array:
    rng = np.random.default_rng(0)
    halves = np.zeros((HALVES, drawn.count), np.uint8)
    for row in halves:
        row[rng.permutation(drawn.count)[: drawn.count // 2]] = 1
    gain = mean_defined(resampled(last, halves[:, drawn.of_image])["macro_ap"].T) - point(last)["macro_ap"]
    return np.asarray(-np.nan_to_num(gain) * (1 - 1 / more_positives(last, target)))


def _of_ece(last: Judged, images: int, times: Times) -> tuple[Array, Array]:
    """Of all images (1,), and in resamples (R, 1), which hold the chance of dev twice."""
    bins, reps = apart(last, np.ones((1, len(last.labels)), np.uint8)), apart(last, times)
    here = np.nanstd(reps, axis=0)
    there = here * math.sqrt(effective(last, np.ones(len(last.labels), bool)) / max(images, 1))
    changes = []
    for found, chances in ((bins, 1), (reps, 2)):
        true = np.sqrt(np.maximum(found**2 - chances * here**2, 0))
        changes.append((folded(true, there) - folded(true, here)).sum(axis=1, keepdims=True))
    return changes[0][0], changes[1]


def effective(judged: Judged, rows: npt.NDArray[np.bool_]) -> float:
    """How many images of equal weight say as much as these (N,) do (Kish 1965)."""
    weights = rows.astype(np.float64) if judged.weights is None else judged.weights * rows
    return float(weights.sum() ** 2 / max((weights**2).sum(), _TINY))


def more_positives(last: Judged, target: Target) -> Array:
    """(C,) how many times as many positives as dev's the target has."""
    weight = np.ones(len(last.labels)) if last.weights is None else last.weights
    known, positive = weight @ (last.labels >= 0), weight @ (last.labels == 1)
    share = positive / np.maximum(known, _TINY)
    if target.prevalence is not None:
        share = np.where(np.isnan(target.prevalence), share, target.prevalence)
    there = np.maximum(share * (target.images or 0), 1)
    return np.asarray(there / np.array([max(effective(last, column == 1), 1) for column in last.labels.T]))
