"""The training loop over cached features.

The backbone is not there: a step reads its rows of features, and nothing else. Order, learning rate, re-weighting and
dropout are pure functions of (seed, epoch, step). The head of the last epoch counts; nothing is chosen on dev.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import UNKNOWN, Loss, Sampler
from cxrlt_cli.engine.features import Features
from cxrlt_cli.engine.head_job import AGAIN, HeadJob, head_logits, loss_of, metrics_line
from cxrlt_cli.engine.plan import Plan, epoch_order
from cxrlt_cli.engine.sampling import build_sampler, expected_draws, preference
from cxrlt_cli.engine.signals import leave_if_asked
from cxrlt_cli.errors import TrainingError
from cxrlt_cli.events import Advanced, EpochEnded, Finished, Started
from cxrlt_cli.model import set_bias
from cxrlt_cli.optim import build_optimizer, lr_factor, parameter_groups, set_lr
from cxrlt_cli.posterior import Link, derive
from cxrlt_cli.registry import build
from cxrlt_cli.reweight import class_weights, rate_drop

#: Products of a step, features by classes, up to which one thread is faster than waking others. With 32 x 320 features
#: and 30 classes on two cores, one thread took .19 s for 250 steps, two took .20 to .31 (2026-11-29).
_FOR_ONE_THREAD = 1 << 22


@dataclass(frozen=True, slots=True)
class _Bank:
    """Features in memory that a step can index: on the device where they fit in half of what is free there."""

    values: Tensor
    device: torch.device

    @classmethod
    def of(cls, features: Features, device: torch.device) -> _Bank:
        values = torch.from_numpy(features)
        if device.type == "cuda" and features.nbytes <= torch.cuda.mem_get_info(device)[0] // 2:
            values = values.to(device)
        return cls(values, device)

    def rows(self, items: Tensor) -> Tensor:
        """The rows (B, ...) at ``items`` (B,), in float32 on the device."""
        return self.values.index_select(0, items.to(self.values.device)).to(self.device).float()


@dataclass(frozen=True, slots=True)
class _Loop:
    """What an epoch works with.

    Attributes:
        head: being trained.
        loss: its loss.
        optimizer: of what of the head takes gradients.
        sampler: order of an epoch.
        plan: shape of the training.
        banks: features of the training images, view by view.
        labels: (N, C) int8 of them, on the device.
        weights: weights (2, C) of positives and negatives before re-weighting starts, and from then on.
    """

    head: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    plan: Plan
    banks: Sequence[_Bank]
    labels: Tensor
    weights: tuple[Tensor, Tensor]


def train_head(
    job: HeadJob, head: nn.Module, *, start_at_priors: bool = True
) -> tuple[list[dict[str, Any]], Link | None]:
    """Train what of ``head`` takes gradients, for the epochs of the recipe.

    Args:
        job: how, and on what.
        head: changed in place.
        start_at_priors: set its bias so that every output starts at its class's prevalence.

    Returns:
        A line of metrics an epoch, and the posterior link of the last.

    Raises:
        Interrupted: somebody asked to stop.
        TrainingError: the loss or an output is not finite.
    """
    loop = _prepared(job, head)
    plan = loop.plan
    links = _Links(job, loop)
    if start_at_priors:
        _start_at_priors(job, head, links.at(0, 0.0))
    history: list[dict[str, Any]] = []
    with _threads(job, plan):
        for epoch in range(plan.epochs):
            began = time.monotonic()
            mean = _epoch(job, loop, epoch)
            seconds = time.monotonic() - began
            link = links.at(epoch, ((epoch + 1) * plan.steps - 1) / plan.total)
            line = metrics_line(job, head_logits(head, job.cohort.dev, job.device), link)
            history.append(line | _of_epoch(job, plan, epoch, mean, seconds))
            job.emit(EpochEnded(epoch + 1, plan.epochs, epoch + 1 == plan.epochs, history[-1]))
    return history, link


@contextmanager
def _threads(job: HeadJob, plan: Plan) -> Iterator[None]:
    """One thread for steps so small that waking others takes longer than the work they would take over."""
    before = torch.get_num_threads()
    features = math.prod(job.cohort.views[0].shape[1:])
    if job.device.type == "cpu" and plan.batch * features * job.cohort.labels.shape[1] <= _FOR_ONE_THREAD:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepared(job: HeadJob, head: nn.Module) -> _Loop:
    recipe, cohort = job.recipe, job.cohort
    train, optim, stats = recipe.train, recipe.optim.full(), cohort.stats
    sampler = build_sampler(recipe.sampler, cohort.labels, stats, cohort.patients, seed=train.seed, epochs=train.epochs)
    draws = len(sampler.indices(0))
    batch = min(train.batch_size, draws)
    both = (class_weights(stats, recipe.reweight, progress) for progress in (0.0, 1.0))
    before, after = (torch.tensor(np.stack(pair), dtype=torch.float32, device=job.device) for pair in both)
    return _Loop(
        head=head,
        loss=cast("nn.Module", build("losses", loss_of(job), stats)).to(job.device),
        optimizer=build_optimizer(parameter_groups(nn.Module(), head, optim), optim, job.device),
        sampler=sampler,
        plan=Plan(batch, 1, train.epochs, draws // batch),
        banks=[_Bank.of(view, job.device) for view in cohort.views],
        labels=torch.from_numpy(cohort.labels).to(job.device),
        weights=(before, after),
    )


def _epoch(job: HeadJob, loop: _Loop, epoch: int) -> float:
    """The mean loss of an epoch.

    Raises:
        TrainingError: it is not finite.
    """
    plan, bank = loop.plan, loop.banks[epoch % len(loop.banks)]
    stage = f"head, epoch {epoch + 1}/{plan.epochs}"
    order = torch.from_numpy(epoch_order(loop.sampler, plan, epoch)).to(job.device)
    total = torch.zeros((), device=job.device)
    loop.head.train()
    loop.loss.train()
    job.emit(Started(stage, plan.steps * plan.batch, "images"))
    every = max(1, plan.steps // 20)
    for index, items in enumerate(order.view(plan.steps, plan.batch)):
        total += _step(job, loop, epoch * plan.steps + index, bank.rows(items), loop.labels[items])
        if (index + 1) % every == 0:
            job.emit(Advanced(stage, (index + 1) * plan.batch))
        leave_if_asked(job.request, f"stopped in {stage}", cure=AGAIN)
    job.emit(Finished(stage))
    mean = float(total) / plan.steps
    if not math.isfinite(mean):
        what = f"the loss is {mean} in epoch {epoch + 1}"
        raise TrainingError(what, where=job.recipe.name, cure="Lower optim.lr, or set optim.clip.")
    return mean


def _step(job: HeadJob, loop: _Loop, number: int, features: Tensor, labels: Tensor) -> Tensor:
    """One optimiser step on features (B, ...) and labels (B, C); returns the loss, still on the device."""
    recipe, progress = job.recipe, number / loop.plan.total
    _seed(job.device, _step_seed(recipe.train.seed, number))
    set_lr(loop.optimizer, _rate(job, loop.plan, number))
    loop.optimizer.zero_grad(set_to_none=True)
    positive, negative = loop.weights[progress >= recipe.reweight.start]
    weight = torch.where(labels == 1, positive, negative).masked_fill(labels == UNKNOWN, 0.0)
    value: Tensor = loop.loss(loop.head(features), (labels == 1).float(), weight)
    value.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    if recipe.optim.clip is not None:
        nn.utils.clip_grad_norm_(loop.head.parameters(), recipe.optim.clip)
    loop.optimizer.step()
    return value.detach()


def _rate(job: HeadJob, plan: Plan, number: int) -> float:
    optim = job.recipe.optim
    drop = rate_drop(job.recipe.reweight, number / plan.total)
    return lr_factor(number, plan.total, optim.warmup, optim.final_lr) * drop


def _seed(device: torch.device, seed: int) -> None:
    """Seed what dropout draws from. ``torch.manual_seed`` seeds every kind of device, which takes as long as a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


class _Links:
    """The posterior link in force; deriving one takes as long as an epoch, so that equal ones are derived once."""

    def __init__(self, job: HeadJob, loop: _Loop) -> None:
        self._job, self._loop = job, loop
        self._weights: npt.NDArray[np.float64] | None = None
        self._link: Link | None = None

    def at(self, epoch: int, progress: float) -> Link | None:
        """The link of the loss with the weights of a share of the run, and with an epoch's draws taken back."""
        cohort, loop = self._job.cohort, self._loop
        preferred = preference(expected_draws(loop.sampler, cohort.labels, loop.plan, epoch), cohort.labels)
        weights = np.stack(class_weights(cohort.stats, self._job.recipe.reweight, progress))
        weights[0] *= preferred
        if self._weights is None or not np.allclose(weights, self._weights, rtol=1e-9):
            self._weights, self._link = weights, derive(cast("Loss", loop.loss), weights[0], weights[1])
        return self._link


def _start_at_priors(job: HeadJob, head: nn.Module, link: Link | None) -> None:
    if link is not None:
        prior = np.array(job.cohort.stats.prevalence)
        start = link.inverse(np.log(prior) - np.log1p(-prior))
        set_bias(head, torch.from_numpy(start).float().to(job.device))


def _of_epoch(job: HeadJob, plan: Plan, epoch: int, mean: float, seconds: float) -> dict[str, Any]:
    step = (epoch + 1) * plan.steps
    return {
        "epoch": epoch + 1,
        "step": step,
        "loss": mean,
        "lr": job.recipe.optim.lr * _rate(job, plan, step - 1),
        "seconds": round(seconds, 3),
        "images_per_second": round(plan.steps * plan.batch / seconds, 1),
    }
