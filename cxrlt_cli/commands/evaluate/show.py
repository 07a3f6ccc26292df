"""What an evaluation says to people: tables of at most 100 columns, a figure and its interval in one cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from cxrlt_cli.bootstrap import Difference, Resampled, note_of, p_text
from cxrlt_cli.commands.evaluate.compare import Comparison
from cxrlt_cli.commands.evaluate.scored import Scored
from cxrlt_cli.events import Table
from cxrlt_cli.metrics import ALL_GROUPS, RARE, Evaluation
from cxrlt_cli.report.page import spread

_RANGES = {"head": "head, > 10 %", "medium": "medium, 1-10 %", "tail": "tail, < 1 %", "rare": f"rare, < {RARE} here"}
#: Heading of a column -> name of the figure.
_RANKED = {"mAP": "macro_ap", "AUROC": "macro_auroc", "F1": "macro_f1"}
_CALIBRATED = {"F1 at 0.5": "macro_f1_at_half", "Brier": "macro_brier", "class ECE": "macro_ece"}
_POOLED = {"micro F1": "micro_f1", "micro F1 at 0.5": "micro_f1_at_half", "ECE": "ece"}
_COMPARED = {"mAP": "macro_ap", "AUROC": "macro_auroc", "F1": "macro_f1", "ECE": "ece"}


def blocks(scored: Sequence[Scored], compared: Sequence[Comparison], split: str) -> tuple[Table | str, ...]:
    """One set of predictions in full, or several side by side."""
    if len(scored) == 1:
        one = scored[0]
        subsets = [_subsets(one)] if one.subsets else []
        return (_headline(one), _calibration(one), *left_out(scored), _class_table(one), *subsets)
    names = _short_names(scored)
    tables = [_differences(compared, names)] if compared and compared[0].overall else []
    classes = _class_difference(compared[0], names) if len(compared) == 1 else _class_comparison(scored, names)
    return (_side_by_side(scored, names, split), *tables, *left_out(scored), classes)


# -- cells ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """A figure without the 0 before its point, so in four characters up to 1.00; "-" for none."""
    if math.isnan(value):
        return "-"
    text = f"{value:z.{digits}f}"
    text = text[:-1] if abs(float(text)) == 1 else text
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _p(value: float) -> str:
    return p_text(value).replace("0.", ".", 1)


def _cell(value: float, reps: Resampled | None) -> str:
    """``.412 [.395-.430]``."""
    if reps is None or math.isnan(value):
        return number(value)
    low, high = reps.interval(value)
    if math.isnan(low):
        return number(value)
    return f"{number(value)} [{number(low)}-{number(high)}]"


def _overall(one: Scored, name: str) -> str:
    return _cell(one.result.overall[name], one.replicates.overall[name] if one.replicates else None)


def _group(one: Scored, group: str, name: str) -> str:
    reps = one.replicates.groups[group][name] if one.replicates else None
    return _cell(one.result.groups[group][name], reps)


def _of_class(one: Scored, name: str, c: int) -> str:
    reps = one.replicates.per_class[name][c] if one.replicates else None
    return _cell(float(one.result.per_class[name][c]), reps)


# -- one set of predictions ----------------------------------------------------------------------------------------


def _headline(one: Scored) -> Table:
    result = one.result
    shown = _RANKED.values()
    ap, *others = (_overall(one, name) for name in shown)
    rows = [("all", str(len(result.classes)), ap, number(result.overall["chance_ap"]), *others)]
    for group in _shown_groups(result):
        ap, *others = (_group(one, group, name) for name in shown)
        chance = number(result.groups[group]["chance_ap"])
        rows.append((_RANGES[group], str(result.counts[group]), ap, chance, *others))
    columns = ("training prevalence", "classes", "mAP", "chance", "AUROC", "F1")
    return Table(columns, tuple(rows), title=one.of.title, note=_interval_note([one], _shown_groups(result)))


def _shown_groups(result: Evaluation) -> list[str]:
    return [name for name in ALL_GROUPS if name != "rare" or result.counts[name]]


def _interval_note(scored: Sequence[Scored], groups: Sequence[str] = ()) -> str:
    drawn = [one.replicates for one in scored if one.replicates is not None]
    if not drawn:
        return ""
    shown = [averages["macro_ap"] for reps in drawn for averages in (reps.overall, *(reps.groups[g] for g in groups))]
    few = note_of(shown)
    patients = spread(reps.patients for reps in drawn)
    note = f"In brackets: 95 % intervals from {drawn[0].resamples:,} resamples of {patients} patients."
    return f"{note}\n{few}".rstrip()


def _calibration(one: Scored) -> Table:
    rows = [("all", *(_overall(one, name) for name in _CALIBRATED.values()))]
    rows += [
        (_RANGES[group], *(_group(one, group, name) for name in _CALIBRATED.values()))
        for group in _shown_groups(one.result)
    ]
    pooled = ", ".join(f"{label} {_overall(one, name)}" for label, name in _POOLED.items())
    note = f"All entries together: {pooled}."
    if one.before is not None:
        reps = one.before_replicates.overall if one.before_replicates else {}
        before = ", ".join(f"{label} {_cell(one.before.overall[name], reps.get(name))}" for label, name in _BEFORE)
        note += f"\nBefore calibration: {before}.\n{_HOW.get(_how(one), '')}"
    return Table(("posteriors", *_CALIBRATED), tuple(rows), note=note.rstrip())


_BEFORE = (("F1 at 0.5", "macro_f1_at_half"), ("ECE", "ece"), ("class ECE", "macro_ece"))
_HOW = {"cross-fitted": "Calibration and thresholds are cross-fitted by patient."}


def _how(one: Scored) -> str:
    made = one.of.about.get("decisions")
    return str(made.get("how", "")) if isinstance(made, Mapping) else ""


def left_out(scored: Sequence[Scored]) -> list[str]:
    """A sentence for each kind of class that an average leaves out, or counts as 0; by run where runs differ."""
    lines = [_left_out_of(one.result) for one in scored]
    if all(line == lines[0] for line in lines):
        return lines[0]
    return [f"{one.of.path}: {line}" for one, mine in zip(scored, lines, strict=True) for line in mine]


def _left_out_of(result: Evaluation) -> list[str]:
    lacking, unranked = result.undefined.get("ap", ()), result.undefined.get("auroc", ())
    full = [name for name in unranked if name not in lacking]
    how = (
        "left out of mAP, F1 and AUROC" if result.absent == "skip" else "counted as 0 in mAP and F1, left out of AUROC"
    )
    lines = [f"Without a positive here, and {how}: {', '.join(lacking)}."] if lacking else []
    return lines + ([f"Without a negative here, and left out of AUROC: {', '.join(full)}."] if full else [])


def _class_table(one: Scored) -> Table:
    rows, often = [], []
    for c in one.of.by_frequency:
        figures = [_of_class(one, name, c) for name in ("ap", "auroc")]
        figures += [number(float(one.result.per_class[name][c])) for name in ("f1", "ece")]
        gone = float(one.replicates.undefined("ap")[c]) if one.replicates else 0.0
        mark = "*" if 0 < gone < 1 and one.result.positives[c] else ""
        often += [mark] if mark else []
        name, group = one.result.classes[c], one.result.group[c]
        rows.append((name, group, f"{one.result.positives[c]:,}{mark}", *figures))
    note = "pos.: positives among these images."
    if often:
        note += " *: some resamples hold none of them; the interval is of the others."
    return Table(("class", "group", "pos.", "AP", "AUROC", "F1", "ECE"), tuple(rows), note=note)


def _subsets(one: Scored) -> Table:
    rows = []
    for subset in one.subsets:
        reps = subset.replicates.overall if subset.replicates else None
        figures = (
            _cell(subset.result.overall[name], reps[name] if reps else None)
            for name in ("macro_ap", "macro_auroc", "macro_f1")
        )
        rows.append((f"{subset.by} {subset.value}", f"{subset.images:,}", f"{subset.patients:,}", *figures))
    drawn = [subset.replicates.overall for subset in one.subsets if subset.replicates]
    few = note_of(averages["macro_ap"] for averages in drawn)
    note = f"A subset has its own prevalence and its own absent classes: mAP of subsets is not on one scale.\n{few}"
    return Table(("subset", "images", "patients", *_RANKED), tuple(rows), note=note.rstrip())


# -- several -------------------------------------------------------------------------------------------------------


def _short_names(scored: Sequence[Scored]) -> list[str]:
    """The names of the runs, or their paths where two share a name."""
    names = [one.of.name for one in scored]
    return names if len(set(names)) == len(names) else [one.of.path for one in scored]


def _side_by_side(scored: Sequence[Scored], names: Sequence[str], split: str) -> Table:
    rows = [
        (name, *(_overall(one, figure) for figure in _COMPARED.values()))
        for name, one in zip(names, scored, strict=True)
    ]
    views = [
        f"{name}: {one.of.about['tta']}"
        for name, one in zip(names, scored, strict=True)
        if one.of.about.get("tta", "none") != "none"
    ]
    note = _interval_note(scored) + (f" Test-time augmentation: {', '.join(views)}." if views else "")
    title = f"{len(scored)} runs on {split}, {spread(one.result.images for one in scored)} images"
    return Table(("run", *_COMPARED), tuple(rows), title=title, note=note.strip())


def _differences(compared: Sequence[Comparison], names: Sequence[str]) -> Table:
    rows = []
    for one, name in zip(compared, names[1:], strict=True):
        found = {label: one.overall[figure] for label, figure in _COMPARED.items()}
        found |= {f"mAP, {_RANGES[group]}": figures["macro_ap"] for group, figures in one.groups.items()}
        for label, difference in found.items():
            if not math.isnan(difference.value):
                rows.append((name, label, *_difference(difference), _p(difference.p)))
    note = "p: two-sided, not adjusted. Detectable: the difference that would be found four times in five."
    columns = (f"minus {names[0]}", "figure", "difference", "detectable", "p")
    return Table(columns, tuple(rows), note=note)


def _difference(found: Difference) -> tuple[str, str]:
    sign = "+" if found.value > 0 else ""
    # a dash between two signed numbers reads badly
    # no difference of figures between 0 and 1 is larger than 1
    detectable = ">1" if found.detectable > 1 else number(found.detectable)
    return f"{sign}{number(found.value)} [{number(found.low)}, {number(found.high)}]", detectable


def _class_difference(one: Comparison, names: Sequence[str]) -> Table:
    rows = []
    shared = {name: place for place, name in enumerate(one.classes)}
    order = [one.second.result.classes[c] for c in one.second.of.by_frequency]
    order += [name for name in one.first.of.classes if name not in one.second.of.classes]
    for name in order:
        cells = [_ap_of(which.result, name) for which in (one.second, one.first)]
        found = _cells_of(one, shared[name]) if name in shared else ("", "", "")
        owner = one.second.result if name in one.second.result.classes else one.first.result
        rows.append((name, f"{owner.positives[owner.classes.index(name)]:,}", *cells, *found))
    note = f"1: {names[0]}; 2: {names[1]}; difference: 2 minus 1; p: adjusted over the classes (Holm)."
    return Table(("AP by class", "pos.", "1", "2", "difference", "detectable", "p"), tuple(rows), note=note)


def _cells_of(one: Comparison, place: int) -> tuple[str, str, str]:
    found = one.per_class["ap"]
    if math.isnan(found.value[place]):
        return "-", "-", "-"
    parts = Difference(found.value[place], found.low[place], found.high[place], found.p[place], found.detectable[place])
    return (*_difference(parts), _p(float(one.adjusted["ap"][place])))


def _class_comparison(scored: Sequence[Scored], names: Sequence[str]) -> Table:
    """AP by class; a class that a run does not have stays empty."""
    owners: dict[str, Evaluation] = {}
    for one in scored:
        for c in one.of.by_frequency:
            owners.setdefault(one.result.classes[c], one.result)
    rows = []
    for name, owner in owners.items():
        having = [one.result for one in scored if name in one.result.classes]
        positives = spread(one.positives[one.classes.index(name)] for one in having)
        group = owner.group[owner.classes.index(name)]
        rows.append((name, group, positives, *(_ap_of(one.result, name) for one in scored)))
    return Table(("AP by class", "group", "pos.", *names), tuple(rows))


def _ap_of(result: Evaluation, name: str) -> str:
    return number(float(result.per_class["ap"][result.classes.index(name)])) if name in result.classes else ""
