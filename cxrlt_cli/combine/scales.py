"""One scale for all members: the log-odds of calibrated posteriors.

The outputs of two losses, or of one loss at two strengths of overfitting, do not mean the same; their average would
mostly be that of the louder member. So each member keeps the calibration of its own decisions. Where that was learned
from the images the ensemble is judged on, it is learned anew within every fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.calibration import Calibration, fit_calibration, identity
from cxrlt_cli.logistic import Array

Labels = npt.NDArray[np.int8]

#: Log-odds further out are cut: float64 has no posteriors between them and 0 or 1.
LARGEST = 500.0


@dataclass(frozen=True, slots=True)
class Scale:
    """How the log-odds of a member (after its link) are made comparable.

    Attributes:
        method: the calibration to fit to labels, "none" for the posteriors of the link as they are.
        prevalence: (C,) in (0, 1), of the member's training images; where the calibration turns.
        fixed: a calibration learned on other images, which is used as it is; None to fit.
    """

    method: str
    prevalence: Array
    fixed: Calibration | None = None

    def fit(self, labels: Labels, log_odds: Array) -> Calibration:
        """The map learned from labels (N, C) and log-odds (N, C)."""
        if self.fixed is not None:
            return self.fixed
        if self.method == "none":
            return identity(labels.shape[1])
        return fit_calibration(labels, log_odds, self.prevalence, self.method)


def fit_scales(scales: tuple[Scale, ...], labels: Labels, log_odds: Array) -> tuple[Calibration, ...]:
    """A map for each member, from its log-odds in (M, N, C)."""
    return tuple(scale.fit(labels, own) for scale, own in zip(scales, log_odds, strict=True))


def scaled(maps: tuple[Calibration, ...], log_odds: npt.ArrayLike) -> Array:
    """Log-odds (M, N, C) after each member's map, cut at ``LARGEST``."""
    u = np.asarray(log_odds, dtype=np.float64)
    made = np.stack([own(part) for own, part in zip(maps, u, strict=True)])
    return np.clip(made, -LARGEST, LARGEST)
