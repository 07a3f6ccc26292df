"""The sampler of a run, and what it is expected to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import ClassStats, Sampler
from cxrlt_cli.registry import build

if TYPE_CHECKING:
    from cxrlt_cli.engine.plan import Plan
    from cxrlt_cli.registry import Reference

Floats = npt.NDArray[np.float64]

#: Epochs that are counted where a sampler does not say what it expects.
COUNTED = 20


def build_sampler(
    ref: Reference,
    labels: npt.NDArray[np.int8],
    stats: ClassStats,
    patients: Sequence[str],
    *,
    seed: int,
    epochs: int,
) -> Sampler:
    """The sampler a recipe names.

    Args:
        ref: its name and options.
        labels: (N, C) 1, 0 or -1 of the training images.
        stats: counts of ``labels``.
        patients: N identifiers.
        seed: of the run.
        epochs: of the run.

    Raises:
        PluginError: the plugin is missing or refuses its options.
    """
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(patient, len(known)) for patient in patients), np.int64, len(patients))
    return cast("Sampler", build("samplers", ref, labels, stats, codes, seed, epochs))


@dataclass(frozen=True, slots=True)
class Draws:
    """What an epoch is expected to hold.

    Attributes:
        images: (N,) mean draws of each image.
        positives: (C,) mean number of positive labels drawn, of each class.
        ratio: (C,) share of positives among the draws over their share among the images; 1 without a sampler's doing,
            nan for a class without positives.
    """

    images: Floats
    positives: Floats
    ratio: Floats


def expected_draws(sampler: Sampler, labels: npt.NDArray[np.int8], plan: Plan, epoch: int) -> Draws:
    """Expected draws in an epoch, of which only those that fill whole batches count.

    They are exact where the sampler offers ``expected``; elsewhere they are the average of ``COUNTED`` epochs from
    ``epoch`` on.

    Args:
        sampler: of the run.
        labels: (N, C) 1, 0 or -1 of the training images.
        plan: of the run.
        epoch: from 0.
    """
    images = _of_images(sampler, len(labels), epoch)
    images *= plan.steps * plan.batch / images.sum()
    positive = labels == 1
    drawn = images @ positive
    share = positive.mean(axis=0) * images.sum()
    return Draws(images, drawn, np.divide(drawn, share, out=np.full(len(share), np.nan), where=share > 0))


def preference(draws: Draws, labels: npt.NDArray[np.int8]) -> Floats:
    """How many times as often a positive of each class is drawn as a negative (C,); 1 where one of them never is.

    A class whose positives are drawn k times as often is learnt as if its positives weighed k, so the posterior link
    takes k back. That is exact where the draws depend on this class's label alone, and close where on others too.

    Args:
        draws: of the epoch.
        labels: (N, C) 1, 0 or -1 of the training images.
    """
    positive, negative = (_mean(draws.images, labels == side) for side in (1, 0))
    both = (positive > 0) & (negative > 0)
    return np.divide(positive, negative, out=np.ones(len(positive)), where=both)


def _mean(images: Floats, chosen: npt.NDArray[np.bool_]) -> Floats:
    return np.asarray((images @ chosen) / np.maximum(chosen.sum(axis=0), 1))


def _of_images(sampler: Sampler, count: int, epoch: int) -> Floats:
    expected = getattr(sampler, "expected", None)
    if expected is not None:
        return np.array(expected(epoch), np.float64)
    orders = [sampler.indices(number) for number in range(epoch, epoch + COUNTED)]
    return np.bincount(np.concatenate(orders), minlength=count) / COUNTED
