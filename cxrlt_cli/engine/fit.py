"""Training: the loop, in the order a reader expects it.

Order, augmentation, learning rate, re-weighting and dropout are pure functions of (seed, epoch, step), so that a run
that was killed at any step continues from its last saved state to the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.artifacts import Predictions, write_lines, write_predictions
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.augment import augment
from cxrlt_cli.data.batches import batches, to_unit
from cxrlt_cli.engine.distributed import accumulating, agree, collect, share, total
from cxrlt_cli.engine.infer import Setting, autocast, infer
from cxrlt_cli.engine.parts import Job, Parts, assemble, link_at, model_card
from cxrlt_cli.engine.plan import Chunk, Step, epoch_steps
from cxrlt_cli.engine.signals import INTERRUPT, NONE, StopRequest, stop_requests
from cxrlt_cli.engine.state import Progress, Saved, discard_states, restore, save_state, sweep
from cxrlt_cli.errors import Interrupted, Terminated, TrainingError
from cxrlt_cli.events import Advanced, Emit, EpochEnded, Finished, Started, silent
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.model import save_model
from cxrlt_cli.optim import ema_decay, ema_swapped, ema_update, lr_factor, set_lr
from cxrlt_cli.posterior import Link, link_tensors, posterior_of
from cxrlt_cli.reweight import class_weights


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        epochs: epochs trained.
        best_epoch: epoch of the saved weights, counted from 1.
        best_score: its dev macro AP.
        stopped_early: whether patience ran out.
        history: the metrics of every epoch.
    """

    epochs: int
    best_epoch: int
    best_score: float
    stopped_early: bool
    history: list[dict[str, Any]]


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
    if job.world.first:
        discard_states(job.run.path)
    return Outcome(
        epochs=progress.epoch,
        best_epoch=progress.best_epoch,
        best_score=progress.best_score,
        stopped_early=progress.epoch < epochs,
        history=progress.history,
    )


def _resume(job: Job, parts: Parts, saved: Saved | None) -> Progress:
    progress = Progress()
    if saved is not None:
        progress = restore(saved, parts.model, parts.optimizer, parts.average)
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
    with closing(_images(job, parts, steps[first:])) as images:
        for step in steps[first:]:
            pending.append(_train_step(job, parts, images, step))
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


def _images(job: Job, parts: Parts, steps: Sequence[Step]) -> Generator[Tensor, None, None]:
    wanted = (parts.rows.train[chunk.items] for step in steps for chunk in step.chunks)
    return batches(parts.reader, wanted, pin=job.device.type == "cuda")


def _train_step(job: Job, parts: Parts, images: Iterator[Tensor], step: Step) -> Pending:
    """One optimiser step: every chunk forward and backward, then clip, update and average."""
    recipe = job.recipe
    torch.manual_seed(_step_seed(recipe.train.seed, step.number, job.world.rank))
    set_lr(parts.optimizer, lr_factor(step.number, parts.plan.total, recipe.optim.warmup, recipe.optim.final_lr))
    parts.optimizer.zero_grad(set_to_none=True)
    parts.network.train()
    known = max(1, int((parts.rows.labels[step.items] != UNKNOWN).sum()))
    losses, finite = [], []
    for number, chunk in enumerate(step.chunks):
        batch = _augmented(job, parts, next(images), step, chunk)
        targets, weight = _targets(job, parts, step, chunk)
        with accumulating(parts.network, last=number == len(step.chunks) - 1):
            with autocast(recipe.train.precision, job.device):
                logits = parts.network(batch)
            # A loss is a mean over its own known labels; the step is the mean over those of the whole global batch.
            part = parts.loss(logits, targets, weight) * ((weight > 0).sum() / known)
            # Distributed gradients are averaged over processes, while these shares have to be summed.
            parts.scaler.scale(part * job.world.size).backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())
        finite.append(logits.detach().isfinite().all(1))
    _update(job, parts, step)
    return Pending(step, torch.stack(losses).sum(), torch.cat(finite))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def _augmented(job: Job, parts: Parts, batch: Tensor, step: Step, chunk: Chunk) -> Tensor:
    images = to_unit(batch, job.device, parts.size)
    config, seed = job.recipe.augment, job.recipe.train.seed
    return augment(images, config, seed=seed, epoch=step.epoch, step=step.number, rows=chunk.places)


def _targets(job: Job, parts: Parts, step: Step, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Targets (n, C) in {0, 1} and weights (n, C), 0 where a label is unknown."""
    labels = torch.from_numpy(parts.rows.labels[chunk.items]).to(job.device, non_blocking=True)
    weights = class_weights(parts.rows.stats, job.recipe.reweight, step.number / parts.plan.total)
    positive, negative = (torch.from_numpy(part).to(job.device, torch.float32) for part in weights)
    weight = torch.where(labels == 1, positive, negative)
    return (labels == 1).float(), torch.where(labels == UNKNOWN, 0.0, weight)


def _update(job: Job, parts: Parts, step: Step) -> None:
    clip, ema = job.recipe.optim.clip, job.recipe.train.average.ema
    if clip is not None:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), clip)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if ema is not None and parts.average is not None:
        ema_update(parts.average, parts.model, ema_decay(step.number, ema))


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
    link = link_at(parts.loss, parts.rows.stats, job.recipe, (progress.step - 1) / parts.plan.total)
    setting = _setting(job, parts)
    with ema_swapped(parts.model, parts.average):
        logits = infer(parts.model, parts.reader, parts.rows.dev, setting, world=job.world, emit=emit)[0]
        row = share(_scores(job, parts, progress, logits, link) if job.world.first else None, job.world)
        best = row["macro_ap"] > progress.best_score
        if best:
            progress.best_epoch, progress.best_score = row["epoch"], row["macro_ap"]
            if job.world.first:
                _keep(job, parts, progress, logits, link)
    progress.history.append(row)
    progress.epoch += 1
    progress.loss_sum = progress.seconds = 0.0
    _save(job, parts, progress)
    if job.world.first:
        write_lines(job.run.metrics, progress.history)
    emit(EpochEnded(progress.epoch, parts.plan.epochs, best, row))


def _setting(job: Job, parts: Parts) -> Setting:
    train = job.recipe.train
    return Setting(job.device, parts.size, train.eval_batch_size or train.batch_size, train.precision, "dev")


def _scores(
    job: Job, parts: Parts, progress: Progress, logits: npt.NDArray[np.float32], link: Link | None
) -> dict[str, Any]:
    """The line of metrics.jsonl."""
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"the network's outputs are not finite after epoch {progress.epoch + 1}",
            where=str(job.run.path),
            cure="Lower optim.lr, set optim.clip, or use bf16 or fp32 instead of fp16.",
        )
    stats, plan, optim = parts.rows.stats, parts.plan, job.recipe.optim
    posteriors = posterior_of(link, logits)
    result = evaluate(parts.rows.dev_labels, logits, posteriors, stats.names, np.array(stats.share))
    images = plan.steps * plan.batch
    return {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "loss": progress.loss_sum / plan.steps,
        **result.summary(),
        "lr": optim.lr * lr_factor(progress.step - 1, plan.total, optim.warmup, optim.final_lr),
        "seconds": round(progress.seconds, 3),
        "images_per_second": round(images / progress.seconds, 1) if progress.seconds else None,
    }


def _keep(job: Job, parts: Parts, progress: Progress, logits: npt.NDArray[np.float32], link: Link | None) -> None:
    """Write the weights the model holds now, with their link, and what they say about dev."""
    card = model_card(job, parts, link, progress.best_epoch, progress.best_score)
    weights = dict(parts.model.state_dict())
    if link is not None:
        weights |= {name: torch.from_numpy(value) for name, value in link_tensors(link).items()}
    save_model(job.run.model, weights, card)
    frame = job.prepared.frame.iloc[parts.rows.dev]
    ids, patients = frame["image_id"].tolist(), frame["patient_id"].tolist()
    write_predictions(job.run.predictions("dev"), Predictions(card.classes, ids, patients, logits))


def _save(job: Job, parts: Parts, progress: Progress) -> None:
    if job.world.first:
        progress.scaler = parts.scaler.state_dict()
        save_state(job.run.path, progress, parts.model, parts.optimizer, parts.average)


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
