"""What a report says of what is there: findings missed, findings that are not there.

A faint finding is missed more often than an obvious one: with severity s in [0, 1], uniform, it is missed with
probability ``2 miss (1 - s)``, which averages ``miss``. A spurious finding has the probability
``spurious * p / (1 - p)`` for a class of frequency p: in every class, the rarest too, there are ``spurious`` false
positives to a true one. The defaults (0.1, 0.05) give recall 0.90, precision 0.95 and F1 0.92; the automatic labels of
PadChest were measured at a micro F1 of 0.93 (Bustos et al. 2020, arXiv 1901.07441).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]


def observed_labels(
    truth: Bools,
    rng: np.random.Generator,
    *,
    severity: Floats,
    noisy: Bools,
    pictures: Ints,
    frequency: Floats,
    miss: float,
    spurious: float,
    needed: int,
) -> Bools:
    """(K, C) labels as reported: ``truth`` with errors in the rows where ``noisy``.

    ``needed`` images of every class keep a correct positive label in noisy rows, where there are so many: the most
    severe of the missed ones are put back. ``pictures`` (K,) counts the images of a study.
    """
    uniform = rng.random((len(truth), 2, truth.shape[1]), dtype=np.float32)
    chance = spurious * frequency / (1.0 - frequency)
    missed = truth & (uniform[:, 0] < 2.0 * miss * (1.0 - severity)) & noisy[:, None]
    invented = ~truth & (uniform[:, 1] < chance) & noisy[:, None]
    for column in range(truth.shape[1]):
        lost = np.flatnonzero(missed[:, column])
        kept = truth[:, column] & ~missed[:, column] & noisy
        short = needed - int(pictures[kept].sum())
        for row in lost[np.argsort(-severity[lost, column], kind="stable")]:
            if short <= 0:
                break
            missed[row, column] = False
            short -= int(pictures[row])
    return (truth & ~missed) | invented
