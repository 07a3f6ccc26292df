"""The end table of a sweep as terminal text, CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from cxrlt_cli.artifacts import write_json, write_text
from cxrlt_cli.bootstrap import Difference, bias_note, p_text
from cxrlt_cli.commands.sweep.figures import FIGURES, PRIMARY, Scored, TableOfRows, Value
from cxrlt_cli.events import Table
from cxrlt_cli.wording import SIGNED, UNSIGNED, between, figure

#: Figure -> heading.
_HEADS = {
    "macro_ap": "mAP",
    "macro_auroc": "AUROC",
    "macro_f1": "F1",
    "ece": "ECE",
    "head_ap": "head AP",
    "medium_ap": "medium AP",
    "tail_ap": "tail AP",
}
_GROUPS = ("head_ap", "medium_ap", "tail_ap")


def as_blocks(table: TableOfRows) -> tuple[Table | str, ...]:
    """The table for a terminal: scores, then differences from the reference, in all and by group of classes."""
    return tuple(_grids(table))


def as_text(table: TableOfRows, form: str) -> str:
    """The table as "markdown", "latex" or "csv"."""
    return {"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[form](table)


def write_tables(out: Path, table: TableOfRows) -> tuple[Path, ...]:
    """Write table.csv, table.md, table.tex and table.json into ``out``; their paths."""
    write_text(out / "table.csv", as_csv(table))
    write_text(out / "table.md", as_markdown(table))
    write_text(out / "table.tex", as_latex(table))
    write_json(out / "table.json", _finite(table.to_json()))
    return tuple(out / f"table.{ending}" for ending in ("csv", "md", "tex", "json"))


def _finite(value: object) -> object:
    """nan as None, which JSON has."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- what is shown ---------------------------------------------------------------------------------------------------


def _grids(table: TableOfRows) -> list[Table]:
    what = "fold" if table.folds else "seed"
    several = table.repetitions > 1
    title = f"{table.name} on {table.split}: {_images(table)}, " + (
        f"mean of {table.repetitions} {what}s" if several else f"one {what}"
    )
    columns = ("row", *(cell for name in FIGURES for cell in _columns(name, several)))
    rows = tuple(
        (row.entry.name, *(cell for name in FIGURES for cell in _cells(name, row, several))) for row in table.rows
    )
    scores = Table(columns, rows, title=title, note=_scores_note(table, what))
    compared = [row for row in table.rows if row.differences is not None]
    if not compared:
        return [scores]
    heads = (
        "row",
        "mAP",
        "95 % interval",
        *((f"s.d. over {what}s",) if several else ()),
        "p",
        "p (Holm)",
        "detectable",
    )
    lines = tuple((row.entry.name, *_difference_cells(row, several)) for row in compared)
    title = f"difference from {table.reference}"
    groups = ("row", *(cell for name in _GROUPS for cell in (_HEADS[name], "95 % interval")))
    by_group = tuple((row.entry.name, *_group_cells(row)) for row in compared)
    return [
        scores,
        Table(heads, lines, title=title, note=_difference_note(table)),
        Table(groups, by_group, title=f"{title}, by group"),
    ]


def _images(table: TableOfRows) -> str:
    counts = sorted({count for row in table.rows for count in row.images})
    return f"{counts[0]:,} images" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"


def _columns(name: str, several: bool) -> tuple[str, ...]:
    if name != PRIMARY:
        return (_HEADS[name],)
    return (_HEADS[name], "95 % interval", *(("s.d.",) if several else ()))


def _cells(name: str, row: Scored, several: bool) -> tuple[str, ...]:
    value = row.values[name]
    if name != PRIMARY:
        return (figure(value.mean),)
    return (figure(value.mean), _interval(value), *((figure(value.sd),) if several else ()))


def _difference_cells(row: Scored, several: bool) -> tuple[str, ...]:
    assert row.differences is not None
    first = row.differences[PRIMARY]
    spread = (figure(row.difference_sd),) if several else ()
    chances = (p_text(float(first.p)), p_text(row.adjusted), figure(float(first.detectable)))
    return (figure(first.value, SIGNED), _interval(first, SIGNED), *spread, *chances)


def _group_cells(row: Scored) -> tuple[str, ...]:
    assert row.differences is not None
    found = [row.differences[name] for name in _GROUPS]
    return tuple(cell for each in found for cell in (figure(each.value, SIGNED), _interval(each, SIGNED)))


def _scores_note(table: TableOfRows, what: str) -> str:
    spread = f" s.d.: over {what}s, which the interval does not cover." if table.repetitions > 1 else ""
    return (
        f"Interval: 95 %, {table.resamples:,} resamples of the patients{' of each fold' if table.folds else ''}."
        f"{spread} F1 of the default decisions; ECE pools all entries. "
        "Head, medium, tail: training prevalence > 10 %, 1-10 %, < 1 %. "
        + bias_note(row.values[PRIMARY].bias for row in table.rows)
    ).rstrip()


def _difference_note(table: TableOfRows) -> str:
    return (
        "Paired: both rows on the same resamples. p (Holm) is adjusted for the number of rows compared in mAP. "
        "Detectable: the true difference that would be found four times out of five."
    )


def _interval(value: Value | Difference, form: str = UNSIGNED) -> str:
    return between(float(value.low), float(value.high), form)


# -- files -----------------------------------------------------------------------------------------------------------

_DIFFERENCE = ("value", "low", "high", "p", "detectable")


def as_csv(table: TableOfRows) -> str:
    """One line a row, all figures at full precision; empty where undefined."""
    columns = ["row", "tta", "repetitions", "reference"]
    columns += [f"{name}_{part}" for name in FIGURES for part in ("mean", "low", "high", "sd")]
    columns += [f"difference_{name}_{part}" for name in FIGURES for part in _DIFFERENCE]
    columns += [f"difference_{PRIMARY}_sd", f"difference_{PRIMARY}_p_holm"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in table.rows:
        writer.writerow(
            [row.entry.name, row.entry.tta or "", table.repetitions, table.reference, *map(_raw, _raws(row))]
        )
    return file.getvalue()


def _raws(row: Scored) -> list[float]:
    values = [part for name in FIGURES for v in (row.values[name],) for part in (v.mean, v.low, v.high, v.sd)]
    empty = [math.nan] * len(_DIFFERENCE)
    for name in FIGURES:
        difference = row.differences[name] if row.differences else None
        values += [float(getattr(difference, part)) for part in _DIFFERENCE] if difference else empty
    return [*values, row.difference_sd, row.adjusted]


def _raw(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def as_markdown(table: TableOfRows) -> str:
    """Three tables, with a sentence below those that need one."""
    parts = []
    for grid in _grids(table):
        rule = ["---", *("---:" for _ in grid.columns[1:])]
        lines = [_markdown_line(cells) for cells in (grid.columns, rule, *grid.rows)]
        note = f"\n{_markdown(grid.note)}\n" if grid.note else ""
        parts.append(f"**{_markdown(grid.title)}**\n\n" + "\n".join(lines) + f"\n{note}")
    return "\n".join(parts)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if set(cell) <= {"-", ":"} else _markdown(cell) for cell in cells) + " |"


def _markdown(text: str) -> str:
    """Text with every character that Markdown could read as markup escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def as_latex(table: TableOfRows) -> str:
    """A ``tabular`` environment with booktabs rules for each table."""
    parts = ["% \\usepackage{booktabs}"]
    for grid in _grids(table):
        body = [f"\\begin{{tabular}}{{l{'r' * (len(grid.columns) - 1)}}}", "\\toprule", _latex_line(grid.columns)]
        body += ["\\midrule", *(_latex_line(row) for row in grid.rows), "\\bottomrule", "\\end{tabular}"]
        note = [f"% {_latex(grid.note)}"] if grid.note else []
        parts.append("\n".join([f"% {_latex(grid.title)}", *body, *note]))
    return "\n\n".join(parts) + "\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + r" \\"


def _latex(text: str) -> str:
    """Text that LaTeX sets as it stands; a minus before a number is one."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])([-+])(?=[0-9])", r"$\1$", escaped)
