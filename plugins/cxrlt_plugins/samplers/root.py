"""A class drawn by the square root of its frequency, then one of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxrlt_plugins.samplers.weighted import NoFinding, by_class, in_proportion, patients_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from cxrlt_cli.contracts import ClassStats, Sampler


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
    """A class drawn by the square root of its frequency, then one of its images (arXiv 1805.00932, 1910.09217).

    A draw is image i with probability ~ sum_c y_ic / sqrt(n_c): half-way, in the exponent, between drawing positives
    as often as they occur and drawing all classes alike.

    Args:
        labels: (N, C) 1, 0, or -1 where unknown, which is not a positive.
        stats: unused.
        patients: (N,) codes; equal codes are one patient.
        seed: of the recipe, >= 0.
        epochs: unused.
        no_finding: images without any positive: skip (never drawn) or class (drawn as one class more).
        cap: most draws of one patient in an epoch; what is above goes to the other patients. Null for none.
        draws: images of an epoch; null for as many as there are, or as the cap allows.

    Raises:
        PluginFault: no image can be drawn, or cap and draws do not go together.
    """
    owners = patients_of(patients, cap)
    return in_proportion(by_class(labels, 0.5, no_finding), owners, draws, seed)
