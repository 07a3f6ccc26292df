"""Training: the loop, in the order a reader expects it.

Order, augmentation, learning rate, re-weighting and dropout are pure functions of (seed, epoch, step), so that a run
that was killed at any step continues from its last saved state to the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cxrlt_cli.artifacts import write_lines
from cxrlt_cli.engine.averages import (
    discard_snapshots,
    drop_snapshots,
    greedy_soup,
    hold_average,
    ingredients,
    replaces_best,
    take_snapshot,
)
from cxrlt_cli.engine.distributed import agree, collect, share, total
from cxrlt_cli.engine.judge import Verdict, judge, keep, note
from cxrlt_cli.engine.parts import Job, Parts, assemble
from cxrlt_cli.engine.plan import epoch_steps
from cxrlt_cli.engine.signals import INTERRUPT, NONE, StopRequest, stop_requests
from cxrlt_cli.engine.state import Progress, Saved, discard_states, restore, save_state, sweep
from cxrlt_cli.engine.step import Pending, rate_factor, step_images, train_step
from cxrlt_cli.errors import Interrupted, Terminated, TrainingError
from cxrlt_cli.events import Advanced, Emit, EpochEnded, Finished, Notice, Started, silent
from cxrlt_cli.optim import ema_swapped


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        epochs: epochs trained.
        best_epoch: epoch of the highest dev macro AP, counted from 1; its weights are saved unless ``average`` is set.
        best_score: its dev macro AP.
        stopped_early: whether patience ran out.
        history: the metrics of every epoch.
        average: where an average over epochs was saved in place of the best epoch: its ``kind``, ``epochs`` and dev
            metrics.
    """

    epochs: int
    best_epoch: int
    best_score: float
    stopped_early: bool
    history: list[dict[str, Any]]
    average: dict[str, Any] | None = None


def fit(job: Job, saved: Saved | None, emit: Emit) -> Outcome:
    """Train, evaluate after every epoch, keep the best weights, save what resuming needs.

    Args:
        job: what to do, with what, where.
        saved: the state to continue from, or None.
        emit: told about progress.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state was saved.
        TrainingError: the loss is not finite.
        CxrltError: whatever ``assemble`` found wrong.
    """
    say = emit if job.world.first else silent
    parts = assemble(job, say)
    progress = _resume(job, parts, saved)
    epochs = job.recipe.train.epochs
    with stop_requests() as request:
        while progress.epoch < epochs and not _out_of_patience(job, progress):
            _train_epoch(job, parts, progress, request, say)
            _finish_epoch(job, parts, progress, say)
            if progress.epoch < epochs:
                _end_if(agree(request.code, job.world), job, progress)
        average = _average_epochs(job, parts, progress, say)
    if job.world.first:
        discard_states(job.run.path)
        discard_snapshots(job.run)
    return Outcome(
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best_score=progress.best_score,
        stopped_early=progress.epoch < epochs,
        history=progress.history,
        average=average,
    )


def _resume(job: Job, parts: Parts, saved: Saved | None) -> Progress:
    progress = Progress()
    if saved is not None:
        progress = restore(saved, parts.model, parts.optimizer, parts.average, cast("nn.Module", parts.loss))
        if progress.scaler:
            parts.scaler.load_state_dict(progress.scaler)
    if job.world.first:
        sweep(job.run.path)
        write_lines(job.run.metrics, progress.history)
    return progress


def _out_of_patience(job: Job, progress: Progress) -> bool:
    patience = job.recipe.train.patience
    return patience is not None and progress.epoch - progress.best_epoch >= patience > 0


# -- one epoch ---------------------------------------------------------------------------------------------------


def _train_epoch(job: Job, parts: Parts, progress: Progress, request: StopRequest, emit: Emit) -> None:
    plan, world = parts.plan, job.world
    steps = epoch_steps(parts.sampler, plan, progress.epoch, world.rank, world.size)
    first = progress.step - progress.epoch * plan.steps
    stage = f"epoch {progress.epoch + 1}/{plan.epochs}"
    emit(Started(stage, plan.steps * plan.batch, "images", first * plan.batch))
    # On a GPU the host runs ahead of the device; reading a loss back waits for it.
    read_every = 1 if job.device.type == "cpu" else 10
    pending: list[Pending] = []
    saved_at = began = time.monotonic()
    with closing(step_images(job, parts, steps[first:])) as images:
        for step in steps[first:]:
            pending.append(train_step(job, parts, images, step))
            progress.step += 1
            done = progress.step - progress.epoch * plan.steps
            stop = agree(request.code, world)
            if stop == NONE and done % read_every and done < plan.steps:
                continue
            _read_losses(job, parts, progress, pending)
            progress.seconds += time.monotonic() - began
            emit(Advanced(stage, done * plan.batch, f"loss {progress.loss_sum / done:.4f}"))
            due = time.monotonic() - saved_at >= 60 * job.recipe.train.save_minutes
            if stop != NONE or (due and done < plan.steps):
                _save(job, parts, progress)
                saved_at = time.monotonic()
            _end_if(stop, job, progress)
            began = time.monotonic()
    emit(Finished(stage))


def _read_losses(job: Job, parts: Parts, progress: Progress, pending: list[Pending]) -> None:
    """Add up the losses since the last reading, over all processes; stop where one is not finite."""
    values = total(torch.stack([item.loss for item in pending]).tolist(), job.world)
    for item, value in zip(pending, values, strict=True):
        if not math.isfinite(value):
            raise _not_finite(job, parts, item, value)
    progress.loss_sum += sum(values)
    pending.clear()


def _not_finite(job: Job, parts: Parts, item: Pending, value: float) -> TrainingError:
    step = item.step
    mine = np.concatenate([chunk.items for chunk in step.chunks])
    bad = [row for part in collect(mine[~item.finite.cpu().numpy()].tolist(), job.world) for row in part]
    blame = "images with outputs that are not finite" if bad else "all outputs are finite; images of the batch"
    ids = job.prepared.frame["image_id"].iloc[parts.rows.train[bad or step.items.tolist()]].tolist()
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    within = step.number - step.epoch * parts.plan.steps + 1
    return TrainingError(
        f"the loss is {value} at epoch {step.epoch + 1}, step {within} of {parts.plan.steps}; "
        f"{blame}: {', '.join(ids[:8])}{more}",
        where=str(job.run.path),
        cure="Lower optim.lr, set optim.clip, use bf16 or fp32 instead of fp16, or look at these images.",
    )


# -- between epochs ----------------------------------------------------------------------------------------------


def _finish_epoch(job: Job, parts: Parts, progress: Progress, emit: Emit) -> None:
    """Evaluate, keep the weights when they are the best so far, save."""
    with ema_swapped(parts.model, parts.average):
        verdict = judge(job, parts, progress.step, f"after epoch {progress.epoch + 1}", emit)
        row = _row(job, parts, progress, verdict)
        note(job, verdict, row["epoch"])
        best = row["macro_ap"] > progress.best_score
        if best:
            progress.best_epoch, progress.best_score = row["epoch"], row["macro_ap"]
            keep(job, parts, verdict, row["epoch"])
        if job.world.first and replaces_best(job.recipe.train.average):
            take_snapshot(job.run, row["epoch"], parts.model)
    progress.history.append(row)
    progress.epoch += 1
    progress.loss_sum = progress.seconds = 0.0
    _save(job, parts, progress)
    if job.world.first:
        write_lines(job.run.metrics, progress.history)
        drop_snapshots(job, parts, progress.history)
    emit(EpochEnded(progress.epoch, parts.plan.epochs, best, row))


def _row(job: Job, parts: Parts, progress: Progress, verdict: Verdict) -> dict[str, Any]:
    """The line of metrics.jsonl, the same on every process."""
    images = parts.plan.steps * parts.plan.batch
    row = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "loss": progress.loss_sum / parts.plan.steps,
        **verdict.metrics,
        "lr": job.recipe.optim.lr * rate_factor(job, parts, progress.step - 1),
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
    }
    first: dict[str, Any] = share(row, job.world)
    return first


def _average_epochs(job: Job, parts: Parts, progress: Progress, emit: Emit) -> dict[str, Any] | None:
    """Save the average over epochs the recipe asks for in place of the best epoch."""
    epochs = share(ingredients(job, parts, progress.history), job.world)  # and wait for the last snapshot
    if not epochs:
        return None
    steps = {row["epoch"]: row["step"] for row in progress.history}

    def held(members: Sequence[int]) -> Verdict:
        hold_average(job, parts, members)
        return judge(job, parts, steps[members[0]], f"as the mean of epochs {_listed(members)}", emit)

    kind = "swa"
    if job.recipe.train.average.soup:
        kind, best = "soup", progress.history[epochs[0] - 1]["macro_ap"]
        epochs = greedy_soup(epochs, best, lambda members: held(members).score)
    verdict = held(epochs)
    keep(job, parts, verdict, max(epochs))
    emit(Notice(f"saved the mean of epochs {_listed(epochs)}: dev macro AP {verdict.score:.4f}"))
    return {"kind": kind, "epochs": sorted(epochs), **verdict.metrics}


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(epochs)))


def _save(job: Job, parts: Parts, progress: Progress) -> None:
    if job.world.first:
        progress.scaler = parts.scaler.state_dict()
        loss = cast("nn.Module", parts.loss)
        save_state(job.run.path, progress, parts.model, parts.optimizer, parts.average, loss=loss)


def _end_if(stop: int, job: Job, progress: Progress) -> None:
    """Leave when somebody asked for it; the state was saved just before."""
    if stop == NONE:
        return
    kind = Interrupted if stop == INTERRUPT else Terminated
    raise kind(
        f"stopped and saved at step {progress.step}, in epoch {progress.epoch + 1}",
        where=str(job.run.path),
        cure="Run the same command again to continue.",
    )
