"""Average precision by class, made smooth, over the batch and a memory (after Brown et al., ECCV 2020, 2007.12163)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cxrlt_plugins.losses.bce import cross_entropy
from cxrlt_plugins.losses.limits import require
from cxrlt_plugins.losses.reduction import known_entries, known_mean

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats


def missing_precision(logits: Tensor, targets: Tensor, weight: Tensor, anchors: int, tau: float) -> Tensor:
    """``mean over anchors of w_i y_i (1 - precision at i)``, class by class.

    Precision at i is ``R+ / (R+ + R-)``, where R+ and R- are the weights of positives and negatives ranked above i,
    i itself included, each counting by ``sigmoid((z_j - z_i) / tau)`` (arXiv 2007.12163, one ranking a class). As tau
    goes to 0 this is 1 - average precision, weights being those of scikit-learn's ``sample_weight``.

    R+ passes no gradient: average precision does not change when two positives change places, and a smooth R+ would
    now and then push the lower of two down. So a positive is only ever pushed up, and a negative down.

    Args:
        logits: (C, M), the anchors first.
        targets: (C, M) in [0, 1].
        weight: (C, M) >= 0, 0 for entries that are unknown or not there.
        anchors: how many entries are ranked against all M.
        tau: softness of a comparison, in logits.

    Returns:
        (C,) in [0, largest weight]; 0 for classes without a positive among the anchors.
    """
    above = torch.sigmoid((logits[:, None, :] - logits[:, :anchors, None]) / tau)
    itself = torch.eye(anchors, logits.shape[1], dtype=torch.bool, device=logits.device)
    above = above.masked_fill(itself, 1)
    # not a matrix product: autocast would round it
    found = (above.detach() * (weight * targets)[:, None, :]).sum(2)
    false = (above * (weight * (1 - targets))[:, None, :]).sum(2)
    missing = false / torch.where(found + false == 0, 1, found + false)
    mass = targets[:, :anchors].masked_fill(weight[:, :anchors] == 0, 0)
    return (missing * weight[:, :anchors] * mass).sum(1) / torch.where(mass.sum(1) > 0, mass.sum(1), 1)


class AveragePrecision(nn.Module):
    """1 - smooth average precision, class by class, with the last positives and negatives of each class remembered.

    A batch holds no positive of a rare class, or one. So each class remembers its last ``memory`` positives and
    ``negatives`` negatives (logit, target, weight; no gradient, as in cross-batch memory, arXiv 1912.06798). Remembered
    positives are anchors too: a batch without positives still pushes its negatives below them. The loss is the mean of
    ``missing_precision`` over the classes with a positive in batch or memory.

    The memory is made of buffers, saved in the ``state_dict`` and changed in training mode only, after the loss of the
    batch is taken. Unknown and non-finite entries never enter it. Remembered logits are as old as their class is rare:
    keep ``memory`` small. Precision is that among what is remembered, where a rare class is less rare than in the data.

    A soft target counts as a positive of mass y and a negative of mass 1 - y, and is remembered on the side it is
    nearer to. Weights count as in weighted average precision; doubling all of them doubles the loss.

    **Scale.** A class's part lies in [0, 1] for weights 1, and the mean over classes is taken, so the learning rates of
    binary cross-entropy fit in size. Slopes die out where positives and negatives are many ``tau`` apart.

    **No posterior link** (``pointwise = False``): adding a number to all logits of a class changes nothing, so their
    level means nothing. ``bce`` mixes in a share of binary cross-entropy, which gives them one, roughly.
    """

    pointwise = False
    stateful = True
    kept_logits: Tensor
    kept_targets: Tensor
    kept_weight: Tensor
    written: Tensor

    def __init__(self, classes: int, tau: float, memory: int, negatives: int, bce: float) -> None:
        super().__init__()
        self.tau, self.memory, self.negatives, self.bce = tau, memory, negatives, bce
        for name in ("kept_logits", "kept_targets", "kept_weight"):
            self.register_buffer(name, torch.zeros(classes, memory + negatives))
        self.register_buffer("written", torch.zeros(classes, 2, dtype=torch.int64))

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """The mean over classes of what average precision lacks; a scalar, 0 where no entry is known."""
        z, y, w = known_entries(logits, targets, weight)
        known = w.count_nonzero(0) > 0
        pool = [torch.cat([new.T, kept.to(z.dtype)], 1) for new, kept in zip((z, y, w), self._kept(), strict=True)]
        anchors = len(z) + self.memory
        missing = missing_precision(*pool, anchors, self.tau)
        ranked = known & ((pool[1] * pool[2])[:, :anchors] != 0).any(1)
        precision = torch.where(ranked, missing, 0).sum() / ranked.sum().clamp(min=1)
        if self.training:
            self._remember(z.detach(), y, w)
        return (1 - self.bce) * precision + self.bce * known_mean(cross_entropy(z, z, y), w) if self.bce else precision

    def _kept(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.kept_logits, self.kept_targets, self.kept_weight

    @torch.no_grad()
    def _remember(self, z: Tensor, y: Tensor, w: Tensor) -> None:
        """Write the batch over the oldest of what is remembered: positives in the first slots, negatives after."""
        usable = (w > 0) & z.isfinite()
        self._write(0, usable & (y >= 0.5), 0, self.memory, (z, y, w))
        self._write(1, usable & (y < 0.5), self.memory, self.negatives, (z, y, w))

    def _write(self, side: int, chosen: Tensor, first: int, size: int, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write the chosen entries (B, C) into a ring of ``size`` slots beginning at ``first``; the last ones stay."""
        if not size:
            return
        order = chosen.T.cumsum(1) - 1
        count = chosen.sum(0)
        stays = chosen.T & (order >= (count - size)[:, None])
        slot = first + (self.written[:, side, None] + order) % size
        end = self.memory + self.negatives
        slot = slot.masked_fill(~stays, end)  # one slot beyond the end takes what is not kept
        for kept, new in zip(self._kept(), batch, strict=True):
            wider = torch.nn.functional.pad(kept, (0, 1))
            kept.copy_(wider.scatter_(1, slot, new.T.to(kept.dtype))[:, :end])
        self.written[:, side] += count

    def extra_repr(self) -> str:
        return f"tau={self.tau}, memory={self.memory}, negatives={self.negatives}, bce={self.bce}"


def build(
    stats: ClassStats, *, tau: float = 1.0, memory: int = 16, negatives: int = 256, bce: float = 0.0
) -> nn.Module:
    """Average precision by class.

    Args:
        stats: the classes.
        tau: softness of a comparison of two logits, > 0; the smaller, the nearer to true ranks.
        memory: positives of each class remembered, >= 0.
        negatives: negatives of each class remembered, >= 0.
        bce: share of binary cross-entropy mixed in, in [0, 1].

    Raises:
        PluginFault: an option lies outside its range.
    """
    require(0 < tau < math.inf, "ap", "tau", tau, "Give tau a value above 0.")
    for name, value in (("memory", memory), ("negatives", negatives)):
        require(value >= 0, "ap", name, value, f"Give {name} a value of 0 or more.")
    require(0 <= bce <= 1, "ap", "bce", bce, "Give bce a share from 0 to 1.")
    return AveragePrecision(len(stats.names), tau, memory, negatives, bce)
