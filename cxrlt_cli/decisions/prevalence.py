"""How frequent findings are among images without labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import DataError
from cxrlt_cli.logistic import Array, logit, sigmoid

#: Fewest images from which a prevalence is estimated.
ENOUGH_TO_ESTIMATE = 50
#: Positives the old prevalence is worth. With 1, an estimate did more harm than good (benchmarks/RESULTS.md).
STRENGTH = 10.0
#: Of a normal distribution, within which 95 % lie.
_DEVIATIONS = 1.96


def estimate_prevalence(log_odds: npt.ArrayLike, prevalence: npt.ArrayLike, strength: float = STRENGTH) -> Array:
    """The prevalence among these images, from their posteriors: EM for each class (Saerens et al. 2002).

    The posteriors are moved to the present estimate, and their mean is the next one. With few images or rare findings
    that runs to 0 or far away, so the old prevalence has a say: as much as images with ``strength`` positives among
    them (the mode under a beta prior). Where a network tells little, a step of EM covers little of its way: so each is
    lengthened by what it would leave (Louis 1982), within the bounds that earlier ones have set.

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
    images, worth, at = len(v), strength / old, logit(old)
    low, high = logit(strength / (images + worth)), logit((images + strength) / (images + worth))
    for _ in range(200):
        moved, share = sigmoid(v + at - logit(old)), sigmoid(at)
        mean = (moved.sum(axis=0) + strength) / (images + worth)
        low, high = np.where(mean > share, at, low), np.where(mean > share, high, at)
        spread = share * (1 - share)
        kept = (moved * (1 - moved)).sum(axis=0) / ((images + worth) * spread)  # of its distance, by a step of EM
        there = at + (mean - share) / spread / np.maximum(1 - kept, 1e-12)
        there = np.where((there >= low) & (there <= high), there, (low + high) / 2)
        if np.abs(there - at).max(initial=0) < 1e-9:
            break
        at = there
    return sigmoid(at)


def left_open(log_odds: npt.ArrayLike, prevalence: npt.ArrayLike, share: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether images leave an estimate open by more than a factor of two in odds, either way, at 95 %.

    By the curvature of the likelihood at the estimate, without the say of the old prevalence.

    Args:
        log_odds, prevalence: as in ``estimate_prevalence``.
        share: (C,) what it returned.
    """
    v, new = np.asarray(log_odds, dtype=np.float64), np.asarray(share, dtype=np.float64)
    moved = sigmoid(v + logit(new) - logit(prevalence))
    known = len(v) * new * (1 - new) - (moved * (1 - moved)).sum(axis=0)
    return np.asarray(known < (_DEVIATIONS / np.log(2)) ** 2)


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
