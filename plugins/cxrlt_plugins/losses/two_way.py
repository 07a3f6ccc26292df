"""Two-way multi-label loss (Kobayashi, CVPR 2023)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats

#: Stands for minus infinity, whose gradient would be nan where nothing is left to sum over.
NOTHING = -1e30


def soft_maximum(values: Tensor, mass: Tensor, temperature: float, dim: int) -> Tensor:
    """``T log sum_i mass_i exp(values_i / T)`` along a dimension; entries of mass 0 do not take part."""
    counted = mass > 0
    exponent = values / temperature + torch.where(counted, mass, 1).log()
    return temperature * torch.logsumexp(exponent.masked_fill(~counted, NOTHING), dim)


class TwoWay(nn.Module):
    """Every class ranks its images and every image its classes: the worst positive against the worst negative.

    Along the rows of a class, and along the classes of a row, with positives P and negatives N there (Kobayashi,
    "Two-way Multi-Label Loss", CVPR 2023)::

        l = softplus(Tn log sum_N exp(z / Tn) + Tp log sum_P exp(-z / Tp))

    The loss is the mean over the classes that have a positive in the batch, plus the mean over the rows that have one.

    A soft target counts as a positive of mass y and a negative of mass 1 - y inside the sums, and a class or row
    without a whole positive has the largest y in it for a weight. ``weight`` acts in two ways. Within a sum, entries
    count relative to the mean weight there, as if heavier ones stood there more often. The term itself weighs the mean
    of its positives' and its negatives' mean weights. So doubling all weights doubles the loss, and unknown entries are
    nowhere. A class or row without negatives costs nothing, and a batch without positives is 0.

    **Scale.** Each term pulls at its positives with a total slope of at most 1 and at its negatives likewise, and means
    are taken, so the learning rates of binary cross-entropy fit in size; the published sum of both ways is kept.

    **No posterior link** (``pointwise = False``): the slope at one entry depends on all others of its row and column,
    and on how many the batch holds. Logits are scores for ranking.
    """

    pointwise = False

    def __init__(self, pos_temperature: float = 4.0, neg_temperature: float = 1.0) -> None:
        super().__init__()
        self.pos_temperature, self.neg_temperature = pos_temperature, neg_temperature

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The mean over classes plus the mean over rows; a scalar, 0 where no positive is known."""
        z, y, w = known_entries(logits, targets, weight)
        negative = (1 - y).masked_fill(w == 0, 0)  # y is 0 there already
        return self._one_way(z, y, negative, w, 0) + self._one_way(z, y, negative, w, 1)

    def _one_way(self, z: Tensor, positive: Tensor, negative: Tensor, w: Tensor, dim: int) -> Tensor:
        """The mean over columns (dim 0) or rows (dim 1); masses and weights (B, C)."""
        pos_weight, neg_weight = _mean_weight(positive, w, dim), _mean_weight(negative, w, dim)
        hardest_pos = soft_maximum(-z, positive * w / pos_weight, self.pos_temperature, dim)
        hardest_neg = soft_maximum(z, negative * w / neg_weight, self.neg_temperature, dim)
        present = positive.amax(dim)
        term_weight = (pos_weight + neg_weight).squeeze(dim) / 2
        return (present * term_weight * softplus(hardest_neg + hardest_pos)).sum() / present.sum().clamp(min=1)

    def extra_repr(self) -> str:
        return f"pos_temperature={self.pos_temperature}, neg_temperature={self.neg_temperature}"


def _mean_weight(mass: Tensor, w: Tensor, dim: int) -> Tensor:
    """The mean weight of entries by mass, along a dimension, which stays; 1 where there is no mass."""
    total = mass.sum(dim, keepdim=True)
    return torch.where(total > 0, (mass * w).sum(dim, keepdim=True) / torch.where(total > 0, total, 1), 1)


def build(stats: ClassStats, *, pos_temperature: float = 4.0, neg_temperature: float = 1.0) -> nn.Module:
    """Two-way multi-label loss.

    Args:
        stats: unused.
        pos_temperature: how soft the choice of the worst positives is, in logits, > 0.
        neg_temperature: the same for negatives.

    Raises:
        PluginFault: an option lies outside its range.
    """
    for name, value in (("pos_temperature", pos_temperature), ("neg_temperature", neg_temperature)):
        require(0 < value < math.inf, "two-way", name, value, f"Give {name} a value above 0.")
    return TwoWay(pos_temperature, neg_temperature)
