"""Re-weighting by class frequency, for any loss: a pure function of the label counts and of how far the run is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from cxrlt_cli.contracts import ClassStats
    from cxrlt_cli.recipe.schema import Reweight

Weights = npt.NDArray[np.float64]


def class_weights(stats: ClassStats, config: Reweight, progress: float) -> tuple[Weights, Weights]:
    """The factor on the loss of each class's positives and of its negatives.

    One weight per class comes from its count n of positives in the training split: ``1/n`` (inverse), ``1/sqrt(n)``
    (root-inverse) or ``(1 - beta) / (1 - beta^n)`` (effective; arXiv 1901.05555, eq. 2). It is divided by the weight of
    the most frequent class (``relative_to: head``: every weight is 1 or more) or by the mean over classes (``mean``,
    the published form: most weights fall below 1), then capped.

    A class without positives has nothing to balance: it weighs as much as the most frequent class, and takes no part
    in the mean.

    Args:
        stats: label counts of the training split.
        config: the recipe's ``reweight``.
        progress: share of the run that is done, in [0, 1]; before ``config.start`` every weight is 1.

    Returns:
        Weights of positives (C,) and of negatives (C,), finite and above 0; ones on the side ``apply_to`` leaves out.
    """
    positives = np.asarray(stats.positives, dtype=np.float64)
    ones = np.ones_like(positives)
    if config.scheme == "none" or progress < config.start or not positives.any():
        return ones, ones.copy()
    weights = _relative(_by_count(positives, config), positives > 0, config.relative_to)
    if config.cap is not None:
        weights = np.minimum(weights, config.cap)
    return (
        ones if config.apply_to == "negatives" else weights,
        ones.copy() if config.apply_to == "positives" else weights.copy(),
    )


def rate_drop(config: Reweight, progress: float) -> float:
    """The factor on the learning rate: ``lr_drop`` once a share ``start`` of the run is done; 1 before, or without."""
    return config.lr_drop if config.lr_drop is not None and progress >= config.start else 1.0


def weighed_down(stats: ClassStats, config: Reweight) -> int:
    """How many classes have positives that weigh less than 1 once the weights are on."""
    return int((class_weights(stats, config, 1.0)[0] < 1).sum())


def _by_count(positives: Weights, config: Reweight) -> Weights:
    """The scheme's weight for each count; an absent class is given the largest count there is."""
    counts = np.where(positives > 0, positives, positives.max())
    if config.scheme == "inverse":
        return 1 / counts
    if config.scheme == "root-inverse":
        return 1 / np.sqrt(counts)
    if config.beta == 0:
        return np.ones_like(counts)
    # 1 - beta^n without cancellation for beta near 1
    return np.asarray((1 - config.beta) / -np.expm1(counts * np.log(config.beta)))


def _relative(weights: Weights, present: npt.NDArray[np.bool_], relative_to: str) -> Weights:
    if relative_to == "raw":
        return weights
    reference = weights[present].mean() if relative_to == "mean" else weights.min()
    return np.asarray(weights / reference, dtype=np.float64)
