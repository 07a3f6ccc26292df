"""Distribution-balanced loss (Wu et al., ECCV 2020, arXiv 2007.09654)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxrlt_plugins.losses.focal import focal_cost
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


class DistributionBalanced(nn.Module):
    """Cross-entropy for images drawn by class: weights that undo joint draws, and leniency towards negatives.

    An image with several findings is drawn oftener than each of them asks for. With n_c positives in training, the
    ratio of what class c asks for to what image i gets, and the weight it is mapped to, are::

        r_ic = (1 / n_c) / sum_j (y_ij / n_j),    W_ic = alpha + sigmoid(beta (r_ic - mu))

    Negatives count by a flatter logit, and all logits are shifted by the class's prevalence::

        z' = z - kappa log(N_c / n_c - 1) / lamb
        l(z, y) = W_ic (y (1 - p+)^gamma softplus(-z') + (1 - y) p-^gamma softplus(lamb z') / lamb)

    with ``p+ = sigmoid(z')`` and ``p- = sigmoid(lamb z')`` (arXiv 2007.09654; the shift is divided by lamb as in the
    authors' code, and gamma 2 is their variant with focal loss, here without its factor 2). The sum over j takes the
    positives that are known.

    **Rows without a known positive** are never drawn by class, and the ratio is undefined. They weigh as a row whose
    only finding is the most frequent class: the sum is never less than 1 / max n. The authors divide by 0.

    **Scale.** Weights lie between ``alpha + sigmoid(-beta mu)`` and ``alpha + 1``, 0.22 and 1.10 by default, and are
    not scaled further. With alpha 0.5, beta 0, lamb 1, kappa 0 and gamma 0 it is binary cross-entropy.

    **No posterior link** (``pointwise = False``): the weight of an entry depends on the image's other labels, so the
    same logit stands for one posterior where findings come alone and for another where they come together. The weights
    are made for class-aware sampling; under uniform sampling rare classes gain less than intended.
    """

    pointwise = False
    inverse_count: Tensor
    shift: Tensor

    def __init__(self, stats: ClassStats, *, alpha: float, beta: float, mu: float, lamb: float, kappa: float,
                 gamma: float) -> None:  # fmt: skip
        super().__init__()
        self.alpha, self.beta, self.mu, self.lamb, self.kappa, self.gamma = alpha, beta, mu, lamb, kappa, gamma
        counts = [max(n, 1) for n in stats.positives]
        odds = [max(negative, 1) / n for n, negative in zip(counts, stats.negatives, strict=True)]
        shift = [kappa * math.log(ratio) / lamb for ratio in odds]
        self.register_buffer("inverse_count", torch.tensor([1 / n for n in counts]), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean over known entries; see ``cxrlt_cli.contracts.Loss``."""
        z, y, w = known_entries(logits, targets, weight)
        z = z - self.shift
        negative = focal_cost(-self.lamb * z, self.gamma) / self.lamb
        return known_mean(self.row_weights(y) * (y * focal_cost(z, self.gamma) + (1 - y) * negative), w)

    def row_weights(self, targets: Tensor) -> Tensor:
        """Targets (B, C), unknown ones 0 -> the weights W (B, C)."""
        share = self.inverse_count.to(targets.dtype)
        drawn = (targets * share).sum(1, keepdim=True).clamp(min=share.min())
        return self.alpha + torch.sigmoid(self.beta * (share / drawn - self.mu))

    def extra_repr(self) -> str:
        names = ("alpha", "beta", "mu", "lamb", "kappa", "gamma")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def build(
    stats: ClassStats,
    *,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    lamb: float = 2.0,
    kappa: float = 0.05,
    gamma: float = 0.0,
) -> nn.Module:
    """Distribution-balanced loss; use it with class-aware sampling.

    Args:
        stats: the counts of positives and negatives set weights and shifts; a count of 0 is taken for 1.
        alpha: least weight, >= 0.
        beta: steepness of the weights, >= 0.
        mu: ratio at which they are half way up.
        lamb: flatness of negatives, > 0; 1 is none.
        kappa: share of the class's log-odds its logit is shifted by, >= 0; 0 is no shift.
        gamma: focusing, >= 0; 0 is none, 2 the variant with focal loss.

    Raises:
        PluginFault: an option lies outside its range.
    """
    at_least_0 = {"alpha": alpha, "beta": beta, "kappa": kappa, "gamma": gamma}
    for name, value in at_least_0.items():
        require(0 <= value < math.inf, "db", name, value, f"Give {name} a value of 0 or more.")
    require(math.isfinite(mu), "db", "mu", mu, "Give mu a finite value.")
    require(0 < lamb < math.inf, "db", "lamb", lamb, "Give lamb a value above 0.")
    return DistributionBalanced(stats, alpha=alpha, beta=beta, mu=mu, lamb=lamb, kappa=kappa, gamma=gamma)
