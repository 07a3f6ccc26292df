"""Small drawings of each class: precision over recall, reliability, figures over thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrlt_cli.report.contents import Array, Judged
from cxrlt_cli.report.curves import LEAST, Panel, linear, log_odds
from cxrlt_cli.report.page import figure
from cxrlt_cli.report.shapes import Reliability, at_thresholds, precision_over_recall, reliability


def panels(judged: Judged, classes: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Drawings of the classes: for ``precision``, ``reliability`` and ``thresholds``, each with its name and a note."""
    return {
        "precision": [_panel(judged, c, *precision_panel(judged, c)) for c in classes if judged.result.positives[c]],
        "reliability": [_panel(judged, c, *reliability_panel(judged, c)) for c in classes],
        "thresholds": [_panel(judged, c, *threshold_panel(judged, c)) for c in classes if judged.result.positives[c]],
    }


def _panel(judged: Judged, c: int, drawing: str, note: str) -> dict[str, Any]:
    from markupsafe import Markup

    return {"name": judged.classes[c], "note": note, "drawing": Markup(drawing)}


def precision_panel(judged: Judged, c: int) -> tuple[str, str]:
    """Precision over recall, the level of chance, and where the decisions lie."""
    result = judged.result
    steps = precision_over_recall(judged.labels[:, c], judged.scores[:, c])
    panel = Panel(linear("recall"), linear("precision"))
    chance = result.positives[c] / (result.positives[c] + result.negatives[c])
    precision, recall = float(result.per_class["precision"][c]), float(result.per_class["recall"][c])
    marks = [
        panel.level(chance, "chance", f"chance: {figure(chance)}"),
        panel.steps(steps.edges.tolist(), steps.heights.tolist(), "l0"),
        panel.dot(recall, precision, "s1", f"decisions: precision {figure(precision)}, recall {figure(recall)}"),
    ]
    name = judged.classes[c]
    return panel.drawn(marks, f"Precision over recall: {name}"), f"AP {figure(float(result.per_class['ap'][c]))}"


def reliability_panel(judged: Judged, c: int) -> tuple[str, str]:
    """Share of positives over posterior, with intervals; what it was before calibration as a broken line."""
    panel = Panel(log_odds("posterior"), log_odds("share of positives"))
    after = reliability(judged.labels[:, c], judged.posteriors[:, c])
    marks = [panel.line([(LEAST, LEAST), (1 - LEAST, 1 - LEAST)], "chance")]
    note = f"ECE {figure(float(judged.result.per_class['ece'][c]))}"
    if judged.uncalibrated is not None and judged.before is not None:
        before = reliability(judged.labels[:, c], judged.uncalibrated[:, c])
        points = list(zip(before.posterior.tolist(), before.share.tolist(), strict=True))
        marks += [panel.line(points, "l1 broken"), *(panel.dot(x, y, "s1") for x, y in points[:1] if len(points) == 1)]
        note += f", before {figure(float(judged.before.per_class['ece'][c]))}"
    marks += _bins(panel, after)
    return panel.drawn(marks, f"Reliability: {judged.classes[c]}"), note


def _bins(panel: Panel, bins: Reliability) -> list[str]:
    marks = []
    columns = (bins.posterior, bins.share, bins.low, bins.high, bins.images)
    for posterior, share, low, high, images in zip(*(column.tolist() for column in columns), strict=True):
        says = f"{images:,} images: posterior {figure(posterior)}, positive {figure(share)}"
        says += f" ({figure(low)} to {figure(high)})"
        marks.append(panel.whisker(posterior, low, high, "l0"))
        marks.append(panel.dot(posterior, share, "s0" if share > 0 else "s0 hollow", says))
    return marks


def threshold_panel(judged: Judged, c: int) -> tuple[str, str]:
    """F1, precision and recall over the threshold, and the threshold chosen."""
    panel = Panel(log_odds("threshold"), linear("F1"))
    curves = at_thresholds(judged.labels[:, c], judged.posteriors[:, c])
    marks = [
        panel.line(_known(curves.thresholds, curves.precision), "l1 broken"),
        panel.line(_known(curves.thresholds, curves.recall), "l2 dotted"),
        panel.line(_known(curves.thresholds, curves.f1), "l0"),
    ]
    note = f"F1 {figure(float(judged.result.per_class['f1'][c]))}"
    if judged.thresholds is not None:
        chosen = float(judged.thresholds[c])
        marks.append(panel.upright(chosen, "chosen", f"threshold {figure(chosen)}"))
        note += f" at {figure(chosen)}"
    return panel.drawn(marks, f"F1, precision and recall over the threshold: {judged.classes[c]}"), note


def _known(across: Array, up: Array) -> list[tuple[float, float]]:
    known = ~np.isnan(up)
    return list(zip(across[known].tolist(), up[known].tolist(), strict=True))
