"""What every built-in loss shares: which entries count, in which precision, and how they are averaged."""

from __future__ import annotations

import torch
from torch import Tensor


def known_entries(logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bring a batch to at least float32 and blank the entries nobody labelled.

    Where the weight is 0, logit and target become 0, so that whatever stood there (-1, nan, inf) reaches neither the
    loss nor the gradient, which is exactly 0. A nan *weight* is no unknown label: it is kept, and the loss is nan.

    Args:
        logits: (B, C), any floating dtype.
        targets: (B, C) in [0, 1], any dtype.
        weight: (B, C) >= 0.

    Returns:
        Logits, targets and weight (B, C): float64 if the logits are, else float32.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    weight = weight.to(dtype)
    unknown = weight == 0
    return logits.to(dtype).masked_fill(unknown, 0), targets.to(dtype).masked_fill(unknown, 0), weight


def known_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum of (B, C) losses over the count of entries whose weight is not 0; 0 when there are none."""
    return (losses * weight).sum() / torch.count_nonzero(weight).clamp(min=1)
