"""Every image once an epoch, in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_plugins.samplers.weighted import Weighted, in_units, patients_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxrlt_cli.contracts import ClassStats, Sampler


@dataclass(frozen=True, slots=True)
class Uniform:
    """A fresh permutation of ``count`` positions for each epoch, pure in (seed, epoch)."""

    count: int
    seed: int

    def indices(self, epoch: int) -> npt.NDArray[np.int64]:
        """(count,) int64, each position once.

        Random 64-bit keys are sorted: NumPy promises the raw stream of Philox for good, but not ``permutation``'s use
        of it, and a run may be continued under another release.
        """
        keys = np.random.Philox(np.random.SeedSequence((self.seed, epoch))).random_raw(self.count)
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)

    def expected(self, epoch: int) -> npt.NDArray[np.float64]:
        """(count,) ones."""
        return np.ones(self.count)


def build(
    labels: npt.NDArray[np.int8],
    stats: ClassStats,
    patients: npt.NDArray[np.int64],
    seed: int,
    epochs: int,
    *,
    cap: int | None = None,
) -> Sampler:
    """Every image once an epoch, in random order; with a cap, some of a patient's images each time.

    An epoch with a cap is shorter: a patient with n images has min(n, cap) draws in it, each image equally often over
    the epochs.

    Args:
        labels: (N, C) labels of the training split; only N matters here.
        stats: unused.
        patients: (N,) codes; equal codes are one patient.
        seed: of the recipe, >= 0.
        epochs: unused.
        cap: most draws of one patient in an epoch; null for none.

    Raises:
        PluginFault: the cap is less than 1.
    """
    if cap is None:
        return Uniform(len(labels), seed)
    codes = patients_of(patients, cap).codes
    images = np.bincount(codes)
    limits = np.minimum(images, cap)
    return Weighted(in_units((limits / images)[codes], limits, codes, int(limits.sum())), codes, seed)
