"""Heads that learn by gradient on cached features: classifier re-training and learnable weight scaling."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from cxrlt_cli.engine.head_job import HeadJob, NewHead, finished, loss_of, new_head, rebuilt
from cxrlt_cli.engine.head_loop import train_head
from cxrlt_cli.errors import UsageError


def retrain(job: HeadJob) -> NewHead:
    """cRT (arXiv 1910.09217, section 4.1): the head starts anew and learns on frozen features.

    Its bias starts at the class priors, through the inverse posterior link of the loss.

    Raises:
        Interrupted: somebody asked to stop.
        TrainingError: the loss is not finite.
    """
    ref = job.recipe.head or job.joint.ref
    head = new_head(job, ref)
    history, link = train_head(job, head)
    return finished(job, head, ref, loss=loss_of(job), link=link, history=history)


def retrain_rows(job: HeadJob) -> NewHead:
    """As ``retrain`` with the run's own kind of head, but only what belongs to one class each starts anew and learns.

    Everything else (a layer normalisation, say) is the joint head's and stays, so that classes of both heads can stand
    side by side in one.
    """
    head = new_head(job, job.joint.ref)
    known = dict(job.joint.module.state_dict())
    classes = len(job.cohort.stats.names)
    with torch.no_grad():
        for name, tensor in head.state_dict().items():
            if tensor.ndim == 0 or tensor.shape[0] != classes:
                tensor.copy_(known[name])
    for parameter in head.parameters():
        parameter.requires_grad_(parameter.ndim > 0 and parameter.shape[0] == classes)
    history, link = train_head(job, head)
    return finished(job, head, job.joint.ref, loss=loss_of(job), link=link, history=history)


class Scaled(nn.Module):
    """A frozen head whose class weights are multiplied by one learnt factor above 0 each."""

    def __init__(self, head: nn.Module, classes: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(classes))
        self._head = [head]  # not a submodule: its parameters are not ours to train

    def weight(self) -> Tensor:
        """The head's weights, scaled."""
        weight = cast("Tensor", self._head[0].weight).detach()
        return weight * self.log_scale.exp().view(-1, *[1] * (weight.ndim - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Features -> logits (B, C)."""
        logits: Tensor = torch.func.functional_call(self._head[0], {"weight": self.weight()}, (features,))
        return logits


def rescale(job: HeadJob) -> NewHead:
    """LWS (arXiv 1910.09217, section 4.2): one factor a class on the weights of the joint head; all else stays.

    The factors are exponentials of what is learnt, so they stay above 0 and the order of a class's logits stays too.

    Raises:
        UsageError: the head does not answer in proportion to its class weights.
    """
    check_proportional(job)
    scaled = Scaled(job.joint.module, len(job.cohort.stats.names)).to(job.device)
    history, link = train_head(job, scaled, start_at_priors=False)
    state = {**job.joint.module.state_dict(), "weight": scaled.weight().detach()}
    factors = scaled.log_scale.detach().exp().cpu().tolist()
    facts = {"scales": dict(zip(job.cohort.stats.names, factors, strict=True))}
    head = rebuilt(job, job.joint.ref, state)
    return finished(job, head, job.joint.ref, loss=loss_of(job), link=link, history=history, facts=facts)


def check_proportional(job: HeadJob) -> None:
    """Refuse a head whose logits, less the bias, do not double when its class weights do.

    Raises:
        UsageError: it is such a head, the cosine head for one.
    """
    head, classes = job.joint.module, len(job.cohort.stats.names)
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    cure = "Use crt, ncm or logistic, which make a new head, or train the run with the head linear."
    told = f"the head '{job.joint.ref.name}' of this run does not answer in proportion to its class weights"
    if not isinstance(weight, nn.Parameter) or weight.shape[0] != classes:
        raise UsageError(told, where=job.recipe.method, cure=cure)
    some = torch.from_numpy(np.array(job.cohort.dev[:64])).to(job.device).float()
    with torch.no_grad():
        shift = bias if isinstance(bias, Tensor) else 0.0
        before = head(some) - shift
        after = torch.func.functional_call(head, {"weight": 2 * weight}, (some,)) - shift
    if not torch.allclose(after, 2 * before, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
        raise UsageError(told, where=job.recipe.method, cure=cure)
