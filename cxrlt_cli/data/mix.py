"""Mixup and CutMix: every image mixed with another one of its global batch.

Who is mixed with whom, how, and by how much is drawn for the whole global batch from (seed, epoch, step, row), so that
it depends neither on the number of processes nor on accumulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cxrlt_cli.data.draws import random_words, shares

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxrlt_cli.recipe.schema import Mix

    Floats = npt.NDArray[np.float64]
    Rows = npt.NDArray[np.int64]

#: What each random number of an image decides. The order is part of the results: only ever add at the end.
_DRAWS = ("order", "mixed", "way", "beta", "angle", "down", "right")
_WORDS = 8
_STREAM = 0x6D697875  # "mixu"


@dataclass(frozen=True, slots=True)
class Mixing:
    """How the B images of a global batch are mixed.

    Attributes:
        partner: (B,) position of the image each one is mixed with; nobody's partner is itself unless B is 1.
        share: (B,) what is left of the image itself, in [0, 1]; 1 where it is not mixed.
        box: (B, 4) top, left, bottom and right pixel (the latter two exclusive) of the rectangle that is the partner's;
            empty where images are blended or left alone.
    """

    partner: Rows
    share: Floats
    box: Rows

    @property
    def pasted(self) -> npt.NDArray[np.bool_]:
        """(B,) whether a rectangle is pasted."""
        return (self.box[:, 2] > self.box[:, 0]) & (self.box[:, 3] > self.box[:, 1])

    def needed(self, places: Rows) -> Rows:
        """``places`` (n,) and, after them, the places of partners that are not among them, ascending."""
        partners = self.partner[places][self.share[places] < 1]
        return np.concatenate([places, np.setdiff1d(partners, places)])


def draw_mixing(config: Mix, *, seed: int, epoch: int, step: int, batch: int, size: int) -> Mixing | None:
    """The mixing of a global batch, pure in (seed, epoch, step, row); None where the recipe mixes nothing.

    All images form one random circle, and each one's partner is the next on it. Mixup (arXiv 1710.09412) leaves a share
    from Beta(alpha, alpha). CutMix (arXiv 1905.04899) draws such a share, a rectangle of the remaining area with the
    shape of the image, and its centre uniformly; what lies beyond the border is cut off, and the share becomes that of
    the pixels left.

    Args:
        config: the recipe's ``mix``.
        seed: of the run.
        epoch: from 0.
        step: optimiser step, from 0.
        batch: B, images of the global batch.
        size: side of the images in pixels.
    """
    if config.probability == 0 or config.mixup == config.cutmix == 0:
        return None
    words = random_words(_STREAM, seed=seed, epoch=epoch, step=step, rows=np.arange(batch), count=_WORDS)
    unit = dict(zip(_DRAWS, shares(words).T, strict=False))
    mixed = unit["mixed"] < config.probability
    odds = 0.5 if config.mixup and config.cutmix else float(config.cutmix > 0)
    paste = mixed & (unit["way"] < odds)
    blended = symmetric_beta(config.mixup or 1.0, unit["beta"], unit["angle"])
    kept = symmetric_beta(config.cutmix or 1.0, unit["beta"], unit["angle"])
    box = np.where(paste[:, None], _boxes(np.sqrt(1 - kept), unit["down"], unit["right"], size), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = np.where(paste, 1 - area / size**2, np.where(mixed, blended, 1.0))
    return Mixing(_circle(unit["order"]), share, box)


def symmetric_beta(alpha: float, first: Floats, second: Floats) -> Floats:
    """Draws from Beta(alpha, alpha), one from each pair of uniform numbers.

    Bailey's polar method (Math. Comp. 62 (1994) 779) makes a t variate T of 2 alpha degrees of freedom without
    rejection, and ``(1 + T / sqrt(2 alpha + T^2)) / 2`` has the wanted distribution.

    Args:
        alpha: above 0.
        first: (n,) in [0, 1).
        second: (n,) in [0, 1).

    Returns:
        (n,) in [0, 1].
    """
    cosine = np.cos(2 * np.pi * second)
    with np.errstate(over="ignore", divide="ignore"):  # infinities lead to 0, 1/2 and 1, as they should
        ratio = 1 / (np.expm1(-np.log1p(-first) / alpha) * cosine**2)
    return np.asarray(0.5 + 0.5 * np.sign(cosine) / np.sqrt(1 + ratio))


def _circle(order: Floats) -> Rows:
    around = np.argsort(order, kind="stable")
    partner = np.empty(len(order), np.int64)
    partner[around] = np.roll(around, -1)
    return partner


def _boxes(side: Floats, down: Floats, right: Floats, size: int) -> Rows:
    """(n, 4) pixels of squares of ``side`` about (``down``, ``right``), all shares, cut off at the border."""
    edges = [down - side / 2, right - side / 2, down + side / 2, right + side / 2]
    return np.clip(np.rint(np.stack(edges, axis=1) * size), 0, size).astype(np.int64)


@torch.no_grad()
def mix(images: Tensor, mixing: Mixing, held: Rows, count: int) -> Tensor:
    """Mix the first ``count`` images with their partners.

    Args:
        images: float32 (m, 1, S, S), not changed.
        mixing: of the global batch.
        held: (m,) which places of the global batch ``images`` are: ``mixing.needed`` of the first ``count``.
        count: n <= m.

    Returns:
        (n, 1, S, S). An image becomes bitwise the same in whatever batch it stands.
    """
    places = held[:count]
    where = np.full(len(mixing.share), -1, np.int64)
    where[held] = np.arange(len(held))
    alone = mixing.share[places] == 1
    partners = np.where(alone, np.arange(count), where[mixing.partner[places]])
    own, other = images[:count], images[torch.from_numpy(partners).to(images.device)]
    share = torch.from_numpy(np.where(mixing.pasted, 1.0, mixing.share)[places].astype(np.float32))
    share = share.to(images.device, non_blocking=True)[:, None, None, None]
    blended = own * share + other * (1 - share)
    return torch.where(_inside(mixing.box[places], images), other, blended)


def _inside(box: Rows, like: Tensor) -> Tensor:
    """Mask (n, 1, S, S) of the pixels in the box of their image."""
    top, left, bottom, right = torch.from_numpy(box).to(like.device)[:, None, :, None].unbind(2)  # each (n, 1, 1)
    pixel = torch.arange(like.shape[-1], device=like.device)
    down, across = (top <= pixel) & (pixel < bottom), (left <= pixel) & (pixel < right)  # (n, 1, S)
    return down[..., None] & across[..., None, :]
