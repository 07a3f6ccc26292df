"""From the natural distribution to class-aware sampling, over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_plugins.samplers.weighted import NoFinding, Patients, Weighted, by_class, length, patients_of, spread

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxrlt_cli.contracts import ClassStats, Sampler


@dataclass(frozen=True, slots=True)
class Progressive:
    """A mixture of all images alike and all classes alike.

    Attributes:
        balanced: (N,) class-aware weights; they add up to 1.
        patients: who owns which image, and the cap.
        draws: of every epoch.
        seed: >= 0.
        epochs: of the run.
    """

    balanced: npt.NDArray[np.float64]
    patients: Patients
    draws: int
    seed: int
    epochs: int

    def indices(self, epoch: int) -> npt.NDArray[np.int64]:
        """Positions in random order, as many in every epoch; pure in (seed, epoch)."""
        return self._at(epoch).indices(epoch)

    def expected(self, epoch: int) -> npt.NDArray[np.float64]:
        """(N,) mean draws of each image in this epoch."""
        return self._at(epoch).expected(epoch)

    def _at(self, epoch: int) -> Weighted:
        share = min(epoch / max(self.epochs - 1, 1), 1.0)
        weights = (1 - share) / len(self.balanced) + share * self.balanced
        return Weighted(spread(weights, self.patients, self.draws), self.patients.codes, self.seed)


def build(
    labels: npt.NDArray[np.int8],
    stats: ClassStats,
    patients: npt.NDArray[np.int64],
    seed: int,
    epochs: int,
    *,
    no_finding: NoFinding = "skip",
    cap: int | None = None,
    draws: int | None = None,
) -> Sampler:
    """All images alike in the first epoch, all classes alike in the last (progressively balanced, arXiv 1910.09217).

    A draw is image i with probability (1 - t) / N + t (1/C) sum_c y_ic / n_c, where t rises from 0 in the first epoch
    to 1 in the last in equal steps; a run of one epoch keeps t = 0.

    Args:
        labels: (N, C) 1, 0, or -1 where unknown, which is not a positive.
        stats: unused.
        patients: (N,) codes; equal codes are one patient.
        seed: of the recipe, >= 0.
        epochs: of the run, >= 1.
        no_finding: images without any positive: skip (not drawn in the last epoch) or class (as one class more).
        cap: most draws of one patient in an epoch; what is above goes to the other patients. Null for none.
        draws: images of an epoch; null for as many as there are, or as the cap allows in the last epoch.

    Raises:
        PluginFault: no image can be drawn, or cap and draws do not go together.
    """
    owners = patients_of(patients, cap)
    balanced = by_class(labels, 0.0, no_finding)
    return Progressive(balanced, owners, length(balanced, owners, draws), seed, epochs)
