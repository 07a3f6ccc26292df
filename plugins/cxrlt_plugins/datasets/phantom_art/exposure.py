"""From attenuation to grey levels: exposure, contrast, detector noise, collimation, side markers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .canvas import Array, Canvas, smooth


def expose(attenuation: Array, canvas: Canvas, view: str, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The displayed picture, uint8 (size, size): bright is dense, as radiographs are read."""
    portable = view == "AP"
    middle = rng.normal(0.54, 0.035)
    slope = rng.uniform(3.4, 5.4) * (0.88 if portable else 1.0)
    haze = rng.uniform(0.0, 0.12 if portable else 0.06)
    quanta = rng.uniform(0.004, 0.015) * (1.25 if portable else 1.0)
    noise = rng.standard_normal(attenuation.shape, dtype=np.float32)
    noise[:, 1:] += 0.5 * noise[:, :-1]
    signal = np.minimum(attenuation, 0.72 + 0.6 * (attenuation - 0.72))  # scatter flattens the dense parts
    signal += (quanta * noise) * (0.5 + signal)
    tilt = rng.normal(0.0, 0.012, 2) / canvas.field
    signal += (tilt[0] * canvas.x + tilt[1] * canvas.y).astype(np.float32)
    grey = 1.0 / (1.0 + np.exp(np.float32(slope) * (np.float32(middle) - signal)))
    low, high = _curve(0.05, middle, slope), _curve(1.02, middle, slope)
    grey = np.clip((grey - low) / (high - low), 0.0, 1.0)
    grey = haze + (1.0 - haze) * grey ** rng.uniform(0.8, 1.2)
    _markers(grey, canvas, view, rng)
    _collimate(grey, rng)
    return np.asarray(np.clip(grey * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8))


def _curve(value: float, middle: float, slope: float) -> float:
    return float(1.0 / (1.0 + np.exp(slope * (middle - value))))


_LETTERS = {
    "L": np.array(["100", "100", "100", "100", "111"]),
    "R": np.array(["110", "101", "110", "101", "101"]),
}


def _markers(grey: Array, canvas: Canvas, view: str, rng: np.random.Generator) -> None:
    """A lead letter in an upper corner, upright, on two pictures of three."""
    shown, letter, height = rng.random(), "LR"[int(rng.random() < 0.4)], rng.uniform(0.035, 0.06)
    place = rng.uniform(0.03, 0.12, 2)
    if shown > 0.66:
        return
    cell = max(1, round(height * canvas.size / 5))
    glyph = np.array([[float(bit) for bit in row] for row in _LETTERS[letter]], dtype=np.float32)
    glyph = np.kron(glyph, np.ones((cell, cell), dtype=np.float32))
    rows, columns = glyph.shape
    top, inset = int(place[0] * canvas.size), int(place[1] * canvas.size)
    left = inset if letter == "R" and view != "lateral" else canvas.size - inset - columns
    patch = grey[top : top + rows, left : left + columns]
    np.maximum(patch, 0.95 * glyph, out=patch)


def _collimate(grey: Array, rng: np.random.Generator) -> None:
    """Unexposed borders, black or (after inversion by the reader) white, on some sides of one picture of three."""
    shown, sides, widths, white = rng.random(), rng.random(4) < 0.5, rng.uniform(0.01, 0.06, 4), rng.random() < 0.15
    if shown > 0.35:
        return
    size = grey.shape[0]
    at = np.arange(size, dtype=np.float32)
    low, high = (widths[0] * sides[0], widths[1] * sides[1]), (widths[2] * sides[2], widths[3] * sides[3])
    rows = smooth(at - low[0] * size + 0.5) * smooth(size - 0.5 - at - high[0] * size)
    columns = smooth(at - low[1] * size + 0.5) * smooth(size - 0.5 - at - high[1] * size)
    window = rows[:, None] * columns[None, :]
    grey *= window
    if white:
        grey += 0.92 * (1.0 - window)
