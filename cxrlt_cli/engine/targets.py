"""What a global batch is asked to answer: targets and weights from labels, class weights, smoothing and mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN, ClassStats

if TYPE_CHECKING:
    from cxrlt_cli.data.mix import Mixing
    from cxrlt_cli.recipe.schema import Train

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Targets:
    """Both for the whole global batch.

    Attributes:
        target: (B, C) in [0, 1].
        weight: (B, C) >= 0; 0 where nothing is known.
    """

    target: Singles
    weight: Singles

    def known(self, places: npt.NDArray[np.int64] | None = None) -> int:
        """Entries of which something is known, of the batch or of some of its places."""
        return int(np.count_nonzero(self.weight if places is None else self.weight[places]))


def smoothing_level(stats: ClassStats, train: Train) -> Floats:
    """(C,) q of label smoothing: what a label is moved towards."""
    if train.smooth_towards == "half":
        return np.full(len(stats.names), 0.5)
    return np.array(stats.prevalence)


def make_targets(
    labels: npt.NDArray[np.int8],
    weights: tuple[Floats, Floats],
    *,
    smoothing: float = 0.0,
    level: Floats | float = 0.0,
    mixing: Mixing | None = None,
) -> Targets:
    """Targets and weights of a global batch.

    A label y becomes ``t = (1 - e) y + e q``. Its loss is ``t w1 l1 + (1 - t) w0 l0`` with the class's weights w1 and
    w0 and the loss l1, l0 of a positive and a negative; that of an unknown label is 0. A mixed image has ``share``
    times the loss on its own labels plus ``1 - share`` times the loss on its partner's. All of this is one target and
    one weight for every loss that is linear in its target: with the sums u and v of the factors of l1 and l0, the
    weight is ``u + v`` and the target ``u / (u + v)``. The stationary point of the loss, and so its posterior link, is
    that of the plain labels, but for the smoothing.

    Args:
        labels: (B, C) int8 1, 0, -1.
        weights: on positives (C,) and on negatives (C,), above 0.
        smoothing: e, in [0, 1).
        level: q, (C,) or one number, in [0, 1].
        mixing: of the same batch, or None.
    """
    known = labels != UNKNOWN
    target = (1 - smoothing) * (labels == 1) + smoothing * level
    up, down = (known * target * weights[0], known * (1 - target) * weights[1])
    if mixing is not None:
        up, down = _mixed(up, mixing), _mixed(down, mixing)
    weight = (up + down).astype(np.float32)
    soft = np.divide(up, up + down, out=np.zeros_like(up), where=weight > 0)
    return Targets(soft.astype(np.float32), weight)


def _mixed(values: Floats, mixing: Mixing) -> Floats:
    share = mixing.share[:, None]
    return np.asarray(share * values + (1 - share) * values[mixing.partner])
