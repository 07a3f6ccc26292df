"""How the built-in strategies change a picture: one interpolation for geometry, then gamma, contrast and brightness.

The conventions are those of training's ``augment``, so that a view shows the network what its training showed it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from cxrlt_cli.contracts import Merge, PluginFault, Space, TestTimeAugmentation, View


@dataclass(frozen=True, slots=True)
class Move:
    """A fixed change of every picture of a batch, as it is seen on a screen, in this order.

    Equal moves are equal views: their outputs are computed once, whichever strategies share them.

    Attributes:
        flip: mirrored left to right.
        zoom: enlarged by this factor about the centre; > 0.
        degrees: turned counter-clockwise about the centre.
        right: moved to the right by this share of the width.
        down: moved down by this share of the height.
        gamma: a pixel x becomes ``x ** gamma``; > 0, above 1 is darker.
        contrast: factor on the distance of a pixel from the mean of its image; >= 0.
        brightness: added to every pixel.
    """

    flip: bool = False
    zoom: float = 1.0
    degrees: float = 0.0
    right: float = 0.0
    down: float = 0.0
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """The training augmentations that show a network such pictures."""
        used = {
            "flip": self.flip,
            "scale": self.zoom != 1,
            "rotate": self.degrees != 0,
            "shift": self.right != 0 or self.down != 0,
            "gamma": self.gamma != 1,
            "contrast": self.contrast != 1,
            "brightness": self.brightness != 0,
        }
        return frozenset(name for name, is_used in used.items() if is_used)

    def __call__(self, images: Tensor) -> Tensor:
        """Change (B, 1, H, W) intensities in [0, 1].

        Zoom, turn and shift, with the flip, are one bilinear interpolation, black beyond the border; a flip alone is
        exact. Without any change ``images`` itself is returned, otherwise new memory of the same shape and range.
        """
        return self._toned(self._placed(images))

    def _placed(self, images: Tensor) -> Tensor:
        if not self.needs & {"scale", "rotate", "shift"}:
            return images.flip(-1) if self.flip else images
        grid = self._grid(images).expand(len(images), -1, -1, -1)
        out = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return out.clamp_(0, 1)  # the four weights of a pixel add up to 1 within rounding only

    def _toned(self, images: Tensor) -> Tensor:
        if not self.needs & {"gamma", "contrast", "brightness"}:
            return images
        out = images.pow(self.gamma)
        # Summed line by line, because one sum over a lone image is cut by threads.
        mean = out.mean(-1, keepdim=True).mean(-2, keepdim=True)
        return (out * self.contrast).add_(mean * (1 - self.contrast) + self.brightness).clamp_(0, 1)

    def _grid(self, like: Tensor) -> Tensor:
        """Where each pixel of the result comes from: (1, H, W, 2) x and y in [-1, 1], x to the right, y downwards.

        The inverse of the forward map: undo the shift, the turn, the zoom, the flip.
        """
        height, width = like.shape[-2:]
        angle = math.radians(self.degrees)
        cos, sin = math.cos(angle) / self.zoom, math.sin(angle) / self.zoom
        x = _centres(width, like) - 2 * self.right
        y = _centres(height, like)[:, None] - 2 * self.down
        mirror = -1 if self.flip else 1
        from_x = mirror * cos * x - mirror * sin * (height / width) * y
        from_y = sin * (width / height) * x + cos * y
        return torch.stack([from_x, from_y], dim=-1)[None]


def strategy(moves: Mapping[str, Move], space: Space, merge: Merge) -> TestTimeAugmentation:
    """The image as it is, then each of the moves under its name."""
    changed = (View(name, move, needs=move.needs) for name, move in moves.items())
    return TestTimeAugmentation((View("identity", Move()), *changed), space, merge)


def within(option: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside the open interval (low, high).

    Raises:
        PluginFault: it is outside.
    """
    if not low < value < high:
        raise PluginFault(
            f"the option '{option}' is {value:g}", cure=f"Give a number above {low:g} and below {high:g}."
        )


def _centres(count: int, like: Tensor) -> Tensor:
    """Centres of ``count`` pixels on a line from -1 to 1."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1
