"""Binary cross-entropy whose positives weigh more where they are rare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def positive_weights(stats: ClassStats, power: float, cap: float | None) -> list[float]:
    """``min((negatives / positives)^power, cap)`` of every class; a count of 0 is taken for 1."""
    odds = [max(n, 1) / max(p, 1) for p, n in zip(stats.positives, stats.negatives, strict=True)]
    return [min(ratio**power, math.inf if cap is None else cap) for ratio in odds]


class WeightedBinaryCrossEntropy(nn.Module):
    """Binary cross-entropy with a weight on each class's positives.

    ::

        l(z, y) = y w_c softplus(-z) + (1 - y) softplus(z),    w_c = min((N_c - n_c)^k / n_c^k, cap)

    n_c of N_c known labels are positive. k = 1 makes both sides of a class equal in sum, which a class with fifty
    positives does not survive; k = 1/2 is a compromise. Negatives weigh 1 and nothing is scaled back, so rare positives
    raise the loss and its gradient. With k = 0 it is binary cross-entropy.

    Its posterior is ``sigmoid(z - log w_c)``: a weight moves all logits of a class, and no rank among them at the
    optimum.
    """

    pointwise = True
    positive_weight: Tensor

    def __init__(self, positive_weight: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("positive_weight", torch.tensor(positive_weight, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(-(y * self.positive_weight * logsigmoid(z) + (1 - y) * logsigmoid(-z)), w)

    def extra_repr(self) -> str:
        return f"classes={len(self.positive_weight)}"


def build(stats: ClassStats, *, power: float = 0.5, cap: float | None = 100.0) -> nn.Module:
    """Binary cross-entropy with weighted positives.

    Args:
        stats: the counts of positives and negatives set the weights.
        power: exponent k of the ratio of negatives to positives, >= 0; 1 balances a class, 0 is no weight.
        cap: largest weight, > 0; none without it.

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(0 <= power < math.inf, "wbce", "power", power, "Give power a value of 0 or more.")
    require(cap is None or 0 < cap < math.inf, "wbce", "cap", cap, "Give cap a value above 0, or null for none.")
    return WeightedBinaryCrossEntropy(positive_weights(stats, power, cap))
