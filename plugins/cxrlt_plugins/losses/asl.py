"""Asymmetric loss (Ridnik et al., ICCV 2021, arXiv 2009.14119)."""

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


def shifted(logits: Tensor, clip: float) -> Tensor:
    """``pm = max(p - clip, 0)`` with ``p = sigmoid(z)``."""
    return (torch.sigmoid(logits) - clip).clamp(min=0)


def asymmetric_cost(logits: Tensor, gamma: float, clip: float) -> Tensor:
    """``pm^gamma (-log(1 - pm))``: what a negative costs. ``1 - pm = sigmoid(-z) + clip``; its log is stable."""
    pm = shifted(logits, clip)
    counts = pm > 0
    log_clip = torch.full_like(logits, math.log(clip) if clip else -math.inf)
    cost = -torch.logaddexp(logsigmoid(-logits), log_clip).clamp(max=0)
    # the power sees 1 where the entry does not count: 0 ** (gamma - 1) would make the gradient nan
    return torch.where(counts, torch.where(counts, pm, 1).pow(gamma) * cost, 0)


class Asymmetric(nn.Module):
    """Focal loss with its own focusing for negatives, and negatives of small probability discarded.

    With ``p = sigmoid(z)`` and ``pm = max(p - clip, 0)`` (arXiv 2009.14119, eq. 5 to 7)::

        l(z, y) = y (1 - p)^gamma_pos (-log p) + (1 - y) pm^gamma_neg (-log(1 - pm))

    The gradient flows through the focusing factors. The authors' code can stop it there; the minimiser would then
    belong to no loss, while this one has a sound stationary point: a logit of 0 under (4, 1, 0.05) means a posterior of
    0.147. Below ``logit(clip)`` a negative has neither loss nor gradient, so the posterior there is 0. With all three
    options 0 it is binary cross-entropy.

    The class-weighted form is the recipe's ``reweight``, on positives or on both sides of a class: it arrives in
    ``weight``, multiplies the parts, and the posterior takes it into account.
    """

    pointwise = True

    def __init__(self, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        negative = asymmetric_cost(z, self.gamma_neg, self.clip)
        return known_mean(y * focal_cost(z, self.gamma_pos) + (1 - y) * negative, w)

    def extra_repr(self) -> str:
        return f"gamma_neg={self.gamma_neg}, gamma_pos={self.gamma_pos}, clip={self.clip}"


def build(stats: ClassStats, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> nn.Module:
    """Asymmetric loss.

    Args:
        stats: unused.
        gamma_neg: focusing on negatives, >= 0; 0 is none.
        gamma_pos: focusing on positives, >= 0.
        clip: probability below which a negative is discarded, in [0, 1).

    Raises:
        PluginFault: an option lies outside its range.
    """
    for name, value in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
        require(0 <= value < math.inf, "asl", name, value, f"Give {name} a value of 0 or more.")
    require(0 <= clip < 1, "asl", "clip", clip, "Give clip a probability of at least 0, below 1.")
    return Asymmetric(gamma_neg, gamma_pos, clip)
