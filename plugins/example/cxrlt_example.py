"""The Brier score as a loss: a plugin for cxrlt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class Brier(nn.Module):
    """``gain * (sigmoid(z) - y)^2``, the squared error of a probability (Brier, Monthly Weather Review 78, 1950).

    It is a proper scoring rule: its minimiser is the posterior itself, so its posterior link is the identity.
    """

    pointwise = True

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of the squared errors over the count of known entries.

        Args:
            logits: (B, C), any floating dtype.
            targets: (B, C) in [0, 1].
            weight: (B, C) >= 0, 0 where the label is unknown.
        """
        unknown = weight == 0
        z = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(unknown, 0)
        y = targets.to(z.dtype).masked_fill(unknown, 0)
        # Not (sigmoid(z) - y)^2: that loses the last digits of its gradient where sigmoid(z) is nearly y.
        error = y * torch.sigmoid(-z).square() + (1 - y) * torch.sigmoid(z).square() - y * (1 - y)
        return self.gain * (error * weight.to(z.dtype)).sum() / torch.count_nonzero(weight).clamp(min=1)


def build(stats: ClassStats, *, gain: float = 2.0) -> nn.Module:
    """The squared error of the probability, which a few wrong labels cannot dominate.

    Args:
        stats: label counts of the training split; not needed here.
        gain: multiplies the loss; at 2 its slope at p = 0.5 is that of cross-entropy, so learning rates carry over.
    """
    return Brier(gain)
