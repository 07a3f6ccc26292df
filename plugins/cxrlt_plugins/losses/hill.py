"""Hill loss, for multi-label learning with missing labels (Zhang et al., 2021, arXiv 2112.07368)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cxrlt_plugins.losses.focal import focal_cost
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def hill_cost(logits: Tensor, lamb: float) -> Tensor:
    """``(lamb - p) p^2`` with ``p = sigmoid(z)``: what a negative at the logit z costs.

    Above 0 it is written in ``q = 1 - p``: for lamb 1.5 the slope in q begins with q^2, and in p it would be the
    difference of two numbers near 1, whose sign is chance.
    """
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    above = (lamb - 1) + q * (3 - 2 * lamb) + q.square() * (lamb - 3) + q**3
    return torch.where(logits > 0, above, (lamb - p) * p.square())


class Hill(nn.Module):
    """A loss for labels that were forgotten: a confident negative is taken for a missing positive and left in peace.

    With ``p = sigmoid(z)`` and ``pm = sigmoid(z - margin)`` (arXiv 2112.07368; defaults of the authors' code)::

        l(z, y) = y (1 - pm)^gamma (-log pm) + (1 - y) (lamb - p) p^2

    The negative part is a squared error times a weight that falls with p. It is bounded, and under lamb 1.5 its slope,
    ``3 p^2 (1 - p)^2``, is largest at p = 0.5 and 0 at both ends. It never turns back: the part rises while
    p < 2 lamb / 3, which is everywhere from 1.5 on; smaller values, under which confident negatives would be pushed
    up, are refused. Neither part is cross-entropy for any options.

    It has a posterior (0.196 at logit 0 with the defaults), found from its slopes. Little focusing with a small lamb
    has none: positives then hold on longer than negatives, and the ratio of the slopes falls. Such options are refused.
    """

    pointwise = True

    def __init__(self, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> None:
        super().__init__()
        self.lamb, self.margin, self.gamma = lamb, margin, gamma

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(y * focal_cost(z - self.margin, self.gamma) + (1 - y) * hill_cost(z, self.lamb), w)

    def extra_repr(self) -> str:
        return f"lamb={self.lamb}, margin={self.margin}, gamma={self.gamma}"


def has_posterior(lamb: float, margin: float, gamma: float) -> bool:
    """Whether the ratio of the two slopes rises with the logit, judged every 0.01 from -30 to 30."""
    z = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    pm, qm = torch.sigmoid(z - margin), torch.sigmoid(margin - z)
    down = 2 * p.log() + q.log() + (2 * lamb - 3 + 3 * q).log()
    up = gamma * qm.log() + (qm - gamma * pm * logsigmoid(z - margin)).log()
    return bool((down - up).diff().min() > 0)


def build(stats: ClassStats, *, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> nn.Module:
    """Hill loss, for labels of which some positives are missing.

    Args:
        stats: unused.
        lamb: where the weight of a negative would reach 0, >= 1.5; larger trusts negatives more.
        margin: what a positive's logit must exceed, in logits, >= 0.
        gamma: focusing on positives, >= 0.

    Raises:
        PluginFault: an option lies outside its range, or the loss they make has no posterior.
    """
    require(1.5 <= lamb < math.inf, "hill", "lamb", lamb,
            "Give lamb 1.5 or more; below that, confident negatives would be pushed up.")  # fmt: skip
    require(0 <= margin < math.inf, "hill", "margin", margin, "Give margin a value of 0 or more.")
    require(0 <= gamma < math.inf, "hill", "gamma", gamma, "Give gamma a value of 0 or more.")
    require(has_posterior(lamb, margin, gamma), "hill", "gamma", f"{gamma} with margin {margin} and lamb {lamb}",
            "The posterior would fall as the logit rises; use more gamma, less margin or more lamb.")  # fmt: skip
    return Hill(lamb, margin, gamma)
