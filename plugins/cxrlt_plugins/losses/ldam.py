"""Label-distribution-aware margin loss, one class against the rest (Cao et al., NeurIPS 2019, arXiv 1906.07413)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxrlt_plugins.losses.bce import cross_entropy
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def class_margins(positives: Sequence[int], max_margin: float) -> list[float]:
    """``m_c = max_margin (n_min / n_c)^(1/4)`` (arXiv 1906.07413, eq. 13, its constant set by the rarest class).

    ``n_min`` is the smallest count above 0. A class without positives gets ``max_margin``, as the rarest class does.
    """
    rarest = min((n for n in positives if n > 0), default=1)
    return [max_margin * (rarest / max(n, rarest)) ** 0.25 for n in positives]


class LabelDistributionAwareMargin(nn.Module):
    """Binary cross-entropy on ``scale (z - y m_c)``: a positive must clear its class's margin.

    ::

        l(z, y) = y softplus(-s (z - m_c)) + (1 - y) softplus(s z)

    (arXiv 1906.07413, eq. 12 and 13, with one sigmoid a class in place of the softmax over classes). A soft target
    mixes the two parts; it does not scale the margin. The defaults are meant for a cosine head, whose logits lie in
    [-1, 1] about the bias. With margins 0 and scale 1 it is binary cross-entropy.

    Its posterior at the logit z is ``sigmoid(u) / (sigmoid(u) + sigmoid(M_c - u))`` with ``u = s z``, ``M_c = s m_c``.
    """

    pointwise = True
    margins: Tensor

    def __init__(self, margins: Sequence[float], scale: float = 30.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("margins", torch.tensor(margins, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(cross_entropy(self.scale * (z - self.margins), self.scale * z, y), w)

    def extra_repr(self) -> str:
        return f"classes={len(self.margins)}, scale={self.scale}"


def build(stats: ClassStats, *, max_margin: float = 0.5, scale: float = 30.0) -> nn.Module:
    """LDAM; deferred re-weighting (the DRW of LDAM-DRW) is the recipe's ``reweight`` with a ``start``.

    Args:
        stats: the counts of positives set the margins.
        max_margin: margin of the rarest class, in logits before scaling, >= 0.
        scale: factor on logits and margins, > 0.

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(0 <= max_margin < math.inf, "ldam", "max_margin", max_margin, "Give max_margin a value of 0 or more.")
    require(0 < scale < math.inf, "ldam", "scale", scale, "Give scale a value above 0.")
    return LabelDistributionAwareMargin(class_margins(stats.positives, max_margin), scale)
