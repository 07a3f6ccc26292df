"""Which images stand in which batch: a pure function of the seed, the epoch and the step.

A global batch is seen as (accumulation step, process, row). Its images, and where each stands in it, do not depend on
the number of processes, so a run may be continued on another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import Sampler
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.schema import Train

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The shape of a run.

    Attributes:
        batch: images per optimiser step, over everything.
        accumulate: backward passes per step.
        epochs: epochs of the whole run.
        steps: optimiser steps per epoch. Every epoch of a sampler has the same number of draws; those left over at its
            end, fewer than a batch, are not used.
    """

    batch: int
    accumulate: int
    epochs: int
    steps: int

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one process passes through the network at once.

    Attributes:
        places: (n,) positions in the global batch.
        items: (n,) positions in the training split.
    """

    places: Indices
    items: Indices


def make_plan(sampler: Sampler, train: Train, processes: int) -> Plan:
    """The plan of a run.

    Raises:
        UsageError: the batch is larger than an epoch, or cannot be shared out evenly.
    """
    draws = len(sampler.indices(0))
    parts = train.accumulate * processes
    if train.batch_size % parts:
        raise UsageError(
            f"train.batch_size {train.batch_size} cannot be shared out over {train.accumulate} accumulation steps "
            f"and {processes} processes",
            where="train.batch_size",
            cure=f"Choose a multiple of {parts}.",
        )
    if draws < train.batch_size:
        raise UsageError(
            f"train.batch_size {train.batch_size} is more than the {draws} training images of an epoch",
            where="train.batch_size",
            cure=f"Choose at most {draws}, let the sampler draw more, or prepare more data.",
        )
    return Plan(train.batch_size, train.accumulate, train.epochs, draws // train.batch_size)


def epoch_order(sampler: Sampler, plan: Plan, epoch: int) -> Indices:
    """Positions in the training split (steps * batch,): the draws of an epoch that fill whole batches.

    Raises:
        PluginError: the epoch has another length than the plan was made for.
    """
    order: Indices = np.asarray(sampler.indices(epoch), np.int64)
    if len(order) // plan.batch != plan.steps:
        raise PluginError(
            f"the sampler draws {len(order)} images in epoch {epoch + 1}, which are not {plan.steps} batches "
            f"of {plan.batch} as in its first epoch",
            where="sampler",
            cure="The sampler plugin breaks its contract: every epoch must have the same number of draws.",
        )
    return order[: plan.steps * plan.batch]


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step, as one process sees it.

    Attributes:
        number: from 0, over the whole run.
        epoch: from 0.
        items: (batch,) positions of the global batch in the training split.
        chunks: this process's part, one chunk an accumulation step.
    """

    number: int
    epoch: int
    items: Indices
    chunks: tuple[Chunk, ...]


def epoch_steps(sampler: Sampler, plan: Plan, epoch: int, rank: int, processes: int) -> list[Step]:
    """The steps of an epoch; their items do not depend on ``rank`` and ``processes``."""
    order = epoch_order(sampler, plan, epoch).reshape(plan.steps, plan.batch)
    places = np.arange(plan.batch, dtype=np.int64).reshape(plan.accumulate, processes, -1)[:, rank]
    return [
        Step(epoch * plan.steps + index, epoch, items, tuple(Chunk(row, items[row]) for row in places))
        for index, items in enumerate(order)
    ]
