"""Class-balanced focal loss (Cui et al., CVPR 2019, arXiv 1901.05555)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxrlt_plugins.losses.focal import focal_entropy
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def balanced_weights(positives: Sequence[int], beta: float) -> list[float]:
    """``(1 - beta) / (1 - beta^n)``, scaled to a mean of 1 over the classes that have positives.

    The inverse of the effective number of samples (arXiv 1901.05555, eq. 2); beta 0 makes every weight 1. A class
    without positives weighs as much as the most frequent one and takes no part in the mean.
    """
    most = max(positives, default=0)
    if beta == 0 or most == 0:
        return [1.0] * len(positives)
    # 1 - beta^n without cancellation for beta near 1
    raw = [(1 - beta) / -math.expm1((n or most) * math.log(beta)) for n in positives]
    present = [weight for weight, n in zip(raw, positives, strict=True) if n]
    return [weight * len(present) / sum(present) for weight in raw]


class ClassBalancedFocal(nn.Module):
    """Focal loss whose classes weigh by the inverse of their effective number of positives.

    ::

        l(z, y) = w_c (y (1 - p)^gamma (-log p) + (1 - y) p^gamma (-log(1 - p)))

    As published, the weight is on both sides of a class, and the weights average 1 over classes, so the scale of the
    whole is that of focal loss. It moves attention between classes, not between positives and negatives of one: the
    posterior is that of focal loss, for w_c is in both slopes and cancels. (Weights on positives alone are the
    recipe's ``reweight``.) With beta 0 it is focal loss.
    """

    pointwise = True
    class_weight: Tensor

    def __init__(self, class_weight: Sequence[float], gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("class_weight", torch.tensor(class_weight, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(self.class_weight * focal_entropy(z, z, y, self.gamma), w)

    def extra_repr(self) -> str:
        return f"classes={len(self.class_weight)}, gamma={self.gamma}"


def build(stats: ClassStats, *, beta: float = 0.9999, gamma: float = 2.0) -> nn.Module:
    """Class-balanced focal loss.

    Args:
        stats: the counts of positives set the weights.
        beta: how far the weights go, in [0, 1): 0 is no weights, towards 1 they become ``1/n``.
        gamma: focusing, >= 0; 0 is none.

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(0 <= beta < 1, "cb-focal", "beta", beta, "Give beta a value of at least 0, below 1.")
    require(0 <= gamma < math.inf, "cb-focal", "gamma", gamma, "Give gamma a value of 0 or more.")
    return ClassBalancedFocal(balanced_weights(stats.positives, beta), gamma)
