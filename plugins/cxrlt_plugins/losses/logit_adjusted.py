"""Logit-adjusted binary cross-entropy (Menon et al., ICLR 2021, arXiv 2007.07314, one class against the rest)."""

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


class LogitAdjusted(nn.Module):
    """Binary cross-entropy on ``z + tau logit(pi_c)``: the network learns what is left once prevalence is known.

    ``pi_c`` is the share of positives among known labels of the training split, smoothed by half an image, so that a
    class without positives has one too. The paper adds ``tau log(prior)`` to the logits of a softmax; for one sigmoid a
    class the same argument adds the prior's log-odds. With tau 0 it is binary cross-entropy.

    Its posterior is ``sigmoid(z + tau logit(pi_c))``, and a posterior is all that one class ever learns: ranks within
    a class, and so average precision, are those of binary cross-entropy whose bias starts at the prior.
    """

    pointwise = True
    shift: Tensor

    def __init__(self, shift: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        return known_mean(cross_entropy(z + self.shift, z + self.shift, y), w)

    def extra_repr(self) -> str:
        return f"classes={len(self.shift)}"


def build(stats: ClassStats, *, tau: float = 1.0) -> nn.Module:
    """Logit-adjusted binary cross-entropy.

    Args:
        stats: the share of positives sets the adjustment.
        tau: factor on the log-odds of the prevalence; 0 is none.

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(math.isfinite(tau), "logit-adjusted", "tau", tau, "Give tau a finite value.")
    return LogitAdjusted([tau * (math.log(p) - math.log1p(-p)) for p in stats.prevalence])
