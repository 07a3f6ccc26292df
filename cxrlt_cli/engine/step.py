"""One optimiser step: images in, forward and backward, clip, update, average."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.data.augment import augment
from cxrlt_cli.data.batches import batches, to_unit
from cxrlt_cli.data.mix import Mixing, draw_mixing, mix
from cxrlt_cli.engine.distributed import accumulating, gathered
from cxrlt_cli.engine.infer import autocast
from cxrlt_cli.engine.parts import Job, Parts
from cxrlt_cli.engine.plan import Step
from cxrlt_cli.engine.targets import Targets, make_targets, smoothing_level
from cxrlt_cli.optim import ascended, ema_decay, ema_update, lr_factor, set_lr, unchanged_buffers
from cxrlt_cli.reweight import class_weights, rate_drop


@dataclass(frozen=True, slots=True)
class Pending:
    """A step whose loss was not read back from the device yet.

    Attributes:
        step: which one.
        loss: this process's share of the loss, a scalar on the device.
        finite: (n,) which of this process's images had finite outputs.
    """

    step: Step
    loss: Tensor
    finite: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """What a step is about, the same on every process.

    Attributes:
        step: its number, images and chunks.
        mixing: who is mixed with whom, or None.
        targets: of the whole global batch.
    """

    step: Step
    mixing: Mixing | None
    targets: Targets


def step_images(job: Job, parts: Parts, steps: Sequence[Step]) -> Generator[Tensor, None, None]:
    """The images of every pass of the steps, chunk by chunk, partners of mixed images after each chunk's own."""
    passes = 1 if job.recipe.optim.sam is None else 2

    def wanted() -> Iterator[npt.NDArray[np.int64]]:
        for step in steps:
            mixing = _mixing(job, parts, step)
            for chunk in step.chunks * passes:
                places = chunk.places if mixing is None else mixing.needed(chunk.places)
                yield parts.rows.train[step.items[places]]

    return batches(parts.reader, wanted(), pin=job.device.type == "cuda")


def train_step(job: Job, parts: Parts, images: Iterator[Tensor], step: Step) -> Pending:
    """One optimiser step on the next images of :func:`step_images`.

    With ``optim.sam`` the gradient is taken twice: at the weights, and where a step of length rho along that gradient
    leads, which is the gradient the update uses (arXiv 2010.01412, algorithm 1). Both passes see the same images and
    the same dropout. Running statistics, and what a loss remembers, follow the first pass alone.
    """
    set_lr(parts.optimizer, rate_factor(job, parts, step.number))
    parts.network.train()
    task = _task(job, parts, step)
    loss, finite = _gradient(job, parts, images, task)
    if job.recipe.optim.sam is not None:
        modules = parts.model, cast("nn.Module", parts.loss)
        with unchanged_buffers(*modules), ascended(parts.model, job.recipe.optim.sam):
            _gradient(job, parts, images, task)
    _update(job, parts, step)
    return Pending(step, loss, finite)


def rate_factor(job: Job, parts: Parts, number: int) -> float:
    """The learning rate of a step as a share of its base rate."""
    optim, total = job.recipe.optim, parts.plan.total
    return lr_factor(number, total, optim.warmup, optim.final_lr) * rate_drop(job.recipe.reweight, number / total)


def _mixing(job: Job, parts: Parts, step: Step) -> Mixing | None:
    seed, batch = job.recipe.train.seed, parts.plan.batch
    return draw_mixing(job.recipe.mix, seed=seed, epoch=step.epoch, step=step.number, batch=batch, size=parts.size)


def _task(job: Job, parts: Parts, step: Step) -> Task:
    rows, recipe = parts.rows, job.recipe
    mixing = _mixing(job, parts, step)
    targets = make_targets(
        rows.labels[step.items],
        class_weights(rows.stats, recipe.reweight, step.number / parts.plan.total),
        smoothing=recipe.train.label_smoothing,
        level=smoothing_level(rows.stats, recipe.train),
        mixing=mixing,
    )
    return Task(step, mixing, targets)


def _gradient(job: Job, parts: Parts, images: Iterator[Tensor], task: Task) -> tuple[Tensor, Tensor]:
    """Every chunk forward and backward; this process's share of the loss, and which outputs were finite."""
    step = task.step
    torch.manual_seed(_step_seed(job.recipe.train.seed, step.number, job.world.rank))
    parts.optimizer.zero_grad(set_to_none=True)
    losses, finite = [], []
    for number, chunk in enumerate(step.chunks):
        batch = _prepared(job, parts, next(images), task, chunk.places)
        with accumulating(parts.network, last=number == len(step.chunks) - 1):
            with autocast(job.recipe.train.precision, job.device):
                logits = parts.network(batch)
            part = _share_of_loss(job, parts, logits, task, number)
            # Distributed gradients are averaged over processes, while these shares have to be summed.
            parts.scaler.scale(part * job.world.size).backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())
        finite.append(logits.detach().isfinite().all(1))
    loss = torch.stack(losses).sum()
    return (loss / job.world.size if _judged_together(parts, job) else loss), torch.cat(finite)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _prepared(job: Job, parts: Parts, batch: Tensor, task: Task, places: npt.NDArray[np.int64]) -> Tensor:
    """Augmented, and mixed where the recipe mixes: the images at ``places`` of the global batch."""
    step, mixing = task.step, task.mixing
    held = places if mixing is None else mixing.needed(places)
    images = to_unit(batch, job.device, parts.size)
    config, seed = job.recipe.augment, job.recipe.train.seed
    images = augment(images, config, seed=seed, epoch=step.epoch, step=step.number, rows=held)
    return images if mixing is None else mix(images, mixing, held, len(places))


def _judged_together(parts: Parts, job: Job) -> bool:
    """Whether the loss of an image depends on the images beside it, some of which other processes hold."""
    alone = getattr(parts.loss, "pointwise", True) and not getattr(parts.loss, "stateful", False)
    return job.world.size > 1 and not alone


def _share_of_loss(job: Job, parts: Parts, logits: Tensor, task: Task, number: int) -> Tensor:
    """The loss of chunk ``number``, as a share of the mean over the known labels of the whole global batch."""
    places = task.step.chunks[number].places
    if _judged_together(parts, job):
        size = parts.plan.batch // parts.plan.accumulate
        places = np.arange(number * size, (number + 1) * size)
        logits = gathered(logits.float(), job.world)
    target, weight = (
        torch.from_numpy(values[places]).to(job.device, non_blocking=True)
        for values in (task.targets.target, task.targets.weight)
    )
    # A loss is a mean over its own known labels.
    return parts.loss(logits, target, weight) * (task.targets.known(places) / max(1, task.targets.known()))


def _update(job: Job, parts: Parts, step: Step) -> None:
    clip, ema = job.recipe.optim.clip, job.recipe.train.average.ema
    if clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if ema is not None and parts.average is not None:
        ema_update(parts.average, parts.model, ema_decay(step.number, ema))
