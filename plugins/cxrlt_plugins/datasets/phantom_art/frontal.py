"""The frontal chest, PA and AP: outline, lungs, heart and great vessels, ribs and shoulder girdle, lung vessels."""

from __future__ import annotations

import numpy as np

from .body import Body
from .canvas import AXIS, Array, Canvas, Floats, smooth
from .scene import Scene

_APEX_X = 4.3  # |x| of the lung apices


def wall_profile(body: Body) -> Floats:
    """Half-width of the thoracic cavity at every height on ``AXIS``; below ``_APEX_X`` above the apices."""
    s = np.clip((AXIS - body.apex) / (13.5 - body.apex), 0.0, 1.0)
    rise = (1.0 - (1.0 - s) ** 2.7) ** 0.62
    narrow = 1.0 - 0.05 * (body.kyphosis > 0.6)
    return np.asarray(_APEX_X + (body.half_width * narrow - _APEX_X) * rise * (0.9 + 0.1 * s))


def medial_profile(body: Body, side: int) -> Floats:
    """|x| of the mediastinal border of one lung at every height: great vessels included, the heart left out."""
    if side < 0:
        ascending = 1.9 * max(body.unfolding - 0.15, 0.0) * np.exp(-(((AXIS + 0.2) / 3.6) ** 4))
        cava = 0.25 * smooth((AXIS + 6.0) / 4.0)
        width = 0.92 * body.mediastinum + cava + ascending
    else:
        arch = np.exp(-((np.abs(AXIS - knob_centre(body)[1]) / (1.2 * body.knob)) ** 3.2))
        trunk = 0.55 * np.exp(-(((AXIS - 1.6) / 1.7) ** 2))
        descending = 0.9 * body.unfolding * np.exp(-(((AXIS - 3.0) / 4.5) ** 4))
        width = 0.82 * body.mediastinum + (1.05 * body.knob - 0.75) * arch + trunk + descending
    s = np.clip((AXIS - body.apex) / 5.0, 0.0, 1.0)
    rounding = 1.0 - (1.0 - (1.0 - s) ** 2.2) ** 0.5
    return np.asarray(width + np.clip(_APEX_X - width, 0.0, None) * rounding)


def knob_centre(body: Body) -> tuple[float, float]:
    """(x, y) of the aortic arch seen end on."""
    return 0.82 * body.mediastinum + 0.05 * body.knob - 0.35, -3.2 - 0.45 * (body.knob - 1.6) - 0.5 * body.unfolding


def heart_profile(body: Body, side: int) -> Floats:
    """|x| of the heart's border at every height: a waist, a convex chamber; it runs on below the diaphragm."""
    m = 0.85 * body.mediastinum
    out, widest = (body.heart_right, body.heart_y) if side < 0 else (body.heart_left, body.heart_y + 2.0)
    start = 1.0 if side < 0 else 0.6
    t = np.clip((AXIS - start) / (widest - start), 0.0, 1.0)
    swell = (1.0 - (1.0 - t) ** 1.8) ** 1.05 * smooth((AXIS - start + 0.3) / 2.5)
    return np.asarray(m + max(out - m, 0.2) * swell * (1.0 - 0.22 * smooth((AXIS - widest) / 4.5)))


def floor_profile(body: Body, side: int) -> Floats:
    """y of the diaphragm at every |x| on ``AXIS`` for one side."""
    dome = body.dome_right if side < 0 else body.dome_left
    x = np.abs(AXIS)
    top = 0.5 * body.half_width
    outward = np.clip((x - top) / (body.half_width - top), 0.0, 1.4)
    inward = np.clip((top - x) / top, 0.0, 1.0)
    reach = max(body.sulcus * (0.35 + 0.65 * body.doming), 1.2) + 0.45 * max(0.0, 10.5 - dome)
    return np.asarray(dome + reach * outward**2.6 + (0.4 + 1.3 * body.doming) * inward**2)


def paint_frontal(canvas: Canvas, body: Body, rng: np.random.Generator) -> Scene:
    """The scene of a body without findings of its own (``body`` may have been reshaped)."""
    wall = wall_profile(body)
    floors = floor_profile(body, -1), floor_profile(body, 1)
    side, across = np.sign(canvas.x), np.abs(canvas.x)
    reach = canvas.along_y(wall)
    inside, solid = _outline(canvas, body, across)
    floor = canvas.along_x(np.where(AXIS < 0, floors[0], floors[1]))
    below = canvas.ramp(canvas.y - floor, 0.35)
    depth = reach - across
    inner = medial_profile(body, -1), medial_profile(body, 1)
    middle = np.where(side < 0, canvas.along_y(inner[0]), canvas.along_y(inner[1]))
    lung = canvas.ramp(depth, 0.3) * canvas.ramp(across - middle, 0.7)
    lung *= canvas.ramp(canvas.y - body.apex, 0.4) * (1.0 - below)
    scene = Scene(
        canvas, body, inside, lung, canvas.zeros(), solid, canvas.zeros(), canvas.zeros(), canvas.zeros(),
        canvas.zeros(), wall, inner, floors,
    )  # fmt: skip
    _heart(scene)
    _air(scene, depth)
    solid += 0.1 * below * canvas.ramp(reach + 1.0 - across, 1.5)
    _abdomen(scene, below)
    _spine(scene, across)
    _trachea(scene, rng)
    _aorta(scene)
    _ribs(scene, (across / reach).astype(np.float32), side)
    _girdle(scene, rng)
    _breasts(scene, below)
    _hila(scene, rng)
    _vessels(scene, rng)
    return scene


def _outline(canvas: Canvas, body: Body, across: Array) -> tuple[Array, Array]:
    """Coverage and attenuation of trunk, shoulders, neck and (AP) arms, as if there were no air."""
    border = body.half_width + body.fat + 15.0 * smooth((-2.0 - AXIS) / 5.0)
    shoulder = body.apex - 5.5 + 5.5 * smooth((np.abs(AXIS) - 4.5) / 17.0)
    trunk = canvas.ramp(canvas.along_y(border) - across, 0.5) * canvas.ramp(canvas.y - canvas.along_x(shoulder), 0.6)
    neck = canvas.ramp(5.6 + 0.25 * body.fat - across, 0.7)
    inside = np.maximum(trunk, neck)
    edge = body.half_width + body.fat
    profile = np.sqrt(np.clip(1.04 - (np.abs(AXIS) / (edge + 0.6)) ** 4, 0.12, 1.0))
    thick = canvas.along_x(0.2 + (0.62 + 0.012 * body.fat) * profile)
    if body.view == "AP":
        arm = canvas.ramp(2.6 - np.abs(across - edge - 3.6), 0.8) * canvas.ramp(canvas.y + 5.0, 3.0)
        inside = np.maximum(inside, arm)
        thick = np.maximum(thick, 0.5 * arm + 0.3 * canvas.ramp(0.9 - np.abs(across - edge - 3.6), 0.5) * arm)
    head = canvas.along_y(0.12 * smooth((body.apex - 4.0 - AXIS) / 5.0))
    return inside, thick - head


def _heart(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    right, left = canvas.along_y(heart_profile(body, -1)), canvas.along_y(heart_profile(body, 1))
    scene.heart += (
        canvas.ramp(left - canvas.x, 0.5) * canvas.ramp(canvas.x + right, 0.5) * canvas.along_y(smooth(AXIS / 2.5))
    )


def _air(scene: Scene, depth: Array) -> None:
    canvas, body = scene.canvas, scene.body
    profile = 1.0 - 0.42 * np.clip(1.0 - depth / 5.5, 0.0, 1.0) ** 2
    base = canvas.along_y(0.5 + 0.04 * smooth((AXIS + 9.0) / 8.0) - 0.05 * smooth((AXIS - 5.0) / 8.0))
    scene.air += (body.lucency * base) * profile * scene.lung
    scene.air *= 1.0 - 0.87 * scene.heart


def _abdomen(scene: Scene, below: Array) -> None:
    canvas, body = scene.canvas, scene.body
    x = 0.48 * body.half_width
    top = float(scene.floor_at(x, 1)) + 0.5
    at, mask = canvas.ellipse(x, top + 0.55 * body.bubble, 1.0 + body.bubble, 0.75 * body.bubble, edge=0.5)
    scene.air[at] += 0.33 * mask * below[at]


def _spine(scene: Scene, across: Array) -> None:
    canvas, body = scene.canvas, scene.body
    off = canvas.x - canvas.along_y(body.scoliosis * np.sin((AXIS + 6.0) / 7.0))
    column = canvas.ramp(1.75 - np.abs(off), 0.7)
    level = 2.0 * np.pi * AXIS / 2.35
    discs = 0.022 * np.cos(level) + 0.012 * np.cos(2.0 * level)
    lit = 0.6 + 0.4 * smooth((-1.0 - AXIS) / 3.0) + 0.2 * smooth((AXIS - 9.0) / 3.0)
    scene.bone += column * canvas.along_y((0.06 + 1.3 * discs) * lit)
    pedicles = np.exp(-(((np.abs(off) - 1.15) / 0.3) ** 2)) + 0.8 * np.exp(-((off / 0.3) ** 2))
    scene.bone += 0.03 * pedicles * canvas.along_y(np.clip(np.cos(level + 1.2), 0.0, 1.0) * lit)


def _trachea(scene: Scene, rng: np.random.Generator) -> None:
    body = scene.body
    lean = 0.5 * body.unfolding + 0.3 * rng.normal()
    t = np.linspace(0.0, 1.0, 12)
    top = body.apex - 6.0
    trachea = np.stack([lean * -np.sin(np.pi * t) * 0.8, top + (0.2 - top) * t], axis=1)
    right = np.stack([-2.7 * t, 0.2 + 2.8 * t], axis=1)
    left = np.stack([3.6 * t, 0.2 + 2.4 * t], axis=1)
    amount = np.stack([0.13 + 0.0 * t, 0.1 - 0.05 * t, 0.1 - 0.05 * t])
    scene.canvas.lines(scene.air, np.stack([trachea, right, left]), np.array([[1.6], [1.1], [1.1]]), amount)


def _aorta(scene: Scene) -> None:
    canvas, body = scene.canvas, scene.body
    x, y = knob_centre(body)
    at, mask = canvas.ellipse(x, y, body.knob, 1.05 * body.knob, edge=0.5)
    scene.soft[at] += 0.045 * mask
    t = np.linspace(0.0, 1.0, 12)
    bulge = (0.3 + 1.5 * body.unfolding) * np.sin(np.pi * t) ** 1.3
    path = np.stack([x + 0.75 * body.knob + bulge - 1.8 * t, y + (12.0 - y) * t], axis=1)
    canvas.lines(scene.soft, path, 1.3, (0.03 + 0.07 * body.unfolding) * np.sin(np.pi * np.clip(t + 0.12, 0.0, 1.0)))


def _bands() -> Array:
    """Attenuation across a rib: a cortical edge on both sides of a lighter middle, over one rib spacing."""
    t = np.arange(512) / 512.0
    shape = smooth((0.23 - np.abs(t - 0.5)) / 0.12 + 0.5)
    edge = np.exp(-0.5 * ((np.abs(t - 0.5) - 0.19) / 0.04) ** 2) * (1.0 + 0.5 * np.sign(t - 0.5))
    return np.asarray(0.7 * shape + 0.4 * edge, dtype=np.float32)


_RIB = _bands()


def _ribs(scene: Scene, u: Array, side: Array) -> None:
    """Posterior ribs fall gently to the side, anterior ribs steeply to the middle: periodic bands in (u, y)."""
    canvas, body = scene.canvas, scene.body
    y = canvas.y - np.float32(body.apex)
    for which, break_u, break_y, step in body.rib_steps:
        near = np.exp(-(((canvas.y - break_y) / (0.75 * body.rib_spacing)) ** 2))
        y = y - step * near * canvas.ramp(u - break_u, 0.02) * (side == which)
    t = np.clip(u, 0.0, 1.15)
    fall = body.rib_slope * (4.4 * t**2.4 - 1.1 * t) + 0.06 * y * t
    phase = (y - fall) * np.float32(1.0 / body.rib_spacing) + np.float32(body.rib_phase)
    chest = canvas.ramp(1.03 - u, 0.05) * canvas.along_y(
        smooth((AXIS - body.apex + 0.8) / 1.5) * (1.0 - 0.75 * smooth((AXIS - body.dome_right + 0.5) / 1.5))
    )
    scene.bone += 0.088 * chest * canvas.ramp(u - 0.12, 0.1) * _RIB[(phase * 512.0).astype(np.int32) & 511]
    rise = 4.4 * body.rib_slope + (1.0 - t) * (5.2 + 0.8 * body.rib_slope)
    phase = (y - rise) * np.float32(0.92 / body.rib_spacing) + np.float32(body.rib_phase + 0.3)
    front = 0.036 * chest * smooth((u - 0.33) / 0.35) * smooth((y - 3.5) / 3.0)
    scene.bone += front * _RIB[(phase * 512.0).astype(np.int32) & 511]


def _girdle(scene: Scene, rng: np.random.Generator) -> None:
    """Collar bones, shoulder blades, upper arms."""
    canvas, body = scene.canvas, scene.body
    t = np.linspace(0.0, 1.0, 14)
    rise = rng.uniform(0.6, 2.4) - (0.8 if body.view == "AP" else 0.0)
    arm, tip = body.half_width + 4.6, body.half_width + 1.5 - 2.6 * body.scapula
    hand = 6.0 if body.view == "AP" else -1.0
    bones = []
    for sign in (-1.0, 1.0):
        y = body.apex + 1.6 - rise * t + 0.5 * np.sin(2.0 * np.pi * t) + 0.25 * rng.normal()
        collar = np.stack([sign * (1.6 + 14.0 * t), y], axis=1)
        edge = np.stack([sign * (tip + 1.8 * (2.0 * t - 1.0) ** 2), -8.0 + 12.0 * t], axis=1)
        humerus = np.stack([sign * (arm + 0.3 + 2.1 * t), -8.0 + (8.0 + hand) * t], axis=1)
        bones += [collar, collar - np.array([0.0, 0.45]), edge, humerus]
        at, mask = canvas.ellipse(sign * (tip + 3.0), -3.0, 3.2, 6.5, angle=-sign * 0.12, edge=1.6)
        scene.bone[at] += 0.05 * mask
        at, mask = canvas.ellipse(sign * arm, -8.4, 2.3, 2.5, angle=0.4 * sign, edge=1.0)
        scene.bone[at] += 0.11 * mask
    width = np.tile([1.15, 0.25, 0.45, 2.4], 2)[:, None]
    canvas.lines(scene.bone, np.stack(bones), width, np.tile([0.11, 0.06, 0.05, 0.11], 2)[:, None])


def _breasts(scene: Scene, below: Array) -> None:
    canvas, body = scene.canvas, scene.body
    if body.breast <= 0.0:
        return
    size = 4.6 + 2.0 * body.breast
    for sign in (-1.0, 1.0):
        at, mask = canvas.ellipse(sign * 0.62 * body.half_width, body.breast_y, size, 0.85 * size, edge=1.0)
        lower = 0.35 + 0.65 * smooth((canvas.y[at] - body.breast_y + size) / (1.8 * size))
        scene.solid[at] += 0.12 * body.breast * mask * lower * (1.0 - 0.85 * below[at])


def _hila(scene: Scene, rng: np.random.Generator) -> None:
    size = scene.body.hilum
    for side, x, y in ((-1, 3.6, 1.4), (1, 3.9, 0.4)):
        for dx, dy, rx, ry in ((0.1, -0.3, 1.0, 1.5), (0.5, 1.6, 0.65, 1.3)):
            jitter = 0.2 * rng.normal(size=2)
            where = side * (x + dx * size + jitter[0]), y + dy * size + jitter[1]
            at, mask = scene.canvas.ellipse(*where, rx * size**1.2, ry * size, edge=0.7)
            scene.marks[at] += (0.11 + 0.03 * (size - 1.0)) * mask * scene.lung[at]


def branches(
    root: Floats, angles: Floats, lengths: Floats, widths: Floats, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Curved vessels from their roots, (K, 2) or (2,), and two generations of side branches, (7 K) in all.

    Returns:
        (7 K, 9, 2) points in cm and (7 K, 9) widths in cm; row i belongs to root i modulo K.
    """
    t = np.linspace(0.0, 1.0, 9)
    paths, thick = [], []
    start = np.broadcast_to(root, (len(angles), 2))
    for generation in range(3):
        bend = angles[:, None] + rng.normal(0.0, 0.5, (len(angles), 1)) * (t - 0.3)
        step = np.stack([np.cos(bend), np.sin(bend)], axis=-1) * (lengths / 8.0)[:, None, None]
        points = start[:, None, :] + np.cumsum(step, axis=1) - step[:, :1]
        paths.append(points)
        thick.append(widths[:, None] * (1.0 - 0.6 * t))
        if generation < 2:
            at = rng.integers(2, 7, (2, len(angles)))
            start = np.concatenate([points[np.arange(len(angles)), k] for k in at])
            turn = rng.uniform(0.3, 0.75, len(angles))
            widths = np.concatenate([widths * (1.0 - 0.6 * t[k]) * 0.75 for k in at])
            angles = np.concatenate([angles + turn, angles - turn])
            lengths = np.concatenate([lengths * (1.0 - t[k]) * 1.05 + 0.6 for k in at])
    return np.concatenate(paths), np.concatenate(thick)


def _vessels(scene: Scene, rng: np.random.Generator) -> None:
    body, layer = scene.body, scene.canvas.zeros()
    side = np.repeat([-1.0, 1.0], 7)
    angles = np.tile(np.linspace(-1.25, 1.35, 7), 2) + rng.normal(0.0, 0.12, 14)
    lengths = rng.uniform(7.0, 10.5, 14) * (0.8 + 0.25 * np.sin(np.clip(angles, 0.0, 1.5)))
    thick = (0.42 + 0.2 * np.clip(angles, -0.3, 1.0)) * rng.uniform(0.8, 1.2, 14) * body.hilum**0.5
    root = np.stack([np.full(14, 3.3), np.where(side < 0, 1.4, 0.5)], axis=1)
    points, widths = branches(root, angles, lengths, thick, rng)
    points[:, :, 0] *= np.tile(side, 7)[:, None]  # both sides are drawn as the left, seven branches to a root
    scene.canvas.lines(layer, points, widths, 0.085 * body.markings)
    layer += 0.014 * body.markings * scene.canvas.texture(rng, 0.9)
    scene.marks += layer * scene.lung * (1.0 - 0.6 * scene.heart)
    scene.solid += 0.012 * scene.canvas.texture(rng, 4.5)
