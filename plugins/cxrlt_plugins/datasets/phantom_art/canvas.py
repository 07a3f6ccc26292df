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
    """A grid of ``size`` x ``size`` pixels over ``2 field`` cm, turned by ``angle`` radians about ``centre``."""

    def __init__(self, size: int, field: float, angle: float = 0.0, centre: tuple[float, float] = (0.0, 0.0)) -> None:
        self.size, self.field, self.centre = size, field, centre
        self.scale = size / (2.0 * field)
        self.pixel = 1.0 / self.scale
        self._cos, self._sin = float(np.cos(angle)), float(np.sin(angle))
        step = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0) * np.float32(field)
        across, down = step[None, :], step[:, None]
        self.x: Array = (self._cos * across + self._sin * down + centre[0]).astype(np.float32)
        self.y: Array = (self._cos * down - self._sin * across + centre[1]).astype(np.float32)
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

    def to_pixels(self, points: Array) -> Array:
        """(..., 2) points in cm -> (..., 2) positions in pixels, column first."""
        x, y = points[..., 0] - self.centre[0], points[..., 1] - self.centre[1]
        at = np.stack([self._cos * x - self._sin * y, self._sin * x + self._cos * y], axis=-1)
        return np.asarray((at + self.field) * self.scale - 0.5, dtype=np.float32)

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
        at = self.to_pixels(np.asarray(points, dtype=np.float32))
        if at.shape[-2] < 2:
            return
        wide = np.broadcast_to(np.asarray(width, dtype=np.float32), at.shape[:-1]) * np.float32(self.scale / 2.355)
        high = np.broadcast_to(np.asarray(amount, dtype=np.float32), at.shape[:-1])
        ends = np.concatenate([at, wide[..., None], high[..., None]], axis=-1)
        first, last = ends[..., :-1, :].reshape(-1, 4), ends[..., 1:, :].reshape(-1, 4)
        self._add_segments(layer, first, last - first)

    def _add_segments(self, layer: Array, first: Array, change: Array) -> None:
        """Dots along segments; the four columns are column, row, deviation (all in pixels) and height."""
        length = np.hypot(change[:, 0], change[:, 1])
        apart = np.maximum(1.1, 1.4 * first[:, 2])  # pixels from dot to dot: a ripple of 1 %
        parts = np.ceil(length / apart).astype(np.int64)
        owner = np.repeat(np.arange(len(parts)), parts)
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(parts) - parts, parts)
        t = ((rank + 0.5) / parts[owner]).astype(np.float32)
        dots = first[owner] + t[:, None] * change[owner]
        spread = np.maximum(dots[:, 2], 0.55)
        mass = dots[:, 3] * dots[:, 2] * (length / np.maximum(parts, 1))[owner] * np.float32(_DOT)
        reach = np.ceil(2.3 * spread).astype(np.int32)
        seen = ((dots[:, :2] > -2.0) & (dots[:, :2] < self.size + 1.0)).all(axis=1)
        for wanted in np.unique(reach[seen]):
            chosen = seen & (reach == wanted)
            self._add_dots(layer, dots[chosen, :2], spread[chosen], mass[chosen], int(wanted))

    def _add_dots(self, layer: Array, at: Array, sigma: Array, mass: Array, reach: int) -> None:
        border = reach + 3
        offsets = np.arange(-reach, reach + 1, dtype=np.int32)
        whole = np.rint(at)
        delta = (offsets - (at - whole)[:, :, None]) / sigma[:, None, None]
        bell = np.exp(np.float32(-0.5) * delta * delta)
        values = ((mass / (sigma * sigma))[:, None] * bell[:, 1])[:, :, None] * bell[:, 0][:, None, :]
        side = self.size + 2 * border
        place = whole.astype(np.int32) + border
        cell = (place[:, 1] * side + place[:, 0])[:, None] + (offsets[:, None] * side + offsets).ravel()
        total = np.bincount(cell.ravel(), weights=values.ravel(), minlength=side * side).reshape(side, side)
        layer += total[border : border + self.size, border : border + self.size]

    def texture(self, rng: np.random.Generator, wavelength: float) -> Array:
        """Smooth random texture (size, size), mean 0 and deviation about 1, its grain ``wavelength`` cm across."""
        cells = int(np.clip(np.ceil(2.0 * self.field / wavelength), 2, self.size)) + 3
        grid = rng.standard_normal((cells, cells), dtype=np.float32)
        first, weights = _interpolation(self.size, cells)
        rows = sum(weights[tap][:, None] * grid[first + tap] for tap in range(4))  # no BLAS: the same bits, always
        columns = np.ascontiguousarray(np.asarray(rows).T)
        return np.asarray(sum(weights[tap][:, None] * columns[first + tap] for tap in range(4)).T)


def _cells(values: Array) -> npt.NDArray[np.int32]:
    scaled = (values + _REACH) * ((_CELLS - 1) / (2.0 * _REACH)) + 0.5
    return np.asarray(np.clip(scaled, 0, _CELLS - 1), dtype=np.int32)


@lru_cache(maxsize=64)
def _interpolation(size: int, cells: int) -> tuple[npt.NDArray[np.int64], Array]:
    """(size,) first of four neighbours and (4, size) cubic B-spline weights that keep the deviation of white noise."""
    at = (np.arange(size) + 0.5) / size * (cells - 3)
    first = at.astype(np.int64)
    u = at - first
    weights = np.stack([(1.0 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3])
    weights /= np.sqrt((weights**2).sum(axis=0).mean())
    return first, weights.astype(np.float32)
