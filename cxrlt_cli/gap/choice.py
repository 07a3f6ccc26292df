"""How far the best of several epochs flatters itself on the images it was chosen by.

The optimism bootstrap (Efron 1983; Harrell, Lee and Mark 1996), for a choice: in every resample of the patients the
best epoch is chosen anew, and how much its score there exceeds what it is worth is the optimism. "Worth" is the score
on all images, shifted by what a resample adds to that epoch on average, as AP is larger in resamples, chosen or not.

The observed scores differ by chance too, so the epochs are farther apart than they truly are and the resamples change
their minds too rarely: with equal epochs the plain bootstrap finds 0.7 of the optimism. So the distance of each epoch
from the best one is first freed of the variance chance adds, ``sqrt(max(d^2 - s^2, 0))``. In simulations of 4 to 15
epochs on plateaus the estimate is then 0.8 to 1.1 of the truth (``tests/unit/test_gap_choice.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """What choosing the best epoch adds to its figures on the images it was chosen by.

    Attributes:
        optimism: figure -> how much it flatters, on average.
        gains: figure -> (R,) how much it flatters in each resample.
        chosen: (E,) share of the resamples in which each epoch is the best one.
    """

    optimism: Mapping[str, float]
    gains: Mapping[str, Array]
    chosen: Array


def optimism(scores: npt.ArrayLike, reps: npt.ArrayLike, figures: Mapping[str, npt.ArrayLike], kept: int) -> Choice:
    """Estimate it.

    Args:
        scores: (E,) what the epoch was chosen by, higher is better.
        reps: (E, R) the same in resamples of the patients.
        figures: name -> (E, R) figures that are reported for the chosen epoch, in the same resamples.
        kept: place of the chosen epoch.
    """
    observed, drawn = np.asarray(scores, np.float64), centred(np.asarray(reps, np.float64))
    best = (truer(observed, drawn, kept)[:, None] + drawn).argmax(axis=0)
    columns = np.arange(drawn.shape[1])
    gains = {}
    for name, values in figures.items():
        noise = centred(np.asarray(values, np.float64))
        gains[name] = noise[best, columns] - noise[kept]
    return Choice(
        {name: float(gain.mean()) for name, gain in gains.items()},
        gains,
        np.bincount(best, minlength=len(observed)) / max(len(columns), 1),
    )


def truer(scores: Array, noise: Array, kept: int) -> Array:
    """Scores (E,) with their distances from the kept one freed of chance, whose draws are ``noise`` (E, R)."""
    chance = ((noise - noise[kept]) ** 2).mean(axis=1)
    distance = scores[kept] - scores
    return np.asarray(scores[kept] - np.sign(distance) * np.sqrt(np.maximum(distance**2 - chance, 0)))


def centred(reps: Array) -> Array:
    """Replicates (..., R) less their mean; resamples without a value count as the mean."""
    defined = ~np.isnan(reps)
    mean = np.where(defined, reps, 0).sum(axis=-1, keepdims=True) / np.maximum(defined.sum(axis=-1, keepdims=True), 1)
    return np.where(defined, reps - mean, 0.0)
