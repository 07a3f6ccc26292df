"""Evaluations made from nothing, for tests of their report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrlt_cli.bootstrap import replicates
from cxrlt_cli.gap import COMPONENTS, Gap, Step, Waterfall
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.report.contents import Judged, Subset, Worth

#: Names that would be markup where they are not escaped.
HOSTILE = ("<script>alert(1)</script>", "a\"b' onload=x", "R&D <b>", "mass", "nowhere")
SHARES = (0.4, 0.2, 0.05, 0.05, 0.0)


def judged(
    classes: Sequence[str] = HOSTILE,
    shares: Sequence[float] = SHARES,
    *,
    count: int = 300,
    resamples: int = 20,
    seed: int = 0,
    **changes: Any,
) -> Judged:
    """An evaluation of ``count`` images, two a patient; the last class has no positive, the third unknown labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, len(classes))) < shares).astype(np.int8)
    labels[:40, 2] = -1
    scores = rng.normal(size=labels.shape) + 2 * (labels == 1) - 2
    posteriors, uncalibrated = 1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(-2 * scores))
    decisions = posteriors >= 0.4
    prevalence = np.array(shares) * 0.9 + 0.001
    patients = [f"p{row // 2}" for row in range(count)]
    result = evaluate(labels, scores, posteriors, classes, prevalence, decisions=decisions)
    made = replicates(
        labels, scores, patients, posteriors=posteriors, decisions=decisions, prevalence=prevalence, resamples=resamples
    )
    values: dict[str, Any] = {
        "name": "<u>run</u> & co",
        "title": "runs/<u>run</u>, on dev",
        "classes": tuple(classes),
        "image_id": [f'<img src="x{row}" onerror="y">' for row in range(count)],
        "labels": labels,
        "scores": scores,
        "posteriors": posteriors,
        "decisions": decisions,
        "uncalibrated": uncalibrated,
        "thresholds": np.full(len(classes), 0.4),
        "frequency": 1000 * prevalence,
        "order": sorted(range(len(classes)), key=lambda c: -prevalence[c]),
        "result": result,
        "before": evaluate(labels, scores, uncalibrated, classes, prevalence),
        "replicates": made,
        "subsets": [Subset("<i>sex</i>", "F & M", count, count // 2, result, made)],
    }
    return Judged(**{**values, **changes})


#: Component -> change of mAP with the ends of its interval, or why there is none.
CHANGES = {
    "classes": (0.08, 0.05, 0.1),
    "checkpoint": "no epoch was kept",
    "decisions": "0 by construction: ranking needs none",
    "patients": (0.0, 0.0, 0.0),
    "labels": (-0.05, -0.09, -0.01),
    "views": "<i>views</i> are not known",
    "prevalence": (-0.02, -0.06, 0.02),
    "size": (-0.006, None, None),
}


def fall(figure: str = "macro_ap", start: float = 0.36, scale: float = 1.0, **changes: Any) -> Waterfall:
    """A waterfall of ``CHANGES``, times ``scale``."""
    steps, now = [], start
    for name in COMPONENTS:
        made = CHANGES[name]
        if isinstance(made, str):
            none = 0.0 if made.startswith("0 ") else None
            steps.append(Step(name, none, none, none, now, made))
            continue
        change, low, high = (None if end is None else end * scale for end in made)
        now += change or 0.0
        steps.append(Step(name, change, low, high, now))
    reach = 0.03 * scale
    values: dict[str, Any] = {
        "figure": figure,
        "start": start,
        "steps": tuple(steps),
        "expected": now,
        "confidence": (now - reach, now + reach),
        "prediction": (now - 2 * reach, now + 2 * reach),
    }
    return Waterfall(**{**values, **changes})


def worth(**changes: Any) -> Worth:
    """What a score is worth on a split with a name that would be markup; mAP from 0.36 to 0.364."""
    falls = {
        "macro_ap": fall(),
        "macro_auroc": fall("macro_auroc", 0.9, 0.5),
        "macro_f1": fall("macro_f1", prediction=None),
        "ece": fall("ece", 0.0021, 0.005),
    }
    target = "<u>test</u>"
    values: dict[str, Any] = {
        "split": "dev",
        "target": target,
        "gap": Gap(falls, ("mass",), ("<i>hernia</i>",), None, 1000),
        "headings": dict(zip(falls, ("mAP", "AUROC", "F1", "ECE"), strict=True)),
        "titles": {name: f"{name} as in {target}" for name in COMPONENTS},
        "observed": {"macro_ap": 0.37, "macro_auroc": 0.5, "macro_f1": 0.3, "ece": 0.002},
        "notes": ("Views: <b>not</b> known.",),
    }
    return Worth(**{**values, **changes})
