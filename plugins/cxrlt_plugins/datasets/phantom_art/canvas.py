"""Drawing in centimetres on a square grid, antialiased analytically.

A canvas maps every pixel to body coordinates (x to the right of the picture, y downwards, in cm) through a rotation and
a shift, so that shapes are functions of (x, y) and no image is ever resampled. Profiles of one coordinate are tables
(one look-up a pixel); lines are sums of Gaussian dots along their length, which keeps the mass of a line thinner
than a pixel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating[Any]]
Window = tuple[slice, slice]

_REACH = 32.0
_CELLS = 1024
_DOT = 1.0 / np.sqrt(2.0 * np.pi)

#: Coordinates (cm) at which profiles of one coordinate are tabulated: ``_CELLS`` values from -32 to 32.
AXIS: Array = np.linspace(-_REACH, _REACH, _CELLS, dtype=np.float32)


def smooth(t: Floats) -> Array:
    """The smooth step 3t^2 - 2t^3 of ``t`` clipped to [0, 1]."""
    inside = np.maximum(t, 0.0, dtype=np.float32)
    np.minimum(inside, 1.0, out=inside)
    square = inside * inside
    inside *= -2.0
    inside += 3.0
    square *= inside
    return square


class Canvas:
    """A grid of ``size`` x ``size`` pixels over ``2 field`` centimetres, turned by ``angle`` radians about ``centre``."""

    def __init__(self, size: int, field: float, angle: float = 0.0, centre: tuple[float, float] = (0.0, 0.0)) -> None:
        self.size, self.field, self.centre = size, field, centre
        self.scale = size / (2.0 * field)
        self.pixel = 1.0 / self.scale
        self._cos, self._sin = float(np.cos(angle)), float(np.sin(angle))
        step = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0) * np.float32(field)
        across, down = step[None, :], step[:, None]
        self.x: Array = self._cos * across + self._sin * down + np.float32(centre[0])
        self.y: Array = self._cos * down - self._sin * across + np.float32(centre[1])
        self._ix, self._iy = _cells(self.x), _cells(self.y)

    def along_x(self, table: Floats) -> Array:
        """The profile ``table`` of x, tabulated on ``AXIS``, at every pixel."""
        return np.take(np.asarray(table, dtype=np.float32), self._ix)

    def along_y(self, table: Floats) -> Array:
        """The profile ``table`` of y, tabulated on ``AXIS``, at every pixel."""
        return np.take(np.asarray(table, dtype=np.float32), self._iy)

    def ramp(self, inside: Floats, edge: float) -> Array:
        """Coverage of the region ``inside > 0`` (cm), its border ``edge`` cm wide and never sharper than a pixel."""
        return smooth(inside * np.float32(1.0 / max(edge, 1.2 * self.pixel)) + np.float32(0.5))

    def zeros(self) -> Array:
        """An empty layer (size, size)."""
        return np.zeros((self.size, self.size), dtype=np.float32)

    def to_pixels(self, points: Floats) -> npt.NDArray[np.float64]:
        """(..., 2) points in cm -> (..., 2) positions in pixels, column first."""
        x, y = points[..., 0] - self.centre[0], points[..., 1] - self.centre[1]
        across, down = self._cos * x - self._sin * y, self._sin * x + self._cos * y
        return (np.stack([across, down], axis=-1) + self.field) * self.scale - 0.5

    def window(self, x: float, y: float, reach: float) -> Window:
        """The rows and columns within ``reach`` cm of (x, y); empty slices where that lies outside the picture."""
        x, y = x - self.centre[0], y - self.centre[1]
        column = (self._cos * x - self._sin * y + self.field) * self.scale - 0.5
        row = (self._sin * x + self._cos * y + self.field) * self.scale - 0.5
        span = reach * self.scale + 1.0
        rows = slice(max(0, int(row - span)), max(0, int(row + span) + 2))
        return rows, slice(max(0, int(column - span)), max(0, int(column + span) + 2))

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, *, angle: float = 0.0, edge: float = 0.3
    ) -> tuple[Window, Array]:
        """Coverage of an ellipse with a soft border, on its window only."""
        at = self.window(x, y, max(rx, ry) + edge)
        dx, dy = self.x[at] - x, self.y[at] - y
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        u, v = (cos * dx + sin * dy) / rx, (cos * dy - sin * dx) / ry
        radius = np.sqrt(u * u + v * v)
        return at, self.ramp((1.0 - radius) * min(rx, ry), edge)

    def lines(self, layer: Array, points: Floats, width: Floats | float, amount: Floats | float) -> None:
        """Add soft lines to ``layer``, in place.

        Args:
            layer: (size, size), changed.
            points: (..., n, 2) polylines in cm, close enough together for their curvature.
            width: full width at half height in cm, broadcast to (..., n).
            amount: height of the profile at the middle of the line, broadcast to (..., n).
        """
        at = self.to_pixels(np.asarray(points, dtype=np.float64))
        step = at[..., 1:, :] - at[..., :-1, :]
        length = np.sqrt(step[..., 0] ** 2 + step[..., 1] ** 2)
        if not length.size:
            return
        wide = np.broadcast_to(np.asarray(width, dtype=np.float64), at.shape[:-1]) * (self.scale / 2.355)
        height = np.broadcast_to(np.asarray(amount, dtype=np.float64), at.shape[:-1])
        apart = max(1.1, 1.4 * float(wide.min()))  # pixels between dots: less than 1 % of ripple
        parts = max(1, int(np.ceil(float(length.max()) / apart)))
        t = (np.arange(parts) + 0.5) / parts
        middle = at[..., :-1, None, :] + t[:, None] * step[..., None, :]
        sigma = wide[..., :-1, None] + t * (wide[..., 1:] - wide[..., :-1])[..., None]
        high = height[..., :-1, None] + t * (height[..., 1:] - height[..., :-1])[..., None]
        spread = np.maximum(sigma, 0.55)
        dots = high * (length[..., None] * (_DOT / parts)) * sigma / (spread * spread)
        reach = np.ceil(2.3 * spread).astype(np.int32).ravel()
        for wanted in range(int(reach.min()), int(reach.max()) + 1):
            chosen = reach == wanted
            if chosen.any():
                self._add_dots(layer, middle.reshape(-1, 2)[chosen], spread.ravel()[chosen], dots.ravel()[chosen], wanted)

    def _add_dots(self, layer: Array, at: Floats, sigma: Floats, height: Floats, reach: int) -> None:
        border = 2 * reach + 1
        inside = (at > -reach).all(axis=1) & (at < self.size - 1 + reach).all(axis=1)
        at, sigma, height = at[inside].astype(np.float32), sigma[inside].astype(np.float32), height[inside]
        if not len(at):
            return
        offsets = np.arange(-reach, reach + 1, dtype=np.int32)
        whole = np.rint(at)
        delta = (offsets - (at - whole)[:, :, None]) / sigma[:, None, None]
        bell = np.exp(-0.5 * delta * delta)
        values = (height.astype(np.float32)[:, None] * bell[:, 1])[:, :, None] * bell[:, 0][:, None, :]
        side = self.size + 2 * border
        corner = (whole[:, 1].astype(np.int32) + border) * side + whole[:, 0].astype(np.int32) + border
        cell = corner[:, None] + (offsets[:, None] * side + offsets).ravel()
        total = np.bincount(cell.ravel(), weights=values.ravel(), minlength=side * side).reshape(side, side)
        layer += total[border : border + self.size, border : border + self.size]

    def texture(self, rng: np.random.Generator, wavelength: float) -> Array:
        """Smooth random texture (size, size), mean 0 and deviation about 1, its grain ``wavelength`` cm across."""
        cells = int(np.clip(np.ceil(2.0 * self.field / wavelength), 2, self.size)) + 3
        grid = rng.standard_normal((cells, cells), dtype=np.float32)
        weights = _interpolation(self.size, cells)
        return weights @ grid @ weights.T


def _cells(values: Array) -> npt.NDArray[np.int32]:
    scaled = (values + _REACH) * ((_CELLS - 1) / (2.0 * _REACH)) + 0.5
    return np.clip(scaled, 0, _CELLS - 1).astype(np.int32)


@lru_cache(maxsize=64)
def _interpolation(size: int, cells: int) -> Array:
    """(size, cells) weights of a cubic B-spline, scaled to keep the deviation of white noise near 1."""
    at = (np.arange(size) + 0.5) / size * (cells - 3) + 1.0
    distance = np.abs(at[:, None] - np.arange(cells)[None, :])
    near = 2.0 / 3.0 - distance**2 + distance**3 / 2.0
    far = (2.0 - distance) ** 3 / 6.0
    weights = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    weights /= np.sqrt((weights**2).sum(axis=1).mean())
    return weights.astype(np.float32)
