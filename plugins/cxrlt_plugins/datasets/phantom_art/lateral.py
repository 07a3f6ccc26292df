"""The lateral chest: breastbone to the left, spine to the right; the two lungs lie over each other."""

from __future__ import annotations

import numpy as np

from .body import Body
from .canvas import AXIS, Array, Canvas, Floats, smooth
from .frontal import branches
from .scene import Scene

_DISC = 2.35  # cm from disc to disc


def spine_profile(body: Body) -> Floats:
    """x of the middle of the vertebral bodies at every height: bent backwards by kyphosis."""
    t = np.clip((AXIS - 1.0) / 11.0, -1.6, 1.6)
    return np.asarray(0.5 * body.thorax_depth + 3.6 * body.kyphosis * (1.0 - t * t) + 0.25 * (1.0 - body.kyphosis))


def sternum_profile(body: Body) -> Floats:
    """x of the back of the breastbone at every height."""
    s = smooth((AXIS - body.apex - 2.0) / 16.0)
    return np.asarray(-body.thorax_depth * (0.42 + 0.55 * s))


def lateral_floor(body: Body, side: int) -> Floats:
    """y of one half of the diaphragm at every x: highest in the front half, falling to the back."""
    dome = body.dome_right if side < 0 else body.dome_left
    back, front = 0.5 * body.thorax_depth + 3.0, -0.9 * body.thorax_depth
    top = -2.0
    behind = np.clip((AXIS - top) / (back - top), 0.0, 1.3)
    ahead = np.clip((top - AXIS) / (top - front), 0.0, 1.3)
    reach = (1.0 + body.sulcus) * (0.3 + 0.7 * body.doming) + 0.35 * max(0.0, 10.5 - dome)
    return np.asarray(dome + reach * behind**2.2 + (0.6 + 1.6 * body.doming) * ahead**2)


def paint_lateral(canvas: Canvas, body: Body, rng: np.random.Generator) -> Scene:
    """The scene of a body without findings of its own (``body`` may have been reshaped)."""
    spine, front = spine_profile(body), sternum_profile(body)
    wall = spine + 3.0
    floors = lateral_floor(body, -1), lateral_floor(body, 1)
    x, y = canvas.x, canvas.y
    behind, ahead = canvas.along_y(wall), canvas.along_y(front)
    inside = _outline(canvas, body, front, spine)
    cavity = canvas.ramp(behind - x, 0.5) * canvas.ramp(x - ahead, 0.5) * canvas.ramp(y - body.apex - 0.5, 2.5)
    below = [canvas.ramp(y - canvas.along_x(floor), 0.35) for floor in floors]
    open_air = 1.0 - 0.5 * (below[0] + below[1])
    middle = (x - ahead) / np.maximum(behind - ahead, 1.0)
    thick = 0.8 + 0.012 * body.fat + canvas.along_y(0.08 * smooth((-3.0 - AXIS) / 6.0))
    scene = Scene(
        canvas, body, inside, cavity * open_air, canvas.zeros(), np.asarray(thick * np.ones_like(x), dtype=np.float32),
        canvas.zeros(), canvas.zeros(), canvas.zeros(), canvas.zeros(), wall, (front, front), floors,
    )  # fmt: skip
    _air(scene, np.clip(middle, 0.0, 1.0))
    scene.solid -= 0.22 * (1.0 - cavity) * canvas.ramp(np.maximum(ahead - x, x - behind) - 0.5, 2.0)
    _heart(scene)
    _vertebrae(scene, spine)
    _cage(scene, front, rng)
    _mediastinum(scene)
    _gas(scene, below[1])
    _vessels(scene, rng)
    return scene


def _outline(canvas: Canvas, body: Body, front: Floats, spine: Floats) -> Array:
    bust = 2.6 * body.breast * np.exp(-(((AXIS - body.breast_y + 1.0) / 4.0) ** 2))
    before = front - 1.6 - 0.5 * body.fat - bust
    after = spine + 5.2 + 0.6 * body.fat
    arms = 9.0 * smooth((body.apex + 4.0 - AXIS) / 6.0)
    left = canvas.along_y(before - 0.7 * arms)
    right = canvas.along_y(np.minimum(after + 0.4 * arms, 30.0))
    return canvas.ramp(right - canvas.x, 0.7) * canvas.ramp(canvas.x - left, 0.7)


def _air(scene: Scene, middle: Array) -> None:
    canvas, body = scene.canvas, scene.body
    profile = 0.55 + 0.45 * np.sqrt(np.clip(4.0 * middle * (1.0 - middle), 0.0, 1.0))
    height = 0.34 + 0.2 * smooth((AXIS + 9.0) / 8.0)
    scene.air += body.lucency * canvas.along_y(height) * profile * scene.lung


def _heart(scene: Scene) -> None:
    """An egg on the front half of the diaphragm, leaning back; above it the great vessels."""
    canvas, body = scene.canvas, scene.body
    total = body.heart_left + body.heart_right
    rx, ry = 0.37 * total, 6.4 + 0.12 * (total - 12.0)
    x = -0.84 * body.thorax_depth + 1.08 * rx
    y = min(body.dome_left, body.dome_right + 1.0) - 4.0
    at, mask = canvas.ellipse(x, y, rx, ry, angle=0.5, edge=1.3)
    scene.heart[at] = mask
    at, mask = canvas.ellipse(x + 1.0, y - 6.4, 2.3, 4.4, angle=-0.3, edge=2.4)
    scene.heart[at] = np.maximum(scene.heart[at], 0.7 * mask)
    scene.air *= 1.0 - 0.55 * scene.heart


def _vertebrae(scene: Scene, spine: Floats) -> None:
    canvas = scene.canvas
    off = canvas.x - canvas.along_y(spine)
    lean = canvas.along_y(np.gradient(spine, AXIS))
    along = canvas.y + 0.6 * lean * off
    phase = (along / _DISC) % 1.0
    bone = canvas.ramp(1.5 - np.abs(off), 0.4) * smooth((0.41 - np.abs(phase - 0.5)) / 0.12 + 0.5)
    plates = np.exp(-(((np.abs(phase - 0.5) - 0.36) / 0.07) ** 2)) * canvas.ramp(1.5 - np.abs(off), 0.4)
    strength = canvas.along_y(0.14 - 0.06 * smooth((AXIS + 4.0) / 14.0))
    strength *= 1.0 - 0.5 * canvas.ramp(canvas.y - canvas.along_x(scene.floor[1]), 1.0)
    scene.bone += strength * (0.75 * bone + 0.5 * plates)
    arch = canvas.ramp(1.4 - np.abs(off - 3.3), 1.0) * smooth((0.3 - np.abs(((along + 0.9) / _DISC) % 1.0 - 0.5)) / 0.2)
    scene.bone += 0.09 * arch
    scene.solid += 0.07 * canvas.ramp(2.4 - np.abs(off - 1.6), 2.0)


def _cage(scene: Scene, front: Floats, rng: np.random.Generator) -> None:
    """Ribs, breastbone, shoulder blade."""
    canvas, body = scene.canvas, scene.body
    for slope, phase, height in ((0.5, body.rib_phase, 0.04), (0.62, body.rib_phase + 0.45, 0.03)):
        level = (canvas.y - slope * body.rib_slope * (8.0 - canvas.x)) / body.rib_spacing + phase
        band = np.exp(-((((level % 1.0) - 0.5) / 0.17) ** 2))
        scene.bone += height * band * scene.lung
    t = np.linspace(0.0, 1.0, 16)
    y = body.apex + 3.0 + 15.0 * t
    plate = np.stack([np.interp(y, AXIS, front) - 0.6, y], axis=1)
    canvas.lines(scene.bone, plate, 1.1, 0.16 + 0.05 * np.cos(18.0 * t))
    x = float(np.interp(-3.0, AXIS, scene.wall)) + rng.uniform(-1.6, 0.2)
    blade = np.stack([x - 1.2 * np.sin(np.pi * t) + 1.5 * t, -9.0 + 10.5 * t], axis=1)
    canvas.lines(scene.bone, blade, 0.6, 0.08)
    at, mask = canvas.ellipse(-0.5, body.apex - 1.0, 5.5, 3.4, edge=2.5)
    scene.soft[at] += 0.07 * mask


def aortic_path(body: Body, points: int = 24) -> Floats:
    """Arch and descending aorta in a lateral view, (points, 2) cm."""
    turn = np.linspace(np.pi * 1.05, 2.15 * np.pi, points // 2)
    radius = 2.3 + 0.6 * body.unfolding + 0.4 * (body.knob - 1.6)
    arch = np.stack([0.9 + 1.15 * radius * np.cos(turn), -2.2 + radius * np.sin(turn)], axis=1)
    down = np.linspace(0.05, 1.0, points - points // 2)
    x = arch[-1, 0] + (1.0 + 1.8 * body.unfolding) * np.sin(np.pi * down * 0.8) + 0.5 * body.kyphosis * down
    return np.concatenate([arch, np.stack([x, arch[-1, 1] + (14.0 - arch[-1, 1]) * down], axis=1)])


def _mediastinum(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    top = body.apex - 5.0
    t = np.linspace(0.0, 1.0, 14)
    canvas.lines(scene.air, np.stack([0.4 + 1.5 * t, top + (1.2 - top) * t], axis=1), 1.6, 0.2)
    canvas.lines(scene.soft, aortic_path(body), 1.5 * body.knob, 0.045 + 0.07 * body.unfolding)
    for x, y, r in ((0.2, 1.0, 1.2), (1.8, 1.9, 1.4), (2.3, 0.2, 0.8)):
        at, mask = canvas.ellipse(x, y, r * body.hilum**1.2, 1.1 * r * body.hilum, edge=0.9)
        scene.marks[at] += 0.1 * mask


def _gas(scene: Scene, below: Array) -> None:
    body = scene.body
    top = float(scene.floor_at(-3.0, 1)) + 0.6
    at, mask = scene.canvas.ellipse(-3.0, top + 0.55 * body.bubble, 1.0 + body.bubble, 0.75 * body.bubble, edge=0.5)
    scene.air[at] += 0.3 * mask * below[at]


def _vessels(scene: Scene, rng: np.random.Generator) -> None:
    body, layer = scene.body, scene.canvas.zeros()
    angles = np.linspace(-2.6, 2.9, 12) + rng.normal(0.0, 0.2, 12)
    lengths = rng.uniform(5.0, 8.5, 12)
    points, widths = branches(np.array([1.2, 1.2]), angles, lengths, 0.42 * rng.uniform(0.7, 1.2, 12), rng)
    scene.canvas.lines(layer, points, widths, 0.06 * body.markings)
    layer += 0.014 * body.markings * scene.canvas.texture(rng, 0.9)
    scene.marks += layer * scene.lung * (1.0 - 0.5 * scene.heart)
    scene.solid += 0.012 * scene.canvas.texture(rng, 4.5)
