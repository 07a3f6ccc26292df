"""Focal loss (Lin et al., ICCV 2017, arXiv 1708.02002)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def focal_cost(logits: Tensor, gamma: float) -> Tensor:
    """``(1 - p)^gamma (-log p)`` with ``p = sigmoid(z)``: what a positive at the logit z costs; at -z, a negative.

    The power is taken in the exponent, so its gradient never is 0 * inf.
    """
    return -torch.exp(gamma * logsigmoid(-logits)) * logsigmoid(logits)


def focal_entropy(positive: Tensor, negative: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """``y cost(positive) + (1 - y) cost(-negative)``, entry by entry; with gamma 0 binary cross-entropy."""
    return targets * focal_cost(positive, gamma) + (1 - targets) * focal_cost(-negative, gamma)


class Focal(nn.Module):
    """Cross-entropy that looks away from what is nearly right already.

    With ``p = sigmoid(z)`` (arXiv 1708.02002, one sigmoid a class)::

        l(z, y) = y (1 - p)^gamma (-log p) + (1 - y) p^gamma (-log(1 - p))

    A soft target mixes the two parts. The paper's alpha, a weight by class, is the recipe's ``reweight``. With gamma 0
    it is binary cross-entropy; with a larger one its values and slopes are smaller, and are not scaled back up.

    Its posterior at p is ``a / (a + b)`` with ``a = p^g (p - g (1 - p) log(1 - p))`` and b the same with p and 1 - p
    exchanged (arXiv 2011.09172): 0.5 stays, 0.2 means 0.0235 under gamma 2.
    """

    pointwise = True

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(focal_entropy(z, z, y, self.gamma), w)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


def build(stats: ClassStats, *, gamma: float = 2.0) -> nn.Module:
    """Focal loss.

    Args:
        stats: unused.
        gamma: focusing, >= 0; 0 is none.

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(0 <= gamma < math.inf, "focal", "gamma", gamma, "Give gamma a value of 0 or more.")
    return Focal(gamma)
