"""One picture from one case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .body import make_body, reshape
from .canvas import Canvas
from .exposure import expose
from .frontal import paint_frontal
from .lateral import paint_lateral
from .lung_findings import LUNG
from .other_findings import OTHER
from .pleura_findings import PLEURA
from .scene import Scene
from .vocabulary import FINDINGS, LASTING

_PAINTERS = {**LUNG, **PLEURA, **OTHER}
_ORDER = {name: number for number, name in enumerate(FINDINGS)}


@dataclass(frozen=True, slots=True)
class Case:
    """What one picture shows. ``findings`` maps names to severities in [0, 1]; severity 0 is the faintest."""

    seed: int
    index: int
    patient: int
    study: int
    view: str
    sex: str
    age: float
    findings: Mapping[str, float]


def paint(case: Case, size: int) -> Scene:
    """The scene of a case: anatomy, then findings. Each draws from a stream of its own, so one never moves another."""
    person = np.random.default_rng((case.seed, 11, case.patient))
    study = np.random.default_rng((case.seed, 12, case.patient, case.study))
    picture = np.random.default_rng((case.seed, 13, case.index))
    body = make_body(case.view, case.sex, case.age, person, study)
    reshape(body, case.findings, {name: _stream(case, name, 0) for name in case.findings})
    angle = picture.normal(0.0, 0.045 if case.view == "AP" else 0.022)
    centre = (picture.normal(0.0, 0.6), 0.9 + picture.normal(0.0, 0.6))
    canvas = Canvas(size, picture.uniform(16.2, 19.0), angle, centre)
    scene = (paint_lateral if body.lateral else paint_frontal)(canvas, body, picture)
    for name in sorted(case.findings, key=_ORDER.__getitem__):
        if name in _PAINTERS:
            _PAINTERS[name](scene, case.findings[name], _stream(case, name, 1))
    return scene


def render(case: Case, size: int) -> npt.NDArray[np.uint8]:
    """The picture of a case, uint8 (size, size)."""
    scene = paint(case, size)
    return expose(scene.attenuation(), scene.canvas, case.view, np.random.default_rng((case.seed, 14, case.index)))


def _stream(case: Case, name: str, use: int) -> np.random.Generator:
    """Random numbers of a finding: of the patient where it lasts, else of the study."""
    study = -1 if name in LASTING else case.study
    return np.random.default_rng((case.seed, 15, case.patient, study + 1, _ORDER[name], use))
