"""The report of several evaluations on one split: side by side, and as paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cxrlt_cli.bootstrap import Difference, note_of
from cxrlt_cli.report.contents import Contrast, Judged, Ran
from cxrlt_cli.report.evaluation import HEADLINE, RANGES, figure_of
from cxrlt_cli.report.page import page, spread


def render(judged: Sequence[Judged], contrasts: Sequence[Contrast], ran: Ran) -> str:
    """The page.

    Args:
        judged: at least two sets of predictions; the others are compared with the first.
        contrasts: each further one minus the first; none where they are not of the same images, or without resamples.
        ran: what ran.
    """
    moved = note_of(one.replicates.overall["macro_ap"] for one in judged if one.replicates)
    return page(
        "comparison.html",
        judged=judged,
        ran=replace(ran, remarks=[*ran.remarks, moved]) if moved else ran,
        labels=[label for label, *_ in HEADLINE],
        runs=[_run(one) for one in judged],
        contrasts=[{"name": one.name, "minus": one.minus, "rows": _differences(one)} for one in contrasts],
        classes=_classes(judged, contrasts),
        paired=bool(contrasts),
    )


def _run(judged: Judged) -> dict[str, Any]:
    reps = judged.replicates
    names = [name for _, name, _ in HEADLINE]
    figures = [figure_of(judged.result.overall[name], reps.overall[name] if reps else None) for name in names]
    return {"name": judged.name, "figures": figures}


def _differences(one: Contrast) -> list[dict[str, Any]]:
    rows = [(label, one.overall[name]) for label, name, _ in HEADLINE if name in one.overall]
    rows += [
        (f"mAP, {RANGES[group]}", figures["macro_ap"]) for group, figures in one.groups.items() if "macro_ap" in figures
    ]
    return [{"label": label, "found": found} for label, found in rows if found.value == found.value]


def _classes(judged: Sequence[Judged], contrasts: Sequence[Contrast]) -> list[dict[str, Any]]:
    """A row for every class of any run, in the order of the first run that has it."""
    owners: dict[str, tuple[Judged, int]] = {}
    for one in judged:
        for c in one.order:
            owners.setdefault(one.classes[c], (one, c))
    return [
        {
            "name": name,
            "group": owner.result.group[c],
            "positives": owner.result.positives[c],
            "here": spread(one.result.positives[one.classes.index(name)] for one in judged if name in one.classes),
            "figures": [_ap(one, name) for one in judged],
            "differences": [_class_difference(one, name) for one in contrasts],
        }
        for name, (owner, c) in owners.items()
    ]


def _ap(judged: Judged, name: str) -> float:
    return float(judged.result.per_class["ap"][judged.classes.index(name)]) if name in judged.classes else float("nan")


def _class_difference(one: Contrast, name: str) -> dict[str, Any] | None:
    if name not in one.classes:
        return None
    k, found = one.classes.index(name), one.ap
    mine = Difference(*(getattr(found, part)[k] for part in ("value", "low", "high", "p", "detectable")))
    return {"found": mine, "adjusted": float(one.adjusted[k])}
