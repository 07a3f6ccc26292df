"""Binary cross-entropy: the proper loss the others are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def cross_entropy(positive: Tensor, negative: Tensor, targets: Tensor) -> Tensor:
    """``y softplus(-positive) + (1 - y) softplus(negative)``, entry by entry.

    With both logits equal to z this is ``softplus(z) - y z``. The mixture is used because its gradient keeps full
    relative precision in both tails, where ``sigmoid(z) - y`` cancels.
    """
    return -(targets * logsigmoid(positive) + (1 - targets) * logsigmoid(-negative))


class BinaryCrossEntropy(nn.Module):
    """``l(z, y) = softplus(z) - y z``, the negative log-likelihood of a Bernoulli with log-odds z.

    Its posterior link is the identity.
    """

    pointwise = True

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(cross_entropy(z, z, y), w)


def build(stats: ClassStats) -> nn.Module:
    """Binary cross-entropy; weights per class are the recipe's ``reweight``."""
    return BinaryCrossEntropy()
