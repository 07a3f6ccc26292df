"""How good the weights the model holds are on dev, and their place in the run directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cxrlt_cli.artifacts import Predictions, replacing, write_predictions
from cxrlt_cli.engine.distributed import share
from cxrlt_cli.engine.infer import Setting, infer
from cxrlt_cli.engine.parts import Job, Parts, link_at, model_card
from cxrlt_cli.errors import TrainingError
from cxrlt_cli.events import Emit
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.model import save_model
from cxrlt_cli.posterior import Link, link_tensors, posterior_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """What dev says about some weights.

    Attributes:
        logits: (M, C) of the development images.
        link: the posterior link of the loss with the weights it was trained under, or None.
        metrics: scores of ``metrics.evaluate``, the same on every process.
    """

    logits: npt.NDArray[np.float32]
    link: Link | None
    metrics: dict[str, Any]

    @property
    def score(self) -> float:
        """Macro AP."""
        return float(self.metrics["macro_ap"])


def judge(job: Job, parts: Parts, step: int, when: str, emit: Emit) -> Verdict:
    """Evaluate the weights the model holds on dev.

    Args:
        job: the run.
        parts: what it is made of.
        step: optimiser steps after which these weights were reached; says which class weights were in force.
        when: for the message, as in "after epoch 3".
        emit: told about progress.

    Raises:
        TrainingError: outputs are not finite.
    """
    train = job.recipe.train
    link = link_at(parts.loss, parts.rows, job.recipe, sampler=parts.sampler, plan=parts.plan, step=step - 1)
    setting = Setting(job.device, parts.size, train.eval_batch_size or train.batch_size, train.precision, "dev")
    logits = infer(parts.model, parts.reader, parts.rows.dev, setting, world=job.world, emit=emit)[0]
    metrics = share(_metrics(job, parts, logits, link, when) if job.world.first else None, job.world)
    return Verdict(logits, link, metrics)


def _metrics(job: Job, parts: Parts, logits: npt.NDArray[np.float32], link: Link | None, when: str) -> dict[str, Any]:
    if not np.isfinite(logits).all():
        raise TrainingError(
            f"the network's outputs are not finite {when}",
            where=str(job.run.path),
            cure="Lower optim.lr, set optim.clip, or use bf16 or fp32 instead of fp16.",
        )
    stats = parts.rows.stats
    result = evaluate(parts.rows.dev_labels, logits, posterior_of(link, logits), stats.names, np.array(stats.share))
    return dict(result.summary())


def note(job: Job, verdict: Verdict, epoch: int) -> None:
    """Keep what an epoch said about dev, so that ``evaluate --gap`` can tell how far choosing the best one flatters."""
    if not job.world.first:
        return
    with replacing(job.run.epoch_logits(epoch)) as part, part.open("wb") as file:
        np.save(file, verdict.logits)


def keep(job: Job, parts: Parts, verdict: Verdict, epoch: int) -> None:
    """Write the weights the model holds now, with their link, and what they say about dev."""
    if not job.world.first:
        return
    card = model_card(job, parts, verdict.link, epoch, verdict.score)
    weights = dict(parts.model.state_dict())
    if verdict.link is not None:
        weights |= {name: torch.from_numpy(value) for name, value in link_tensors(verdict.link).items()}
    save_model(job.run.model, weights, card)
    frame = job.prepared.frame.iloc[parts.rows.dev]
    ids, patients = frame["image_id"].tolist(), frame["patient_id"].tolist()
    write_predictions(job.run.predictions("dev"), Predictions(card.classes, ids, patients, verdict.logits))
