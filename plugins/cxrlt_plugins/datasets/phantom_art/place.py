"""Where findings go: sides, points in the lungs, curves."""

from __future__ import annotations

import numpy as np

from .canvas import AXIS, Floats
from .frontal import medial_profile
from .lateral import sternum_profile
from .scene import Scene


def a_side(rng: np.random.Generator, right: float = 0.5) -> int:
    """-1 (the patient's right, at the left of a frontal picture) with probability ``right``, else 1."""
    return -1 if rng.random() < right else 1


def lung_point(
    scene: Scene, rng: np.random.Generator, side: int, *, top: float = 0.1, bottom: float = 0.9, margin: float = 1.0
) -> tuple[float, float]:
    """A point (x, y) in a lung, between the shares ``top`` and ``bottom`` of its height, ``margin`` cm from its borders."""
    body = scene.body
    across = rng.uniform(0.12, 0.95)
    dome = body.dome_right if side < 0 else body.dome_left
    y = body.apex + margin + rng.uniform(top, bottom) * (dome - body.apex - 2.0 * margin)
    if body.lateral:
        near, far = float(np.interp(y, AXIS, sternum_profile(body))) + margin, float(scene.wall_at(y)) - margin
        x = near + across * (far - near)
        return x, min(y, float(scene.floor_at(x, side)) - margin)
    near, far = float(np.interp(y, AXIS, medial_profile(body))) + 0.5 * margin, float(scene.wall_at(y)) - margin
    x = near + across * max(far - near, 0.2)
    return side * x, min(y, float(scene.floor_at(x, side)) - 0.7 * margin)


def arc(x: float, y: float, rx: float, ry: float, start: float, stop: float, points: int = 16) -> Floats:
    """(points, 2) along an ellipse from angle ``start`` to ``stop`` (radians, clockwise from the right)."""
    turn = np.linspace(start, stop, points)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


def through(points: list[tuple[float, float]], count: int = 40) -> Floats:
    """A smooth curve (count, 2) through a few points (Catmull-Rom)."""
    p = np.asarray([points[0], *points, points[-1]], dtype=np.float64)
    spans = len(points) - 1
    t = np.linspace(0.0, spans, count, endpoint=True)
    k = np.minimum(t.astype(int), spans - 1)
    u = (t - k)[:, None]
    a, b, c, d = p[k], p[k + 1], p[k + 2], p[k + 3]
    return 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u**2 + (3 * b - a - 3 * c + d) * u**3)
