"""Evaluations made from nothing, for tests of their report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrlt_cli.bootstrap import replicates
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.report.contents import Judged, Part

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
        "parts": [Part("<i>sex</i>", "F & M", count, count // 2, result, made)],
    }
    return Judged(**{**values, **changes})
