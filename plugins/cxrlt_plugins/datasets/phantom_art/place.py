"""Where findings go: sides, points in the lungs, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .canvas import AXIS, Array, Floats
from .scene import Scene


def a_side(scene: Scene, rng: np.random.Generator, right: float | None = None) -> int:
    """-1 (the patient's right, at the left of a frontal picture) or 1.

    With probability ``right`` the right; without it, three times of four the patient's bad side, so that findings meet.
    """
    if right is not None:
        return -1 if rng.random() < right else 1
    return scene.body.bad_side if rng.random() < 0.75 else -scene.body.bad_side


def lung_points(
    scene: Scene,
    rng: np.random.Generator,
    side: npt.NDArray[np.integer[Any]],
    *,
    top: float,
    bottom: float,
    margin: float,
) -> Floats:
    """(n, 2) points in the lungs ``side`` (n,), ``margin`` cm from their borders.

    They lie between the shares ``top`` and ``bottom`` of the height from apex to dome.
    """
    body, right = scene.body, side < 0
    across, down = rng.uniform(0.12, 0.95, len(side)), rng.uniform(top, bottom, len(side))
    dome = np.where(right, body.dome_right, body.dome_left)
    y = body.apex + margin + down * (dome - body.apex - 2.0 * margin)
    near = np.where(right, np.interp(y, AXIS, scene.inner[0]), np.interp(y, AXIS, scene.inner[1])) + 0.6 * margin
    far = np.interp(y, AXIS, scene.wall) - margin
    x = near + across * np.maximum(far - near, 0.2)
    floor = np.where(right, np.interp(x, AXIS, scene.floor[0]), np.interp(x, AXIS, scene.floor[1]))
    return np.stack([x if body.lateral else side * x, np.minimum(y, floor - 0.7 * margin)], axis=1)


def lung_point(
    scene: Scene, rng: np.random.Generator, side: int, *, top: float = 0.1, bottom: float = 0.9, margin: float = 1.0
) -> tuple[float, float]:
    """One point of ``lung_points``."""
    x, y = lung_points(scene, rng, np.array([side]), top=top, bottom=bottom, margin=margin)[0]
    return float(x), float(y)


def half(scene: Scene, side: int) -> Array:
    """Coverage of one side in a frontal picture; everything in a lateral one."""
    return np.ones_like(scene.lung) if scene.body.lateral else scene.canvas.ramp(side * scene.canvas.x, 0.5)


def off_wall(scene: Scene, side: int) -> Array:
    """Distance of every pixel from the side wall (frontal) or the back wall (lateral) of the chest, in cm."""
    x = scene.canvas.x if scene.body.lateral else side * scene.canvas.x
    return scene.canvas.along_y(scene.wall) - x


def arc(centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float, points: int = 16) -> Floats:
    """(points, 2) along an ellipse from angle ``start`` to ``stop`` (radians, clockwise from the right)."""
    turn = np.linspace(start, stop, points)
    return np.stack([centre[0] + radii[0] * np.cos(turn), centre[1] + radii[1] * np.sin(turn)], axis=1)


def through(points: Sequence[tuple[float, float]], count: int = 40) -> Floats:
    """A smooth curve (count, 2) through a few points (Catmull-Rom)."""
    p = np.asarray([points[0], *points, points[-1]], dtype=np.float64)
    t = np.linspace(0.0, len(points) - 1, count)
    k = np.minimum(t.astype(int), len(points) - 2)
    u = (t - k)[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[k + 3]
    return np.asarray(0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3))
