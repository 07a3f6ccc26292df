"""Robust asymmetric loss (Park et al., ICCV workshops 2023, arXiv 2308.05542)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from cxrlt_plugins.losses.asl import asymmetric_cost, shifted
from cxrlt_plugins.losses.hill import hill_cost
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class _Remainder(torch.autograd.Function):
    """``-log p - q - q^2 / 2`` with ``q = 1 - p``: cross-entropy without the first two terms of its series in q.

    Its slope is ``-q^3``. Automatic differentiation would subtract numbers that agree in nearly all digits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        q = torch.sigmoid(-logits)
        ctx.save_for_backward(q)
        return (softplus(-logits) - q - q.square() / 2).clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        return -upstream[0] * q**3


class RobustAsymmetric(nn.Module):
    """Asymmetric loss with altered first terms for positives and Hill's weight on negatives.

    With ``p = sigmoid(z)``, ``q = 1 - p`` and ``pm = max(p - clip, 0)``::

        l1(z) = q^gamma_pos (-log p - poly1 q - poly2 q^2 / 2)
        l0(z) = pm^gamma_neg (-log(1 - pm)) (lamb - p) p^2 (lamb - 1 + pm)

    ``-log p = q + q^2 / 2 + q^3 / 3 + ...``; poly1 = 1 removes the first term and a negative poly2 enlarges the second,
    which keeps up the pressure on positives that are half right. The formula and the defaults are those of the
    authors' multi-label code (the factor ``lamb - 1 + pm`` included); their sum over entries is the common mean here.

    Both parts lead towards the label for all options accepted: every term left in l1 falls in z because poly1 and
    poly2 are at most 1, every factor of l0 rises in z because lamb is at least 1.5 (see ``hill``). With poly1 and poly2
    0 and no lamb it is the asymmetric loss. As there, the posterior below ``logit(clip)`` is 0; at logit 0 it is 0.040.
    """

    pointwise = True

    def __init__(self, *, gamma_neg: float, gamma_pos: float, clip: float, poly1: float, poly2: float,
                 lamb: float | None) -> None:  # fmt: skip
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.poly1, self.poly2, self.lamb = poly1, poly2, lamb

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(y * self._positive(z) + (1 - y) * self._negative(z), w)

    def _positive(self, z: Tensor) -> Tensor:
        q = torch.sigmoid(-z)
        series = (1 - self.poly1) * q + (1 - self.poly2) / 2 * q.square() + _Remainder.apply(z)
        return torch.exp(self.gamma_pos * logsigmoid(-z)) * series

    def _negative(self, z: Tensor) -> Tensor:
        cost = asymmetric_cost(z, self.gamma_neg, self.clip)
        if self.lamb is None:
            return cost
        return cost * hill_cost(z, self.lamb) * (self.lamb - 1 + shifted(z, self.clip))

    def extra_repr(self) -> str:
        names = ("gamma_neg", "gamma_pos", "clip", "poly1", "poly2", "lamb")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def build(
    stats: ClassStats,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    poly1: float = 1.0,
    poly2: float = -2.5,
    lamb: float | None = 1.5,
) -> nn.Module:
    """Robust asymmetric loss.

    Args:
        stats: unused.
        gamma_neg: focusing on negatives, >= 0; 0 is none.
        gamma_pos: focusing on positives, >= 0.
        clip: probability below which a negative is discarded, in [0, 1).
        poly1: share of the first term removed from the loss of positives, <= 1.
        poly2: share of the second term removed, <= 1; below 0 it is enlarged.
        lamb: Hill's weight on negatives, >= 1.5; none without it.

    Raises:
        PluginFault: an option lies outside its range.
    """
    for name, value in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
        require(0 <= value < math.inf, "ral", name, value, f"Give {name} a value of 0 or more.")
    require(0 <= clip < 1, "ral", "clip", clip, "Give clip a probability of at least 0, below 1.")
    for name, value in (("poly1", poly1), ("poly2", poly2)):
        require(-math.inf < value <= 1, "ral", name, value, f"Give {name} a value of 1 or less.")
    require(lamb is None or 1.5 <= lamb < math.inf, "ral", "lamb", lamb, "Give lamb 1.5 or more, or null for none.")
    return RobustAsymmetric(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, poly1=poly1, poly2=poly2, lamb=lamb)
