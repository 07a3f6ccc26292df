"""Findings of the pleura, the diaphragm and the chest wall: fluid and air where they do not belong."""

from __future__ import annotations

import numpy as np

from .canvas import AXIS, Array, Floats, Window, smooth
from .place import a_side, arc, half, off_wall, through
from .scene import Scene

_EVERYWHERE: Window = (slice(None), slice(None))


def effusion(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Fluid in a costophrenic angle, its surface a meniscus that climbs the chest wall."""
    sides = (-1, 1) if rng.random() < 0.22 else (a_side(scene, rng),)
    for side in sides:
        _fluid(scene, side, severity * rng.uniform(0.75, 1.0) if len(sides) > 1 else severity)


def _fluid(scene: Scene, side: int, severity: float) -> None:
    canvas, body = scene.canvas, scene.body
    dome = body.dome_right if side < 0 else body.dome_left
    bottom = dome + 0.45 * body.sulcus
    level = bottom - 0.2 - (0.4 + 9.5 * severity**1.7)
    climb = 1.6 + 2.2 * severity
    if body.lateral:
        surface = level + 1.2 - climb * np.exp(-np.clip(off_wall(scene, side), 0.0, 30.0) / 1.5)
        surface = surface - 0.4 * climb * smooth((-canvas.x - 4.0) / 5.0)
        share = 0.5 + 0.3 * severity
    else:
        surface = level + 1.4 - climb * np.exp(-np.clip(off_wall(scene, side), 0.0, 30.0) / 1.7)
        share = 1.0
    mask = canvas.ramp(canvas.y - surface, 0.7) * half(scene, side)
    scene.fill(_EVERYWHERE, mask * scene.lung, share)
    scene.marks *= 1.0 - share * mask
    scene.soft += 0.08 * mask * scene.lung


def thickening(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A rind along the chest wall or a cap over an apex."""
    canvas, body = scene.canvas, scene.body
    side, thick = a_side(scene, rng), 0.55 + 1.25 * severity
    apical = rng.random() < 0.45
    middle, reach = rng.uniform(-1.0, 8.0), rng.uniform(3.0, 7.0)
    if apical:
        edge = canvas.ramp(1.2 * thick + 0.4 - (canvas.y - body.apex), 0.6)
    else:
        bulge = thick * np.exp(-(((AXIS - middle) / reach) ** 4))
        off = off_wall(scene, side)
        edge = canvas.ramp(canvas.along_y(bulge) - off, 0.4) * canvas.along_y(smooth((bulge - 0.1) / 0.2))
    share = 0.6 if body.lateral else 0.9
    scene.fill(_EVERYWHERE, edge * half(scene, side) * scene.lung, share)


def _collapse(scene: Scene, side: int, gap: Floats, *, dimmed: float, low: float = 14.0) -> None:
    """Empty the pleural space outside the visceral line, which runs ``gap`` cm from the wall down to ``low``."""
    canvas, body = scene.canvas, scene.body
    off = off_wall(scene, side)
    space = canvas.ramp(canvas.along_y(gap) - off, 0.2) * half(scene, side) * scene.lung
    share = 0.6 if body.lateral else 1.0
    scene.marks *= 1.0 - share * space
    scene.air += 0.11 * share * space * (1.0 - scene.heart)
    lung = scene.lung * half(scene, side) - space
    scene.air *= 1.0 - dimmed * share * np.clip(lung, 0.0, 1.0)
    x = scene.wall - gap
    shown = (body.apex + 0.6 < AXIS) & (AXIS < 11.0) & (gap > 0.15)
    if shown.sum() > 24:
        points = np.stack([(1.0 if body.lateral else side) * x[shown], AXIS[shown]], axis=1)[::8]
        above = points[:, 1] < np.minimum(scene.floor_at(points[:, 0], side), low)
        canvas.lines(scene.soft, points[above], 0.18, 0.22 * share)


def pneumothorax(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A rim without lung markings, widest at the apex, bounded by the thin visceral line."""
    side = a_side(scene, rng)
    top, base = 1.0 + 3.2 * severity, -0.4 + 3.2 * severity**1.5
    height = smooth((AXIS - scene.body.apex) / 20.0)
    gap = np.clip(top + (base - top) * height, 0.0, None) + 0.15 * np.sin(0.9 * AXIS + rng.uniform(0.0, 6.0))
    _collapse(scene, side, np.clip(gap, 0.0, None), dimmed=0.02 + 0.14 * severity)
    cap = scene.canvas.ramp(0.9 + 1.6 * severity - (scene.canvas.y - scene.body.apex), 0.25)
    over = cap * half(scene, side) * scene.lung
    scene.marks *= 1.0 - over


def hydropneumothorax(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Air over fluid: a ruler-straight level from wall to lung, no markings above it."""
    canvas, body = scene.canvas, scene.body
    side = a_side(scene, rng)
    dome = body.dome_right if side < 0 else body.dome_left
    level = dome - 0.4 - 7.0 * severity
    gap = np.clip(0.7 + 4.5 * severity + 0.5 * smooth((AXIS + 2.0) / 8.0), 0.0, None)
    _collapse(scene, side, gap, dimmed=0.02 + 0.15 * severity, low=level)
    wide = canvas.along_y(gap + 3.0 + 2.0 * severity)
    off = off_wall(scene, side)
    pool = canvas.ramp(canvas.y - level, 0.12) * canvas.ramp(wide - off, 2.5) * half(scene, side) * scene.lung
    scene.fill(_EVERYWHERE, pool, 0.8 if body.lateral else 1.0)
    scene.marks *= 1.0 - pool
    scene.soft += 0.08 * pool


def pneumoperitoneum(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A crescent of air between diaphragm and liver; the diaphragm itself remains as a thin line."""
    canvas, body = scene.canvas, scene.body
    sides = (-1, 1) if rng.random() < 0.2 + 0.4 * severity else (-1,)
    for side in sides:
        floor = canvas.along_x(scene.floor[0 if side < 0 else 1])
        under = canvas.y - floor - 0.3
        middle, reach = (-2.0, 5.0) if body.lateral else (0.5 * body.half_width, 0.36 * body.half_width)
        across = (canvas.x - middle) if body.lateral else (side * canvas.x - middle)
        thick = (0.32 + 1.7 * severity) * np.clip(1.0 - (across / reach) ** 2, 0.0, 1.0)
        crescent = canvas.ramp(under, 0.15) * canvas.ramp(thick - under, 0.25) * (np.abs(across) < reach)
        scene.air += (0.24 + 0.22 * severity) * crescent * (1.0 - scene.lung)


def subcutaneous(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Streaks of air along the chest wall, over the pectoral muscle and up the neck."""
    canvas, body = scene.canvas, scene.body
    both, first = rng.random() < 0.5, a_side(scene, rng)
    count = int(40 + 60 * severity)
    layer = canvas.zeros()
    t = np.linspace(-0.5, 0.5, 5)
    for side in (-1, 1) if both else (first,):
        y = rng.uniform(body.apex - 3.5, 10.0, count)
        beyond = rng.uniform(0.3, 1.0 + 0.9 * body.fat, count)
        if body.lateral:
            front = rng.random(count) < 0.6
            x = np.where(front, np.interp(y, AXIS, scene.inner[0]) - beyond, scene.wall_at(y) + beyond)
        else:
            x = side * (np.maximum(scene.wall_at(y), 4.6) + beyond)
        turn = np.pi / 2 - side * (rng.normal(0.2, 0.22, count)[:, None] + rng.normal(0.0, 0.5, (count, 1)) * t)
        step = np.stack([np.cos(turn), np.sin(turn)], -1) * rng.uniform(1.0, 4.0, (count, 1, 1))
        points = np.stack([x, y], -1)[:, None, :] + t[:, None] * step
        amount = (0.05 + 0.1 * severity) * rng.uniform(0.3, 1.4, (count, 1)) * (1.0 - 3.5 * t * t)
        canvas.lines(layer, points, rng.uniform(0.15, 0.5, (count, 1)), amount)
        if not body.lateral:
            _pectoral_fan(scene, layer, side, 0.03 + 0.06 * severity)
    scene.air += np.minimum(layer, 0.4) * scene.inside


def _pectoral_fan(scene: Scene, layer: Array, side: int, amount: float) -> None:
    """Air between the bundles of the pectoral muscle, converging on the shoulder."""
    start = np.arange(-6.0, -1.0, 0.8)
    fan = [
        through([(side * 5.5, y), (side * 9.0, -6.8 + 0.7 * (y + 6.0)), (side * 14.0, -9.0 + 0.3 * (y + 6.0))], 14)
        for y in start
    ]
    scene.canvas.lines(layer, np.stack(fan), 0.3, amount)


def hernia(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A hiatal hernia: a round shadow behind the heart with an air-fluid level."""
    canvas, body = scene.canvas, scene.body
    radius = 1.4 + 2.3 * severity
    shift = rng.uniform(0.2, 2.2)
    x = 4.2 if body.lateral else shift
    low = float(scene.floor_at(x, 1))
    y = low - 0.75 * radius - rng.uniform(0.0, 0.8)
    at, mask = canvas.ellipse(x, y, radius, 0.95 * radius, edge=0.4)
    scene.fill(at, mask, 0.4 + 0.35 * severity)
    scene.add(at, mask, 0.05 + 0.04 * severity)
    level = y + rng.uniform(-0.35, 0.2) * radius
    gas = (0.15 + 0.2 * severity) * (rng.random() < 0.8)  # one of five holds no gas
    at, mask = canvas.ellipse(x, y, 0.82 * radius, 0.8 * radius, edge=0.3)
    scene.air[at] += gas * mask * canvas.ramp(level - canvas.y[at], 0.12)
    canvas.lines(scene.soft, arc((x, y), (radius, 0.95 * radius), np.pi, 2 * np.pi), 0.25, 0.05)


def azygos(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """An azygos lobe: a hair line bowing from the right apex to a tear drop above the right hilum."""
    canvas, body = scene.canvas, scene.body
    wide, low = 4.6 + 1.6 * severity, -2.2 + 0.8 * rng.normal() * 0.5
    if body.lateral:
        path = through([(2.5, body.apex + 2.0), (0.8, -5.0), (1.4, low)], 24)
    else:
        path = through([(-wide, body.apex + 1.2), (-wide - 0.3, -5.8), (-3.9, -3.6), (-2.8, low)], 24)
    canvas.lines(scene.soft, path, 0.2, (0.08 if body.lateral else 0.14) + 0.08 * severity)
    x = 1.4 if body.lateral else -2.75
    at, mask = canvas.ellipse(x, low + 0.3, 0.5 + 0.25 * severity, 0.95 + 0.25 * severity, edge=0.25)
    scene.fill(at, mask, 0.25 if body.lateral else 0.5)
    scene.add(at, mask, 0.06 + 0.05 * severity)
    if not body.lateral:
        at, mask = canvas.ellipse(-3.4, -6.0, 1.3, 3.0, edge=1.0)
        scene.fill(at, mask * scene.lung[at], 0.08 + 0.1 * severity)


PLEURA = {
    "pleural effusion": effusion,
    "pleural thickening": thickening,
    "Pneumothorax": pneumothorax,
    "Hydropneumothorax": hydropneumothorax,
    "pneumoperitoneo": pneumoperitoneum,
    "Subcutaneous Emphysema": subcutaneous,
    "Hernia": hernia,
    "azygos lobe": azygos,
}
