"""The logistic function and what belongs to it, in float64, right at both ends."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def sigmoid(log_odds: npt.ArrayLike) -> Array:
    """``1 / (1 + exp(-x))`` of any shape; never overflows."""
    x = np.asarray(log_odds, dtype=np.float64)
    tail = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, tail) / (1 + tail))


def logit(share: npt.ArrayLike) -> Array:
    """``log(p / (1 - p))``, the inverse of ``sigmoid``; infinite at 0 and 1."""
    p = np.asarray(share, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p))


def softplus(x: npt.ArrayLike) -> Array:
    """``log(1 + exp(x))`` of any shape; never overflows."""
    values = np.asarray(x, dtype=np.float64)
    return np.asarray(np.maximum(values, 0) + np.log1p(np.exp(-np.abs(values))))
