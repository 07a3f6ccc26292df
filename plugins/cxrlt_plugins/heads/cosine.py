"""The cosine classifier LDAM was published with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from cxrlt_cli.contracts import PluginFault

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats

#: Norms below this are not divided by: a row of zeros gives the bias alone, and a gradient that stays finite.
SMALLEST_NORM = 1e-6


class Cosine(nn.Module):
    """``logits_c = scale * cos(features, w_c) + bias_c``: neither the length of a feature nor that of ``w_c`` counts.

    The margins of LDAM are distances on this bounded scale (arXiv 1906.07413 normalises its last layer likewise). The
    bias is ours: without it one sigmoid a class must spend its angles on expressing a prevalence far from 1/2.
    Computed in float32 even under autocast.

    Args:
        width: features D.
        classes: logits C.
        scale: largest logit before the bias. Keep 1 with the loss ``ldam``, which scales by itself.
        bias: add a learnt number per class.
    """

    bias: nn.Parameter | None

    def __init__(self, width: int, classes: int, *, scale: float = 1.0, bias: bool = True) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(normalize(torch.randn(classes, width), dim=1))
        self.register_parameter("bias", nn.Parameter(torch.zeros(classes)) if bias else None)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C), float32 (the weights' type where that is wider)."""
        with torch.autocast(features.device.type, enabled=False):
            features = normalize(features.to(self.weight.dtype), dim=1, eps=SMALLEST_NORM)
            directions = normalize(self.weight, dim=1, eps=SMALLEST_NORM)
            return linear(features, self.scale * directions, self.bias)

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"{width}, {classes}, scale={self.scale}, bias={self.bias is not None}"


def build(width: int, stats: ClassStats, *, scale: float = 1.0, bias: bool = True) -> nn.Module:
    """A cosine head.

    Args:
        width: features D of the backbone.
        stats: gives the number of classes.
        scale: factor on the cosine, > 0.
        bias: add a learnt number per class.

    Raises:
        PluginFault: scale is not a positive number.
    """
    if not 0 < scale < math.inf:
        raise PluginFault(f"scale is {scale}", where="head cosine", cure="Give scale a value above 0.")
    return Cosine(width, len(stats.names), scale=scale, bias=bias)
