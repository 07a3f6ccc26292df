"""What a head is made from, and what comes out: shared by all ways to make one on cached features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.engine.features import Features
from cxrlt_cli.engine.signals import StopRequest
from cxrlt_cli.errors import TrainingError
from cxrlt_cli.events import Emit
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.posterior import Link, posterior_of
from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import PluginRef
from cxrlt_cli.registry import build

#: Rows a forward pass of a head alone.
CHUNK = 4096
#: Said when a head is interrupted.
AGAIN = "Run the same command again: the features are kept, and the head, which is quickly made, starts again."

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Cohort:
    """The images a head is made from and judged by.

    Attributes:
        stats: label counts of the training images.
        labels: (N, C) int8 of the training images.
        patients: N patient identifiers of them.
        views: features of the training images, (N, D) or (N, D, h, w), view by view.
        dev_labels: (M, C) int8.
        dev_patients: M patient identifiers.
        dev: features of the dev images.
    """

    stats: ClassStats
    labels: npt.NDArray[np.int8]
    patients: Sequence[str]
    views: tuple[Features, ...]
    dev_labels: npt.NDArray[np.int8]
    dev_patients: Sequence[str]
    dev: Features


@dataclass(frozen=True, slots=True)
class Joint:
    """The head the run was trained with.

    Attributes:
        module: with its weights, in evaluation mode, on the device.
        ref: its plugin and options.
        loss: the loss it was trained with.
        link: its posterior link, or None.
        logits: (M, C) of the dev images.
    """

    module: nn.Module
    ref: PluginRef
    loss: PluginRef
    link: Link | None
    logits: Logits


@dataclass(frozen=True, slots=True)
class HeadJob:
    """A head to make.

    Attributes:
        recipe: how.
        cohort: from what.
        joint: the head there is.
        width: D.
        device: where.
        request: asked after every step whether to stop.
        emit: told about progress.
    """

    recipe: Retrain
    cohort: Cohort
    joint: Joint
    width: int
    device: torch.device
    request: StopRequest
    emit: Emit


@dataclass(frozen=True, slots=True)
class NewHead:
    """A head that was made.

    Attributes:
        ref: its plugin and options.
        state: its tensors by name, on the CPU.
        logits: (M, C) of the dev images.
        loss: the loss it learned with; None where it learned with none.
        link: logits to log-odds; None where there is none.
        history: the lines of metrics.jsonl.
        facts: what else is worth keeping, for run.json.
        notes: sentences for the user.
        judged: (M, C) log-odds of the dev images, each by what the other patients taught, where dev labels were used.
    """

    ref: PluginRef
    state: Mapping[str, Tensor]
    logits: Logits
    loss: PluginRef | None = None
    link: Link | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    judged: npt.NDArray[np.float64] | None = None


def loss_of(job: HeadJob) -> PluginRef:
    """The loss to learn with: the head recipe's, or the run's own."""
    return job.recipe.loss or job.joint.loss


def new_head(job: HeadJob, ref: PluginRef) -> nn.Module:
    """A head with fresh weights, pure in the seed."""
    torch.manual_seed(job.recipe.train.seed)
    head: nn.Module = build("heads", ref, job.width, job.cohort.stats)
    return head.to(job.device)


def rebuilt(job: HeadJob, ref: PluginRef, state: Mapping[str, Tensor]) -> nn.Module:
    """A head with given weights, in evaluation mode."""
    head = new_head(job, ref)
    head.load_state_dict({name: torch.as_tensor(tensor) for name, tensor in state.items()})
    return head.eval()


def finished(
    job: HeadJob,
    head: nn.Module,
    ref: PluginRef,
    *,
    loss: PluginRef | None = None,
    link: Link | None = None,
    history: list[dict[str, Any]] | None = None,
    facts: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
) -> NewHead:
    """A head that is ready, with what it says about dev; a head without epochs gets one line of metrics."""
    logits = head_logits(head, job.cohort.dev, job.device)
    lines = history or [metrics_line(job, logits, link)]
    state = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
    return NewHead(ref, state, logits, loss, link, lines, facts or {}, notes)


def head_logits(head: nn.Module, features: Features, device: torch.device) -> Logits:
    """Logits (N, C) of features (N, ...), in evaluation mode and float32."""
    was_training = head.training
    head.eval()
    with torch.inference_mode():
        parts = [
            head(torch.from_numpy(np.array(features[start : start + CHUNK])).to(device).float()).float().cpu()
            for start in range(0, len(features), CHUNK)
        ]
    head.train(was_training)
    joined: Logits = torch.cat(parts).numpy()
    return joined


def metrics_line(job: HeadJob, logits: Logits, link: Link | None) -> dict[str, Any]:
    """The line of metrics.jsonl for a head that needed no epochs.

    Raises:
        TrainingError: an output is not finite.
    """
    stats = job.cohort.stats
    if not np.isfinite(logits).all():
        raise TrainingError(
            "the new head's outputs are not finite", where=job.recipe.name, cure="Lower optim.lr, or set optim.clip."
        )
    result = evaluate(job.cohort.dev_labels, logits, posterior_of(link, logits), stats.names, np.array(stats.share))
    return {"epoch": 1, "step": 0, "loss": None, **result.summary()}
