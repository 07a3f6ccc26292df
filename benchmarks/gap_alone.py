"""Is each component of ``evaluate --gap`` found where it is the only one? Simulated scores, whose truth is known.

One JSON line a case: macro figures of dev and of what is expected, less those of test, the mean change by component,
and how often the 95 % prediction interval held test. No network, no files::

    python benchmarks/gap_alone.py [--worlds 60] [--only NAME ...]

Ten classes are in 3 to 30 % of the images. A positive scores 1.7 above a negative, both with a standard deviation of 1;
two images of a patient are alike.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.decisions import Decisions, cross_fitted, fit_decisions
from cxrlt_cli.gap import COMPONENTS, FIGURES, Decided, Dev, Judged, Target, gap, point
from cxrlt_cli.metrics import average_precision, mean_defined

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]
#: Dev, the target, and what the target shows: its labels, scores, posteriors and decisions.
World = tuple[Dev, Target, Judged]

SHARES = np.geomspace(0.3, 0.03, 10)
CLASSES = tuple("abcdefghij")
RISE = 1.7


def decided(scores: Array) -> Decided:
    """Posteriors and decisions of a fixed calibration and threshold."""
    posteriors = 1 / (1 + np.exp(2.5 - scores))
    return Decided(posteriors, posteriors >= 0.4)


def drawn(rng: np.random.Generator, patients: int, shares: Array = SHARES, images: int = 2) -> tuple[Labels, Array]:
    """Labels and scores of the images of some patients."""
    truth = np.repeat(rng.random((patients, 10)) < shares, images, axis=0)
    alike = np.repeat(rng.normal(size=(patients, 10)), images, axis=0)
    return truth.astype(np.int8), RISE * truth + 0.8 * rng.normal(size=truth.shape) + 0.6 * alike


def dev_of(labels: Labels, scores: Array, images: int = 2, **known: Any) -> Dev:
    """Dev with the fixed decisions."""
    names = [f"p{row // images}" for row in range(len(labels))]
    return Dev(CLASSES, labels, scores, names, decided(scores), decided(scores), **known)


def shown(labels: Labels, scores: Array) -> Judged:
    """What a target shows with the fixed decisions."""
    return Judged(labels, scores, *decided(scores))


# -- worlds --------------------------------------------------------------------------------------------------------


def nothing(rng: np.random.Generator) -> World:
    """Dev and test of one kind, 500 and 1,000 images."""
    dev, (labels, scores) = drawn(rng, 250), drawn(rng, 500)
    return dev_of(*dev), Target(len(labels)), shown(labels, scores)


def prevalence(rng: np.random.Generator) -> World:
    """Prevalences are 0.5 to 2.5 times dev's."""
    dev, (labels, scores) = drawn(rng, 250), drawn(rng, 500, np.clip(SHARES * rng.uniform(0.5, 2.5, 10), 0, 0.5))
    return dev_of(*dev), Target(len(labels), (labels == 1).mean(axis=0)), shown(labels, scores)


def noise(rng: np.random.Generator) -> World:
    """Reports miss a quarter of the findings, and tell one in twenty of those that are not there."""
    (truth, scores), (labels, later) = drawn(rng, 250), drawn(rng, 500)
    draw = np.repeat(rng.random((250, 10)), 2, axis=0)
    report = np.where(truth == 1, draw > 0.25, draw < 0.05).astype(np.int8)
    return dev_of(report, scores, exact=truth), Target(len(labels), (labels == 1).mean(axis=0)), shown(labels, later)


def noise_some(rng: np.random.Generator) -> World:
    """The same, with exact labels of the first 30 % of the images."""
    dev, target, real = noise(rng)
    return _without(dev, np.arange(len(dev.labels))[:, None] < 0.3 * len(dev.labels)), target, real


def noise_picked(rng: np.random.Generator) -> World:
    """The same, with exact labels where a finding is reported, and of 15 % of the others."""
    dev, target, real = noise(rng)
    return _without(dev, (dev.labels == 1) | (rng.random(dev.labels.shape) < 0.15)), target, real


def _without(dev: Dev, kept: npt.NDArray[np.bool_]) -> Dev:
    assert dev.exact is not None
    return replace(dev, exact=np.where(kept, dev.exact, -1).astype(np.int8))


def seen(rng: np.random.Generator) -> World:
    """Half of dev is of patients in training, whose findings are known better."""
    (truth, scores), (labels, later) = drawn(rng, 400), drawn(rng, 800)
    unseen = np.arange(len(truth)) >= len(truth) // 2
    scores = scores + 1.5 * truth * ~unseen[:, None]
    return dev_of(truth, scores, unseen=unseen), Target(len(labels)), shown(labels, later)


def views(here: float, there: float) -> Callable[[np.random.Generator], World]:
    """A view in which findings are harder has other shares."""

    def side(rng: np.random.Generator, patients: int, share: float) -> tuple[npt.NDArray[np.str_], Labels, Array]:
        truth, scores = drawn(rng, patients)
        hard = np.repeat(rng.random(patients) < share, 2)
        return np.where(hard, "AP", "PA"), truth, scores - 0.8 * truth * hard[:, None]

    def world(rng: np.random.Generator) -> World:
        (view, truth, scores), (further, labels, later) = side(rng, 400, here), side(rng, 800, there)
        shares = {name: float((further == name).mean()) for name in ("AP", "PA")}
        return dev_of(truth, scores, views=view.tolist()), Target(len(labels), None, shares), shown(labels, later)

    return world


def epochs(rng: np.random.Generator) -> World:
    """The best of ten equal epochs."""
    (truth, scores), (labels, later) = drawn(rng, 200), drawn(rng, 1500)

    def after(truth: Labels, scores: Array) -> Array:
        return RISE * truth + 0.6 * (scores - RISE * truth) + 0.8 * rng.normal(size=truth.shape)

    made = np.stack([after(truth, scores) for _ in range(10)])
    kept = int(np.argmax([mean_defined(average_precision(truth, each)) for each in made]))
    dev = dev_of(truth, made[kept], epochs=made, decide=lambda epoch: decided(made[epoch]), kept=kept)
    return dev, Target(len(labels)), shown(labels, after(labels, later))


def thresholds(rng: np.random.Generator) -> World:
    """Calibration and thresholds of 300 images, with 5 to 60 positives a class."""
    shares = np.geomspace(0.2, 0.025, 10)
    (truth, scores), (labels, later) = drawn(rng, 300, shares, 1), drawn(rng, 6000, shares, 1)
    dev = dev_of(truth, scores, 1)
    how: dict[str, Any] = {"prevalence": shares, "calibration": "platt", "threshold": "expected-f1"}
    made = fit_decisions(truth, scores - 2.5, dev.patients, classes=CLASSES, provenance={}, **how)
    honest = cross_fitted(truth, scores - 2.5, dev.patients, **how)
    dev = replace(dev, fitted=_by(made, scores), honest=Decided(honest.posteriors, honest.decisions))
    return dev, Target(len(labels)), Judged(labels, later, *_by(made, later))


def _by(decisions: Decisions, scores: Array) -> Decided:
    posteriors = decisions.calibrated(scores - 2.5)
    return Decided(posteriors, decisions.decide(posteriors))


def size(here: int, there: int) -> Callable[[np.random.Generator], World]:
    """Posteriors that are right, on few and many images."""

    def side(rng: np.random.Generator, images: int) -> tuple[Labels, Array]:
        scores = rng.normal(0, 1.2, (images, 10))
        return (rng.random(scores.shape) < decided(scores).posteriors).astype(np.int8), scores

    def world(rng: np.random.Generator) -> World:
        dev, (labels, scores) = side(rng, here), side(rng, there)
        return dev_of(*dev, 1), Target(there), shown(labels, scores)

    return world


WORLDS: dict[str, Callable[[np.random.Generator], World]] = {
    "nothing": nothing,
    "prevalence": prevalence,
    "noise": noise,
    "noise, 30 % read": noise_some,
    "noise, reported ones read": noise_picked,
    "patients seen": seen,
    "views .2 to .7": views(0.2, 0.7),
    "views .1 to .9": views(0.1, 0.9),
    "epochs": epochs,
    "thresholds": thresholds,
    "300 to 3,000 images": size(300, 3000),
    "3,000 to 300 images": size(3000, 300),
}


# -- what is found -------------------------------------------------------------------------------------------------


def measure(name: str, worlds: int) -> dict[str, Any]:
    """Mean errors, mean changes and coverage in some worlds of a kind."""
    found: dict[str, list[tuple[float, float, bool, dict[str, float]]]] = {figure: [] for figure in FIGURES}
    for seed in range(worlds):
        dev, target, real = WORLDS[name](np.random.default_rng(seed))
        made = gap(dev, target, resamples=200, seed=seed)
        chosen = np.isin(np.array(CLASSES), made.classes)
        sides = (side[:, chosen] for side in (real.labels, real.scores, real.posteriors, real.decisions))
        figures = point(Judged(*sides))
        for figure, fall in made.waterfalls.items():
            truth, ends = float(mean_defined(figures[figure])), fall.prediction
            assert ends is not None
            changes = {step.name: step.change or 0.0 for step in fall.steps}
            found[figure].append((fall.start - truth, fall.expected - truth, ends[0] <= truth <= ends[1], changes))
    return {"case": name, "worlds": worlds, "figures": {figure: _mean(rows) for figure, rows in found.items()}}


def _mean(rows: list[tuple[float, float, bool, dict[str, float]]]) -> dict[str, Any]:
    dev, expected, inside, changes = zip(*rows, strict=True)
    means = {part: round(float(np.mean([one[part] for one in changes])), 4) for part in COMPONENTS}
    return {
        "dev": round(float(np.mean(dev)), 4),
        "expected": round(float(np.mean(expected)), 4),
        "held": round(float(np.mean(inside)), 3),
        "changes": {part: mean for part, mean in means.items() if mean},
    }


def main() -> None:
    """Print a line for each kind of world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=60, help="of each kind (default 60)")
    parser.add_argument("--only", nargs="+", choices=WORLDS, default=list(WORLDS), metavar="NAME", help="these kinds")
    given = parser.parse_args()
    for name in given.only:
        print(json.dumps(measure(name, given.worlds)), flush=True)


if __name__ == "__main__":
    main()
