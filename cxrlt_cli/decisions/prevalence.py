"""How frequent findings are among images without labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import DataError
from cxrlt_cli.logistic import Array, logit, sigmoid

#: Fewest images from which a prevalence is estimated.
ENOUGH_TO_ESTIMATE = 50


def estimate_prevalence(log_odds: npt.ArrayLike, prevalence: npt.ArrayLike, strength: float = 1.0) -> Array:
    """The prevalence among these images, from their posteriors: EM for each class (Saerens et al. 2002).

    The posteriors are moved to the present estimate, and their mean is the next one. With few images or rare findings
    that runs to 0 or far away, so the old prevalence has a say: as much as images with ``strength`` positives among
    them (the mode under a beta prior).

    Args:
        log_odds: (N, C) calibrated log-odds.
        prevalence: (C,) in (0, 1), the one they hold for.
        strength: > 0, positives the old prevalence is worth.

    Returns:
        (C,) in (0, 1).

    Raises:
        DataError: there are fewer than ``ENOUGH_TO_ESTIMATE`` images.
    """
    v, old = np.asarray(log_odds, dtype=np.float64), np.asarray(prevalence, dtype=np.float64)
    check_enough(len(v))
    share, before = old, np.zeros_like(old)
    worth = strength / old
    for _ in range(1000):
        if np.abs(logit(share) - before).max(initial=0) < 1e-6:
            break
        before = logit(share)
        moved = sigmoid(v + before - logit(old))
        share = (moved.sum(axis=0) + strength) / (len(v) + worth)
    return share


def check_enough(images: int) -> None:
    """Make sure that a prevalence can be estimated from so many images.

    Raises:
        DataError: there are fewer than ``ENOUGH_TO_ESTIMATE``.
    """
    if images < ENOUGH_TO_ESTIMATE:
        raise DataError(
            f"{images} images are too few to estimate how frequent findings are among them; it takes "
            f"{ENOUGH_TO_ESTIMATE}",
            cure="State the prevalence, as in --target-prevalence CLASS=0.05, or give more images.",
        )
