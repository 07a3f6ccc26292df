"""Class-specific residual attention: where in the image a finding is, beside how much of it there is on average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import PluginFault

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class Csra(nn.Module):
    """Class-specific residual attention (Zhu and Wu, arXiv 2108.02456).

    A linear classifier scores every place l of the map, ``s_cl = w_c . x_l``. The logit of a class is the mean score
    plus ``attention`` times the mean under the class's own attention ``softmax_l(T s_cl)``, and the bias:
    ``logit_c = mean_l s_cl + attention * sum_l softmax_l(T s_cl) s_cl + bias_c``. With several temperatures, each has
    weights of its own, and what they give is added up.

    T near 0 makes the attention the mean again, a large T the maximum; on a map of one place the head is
    ``1 + attention`` times a linear one. Computed in float32 even under autocast, as the head ``linear`` is, and with
    weights that start as small as there (s.d. 0.01), so that attention begins even.

    Args:
        width: features D.
        classes: logits C.
        attention: lambda, the share of the attended score.
        temperatures: T of each attention, H of them.
        norm: normalise the features of each place first (layer normalisation with a scale and a shift).
    """

    spatial = True

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        attention: float = 0.1,
        temperatures: tuple[float, ...] = (1.0,),
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.temperatures = temperatures
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.weight = nn.Parameter(torch.empty(len(temperatures), classes, width).normal_(std=0.01))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D, h, w) -> logits (B, C), float32 (the weights' type where that is wider)."""
        with torch.autocast(features.device.type, enabled=False):
            places = self.norm(features.to(self.weight.dtype).flatten(2).transpose(1, 2))
            logits = self.bias
            for weight, temperature in zip(self.weight, self.temperatures, strict=True):
                scores = places @ weight.T
                attended = (torch.softmax(temperature * scores, dim=1) * scores).sum(dim=1)
                logits = logits + scores.mean(dim=1) + self.attention * attended
            return logits

    def extra_repr(self) -> str:
        _, classes, width = self.weight.shape
        return f"{width}, {classes}, attention={self.attention}, temperatures={self.temperatures}"


def build(
    width: int,
    stats: ClassStats,
    *,
    attention: float = 0.1,
    temperatures: tuple[float, ...] = (1.0,),
    norm: bool = False,
) -> nn.Module:
    """Class-specific residual attention (arXiv 2108.02456): the mean score plus a share of the attended score.

    Args:
        width: features D of the backbone.
        stats: gives the number of classes.
        attention: weight of the attended score, >= 0; the paper's lambda.
        temperatures: one attention for each; 99 is nearly the maximum. The paper has [1, 99] and [1, 2, 4, 99], too.
        norm: layer normalisation of each place of the map, for networks whose map comes before their last norm.

    Raises:
        PluginFault: a number is out of range.
    """
    if not 0 <= attention < math.inf:
        raise PluginFault(f"attention is {attention}", where="head csra", cure="Give attention a value of 0 or more.")
    if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
        cure = "Give temperatures one value above 0, or several."
        raise PluginFault(f"temperatures is {list(temperatures)}", where="head csra", cure=cure)
    return Csra(width, len(stats.names), attention=attention, temperatures=tuple(temperatures), norm=norm)
