"""Asymmetric loss (Ridnik et al., ICCV 2021, arXiv 2009.14119)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cxrlt_cli.contracts import PluginFault
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class Asymmetric(nn.Module):
    """Focal loss with its own focusing for negatives, and negatives of small probability discarded.

    With ``p = sigmoid(z)`` and ``pm = max(p - clip, 0)`` (arXiv 2009.14119, eq. 5 to 7)::

        l(z, y) = y (1 - p)^gamma_pos (-log p) + (1 - y) pm^gamma_neg (-log(1 - pm))

    The gradient flows through the focusing factors. The authors' code can stop it there; the minimiser would then
    belong to no loss, while this one has a sound stationary point: a logit of 0 under (4, 1, 0.05) means a posterior of
    0.147. Below ``logit(clip)`` a negative has neither loss nor gradient, so the posterior there is 0. With all three
    options 0 it is binary cross-entropy.
    """

    pointwise = True

    def __init__(self, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(y * self._positive(z) + (1 - y) * self._negative(z), w)

    def _positive(self, z: Tensor) -> Tensor:
        """``(1 - p)^gamma (-log p)``; the power is taken in the exponent, so its gradient never is 0 * inf."""
        return -torch.exp(self.gamma_pos * logsigmoid(-z)) * logsigmoid(z)

    def _negative(self, z: Tensor) -> Tensor:
        """``pm^gamma (-log(1 - pm))`` with ``1 - pm = sigmoid(-z) + clip``, whose log is stable for every clip."""
        shifted = torch.sigmoid(z) - self.clip
        counts = shifted > 0
        log_clip = torch.full_like(z, math.log(self.clip) if self.clip else -math.inf)
        cost = -torch.logaddexp(logsigmoid(-z), log_clip).clamp(max=0)
        # the power sees 1 where the entry does not count: 0 ** (gamma - 1) would make the gradient nan
        return torch.where(counts, torch.where(counts, shifted, 1).pow(self.gamma_neg) * cost, 0)

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
        if not 0 <= value < math.inf:
            raise PluginFault(f"{name} is {value}", where="loss asl", cure=f"Give {name} a value of 0 or more.")
    if not 0 <= clip < 1:
        raise PluginFault(f"clip is {clip}", where="loss asl", cure="Give clip a probability of at least 0, below 1.")
    return Asymmetric(gamma_neg, gamma_pos, clip)
