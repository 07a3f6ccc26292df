"""Findings of the lung itself: nodules, opacities, lines, rings, lost and gained air."""

from __future__ import annotations

import numpy as np

from .canvas import AXIS, Array, Floats, Window, smooth
from .place import a_side, arc, lung_point, lung_points
from .scene import Scene

_EVERYWHERE: Window = (slice(None), slice(None))


def nodule(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """One to three round shadows, less than 3 cm across."""
    for number in range(1 + int(rng.random() < 0.3) + int(rng.random() < 0.15)):
        side, radius = a_side(scene, rng), (0.5 + 0.75 * severity) * (1.0 if number == 0 else rng.uniform(0.6, 1.0))
        x, y = lung_point(scene, rng, side, margin=radius + 0.3)
        at, mask = scene.canvas.ellipse(x, y, radius, radius * rng.uniform(0.85, 1.15), edge=0.45)
        scene.fill(at, mask, 0.24)
        scene.add(at, mask, 0.1 + 0.1 * severity)


def mass(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A lobulated, often spiculated shadow more than 3 cm across."""
    side, radius = a_side(scene, rng), 1.8 + 1.9 * severity
    x, y = lung_point(scene, rng, side, top=0.05, bottom=0.8, margin=0.8 * radius)
    for _ in range(3):
        shift = rng.normal(0.0, 0.22 * radius, 2)
        at, mask = scene.canvas.ellipse(
            x + shift[0], y + shift[1], radius * rng.uniform(0.75, 1.0), radius * rng.uniform(0.75, 1.0), edge=0.6
        )
        scene.fill(at, mask, 0.36)
        scene.add(at, mask, 0.03 + 0.02 * severity)
    turn = rng.uniform(0.0, 2.0 * np.pi, 14)
    t = np.linspace(0.7, 1.0 + 0.35 * rng.random(14), 5).T
    spikes = np.stack([x + radius * t * np.cos(turn)[:, None], y + radius * t * np.sin(turn)[:, None]], axis=-1)
    scene.canvas.lines(scene.soft, spikes, 0.2, 0.07)


def _cloud(
    scene: Scene, rng: np.random.Generator, x: float, y: float, radii: tuple[float, float]
) -> tuple[Window, Array]:
    """Coverage of a fluffy region: an ellipse whose border and filling are broken up by texture."""
    at = scene.canvas.window(x, y, 1.7 * max(radii))
    dx, dy = (scene.canvas.x[at] - x) / radii[0], (scene.canvas.y[at] - y) / radii[1]
    rough = 0.55 * scene.canvas.texture(rng, 2.6)[at] + 0.35 * scene.canvas.texture(rng, 1.1)[at]
    return at, smooth(1.15 - np.sqrt(dx * dx + dy * dy) + 0.45 * rough)


def alveolar(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Fluffy, ill-defined opacities: one lobe, several patches, or both hila."""
    kind = rng.random()
    if kind < 0.2 + 0.2 * severity:
        spots = [(side, *lung_point(scene, rng, side, top=0.35, bottom=0.7, margin=2.5)) for side in (-1, 1)]
        size = 3.4 + 1.6 * severity
    else:
        count = 1 if kind < 0.75 else 3
        spots = []
        for _ in range(count):
            side = a_side(scene, rng)
            spots.append((side, *lung_point(scene, rng, side, top=0.2, bottom=0.95, margin=1.5)))
        size = (2.4 + 2.4 * severity) * (1.0 if count == 1 else 0.7)
    for _, x, y in spots:
        at, mask = _cloud(scene, rng, x, y, (size * rng.uniform(0.8, 1.1), size * rng.uniform(0.9, 1.3)))
        mask = mask * scene.lung[at]
        scene.fill(at, mask, 0.38 + 0.45 * severity)
        scene.add(at, mask, 0.05)


def interstitial(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A net of fine lines, stronger at the bases or throughout."""
    count = int(120 + 260 * severity)
    low = rng.random() < 0.65
    start = lung_points(scene, rng, rng.choice([-1, 1], count), top=0.35 if low else 0.05, bottom=1.0, margin=0.2)
    turn, length = rng.uniform(0.0, np.pi, count), rng.uniform(0.4, 1.3, count)
    step = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * length[:, None]
    layer = scene.canvas.zeros()
    scene.canvas.lines(layer, start[:, None, :] + np.linspace(-0.5, 0.5, 2)[:, None] * step[:, None, :], 0.16,
                       (0.07 + 0.1 * severity) * rng.uniform(0.4, 1.3, (count, 1)))  # fmt: skip
    net = np.abs(scene.canvas.texture(rng, 0.75))
    layer += (0.015 + 0.035 * severity) * (0.8 - net)
    scene.marks += layer * scene.lung * (1.0 - 0.6 * scene.heart)
    scene.air *= 1.0 - (0.03 + 0.08 * severity) * scene.lung


def bronchiectasis(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Rings and tram lines of widened bronchi, gathered in one or two zones."""
    walls = scene.canvas.zeros()
    for _ in range(1 + int(rng.random() < 0.55)):
        side = a_side(scene, rng)
        x, y = lung_point(scene, rng, side, top=0.45, bottom=0.95, margin=2.0)
        lines = []
        for _ in range(int(5 + 8 * severity)):
            spread = 1.5 + 1.0 * severity
            cx, cy = x + rng.normal(0.0, spread), y + rng.normal(0.0, spread)
            radius = rng.uniform(0.35, 0.6 + 0.35 * severity)
            if rng.random() < 0.6:
                lines.append(arc((cx, cy), (radius, radius), 0.0, 6.3, 15))
                at, mask = scene.canvas.ellipse(cx, cy, 0.75 * radius, 0.75 * radius, edge=0.3)
                scene.air[at] += 0.06 * mask * scene.lung[at]
            else:
                away = np.arctan2(cy - 1.0, cx - 2.5 * side) + rng.normal(0.0, 0.25)
                lines += _tram(np.array([cx, cy]), float(away), 0.5 * radius)
        scene.canvas.lines(walls, np.stack(lines), 0.24, 0.16 + 0.08 * severity)
    scene.marks += walls * scene.lung


def _tram(centre: Floats, away: float, half_width: float) -> list[Floats]:
    """The two walls of a bronchus seen from the side, running in the direction ``away``."""
    along = np.linspace(-1.1, 1.1, 15)[:, None] * np.array([np.cos(away), np.sin(away)])
    across = half_width * np.array([-np.sin(away), np.cos(away)])
    return [centre + along + across, centre + along - across]


def atelectasis(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Plate-like bands above the diaphragm; when severe, a collapsed lobe as a wedge beside the heart."""
    side = a_side(scene, rng)
    for _ in range(1 + int(rng.random() < 0.5) + int(rng.random() < 0.5 * severity)):
        x, y = lung_point(scene, rng, side, top=0.6, bottom=0.95, margin=1.2)
        turn, length = rng.normal(0.15, 0.25) * -side, 1.6 + 2.0 * severity + rng.uniform(0.0, 0.8)
        t = np.linspace(-1.0, 1.0, 9)
        points = np.stack([x + length * t * np.cos(turn), y + length * t * np.sin(turn) - 0.25 * t**2], axis=1)
        scene.canvas.lines(scene.soft, points, 0.35 + 0.35 * severity, (0.13 + 0.12 * severity) * (1.0 - 0.5 * t**2))
    if severity > 0.55:
        _wedge(scene, severity, side)


def _wedge(scene: Scene, severity: float, side: int) -> None:
    canvas, body = scene.canvas, scene.body
    y = canvas.y - 2.0
    if body.lateral:
        edge = canvas.ramp(canvas.x - (canvas.along_y(scene.wall) - 0.55 * y * severity), 0.5)
    else:
        edge = canvas.ramp(1.0 + 0.62 * y * severity - side * canvas.x, 0.5) * canvas.ramp(side * canvas.x, 0.5)
    scene.fill(_EVERYWHERE, edge * canvas.ramp(y, 1.0), 0.55)


def emphysema(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Black upper zones, bullae with hair-thin walls; the flat diaphragm is part of the body."""
    for side in (-1, 1):
        for _ in range(1 + int(rng.random() < 0.4 + 0.6 * severity) + int(2.0 * severity * rng.random())):
            radius = rng.uniform(0.8, 1.4 + 1.9 * severity)
            x, y = lung_point(scene, rng, side, top=0.0, bottom=0.55, margin=0.8 * radius)
            rx, ry = radius * rng.uniform(0.8, 1.1), radius * rng.uniform(0.9, 1.3)
            at, mask = scene.canvas.ellipse(x, y, rx, ry, edge=0.5)
            scene.marks[at] *= 1.0 - 0.85 * mask
            scene.air[at] += (0.05 + 0.05 * severity) * mask * scene.lung[at]
            wall = arc((x, y), (rx, ry), rng.uniform(0.0, 6.3), rng.uniform(8.0, 11.0), 24)
            scene.canvas.lines(scene.soft, wall, 0.12, 0.09 + 0.05 * severity)
    dark = scene.canvas.along_y(1.0 - smooth((AXIS - scene.body.apex - 4.0) / 9.0))
    scene.air += (0.015 + 0.06 * severity) * dark * scene.lung * (1.0 - scene.heart)


def calcified(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Small, very bright specks: healed granulomas, a calcified hilar node, a pleural plaque."""
    side = a_side(scene, rng)
    for _ in range(2 + int(rng.integers(0, 3)) + int(3 * severity)):
        x, y = lung_point(scene, rng, side if rng.random() < 0.7 else -side, margin=0.6)
        radius = rng.uniform(0.16, 0.3 + 0.22 * severity)
        at, mask = scene.canvas.ellipse(x, y, radius, radius, edge=0.15)
        scene.add(at, mask, 0.32 + 0.2 * severity)
    if rng.random() < 0.4 + 0.3 * severity:
        x = 1.6 if scene.body.lateral else 3.9 * side
        for _ in range(3):
            at, mask = scene.canvas.ellipse(x + 0.5 * rng.normal(), 1.2 + 0.6 * rng.normal(), 0.35, 0.3, edge=0.15)
            scene.add(at, mask, 0.3 + 0.2 * severity)


LUNG = {
    "Nodule": nodule,
    "Mass": mass,
    "alveolar pattern": alveolar,
    "interstitial pattern": interstitial,
    "bronchiectasis": bronchiectasis,
    "atelectasis": atelectasis,
    "Emphysema": emphysema,
    "calcified densities": calcified,
}
