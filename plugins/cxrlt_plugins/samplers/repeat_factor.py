"""Images of rare findings drawn more often, all others as they are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_cli.contracts import PluginFault
from cxrlt_plugins.samplers.weighted import in_proportion, patients_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxrlt_cli.contracts import ClassStats, Sampler


def factors(labels: npt.NDArray[np.int8], threshold: float) -> npt.NDArray[np.float64]:
    """Repeat factor (N,) of each image: the largest max(1, sqrt(t / f_c)) of its positive classes, else 1.

    Args:
        labels: (N, C) 1, 0, or -1 where unknown, which is not a positive.
        threshold: t; f_c is the share of the N images that are positive of class c.
    """
    positive = labels == 1
    share = np.maximum(positive.sum(axis=0), 1) / len(labels)
    repeat = np.maximum(1.0, np.sqrt(threshold / share))
    result: npt.NDArray[np.float64] = np.where(positive, repeat, 1.0).max(axis=1, initial=1.0)
    return result


def build(
    labels: npt.NDArray[np.int8],
    stats: ClassStats,
    patients: npt.NDArray[np.int64],
    seed: int,
    epochs: int,
    *,
    threshold: float = 0.01,
    cap: int | None = None,
    draws: int | None = None,
) -> Sampler:
    """Images of rare findings drawn more often (repeat factor sampling, arXiv 1908.03195).

    Class c has the factor r_c = max(1, sqrt(t / f_c)), where f_c is its share of images; image i that of its rarest
    finding. An epoch draws image i r_i D / sum_j r_j times: the whole part for certain, once more with the fraction as
    its probability. By default D is the number of images, so that a run has as many steps as with other samplers, and
    common images are drawn a little less than once; with draws at the sum of the factors, it is the published epoch.

    Args:
        labels: (N, C) 1, 0, or -1 where unknown, which is not a positive.
        stats: unused.
        patients: (N,) codes; equal codes are one patient.
        seed: of the recipe, >= 0.
        epochs: unused.
        threshold: share t of images below which a class is repeated, in (0, 1]; the paper has 0.001 for 1,203 classes.
        cap: most draws of one patient in an epoch; what is above goes to the other patients. Null for none.
        draws: images of an epoch, D; null for as many as there are, or as the cap allows.

    Raises:
        PluginFault: the threshold is out of range, or cap and draws do not go together.
    """
    if not 0 < threshold <= 1 or math.isnan(threshold):
        cure = "Give threshold a share in (0, 1]."
        raise PluginFault(f"threshold is {threshold}", where="sampler repeat-factor", cure=cure)
    owners = patients_of(patients, cap)
    return in_proportion(factors(labels, threshold), owners, draws, seed)
