"""The gap from dev to test for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cxrlt_cli.commands.evaluate.gap_inputs import Sought
from cxrlt_cli.commands.evaluate.scored import Predicted
from cxrlt_cli.commands.evaluate.show import number
from cxrlt_cli.events import Table
from cxrlt_cli.gap import FEWEST, Gap, Step, Waterfall
from cxrlt_cli.report.contents import Worth
from cxrlt_cli.wording import count

#: Component -> how it is called.
TITLES = {
    "classes": "classes that are not judged leave",
    "checkpoint": "best epoch chosen here",
    "decisions": "thresholds fitted here",
    "patients": "patients seen in training leave",
    "labels": "exact labels",
    "views": "views as in {target}",
    "prevalence": "prevalence as in {target}",
    "size": "as many images as in {target}",
}
#: Figure -> its heading.
HEADINGS = {"macro_ap": "mAP", "macro_auroc": "AUROC", "macro_f1": "F1", "ece": "ECE"}


@dataclass(frozen=True, slots=True)
class Found:
    """A gap, of which run and predictions, what the target shows (figure -> value), and where inputs are from."""

    run: str
    of: Predicted
    sought: Sought
    gap: Gap
    observed: Mapping[str, float]
    notes: tuple[str, ...]


def gap_waterfall(found: Found, figure: str) -> dict[str, Any]:
    """One figure's waterfall, ready to be drawn or written as JSON: None where there is no number.

    ``start`` and the ``change`` of all steps add up to ``expected``; a step without a change is not estimated, and its
    ``why`` says why.
    """
    one = found.gap.waterfalls[figure]
    real = found.observed.get(figure)
    made: dict[str, Any] = {
        "figure": figure,
        "heading": HEADINGS[figure],
        "start": _plain(one.start),
        "steps": [_step(step, found.sought.target) for step in one.steps],
        "expected": _plain(one.expected),
        "confidence": [_plain(end) for end in one.confidence],
        "prediction": None if one.prediction is None else [_plain(end) for end in one.prediction],
        "observed": None if real is None else _plain(real),
    }
    if real is not None and one.prediction is not None:
        made["observed_inside"] = bool(one.prediction[0] <= real <= one.prediction[1])
    return made


def _step(step: Step, target: str) -> dict[str, Any]:
    return {
        "name": step.name,
        "title": TITLES[step.name].format(target=target),
        "change": _plain(step.change),
        "low": _plain(step.low),
        "high": _plain(step.high),
        "after": _plain(step.after),
        "why": step.why,
    }


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def everything(found: Found) -> dict[str, Any]:
    """All figures, for ``--json``."""
    return {
        "run": found.run,
        "split": found.sought.split,
        "target": found.sought.target,
        "resamples": found.gap.resamples,
        "classes": list(found.gap.classes),
        "left_out": list(found.gap.left_out),
        "fewest": FEWEST,
        "notes": list(found.notes),
        "epochs_chosen": None if found.gap.chosen is None else [float(share) for share in found.gap.chosen],
        "gap": {figure: gap_waterfall(found, figure) for figure in found.gap.waterfalls},
    }


def worth(found: Found) -> Worth:
    """The same for the report."""
    split, target = found.sought.split, found.sought.target
    titles = {name: title.format(target=target) for name, title in TITLES.items()}
    notes = [_sentence(note) for note in (*_missing(found), *_about(found))]
    return Worth(split, target, found.gap, HEADINGS, titles, found.observed, notes)


# -- for people ----------------------------------------------------------------------------------------------------


def blocks(found: Found) -> tuple[Table | str, ...]:
    """The waterfall of mAP in full, the others beside each other, and what could not be estimated."""
    return (_full(found, "macro_ap"), _others(found), *_missing(found), *_about(found))


def _full(found: Found, figure: str) -> Table:
    one, split, target = found.gap.waterfalls[figure], found.sought.split, found.sought.target
    rows = [(f"on {split}", "", "", number(one.start))]
    for step in one.steps:
        ends = "" if step.low is None or step.high is None else f"[{_signed(step.low)}, {_signed(step.high)}]"
        change = "not estimated" if step.change is None else _signed(step.change)
        rows.append((TITLES[step.name].format(target=target), change, ends, number(step.after)))
    rows.append((f"expected on {target}", _signed(one.expected - one.start), "", number(one.expected)))
    rows.append(("  average over such test sets", "", _range(one.confidence), ""))
    if one.prediction is not None:
        rows.append(("  one such test set", "", _range(one.prediction), ""))
    if figure in found.observed:
        rows.append((f"observed on {target}", "", "", number(found.observed[figure])))
    title = (
        f"{found.run}: {HEADINGS[figure]} from {split} to {target}, {count(len(found.gap.classes), 'class', 'classes')}"
    )
    note = f"95 % intervals from {found.gap.resamples:,} resamples of the patients. Changes add up, in this order."
    return Table(("", "change", "interval", HEADINGS[figure]), tuple(rows), title=title, note=note)


def _others(found: Found) -> Table:
    figures = [name for name in found.gap.waterfalls if name != "macro_ap"]
    falls = [found.gap.waterfalls[name] for name in figures]
    rows = [(f"on {found.sought.split}", *(number(one.start) for one in falls))]
    for place, step in enumerate(falls[0].steps):
        changes = (one.steps[place].change for one in falls)
        cells = ("-" if change is None else _signed(change) for change in changes)
        rows.append((TITLES[step.name].format(target=found.sought.target), *cells))
    rows.append((f"expected on {found.sought.target}", *(_expected(one) for one in falls)))
    if found.observed:
        rows.append((f"observed on {found.sought.target}", *(number(found.observed[name]) for name in figures)))
    note = "-: not estimated. Brackets: one such test set, or the average over them where its size is not known."
    return Table(("", *(HEADINGS[name] for name in figures)), tuple(rows), note=note)


def _expected(one: Waterfall) -> str:
    return f"{number(one.expected)} {_range(one.prediction or one.confidence)}"


def _range(ends: tuple[float, float]) -> str:
    return f"[{number(ends[0])}-{number(ends[1])}]"


def _signed(value: float) -> str:
    text = number(value)
    return "0" if text.strip("-.0") == "" else text if value < 0 else f"+{text}"


def _missing(found: Found) -> Iterator[str]:
    """Why corrections are not made, each reason once, of the figures it holds for."""
    reasons: dict[tuple[str, str, bool], list[str]] = {}
    for figure, one in found.gap.waterfalls.items():
        for step in one.steps:
            if step.why:
                reasons.setdefault((step.name, step.why, step.change is None), []).append(HEADINGS[figure])
    for (name, why, missing), headings in reasons.items():
        which = "" if len(headings) == len(found.gap.waterfalls) else f" ({', '.join(headings)})"
        title = TITLES[name].format(target=found.sought.target)
        yield f"{title}{which}: not estimated: {why}." if missing else f"{title}{which}: {why}."


def _about(found: Found) -> Iterator[str]:
    if found.gap.left_out:
        split, target = found.sought.split, found.sought.target
        labels, views = (_has(found, name) for name in ("labels", "views"))
        few = f"fewer than {FEWEST} patients with the finding" + ", weighted by view" * views
        few += ", or no exact labels of both kinds" * labels
        yield f"Not judged (on {split} {few}; or none in {target}): {', '.join(found.gap.left_out)}."
    yield from (_sentence(f"{note}.") for note in found.notes)


def _has(found: Found, component: str) -> bool:
    """Whether it is estimated."""
    return any(step.name == component and step.change is not None for step in found.gap.waterfalls["macro_ap"].steps)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"
