"""A linear classifier on pooled features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cxrlt_cli.contracts import PluginFault

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class Linear(nn.Module):
    """``logits = W dropout(norm(features)) + bias``.

    Computed in float32 even under autocast: logits rounded to bfloat16 tie by the thousand, and ties change average
    precision. Weights start at a standard deviation of 0.01, so that the bias decides the first predictions
    (arXiv 1708.02002, section 4.1).

    Args:
        width: features D.
        classes: logits C.
        dropout: share of features dropped in training.
        norm: normalise each row of features first (layer normalisation with a scale and a shift).
    """

    def __init__(self, width: int, classes: int, *, dropout: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(classes, width).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C), float32 (the weights' type where that is wider)."""
        with torch.autocast(features.device.type, enabled=False):
            features = self.norm(features.to(self.weight.dtype))
            return linear(self.dropout(features), self.weight, self.bias)


def build(width: int, stats: ClassStats, *, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    """A linear head; arXiv 2603.02294 uses ``norm: true`` and ``dropout: 0.5``.

    Args:
        width: features D of the backbone.
        stats: gives the number of classes.
        dropout: share of features dropped in training, in [0, 1).
        norm: layer normalisation before it.

    Raises:
        PluginFault: dropout lies outside [0, 1).
    """
    if not 0 <= dropout < 1:
        raise PluginFault(f"dropout is {dropout}", where="head linear", cure="Give dropout a share in [0, 1).")
    return Linear(width, len(stats.names), dropout=dropout, norm=norm)
