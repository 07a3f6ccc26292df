"""Every image once an epoch, in random order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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


def build(labels: npt.NDArray[np.int8], stats: ClassStats, seed: int) -> Sampler:
    """A uniform sampler.

    Args:
        labels: (N, C) labels of the training split; only N matters here.
        stats: unused.
        seed: of the recipe, >= 0.
    """
    return Uniform(len(labels), seed)
