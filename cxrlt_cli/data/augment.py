"""Random changes of the training images, drawn per image and applied to the whole batch on its device.

What happens to an image depends on the seed, the epoch, the step and the position of the image in the global batch, and
on nothing else: not on the number of processes, accumulation steps or images beside it, nor on any earlier draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cxrlt_cli.data.draws import random_words, shares

if TYPE_CHECKING:
    import numpy.typing as npt

    from cxrlt_cli.recipe.schema import Augment

    Floats = npt.NDArray[np.float64]
    Rows = npt.NDArray[np.int64]

#: Area of an erased rectangle as a share of the image, and its height over its width.
ERASED_AREA = (0.02, 0.15)
ERASED_ASPECT = (0.3, 1 / 0.3)

#: What each random number of an image decides. The order is part of the results: only ever add at the end.
_DRAWS = (
    *("rotate", "shift_x", "shift_y", "scale", "flip", "brightness", "contrast", "gamma", "noise"),
    *("erase", "erase_area", "erase_aspect", "erase_top", "erase_left", "noise_seed"),
)
_WORDS = 16  # random 64-bit words set aside for an image; a multiple of the four that Philox makes at a time
_STREAM = 0x61756772  # "augr"


def seen(config: Augment) -> frozenset[str]:
    """Names of the transforms a network trained with ``config`` has seen, such as ``{"flip", "rotate"}``."""
    return frozenset(name for name, value in config if value > 0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The parameters of n images; every array is (n,) float64 unless stated.

    The geometric ones describe what happens to the picture as it is seen on a screen, in this order: mirrored left to
    right (``flip`` true), enlarged by ``zoom`` about the centre, turned by ``angle`` radians counter-clockwise about
    the centre, moved by ``right`` and ``down`` (shares of the side). Then a pixel x becomes ``x ** gamma``, is
    multiplied by ``contrast`` about the mean of the image, raised by ``brightness``, given noise of standard deviation
    ``sigma`` from the generator ``noise_seed`` (uint64), and lost within ``box``: (n, 4) top, left, bottom and right
    (the latter two exclusive) as shares of the side, all zero for none.
    """

    flip: npt.NDArray[np.bool_]
    zoom: Floats
    angle: Floats
    right: Floats
    down: Floats
    gamma: Floats
    contrast: Floats
    brightness: Floats
    sigma: Floats
    noise_seed: npt.NDArray[np.uint64]
    box: Floats


def draw(config: Augment, *, seed: int, epoch: int, step: int, rows: Rows) -> Drawn:
    """The parameters of the images at ``rows`` of a global batch, pure in (seed, epoch, step, row).

    Args:
        config: the recipe's ``augment``.
        seed: 0 <= seed < 2**31.
        epoch: from 0, less than 2**32.
        step: from 0, less than 2**32.
        rows: (n,) int64 >= 0, any order; equal rows get equal parameters.
    """
    words = random_words(_STREAM, seed=seed, epoch=epoch, step=step, rows=rows, count=_WORDS)
    unit: dict[str, Floats] = dict(zip(_DRAWS, shares(words).T, strict=False))

    def around(name: str, width: float) -> Floats:
        return width * (2 * unit[name] - 1)

    return Drawn(
        flip=unit["flip"] < config.flip,
        zoom=1 + around("scale", config.scale),
        angle=np.deg2rad(around("rotate", config.rotate)),
        right=around("shift_x", config.shift),
        down=around("shift_y", config.shift),
        gamma=np.exp(around("gamma", -np.log1p(-config.gamma))),
        contrast=1 + around("contrast", config.contrast),
        brightness=around("brightness", config.brightness),
        sigma=unit["noise"] * config.noise,
        noise_seed=words[:, _DRAWS.index("noise_seed")],
        box=_boxes(unit, config.erase),
    )


def _boxes(unit: dict[str, Floats], probability: float) -> Floats:
    """Rectangles (n, 4) to erase, uniform in area and log-uniform in aspect; the largest always fits the image."""
    low, high = np.log(ERASED_ASPECT)
    area = ERASED_AREA[0] + unit["erase_area"] * (ERASED_AREA[1] - ERASED_AREA[0])
    root = np.exp((low + unit["erase_aspect"] * (high - low)) / 2)
    height, width = np.sqrt(area) * root, np.sqrt(area) / root
    top, left = unit["erase_top"] * (1 - height), unit["erase_left"] * (1 - width)
    box = np.stack([top, left, top + height, left + width], axis=1)
    return np.where((unit["erase"] < probability)[:, None], box, 0.0)


@torch.no_grad()
def augment(images: Tensor, config: Augment, *, seed: int, epoch: int, step: int, rows: Rows) -> Tensor:
    """Change every image in its own way: :class:`Drawn` says how, and in which order.

    Rotation, shift, scale and flip are one bilinear interpolation, black beyond the border. Erasing (Random Erasing,
    arXiv 1708.04896) fills with the mean of the image: an occlusion without a texture or a brightness of its own for
    the network to learn.

    Args:
        images: float32 (n, 1, S, S) in [0, 1], on any device; not changed.
        config: the recipe's ``augment``. Transforms at 0 are skipped; with all at 0, ``images`` itself is returned.
        seed: seed of the run.
        epoch: from 0.
        step: optimiser step, from 0.
        rows: (n,) int64, the position of each image in the global batch of this step.

    Returns:
        The shape, type and device of ``images``, in [0, 1]. On a CPU an image becomes bitwise the same in whatever
        batch it stands.
    """
    if not seen(config) or len(images) == 0:
        return images
    drawn = draw(config, seed=seed, epoch=epoch, step=step, rows=rows)
    out = _moved(images, config, drawn)
    if config.gamma > 0:
        out.pow_(_column(drawn.gamma, out))
    if config.contrast > 0 or config.brightness > 0:
        contrast = _column(drawn.contrast, out)
        offset = _means(out) * (1 - contrast) + _column(drawn.brightness, out)
        out.mul_(contrast).add_(offset)
    if config.noise > 0:
        out.add_(_noise(drawn, out))
    out.clamp_(0, 1)
    if config.erase > 0:
        out = torch.where(_inside(drawn.box, out), _means(out), out)
    return out


def _moved(images: Tensor, config: Augment, drawn: Drawn) -> Tensor:
    """Flip, zoom, turn and shift; always new memory."""
    if config.rotate > 0 or config.shift > 0 or config.scale > 0:
        grid = _grid(drawn, images)
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if config.flip > 0:
        return torch.where(_column(drawn.flip, images) > 0, images.flip(-1), images)
    return images.clone()


def _grid(drawn: Drawn, images: Tensor) -> Tensor:
    """Where each pixel of the result comes from: (n, S, S, 2) x and y in [-1, 1], x to the right and y downwards.

    The inverse of the forward map: undo the shift, the turn, the zoom, the flip. Made from sums of rows and columns,
    not by ``affine_grid``: that is a matrix product, many times slower on a CPU, and autocast and TF32 round it to 8
    and 11 significant bits, in bfloat16 up to a whole pixel at 1,000 pixels a side.
    """
    cos, sin = np.cos(drawn.angle) / drawn.zoom, np.sin(drawn.angle) / drawn.zoom
    right, down = 2 * drawn.right, 2 * drawn.down
    mirror = np.where(drawn.flip, -1.0, 1.0)
    to_x = np.stack([cos, -sin, sin * down - cos * right], axis=1) * mirror[:, None]
    to_y = np.stack([sin, cos, -sin * right - cos * down], axis=1)
    theta = _on_device(np.stack([to_x, to_y], axis=1), images)[..., None]  # (n, 2, 3, 1)
    centres = 2 * _centres(images) - 1
    across = theta[:, :, 0] * centres  # (n, 2, S)
    along = theta[:, :, 1] * centres + theta[:, :, 2]
    return (across[:, :, None, :] + along[:, :, :, None]).permute(0, 2, 3, 1)


def _noise(drawn: Drawn, like: Tensor) -> Tensor:
    """Gaussian noise, image by image from a generator of its own."""
    noise = torch.empty_like(like)
    generator = torch.Generator(like.device)
    for row, number, sigma in zip(noise, drawn.noise_seed.tolist(), drawn.sigma.tolist(), strict=True):
        row.normal_(0, sigma, generator=generator.manual_seed(number))
    return noise


def _inside(box: Floats, like: Tensor) -> Tensor:
    """Mask (n, 1, S, S) of the pixels whose centres lie in the box of their image."""
    top, left, bottom, right = _on_device(box, like)[:, None, :, None].unbind(2)  # each (n, 1, 1)
    centres = _centres(like)
    down, across = (top <= centres) & (centres < bottom), (left <= centres) & (centres < right)  # (n, 1, S)
    return down[..., None] & across[..., None, :]


def _centres(like: Tensor) -> Tensor:
    """Centres of the pixels along one side (S,), as shares of it."""
    side = like.shape[-1]
    return (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5) / side


def _means(images: Tensor) -> Tensor:
    """Mean of each image (n, 1, 1, 1); summed line by line, because one sum over a lone image is cut by threads."""
    return images.mean(-1, keepdim=True).mean(-2, keepdim=True)


def _column(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return _on_device(values, like)[:, None, None, None]


def _on_device(values: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(like.device, like.dtype, non_blocking=True)
