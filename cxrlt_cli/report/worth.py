"""What a score is worth on another split: its waterfalls as drawings, and the same as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from cxrlt_cli.gap import BUILT_IN, COMPONENTS, Step, Waterfall
from cxrlt_cli.report.contents import Worth
from cxrlt_cli.report.page import figure
from cxrlt_cli.report.svg import Fall, is_cut, waterfall

#: Figures of errors: less is better.
ERRORS = ("ece",)
NOT_ESTIMATED = "not estimated"

#: Writes a figure, or with "+" a change, with the digits that suit its waterfall.
Say = Callable[..., str]


class Cell(NamedTuple):
    """A cell of the table: a figure or words, and the interval below."""

    text: str
    span: str = ""
    words: bool = False


def section(worth: Worth) -> dict[str, Any]:
    """Everything the section shows: drawings, the head and the rows of the table, notes."""
    falls = worth.gap.waterfalls
    pictures = [_picture(worth, name) for name in falls]
    return {
        "split": worth.split,
        "target": worth.target,
        "pictures": pictures,
        "cut": [one["heading"] for one in pictures if one["cut"]],
        "predicted": any(one.prediction is not None for one in falls.values()),
        "observed": any(not math.isnan(value) for value in worth.observed.values()),
        "refitted": any(not _of(one, "decisions").why for one in falls.values()),
        "headings": [worth.headings[name] for name in falls],
        "rows": list(_rows(worth)),
        "classes": len(worth.gap.classes),
        "resamples": worth.gap.resamples,
        "notes": worth.notes,
    }


def _of(one: Waterfall, component: str) -> Step:
    return one.steps[COMPONENTS.index(component)]


# -- drawings ------------------------------------------------------------------------------------------------------


def _picture(worth: Worth, name: str) -> dict[str, Any]:
    """One drawing; empty where the figure has no value, as nothing has a place then."""
    from markupsafe import Markup

    one, observed = worth.gap.waterfalls[name], worth.observed.get(name, math.nan)
    made: dict[str, Any] = {"heading": worth.headings[name], "error": name in ERRORS, "drawing": "", "cut": False}
    if math.isnan(one.start) or math.isnan(one.expected):
        return made
    rows = _falls(worth, name)
    drawing = Markup(waterfall(rows, title=_summary(worth, name), observed=observed))
    return made | {"drawing": drawing, "cut": is_cut(rows, observed)}


def _falls(worth: Worth, name: str) -> list[Fall]:
    one, observed = worth.gap.waterfalls[name], worth.observed.get(name, math.nan)
    say = _say(one)
    rows = [Fall(f"on {worth.split}", say(one.start), end=one.start, stands=True, says=say(one.start))]
    for step in one.steps:
        rows.append(_fall(step, rows[-1], worth.titles[step.name], say))
    rows.append(_expected(one, worth.target, say))
    if not math.isnan(observed):
        rows.append(Fall(f"observed on {worth.target}", say(observed) + _beside(one, observed)))
    return rows


def _fall(step: Step, above: Fall, title: str, say: Say) -> Fall:
    before = above.start if math.isnan(above.end) else above.end
    if step.change is None or _words(step):
        return Fall(title, _words(step), start=before)
    change, span = say(step.change, "+"), _span(step.low, step.high, say, "+")
    still = not change.startswith(("+", figure(-1)[0]))
    whiskers = (
        ((before + step.low, before + step.high),) if span and step.low is not None and step.high is not None else ()
    )
    says = f"{change} ({span})" if span else change
    return Fall(title, change, before, step.after, whiskers, still=still, says=says)


def _expected(one: Waterfall, target: str, say: Say) -> Fall:
    known = [(label, ends) for label, ends in _intervals(one) if ends is not None and _span(*ends, say)]
    note = say(one.expected) + (f" ({_span(*known[-1][1], say)})" if known else "")
    says = ", ".join([say(one.expected), *(f"{label}: {_span(*ends, say)}" for label, ends in known)])
    whiskers = tuple(ends for _, ends in known)
    return Fall(f"expected on {target}", note, one.expected, one.expected, whiskers, stands=True, says=says)


def _intervals(one: Waterfall) -> list[tuple[str, tuple[float, float] | None]]:
    return [("average over such test sets", one.confidence), ("one such test set", one.prediction)]


def _summary(worth: Worth, name: str) -> str:
    one, observed = worth.gap.waterfalls[name], worth.observed.get(name, math.nan)
    say = _say(one)
    seen = "" if math.isnan(observed) else f", {say(observed)} observed"
    heading, split, target = worth.headings[name], worth.split, worth.target
    return f"{heading} from {split} to {target}: {say(one.start)} on {split}, {say(one.expected)} expected{seen}"


# -- words ---------------------------------------------------------------------------------------------------------


def _say(one: Waterfall) -> Say:
    """Three digits after the point, and more for figures so small that three would hide what happens to them."""
    largest = max((abs(value) for value in (one.start, one.expected) if not math.isnan(value)), default=0.0)
    return partial(_said, digits=3 if largest == 0 else min(max(3, 1 - math.floor(math.log10(largest))), 6))


def _said(value: float, sign: str = "", *, digits: int) -> str:
    return figure(value, digits, sign)


def _span(low: float | None, high: float | None, say: Say, sign: str = "") -> str:
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"{say(low, sign)} to {say(high, sign)}"


def _words(step: Step) -> str:
    """What stands in place of a change that is not known, or not measured."""
    if step.change is None or math.isnan(step.change):
        return NOT_ESTIMATED
    return BUILT_IN if step.why.startswith(BUILT_IN) else ""


def _beside(one: Waterfall, observed: float) -> str:
    """Where the target's own figure lies; nothing without an interval for one test set."""
    if one.prediction is None or any(map(math.isnan, one.prediction)):
        return ""
    low, high = one.prediction
    return f", {'inside' if low <= observed <= high else 'outside'} the interval"


# -- table ---------------------------------------------------------------------------------------------------------


def _rows(worth: Worth) -> Iterator[tuple[str, Sequence[Cell]]]:
    """From the score on the split to the expected one, a column a figure."""
    falls = [(one, _say(one)) for one in worth.gap.waterfalls.values()]
    yield f"on {worth.split}", [Cell(say(one.start)) for one, say in falls]
    for component in COMPONENTS:
        yield worth.titles[component], [_change(_of(one, component), say) for one, say in falls]
    yield f"expected on {worth.target}", [Cell(say(one.expected)) for one, say in falls]
    for place, (label, _) in enumerate(_intervals(falls[0][0])):
        yield label, [_interval(_intervals(one)[place][1], say) for one, say in falls]
    if worth.observed:
        values = [worth.observed[name] for name in worth.gap.waterfalls]
        yield f"observed on {worth.target}", [Cell(say(value)) for value, (_, say) in zip(values, falls, strict=True)]


def _change(step: Step, say: Say) -> Cell:
    if step.change is None or _words(step):
        return Cell(_words(step), words=True)
    return Cell(say(step.change, "+"), _span(step.low, step.high, say, "+"))


def _interval(ends: tuple[float, float] | None, say: Say) -> Cell:
    span = "" if ends is None else _span(*ends, say)
    return Cell(span) if span else Cell("not known", words=True)
