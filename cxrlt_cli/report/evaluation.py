"""The report of one evaluation: what stands in it. ``shapes`` has the numbers of curves, ``curves`` draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxrlt_cli.bootstrap import Resampled, note_of
from cxrlt_cli.metrics import ALL_GROUPS, RARE
from cxrlt_cli.report.contents import Judged, Pictures, Ran, Subset, Worth
from cxrlt_cli.report.curves import Rare, interval_bar, long_tail
from cxrlt_cli.report.mistakes import Confusions, Mistake, confusions
from cxrlt_cli.report.page import figure, page
from cxrlt_cli.report.panels import panels
from cxrlt_cli.report.svg import heat_map
from cxrlt_cli.report.worth import section

#: Words for the groups of classes.
RANGES = {
    "head": "head, above 10\u00a0%",
    "medium": "medium, 1 to 10\u00a0%",
    "tail": "tail, below 1\u00a0%",
    "rare": f"rare, fewer than {RARE} here",
}
#: The headline: label, figure, what it is.
HEADLINE = (
    ("mAP", "macro_ap", "mean over classes of average precision"),
    ("AUROC", "macro_auroc", "mean over classes of the area under the ROC curve"),
    ("F1", "macro_f1", "mean over classes, of the default decisions"),
    ("F1 at 0.5", "macro_f1_at_half", "with a finding called from posterior 0.5 on"),
    ("ECE", "ece", "calibration error, all entries together"),
    ("class ECE", "macro_ece", "mean over classes of their calibration error"),
)
#: Columns of the table of groups.
GROUPED = ("macro_ap", "macro_auroc", "macro_f1", "macro_f1_at_half", "macro_ece")
#: Curves are drawn for so many classes at most, those with most positives here; the table has all.
MOST_CURVES = 36
#: Rows of the table of confusions, and rows and columns of their picture, at most.
MOST_CONFUSED = 30


class Figure(NamedTuple):
    """A figure, and its interval where there is one."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def text(self) -> str:
        """Three digits; a dash where it is undefined."""
        return figure(self.value)

    @property
    def span(self) -> str:
        """``0.395 to 0.430``; empty without an interval."""
        return "" if math.isnan(self.low) else f"{figure(self.low)} to {figure(self.high)}"


def figure_of(value: float, drawn: Resampled | None) -> Figure:
    """A figure with the interval its resamples give, where they give one."""
    return Figure(float(value)) if drawn is None else Figure(float(value), *map(float, drawn.interval(value)))


def render(
    judged: Judged,
    ran: Ran,
    mistakes: Sequence[Mistake],
    pictures: Pictures | None = None,
    worth: Worth | None = None,
) -> str:
    """The page.

    Args:
        judged: predictions and what they are worth.
        ran: what ran.
        mistakes: the worst errors, as ``mistakes.worst`` finds them.
        pictures: thumbnails of their images; None where the images are not at hand.
        worth: what the scores are worth on another split; None where that was not asked.
    """
    from markupsafe import Markup

    drawn = sorted(sorted(judged.order, key=lambda c: -judged.result.positives[c])[:MOST_CURVES])
    return page(
        "evaluation.html",
        judged=judged,
        ran=ran,
        headline=_headline(judged),
        moved=_known([judged.replicates.overall, *judged.replicates.groups.values()] if judged.replicates else []),
        groups=_groups(judged),
        worth=None if worth is None else section(worth),
        undefined=judged.result.undefined.get("ap", ()),
        tail=Markup(long_tail(list(_rare(judged)))),
        classes=[_class_row(judged, c) for c in judged.order],
        panels=panels(judged, [c for c in judged.order if c in drawn]),
        most_curves=MOST_CURVES,
        confusions=_confusions(judged),
        mistakes=_mistakes(judged, mistakes, pictures),
        side=pictures.side if pictures else 0,
        places=pictures.places if pictures and pictures.heated else None,
        subsets=[_subset(one) for one in judged.subsets],
        subsets_moved=_known([one.replicates.overall for one in judged.subsets if one.replicates]),
    )


def _headline(judged: Judged) -> list[dict[str, Any]]:
    tiles = []
    for label, name, meaning in HEADLINE:
        reps = judged.replicates.overall[name] if judged.replicates else None
        note = f"chance {figure(judged.result.overall['chance_ap'])}" if name == "macro_ap" else ""
        if judged.before and name in _CALIBRATED and not math.isnan(judged.before.overall[name]):
            drawn = judged.before_replicates.overall[name] if judged.before_replicates else None
            before = figure_of(judged.before.overall[name], drawn)
            note = f"before calibration {before.text}{before.span and f' ({before.span})'}"
        found = figure_of(judged.result.overall[name], reps)
        tiles.append({"label": label, "figure": found, "meaning": meaning, "note": note})
    return tiles


_CALIBRATED = ("macro_f1_at_half", "ece", "macro_ece")


def _known(averages: Sequence[Mapping[str, Resampled]]) -> str:
    """What to know about these mAPs and their intervals."""
    return note_of(drawn["macro_ap"] for drawn in averages)


def _groups(judged: Judged) -> list[dict[str, Any]]:
    result, reps = judged.result, judged.replicates
    whole = {name: figure_of(result.overall[name], reps.overall[name] if reps else None) for name in GROUPED}
    rows: list[dict[str, Any]] = [
        {
            "name": "all classes",
            "classes": len(result.classes),
            "chance": result.overall["chance_ap"],
            "figures": list(whole.values()),
        }
    ]
    for group in (name for name in ALL_GROUPS if result.counts[name]):
        own = reps.groups[group] if reps else {}
        figures = [figure_of(result.groups[group][name], own.get(name)) for name in GROUPED]
        rows.append(
            {
                "name": RANGES[group],
                "classes": result.counts[group],
                "chance": result.groups[group]["chance_ap"],
                "figures": figures,
            }
        )
    return rows


# -- classes -------------------------------------------------------------------------------------------------------


def _of_class(judged: Judged, name: str, c: int) -> Figure:
    reps = judged.replicates.per_class[name][c] if judged.replicates else None
    return figure_of(float(judged.result.per_class[name][c]), reps)


def _chance(judged: Judged, c: int) -> float:
    positives, negatives = judged.result.positives[c], judged.result.negatives[c]
    return positives / (positives + negatives) if positives else math.nan


def _rare(judged: Judged) -> Iterator[Rare]:
    for c in judged.order:
        found, chance = _of_class(judged, "ap", c), _chance(judged, c)
        name, positives = judged.classes[c], judged.result.positives[c]
        says = f"{name}: AP {found.text}" + (f" ({found.span})" if found.span else "")
        says += f", chance {figure(chance)}; {judged.frequency[c]:,.0f} positives in training, {positives:,} here"
        yield Rare(name, judged.result.prevalence[c], *found, chance, says)


def _class_row(judged: Judged, c: int) -> dict[str, Any]:
    from markupsafe import Markup

    ap, auroc, chance = _of_class(judged, "ap", c), _of_class(judged, "auroc", c), _chance(judged, c)
    others = ("f1", "precision", "recall")
    return {
        "name": judged.classes[c],
        "group": judged.result.group[c],
        "train": int(judged.frequency[c]),
        "positives": judged.result.positives[c],
        "negatives": judged.result.negatives[c],
        "few": _few(judged, c),
        "ap": ap,
        "ap_bar": Markup(interval_bar(*ap, chance)),
        "chance": chance,
        "auroc": auroc,
        "auroc_bar": Markup(interval_bar(*auroc, 0.5)),
        "decided": [_of_class(judged, name, c) for name in others],
        "threshold": math.nan if judged.thresholds is None else float(judged.thresholds[c]),
        "calibrated": [_of_class(judged, name, c) for name in ("brier", "ece", "slope", "intercept")],
    }


def _few(judged: Judged, c: int) -> bool:
    """Whether some resamples hold no positive of the class, so that its interval is of the others."""
    return judged.replicates is not None and 0 < judged.replicates.undefined("ap")[c] < 1


# -- errors --------------------------------------------------------------------------------------------------------


def _confusions(judged: Judged) -> dict[str, Any]:
    from markupsafe import Markup

    found = confusions(judged)
    called = [c for c in sorted(judged.order, key=lambda c: -found.alarms[c]) if found.alarms[c]][:MOST_CONFUSED]
    shown = [c for c in judged.order if c in called]
    rows = [_confused(judged, c, found) | _alarms(judged, c, found) for c in called]
    frequent = sorted(judged.order, key=lambda c: -judged.result.positives[c])[:MOST_CONFUSED]
    columns = [c for c in judged.order if c in frequent]
    names = [judged.classes[c] for c in columns]
    shares = np.where(found.shares >= 0.005, found.shares, np.nan)[np.ix_(shown, columns)]
    notes = [f"{found.alarms[c]:,}" for c in shown]
    title = "Findings really there, for each finding wrongly called"
    drawing = heat_map(names, shares.tolist(), title=title, rows=[judged.classes[c] for c in shown], notes=notes)
    return {
        "rows": rows,
        "drawing": Markup(drawing) if shown else "",
        "nothing": any(row["nothing"] > 0 for row in rows),  # never where one of the classes is "no finding"
    }


def _alarms(judged: Judged, c: int, found: Confusions) -> dict[str, Any]:
    return {"name": judged.classes[c], "alarms": int(found.alarms[c]), "nothing": float(found.nothing[c])}


def _confused(judged: Judged, c: int, found: Confusions) -> dict[str, Any]:
    """The three findings that are there more often than usual and than by chance, by how much more often."""
    shares, usual = found.shares[c], found.usual[c]
    more = np.where(found.likely[c], shares - usual, -np.inf)
    places = [int(k) for k in np.argsort(-more, kind="stable")[:3] if found.likely[c, k]]
    return {"instead": [{"name": judged.classes[k], "share": shares[k], "usual": usual[k]} for k in places]}


def _mistakes(judged: Judged, mistakes: Sequence[Mistake], pictures: Pictures | None) -> list[dict[str, Any]]:
    """Groups of errors, each with its pictures as data URIs."""
    made: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in mistakes:
        made.setdefault((one.group, one.kind), []).append(_mistake(judged, one, pictures))
    return [{"group": RANGES[group], "kind": kind, "shown": shown} for (group, kind), shown in made.items()]


def _mistake(judged: Judged, one: Mistake, pictures: Pictures | None) -> dict[str, Any]:
    there = [judged.classes[k] for k in judged.order if judged.labels[one.row, k] == 1]
    plain = pictures.plain.get(one.row) if pictures else None
    warm = pictures.heated.get((one.row, one.c)) if pictures else None
    return {
        "image": judged.image_id[one.row],
        "name": judged.classes[one.c],
        "posterior": one.posterior,
        "there": there[:4],
        "more": max(0, len(there) - 4),
        "pictures": [
            (_uri(data), f"{what} {judged.image_id[one.row]}")
            for what, data in (("image", plain), (f"what speaks for {judged.classes[one.c]} in", warm))
            if data is not None
        ],
        "silent": pictures is not None and (one.row, one.c) in pictures.silent,
    }


def _uri(data: bytes) -> str:
    import base64

    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


# -- subsets -------------------------------------------------------------------------------------------------------


def _subset(part: Subset) -> dict[str, Any]:
    from markupsafe import Markup

    names = ("macro_ap", "macro_auroc", "macro_f1", "macro_ece")
    reps = part.replicates.overall if part.replicates else {}
    figures = [figure_of(part.result.overall[name], reps.get(name)) for name in names]
    chance = part.result.overall["chance_ap"]
    return {
        "by": part.by,
        "value": part.value,
        "images": part.images,
        "patients": part.patients,
        "chance": chance,
        "bar": Markup(interval_bar(*figures[0], chance)),
        "figures": figures,
    }
