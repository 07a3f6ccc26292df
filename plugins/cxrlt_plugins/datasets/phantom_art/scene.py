"""The layers a picture is made of, and the geometry findings ask for.

Attenuation adds up along a ray, so a scene is a sum: body - air + marks + bone + soft. Air is lost where something
solid or fluid takes its place, marks (vessels) vanish where a lung has collapsed, metal lies in ``soft``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .body import Body
from .canvas import AXIS, Array, Canvas, Floats, Window


@dataclass(slots=True)
class Scene:
    """Layers (size, size) of one image, and where things are. ``lung`` is coverage in [0, 1], heart included as air."""

    canvas: Canvas
    body: Body
    inside: Array  # coverage of the body
    lung: Array
    heart: Array
    solid: Array  # attenuation of the body without air
    air: Array
    marks: Array
    bone: Array
    soft: Array
    wall: Floats  # lateral: y -> back wall; frontal: y -> half-width of the thorax; on AXIS
    inner: tuple[Floats, Floats]  # y -> border of the mediastinum, right and left; lateral: y -> breastbone, twice
    floor: tuple[Floats, Floats]  # x -> y of the diaphragm, right and left (frontal: of |x|), on AXIS

    def wall_at(self, y: Floats | float) -> Floats:
        """Half-width (frontal) or x of the posterior wall (lateral) at height ``y``."""
        return np.asarray(np.interp(y, AXIS, self.wall))

    def floor_at(self, x: Floats | float, side: int) -> Floats:
        """y of the diaphragm at ``x`` (frontal: |x|); ``side`` -1 right, 1 left."""
        place = x if self.body.lateral else np.abs(x)
        return np.asarray(np.interp(place, AXIS, self.floor[0 if side < 0 else 1]))

    def fill(self, at: Window, mask: Array, share: float = 1.0) -> None:
        """Replace the air under ``mask`` by water: ``share`` 1 is opaque."""
        self.air[at] *= 1.0 - np.clip(mask * share, 0.0, 1.0)

    def add(self, at: Window, mask: Array, amount: float) -> None:
        """Add ``amount`` of attenuation under ``mask``."""
        self.soft[at] += amount * mask

    def attenuation(self) -> Array:
        """The sum of the layers; 0 is bare air, about 0.9 the mediastinum, above 1.2 metal."""
        return (self.solid - self.air + self.marks + self.bone + self.soft) * self.inside
