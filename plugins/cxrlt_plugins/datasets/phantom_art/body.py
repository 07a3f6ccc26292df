"""A body: its measures in centimetres, who has which, and how findings change them.

Origin: the carina, x to the right of the picture (the patient's left in a frontal image, the back in a lateral one),
y downwards. Measures of an adult thorax: inner half-width 12 to 15 cm, 20 to 25 cm from apex to dome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Body:
    """The measures of one patient at one examination; findings change them before anything is painted."""

    sex: str = "F"
    age: float = 60.0
    view: str = "PA"
    half_width: float = 13.0  # inner, at the base
    apex: float = -10.0  # y of the lung apices
    dome_right: float = 10.5  # y of the diaphragm
    dome_left: float = 11.4
    sulcus: float = 4.0  # how far the costophrenic angles reach below the domes
    doming: float = 1.0  # 1 domed, 0 flat
    fat: float = 3.0  # soft tissue outside the ribs, cm
    breast: float = 0.0  # 0 none, 1 dense shadow
    breast_y: float = 7.0
    heart_right: float = 3.7  # border from the midline
    heart_left: float = 8.2
    heart_y: float = 6.5
    knob: float = 1.7  # radius of the aortic arch
    unfolding: float = 0.0  # 0 straight, 1 tortuous aorta
    hilum: float = 1.0  # size of hilar vessels
    mediastinum: float = 2.6  # half-width above the heart
    rib_spacing: float = 2.45
    rib_slope: float = 1.0
    rib_phase: float = 0.0
    lucency: float = 1.0  # air in the lungs
    markings: float = 1.0  # vessels
    thorax_depth: float = 10.5  # half depth from sternum to spine, lateral
    kyphosis: float = 0.25  # bend of the thoracic spine, 0 to 1.6
    scoliosis: float = 0.0
    bubble: float = 1.5  # gas in the stomach
    scapula: float = 1.0  # how far the shoulder blades overlap the lungs
    bad_side: int = 1  # where one-sided findings prefer to be: -1 right, 1 left
    rib_steps: list[tuple[int, float, float, float]] = field(default_factory=list)  # side, u, y, step

    @property
    def lateral(self) -> bool:
        return self.view == "lateral"


def make_body(view: str, sex: str, age: float, patient: np.random.Generator, study: np.random.Generator) -> Body:
    """A body without findings: build from ``patient``, breath and posture from ``study``."""
    male = sex == "M"
    build, habitus, tall = patient.normal(), patient.normal(), patient.normal()
    old = np.clip((age - 45.0) / 45.0, 0.0, 1.0)
    breath = float(np.clip(study.normal(0.0, 0.95), -2.0, 1.7)) - (1.2 if view == "AP" else 0.0)
    width = (13.6 if male else 12.4) + 0.6 * build
    dome = 10.6 + 0.5 * tall + 0.7 * breath
    fat = float(np.clip(3.0 + 1.3 * habitus, 1.2, 6.5))
    ratio = patient.normal(0.447, 0.026) + 0.012 * old + (0.03 if view == "AP" else 0.0) - 0.006 * breath
    heart = float(np.clip(ratio, 0.36, 0.525 if view == "AP" else 0.505)) * 2.0 * width
    right = heart * patient.uniform(0.29, 0.35)
    raised = float(np.clip(patient.normal(0.9, 0.5), -0.3, 2.1))  # the right dome above the left
    body = Body(
        sex=sex, age=age, view=view, half_width=width, apex=-10.3 - 0.3 * tall, fat=fat,
        dome_right=dome, dome_left=dome + raised, heart_right=right, heart_left=heart - right,
        sulcus=patient.uniform(3.4, 4.6), heart_y=6.3 + 0.3 * breath, rib_spacing=patient.uniform(2.25, 2.6),
    )  # fmt: skip
    body.breast = 0.0 if male else float(patient.uniform(0.25, 1.0))
    body.breast_y = patient.uniform(6.0, 9.5)
    body.knob = 1.45 + 0.35 * old + 0.12 * patient.normal()
    body.unfolding = float(np.clip(0.25 * old + 0.06 * patient.normal(), 0.0, 0.42))
    body.hilum = float(np.clip(1.0 + 0.1 * patient.normal(), 0.8, 1.25))
    body.mediastinum = float(np.clip(2.5 + 0.25 * habitus + (0.5 if view == "AP" else 0.0), 2.0, 3.8))
    body.rib_slope = float(np.clip(1.0 + 0.18 * patient.normal() - (0.2 if view == "AP" else 0.0), 0.5, 1.5))
    body.rib_phase = patient.uniform(0.0, 1.0)
    body.lucency = float(np.clip(1.0 + 0.06 * patient.normal() + 0.05 * breath, 0.8, 1.15))
    body.markings = float(np.clip(1.0 + 0.15 * patient.normal() - 0.08 * breath, 0.6, 1.5))
    body.thorax_depth = float(np.clip(10.0 + (0.8 if male else 0.0) + 0.6 * build + 0.25 * habitus, 8.0, 13.0))
    body.kyphosis = float(np.clip(0.22 + 0.15 * old + 0.07 * patient.normal(), 0.05, 0.5))
    body.scoliosis = 0.5 * patient.normal() * (0.4 + old)
    body.bubble = float(study.uniform(0.4, 2.4))
    body.bad_side = -1 if patient.random() < 0.52 else 1
    body.scapula = float(np.clip(study.normal(0.25, 0.25) + (0.8 if view == "AP" else 0.0), 0.0, 1.4))
    return body


def _cardiomegaly(body: Body, severity: float, rng: np.random.Generator) -> None:
    ratio = 0.52 + 0.16 * severity + (0.02 if body.view == "AP" else 0.0)
    total = max(ratio * 2.0 * body.half_width, body.heart_left + body.heart_right + 1.0)
    share = rng.uniform(0.27, 0.37)
    body.heart_right, body.heart_left = total * share, total * (1.0 - share)
    body.hilum *= 1.0 + 0.1 * severity


def _hyperinflated(body: Body, severity: float, rng: np.random.Generator) -> None:
    drop = 0.9 + 2.3 * severity
    body.dome_right, body.dome_left = body.dome_right + drop, body.dome_left + drop * rng.uniform(0.85, 1.0)
    body.doming = 0.62 - 0.5 * severity
    body.heart_right, body.heart_left = body.heart_right * (1 - 0.15 * severity), body.heart_left * (1 - 0.2 * severity)
    body.lucency *= 1.06 + 0.12 * severity
    body.markings *= 1.0 - 0.15 * severity
    body.thorax_depth *= 1.05 + 0.14 * severity
    body.rib_slope *= 0.8
    body.apex -= 0.5 * severity


def _hypoexpansion(body: Body, severity: float, rng: np.random.Generator) -> None:
    rise = 1.6 + 3.2 * severity
    body.dome_right, body.dome_left = body.dome_right - rise, body.dome_left - rise * rng.uniform(0.9, 1.1)
    body.heart_y -= 0.45 * rise
    body.heart_left *= 1.04 + 0.05 * severity
    body.heart_right *= 1.04 + 0.05 * severity
    body.lucency *= 0.92 - 0.1 * severity
    body.markings *= 1.08 + 0.4 * severity
    body.mediastinum *= 1.1


def _hemidiaphragm(body: Body, severity: float, rng: np.random.Generator) -> None:
    rise = 1.8 + 3.9 * severity
    if rng.random() < 0.42 or body.bad_side < 0:
        body.dome_right -= rise
    else:
        body.dome_left -= rise + 0.9
        body.bubble = max(body.bubble, rng.uniform(1.2, 3.0))


def _kyphosis(body: Body, severity: float, rng: np.random.Generator) -> None:
    body.kyphosis = 0.48 + 1.05 * severity
    body.apex += 0.3 + 1.8 * severity
    body.rib_slope *= 1.1 + 0.6 * severity
    body.rib_spacing *= 0.95 - 0.1 * severity
    body.thorax_depth *= 1.02 + 0.12 * severity
    body.mediastinum *= 1.02 + 0.12 * severity
    body.heart_y -= 0.5 * severity


def _aorta(body: Body, severity: float, rng: np.random.Generator) -> None:
    body.unfolding = max(body.unfolding, 0.38 + 0.7 * severity)
    body.knob *= 1.07 + 0.38 * severity


def _hila(body: Body, severity: float, rng: np.random.Generator) -> None:
    body.hilum = max(body.hilum, 1.0) * (1.25 + 0.8 * severity)


def _emphysema(body: Body, severity: float, rng: np.random.Generator) -> None:
    body.lucency *= 1.02 + 0.12 * severity
    body.markings *= 0.9 - 0.45 * severity
    body.doming = min(body.doming, 0.85 - 0.45 * severity)
    body.dome_right += 0.8 * severity
    body.dome_left += 0.8 * severity


def _fracture(body: Body, severity: float, rng: np.random.Generator) -> None:
    side, u = body.bad_side, rng.uniform(0.68, 0.93)
    first = rng.uniform(-2.0, 7.5)
    for number in range(1 + int(rng.random() < 0.6) + int(rng.random() < 0.35)):
        step = (0.5 + 0.7 * severity) * (-1.0, 1.0)[rng.random() < 0.5]
        body.rib_steps.append((side, u + rng.uniform(-0.04, 0.04), first + number * body.rib_spacing, step))


_CHANGES: dict[str, Callable[[Body, float, np.random.Generator], None]] = {
    "cardiomegaly": _cardiomegaly,
    "hyperinflated lung": _hyperinflated,
    "hypoexpansion": _hypoexpansion,
    "hemidiaphragm elevation": _hemidiaphragm,
    "Kyphosis": _kyphosis,
    "aortic elongation": _aorta,
    "vascular hilar enlargement": _hila,
    "Emphysema": _emphysema,
    "fracture": _fracture,
}


def reshape(body: Body, findings: Mapping[str, float], rngs: Mapping[str, np.random.Generator]) -> None:
    """Change ``body`` by the findings that alter anatomy; severities lie in [0, 1]."""
    for name, change in _CHANGES.items():
        if name in findings:
            change(body, findings[name], rngs[name])
    highest = max(body.apex + 11.0, 2.5)
    body.dome_right, body.dome_left = max(body.dome_right, highest), max(body.dome_left, highest)
    body.heart_left = min(body.heart_left, 0.93 * body.half_width)
