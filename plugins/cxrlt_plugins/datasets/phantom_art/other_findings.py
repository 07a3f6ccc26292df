"""Devices, bones and great vessels: metal, tubes, calcium."""

from __future__ import annotations

import numpy as np

from .canvas import AXIS, smooth
from .frontal import knob_centre
from .lateral import aortic_path, spine_profile, sternum_profile
from .place import a_side, arc, through
from .scene import Scene


def devices(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A pacemaker, tubes, or leads on the skin; more of them in a severe case."""
    choices = [_pacemaker, _tracheal_tube, _gastric_tube, _skin_leads]
    share = np.array([0.4, 0.2, 0.22, 0.18]) if scene.body.view != "AP" else np.array([0.25, 0.3, 0.25, 0.2])
    order = rng.choice(4, size=1 + int(rng.random() < 0.5 * severity), replace=False, p=share)
    for kind in order:
        choices[int(kind)](scene, severity, rng)


def _pacemaker(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    canvas, body = scene.canvas, scene.body
    side, size = a_side(scene, rng, 0.25), 1.9 + 0.7 * severity
    y, out = body.apex + rng.uniform(3.2, 5.2), rng.uniform(8.0, 10.0)
    x = float(np.interp(y, AXIS, sternum_profile(body))) - 1.5 if body.lateral else side * out
    _box(scene, (x, y), (0.35 * size if body.lateral else size, 0.8 * size), rng.normal(0.0, 0.35))
    if body.lateral:
        tips = [(-0.62 * body.thorax_depth, body.heart_y + 2.6)]
        route = [(x, y), (x + 4.5, y - 1.0), (-0.5, -3.0), (-1.0, 3.0)]
    else:
        tips = [(0.5 * body.heart_left, body.heart_y + 3.0), (-1.2, body.heart_y - 1.5)]
        route = [(x, y), (side * 5.0, body.apex + 1.6), (-0.8 if side > 0 else -2.4, -5.5), (-2.0, 1.5)]
    for tip in tips[: 1 + int(rng.random() < 0.6)]:
        canvas.lines(scene.soft, through([*route, (route[-1][0], body.heart_y - 0.5), tip]), 0.2, 0.3 + 0.12 * severity)


def _box(scene: Scene, centre: tuple[float, float], half_size: tuple[float, float], turn: float) -> None:
    """A pulse generator: a rounded metal box, its battery half denser."""
    at = scene.canvas.window(*centre, 1.5 * max(half_size))
    dx, dy = scene.canvas.x[at] - centre[0], scene.canvas.y[at] - centre[1]
    u, v = np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx
    corner = 0.45 * min(half_size)
    outside = np.hypot(
        np.maximum(np.abs(u) - half_size[0] + corner, 0.0), np.maximum(np.abs(v) - half_size[1] + corner, 0.0)
    )
    mask = scene.canvas.ramp(corner - outside, 0.2)
    scene.add(at, mask * (0.36 + 0.2 * scene.canvas.ramp(v + 0.15 * half_size[1], 0.2)), 1.0)


def _tracheal_tube(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    top, tip = scene.body.apex - 7.0, rng.uniform(-5.0, -1.5)
    x = np.array([0.3, 1.4]) if scene.body.lateral else np.array([0.1, 0.0])
    middle = np.stack([np.linspace(x[0], x[1], 12), np.linspace(top, tip, 12)], axis=1)
    pair = np.stack([middle + np.array([0.38, 0.0]), middle - np.array([0.38, 0.0])])
    scene.canvas.lines(scene.soft, pair, 0.2, 0.26 + 0.14 * severity)
    scene.canvas.lines(scene.soft, middle + np.array([0.3, 0.0]), 0.12, 0.18)


def _gastric_tube(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    body = scene.body
    low = float(scene.floor_at(3.0, 1))
    if body.lateral:
        path = through([(0.8, body.apex - 7.0), (2.4, 0.0), (3.4, 7.0), (1.0, low + 2.0), (-2.5, low + 3.5)], 50)
    else:
        path = through([(0.3, body.apex - 7.0), (0.5, -1.0), (0.9, 7.0), (2.2, low + 0.8), (5.5, low + 3.0)], 50)
    scene.canvas.lines(scene.soft, path + 0.1 * rng.normal(), 0.26, 0.28 + 0.14 * severity)


def _skin_leads(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    canvas, body = scene.canvas, scene.body
    for side in (-1, 1, 1):
        x, y = side * rng.uniform(6.0, 12.0), rng.uniform(-7.0, 9.0)
        x = -0.8 * body.thorax_depth * rng.random() if body.lateral else x
        at, mask = canvas.ellipse(x, y, 0.55, 0.55, edge=0.2)
        scene.add(at, mask, 0.3 + 0.1 * severity)
        bend = (x * 0.6 + 2.0 * rng.normal(), y + rng.uniform(2.0, 6.0))
        out = (side * rng.uniform(8.0, 20.0), 19.0)
        canvas.lines(scene.soft, through([(x, y), bend, out], 34), 0.2, 0.17 + 0.1 * severity)


def central_line(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A thin line from neck, collar bone or arm to the superior vena cava or right atrium."""
    body, route = scene.body, rng.random()
    tip = (-2.2 + 0.2 * rng.normal(), rng.uniform(0.5, 4.5))
    cava = (-2.5, -3.2)
    y = body.apex
    if body.lateral:
        path = [(-1.5, y - 5.0), (-1.0, y + 2.0), (-0.8, -3.5), (-1.0, tip[1])]
    elif route < 0.4:
        path = [(-3.4, y - 5.0), (-3.0, y + 1.0), cava, tip]
    elif route < 0.7:
        path = [(-9.5, y + 2.6), (-6.0, y + 1.2), (-3.2, y + 2.6), cava, tip]
    elif route < 0.85:
        path = [(9.5, y + 2.6), (6.0, y + 1.2), (2.6, y + 3.4), (-1.4, -4.6), (-2.4, -2.0), tip]
    else:
        path = [(-16.0, -1.0), (-12.0, y + 4.0), (-6.0, y + 1.6), (-3.2, y + 2.8), cava, tip]
    scene.canvas.lines(scene.soft, through(path, 48), 0.28 + 0.06 * severity, 0.28 + 0.18 * severity)
    if 0.4 <= route < 0.85 and rng.random() < 0.35:  # an implanted port
        x = -0.85 * body.thorax_depth if body.lateral else path[0][0]
        at, mask = scene.canvas.ellipse(x, y + 4.2, 1.0, 0.9, edge=0.2)
        scene.add(at, mask, 0.3 + 0.15 * severity)


def sternotomy(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Four to seven wire loops down the breastbone, sometimes with bypass clips."""
    canvas, body = scene.canvas, scene.body
    count = 4 + int(3.99 * severity)
    y = np.linspace(body.apex + 3.5, body.apex + 3.5 + 2.1 * count, count) + 0.2 * rng.normal(size=count)
    for level in y:
        off = 0.25 * rng.normal()
        x = float(np.interp(level, AXIS, sternum_profile(body))) - 0.6 if body.lateral else off
        rx, ry = (0.4, 0.65) if body.lateral else (0.9, 0.5)
        loop = arc((x, level), (rx, ry * rng.uniform(0.7, 1.2)), 0.4, 5.9, 14)
        canvas.lines(scene.soft, loop, 0.2, 0.28 + 0.4 * severity)
    for _ in range(int(rng.random() < 0.35) * 4):
        at, mask = canvas.ellipse(
            rng.uniform(1.0, 4.5) * (-1.0 if body.lateral else 1.0), rng.uniform(-1.0, 5.0), 0.22, 0.12
        )
        scene.add(at, mask, 0.4)


def atheroma(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Calcium along the rim of the aortic arch."""
    body = scene.body
    if body.lateral:
        path = aortic_path(body)[2:15] + np.array([0.0, -0.55 * body.knob])
    else:
        x, y = knob_centre(body)
        stop = rng.uniform(0.0, 0.9)
        path = arc((x, y), (0.95 * body.knob, 1.05 * body.knob), -2.3 - 0.5 * severity, stop, 22)
    calcium = (0.36 + 0.4 * severity) * (0.65 + 0.35 * np.cos(rng.uniform(0.0, 6.0) + 2.0 * np.arange(len(path))))
    scene.canvas.lines(scene.soft, path, 0.33 + 0.12 * severity, calcium)


def osteophytes(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """Beaks and sclerosis at the borders of neighbouring vertebral bodies."""
    canvas, body = scene.canvas, scene.body
    levels = (np.arange(-3, 5) + 0.5) * 2.35
    strong = rng.random(len(levels)) < 0.45 + 0.5 * severity
    for y in levels[strong]:
        reach = (0.45 + 0.65 * severity) * rng.uniform(0.7, 1.2)
        height = 0.17 + 0.19 * severity
        if body.lateral:
            edge = float(np.interp(y, AXIS, spine_profile(body))) - 1.4
            beaks = [[(edge + 0.9, y - 0.3), (edge, y - 0.2), (edge - reach, y)]]
            beaks.append([(edge + 0.9, y + 0.3), (edge, y + 0.25), (edge - reach, y + 0.05)])
            plate = [(edge, y), (edge + 2.8, y)]
        else:
            x = body.scoliosis * float(np.sin((y + 6.0) / 7.0))
            beaks = [[(x - 1.2, y), (x - 1.9, y), (x - 2.1 - reach, y - 0.25)]]
            if rng.random() < 0.5:
                beaks.append([(x + 1.2, y), (x + 1.9, y), (x + 2.1 + 0.6 * reach, y - 0.25)])
            plate = [(x - 1.8, y), (x + 1.3, y)]
        for beak in beaks:
            canvas.lines(scene.bone, through(beak, 10), np.linspace(0.6, 0.3, 10), height)
        canvas.lines(scene.bone, np.array(plate), 0.3, 0.45 * height)


def callus(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """The step of a broken rib is part of the body; here its gap and callus."""
    canvas, body = scene.canvas, scene.body
    for side, u, y, _ in body.rib_steps:
        x = float(scene.wall_at(y))
        if body.lateral:
            at, mask = canvas.ellipse(x - 0.6 - 6.0 * (1.0 - u), y, 0.8, 0.55, edge=0.5)
        else:
            at, mask = canvas.ellipse(side * u * x, y, 0.85, 0.75, edge=0.8)
        scene.bone[at] += (0.12 + 0.2 * severity) * mask
        if rng.random() < 0.5:
            at, mask = canvas.ellipse(side * u * x if not body.lateral else x - 1.0, y, 0.12, 0.6, angle=0.4, edge=0.2)
            scene.bone[at] -= (0.06 + 0.05 * severity) * mask


def hump(scene: Scene, severity: float, rng: np.random.Generator) -> None:
    """A bent spine seen from the front: chin and neck over the apices, crowded dense upper vertebrae."""
    canvas, body = scene.canvas, scene.body
    if body.lateral:
        return
    lean = 0.6 * rng.normal()
    chin = body.apex - 0.4 + 1.6 * severity - 3.0 * ((AXIS - lean) / 5.5) ** 2
    jaw = canvas.ramp(canvas.along_x(chin) - canvas.y, 0.9) * canvas.ramp(5.6 - np.abs(canvas.x - lean), 1.5)
    scene.soft += (0.04 + 0.12 * severity) * jaw
    dense = smooth((AXIS - body.apex) / 3.0) * smooth((3.0 - AXIS) / 5.0)
    scene.bone += (0.02 + 0.09 * severity) * canvas.along_y(dense) * canvas.ramp(2.3 - np.abs(canvas.x), 0.8)


OTHER = {
    "Support Devices": devices,
    "central venous catheter": central_line,
    "sternotomy": sternotomy,
    "aortic atheromatosis": atheroma,
    "vertebral degenerative changes": osteophytes,
    "fracture": callus,
    "Kyphosis": hump,
}
