"""Small drawings for reports, as inline SVG.

Widths are percentages and heights pixels, so that a drawing fills its column on any screen while its text keeps its
size. Colours are CSS classes (``s0``, ``s1``, ``s2`` for series) of ``templates/base.html``, which knows light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_BAR, _AXIS, _HEAD, _CELL = 6, 18, 18, 17


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled group of bars: one value a series.

    Attributes:
        label: above the bars, on the left.
        note: above the bars, on the right.
        values: lengths, at least 0.
    """

    label: str
    values: tuple[float, ...]
    note: str = ""


def bars(rows: Sequence[Bar], *, title: str, log: bool = False) -> str:
    """Horizontal bars from 0, or from 0.5 on a logarithmic axis (0 draws nothing there), each group under its label.

    Series that are 0 in every group are left out.

    Args:
        rows: the groups, from top to bottom.
        title: read out in place of the drawing.
        log: whether the axis is logarithmic.
    """
    largest = max((value for row in rows for value in row.values), default=0)
    ticks = _log_ticks(largest) if log else _ticks(largest)
    end = max(ticks[-1], largest)
    series = [index for index in range(3) if any(row.values[index : index + 1] > (0,) for row in rows)]

    def place(value: float) -> float:
        if log:
            return 100 * max(0.0, math.log(max(value, 0.5) / 0.5) / math.log(end / 0.5))
        return 100 * value / end

    grid = "".join(f'<line class="grid" x1="{place(t):.2f}%" x2="{place(t):.2f}%" y1="0" y2="100%"/>' for t in ticks)
    groups = "".join(_group(row, series, place, grid) for row in rows)
    axis = _svg("", _AXIS, [_tick(place(tick), f"{tick:,g}") for tick in ticks])
    return f'<div class="bars" role="img" aria-label="{escape(title)}">{groups}{axis}</div>'


def _group(row: Bar, series: Sequence[int], place: Callable[[float], float], grid: str) -> str:
    rects = []
    for line, index in enumerate(series):
        value = row.values[index]
        rects.append(
            f'<rect class="s{index}" x="0" y="{line * (_BAR + 1)}" width="{place(value):.2f}%" height="{_BAR}">'
            f"<title>{escape(row.label)}: {value:,g}</title></rect>"
        )
    head = f'<div class="head"><span>{escape(row.label)}</span><span class="dim">{escape(row.note)}</span></div>'
    return head + _svg("", max(1, len(series)) * (_BAR + 1) + 9, [grid, *rects])


def _tick(x: float, text: str) -> str:
    anchor = "start" if x < 1 else "end" if x > 97 else "middle"
    return f'<text class="dim" x="{x:.2f}%" y="13" text-anchor="{anchor}">{text}</text>'


def _ticks(largest: float) -> list[float]:
    """About four round numbers from 0 to ``largest`` or just above."""
    if largest <= 0:
        return [0, 1]
    raw = largest / 4
    power = 10 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    return [step * index for index in range(math.ceil(largest / step) + 1)]


def _log_ticks(largest: float) -> list[float]:
    """Powers of ten from 1 to ``largest``."""
    return [10.0**power for power in range(max(1, math.floor(math.log10(max(largest, 1))) + 1))]


def heat_map(
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    *,
    title: str,
    rows: Sequence[str] | None = None,
    notes: Sequence[str] | None = None,
) -> str:
    """A map of shares in [0, 1], its rows named and numbered, its columns numbered.

    Args:
        names: of columns, and of rows.
        shares: one row of cells a name; nan draws nothing.
        title: read out in place of the drawing.
        rows: names of the rows, where they are not those of the columns.
        notes: a further word for each row.
    """
    shown = names if rows is None else rows
    number = {name: f" {place + 1}" for place, name in enumerate(names)}
    notes = [f" ({note})" for note in notes] if notes is not None else [""] * len(shares)
    labels = [f"{name}{note}{number.get(name, '')}" for name, note in zip(shown, notes, strict=True)]
    texts = [
        f'<text x="100%" y="{_HEAD + row * _CELL + 12}" text-anchor="end">{escape(label)}</text>'
        for row, label in enumerate(labels)
    ]
    width = 100 / len(names)
    cells = [
        f'<text class="dim tiny" x="{(column + 0.5) * width:.2f}%" y="12" text-anchor="middle">{column + 1}</text>'
        for column in range(len(names))
    ]
    for row, values in enumerate(shares):
        known = [(column, value) for column, value in enumerate(values) if not math.isnan(value)]
        cells.extend(_cell(row, column, value, (shown[row], names[column]), width) for column, value in known)
    total, margin = _HEAD + len(labels) * _CELL, 16 + 7 * max(map(len, labels), default=0)
    style = f"grid-template-columns: {margin}px 1fr; min-width: {margin + 14 * len(names)}px"
    return f'<div class="map" style="{style}">{_svg("", total, texts)}{_svg(title, total, cells)}</div>'


def _cell(row: int, column: int, value: float, pair: tuple[str, str], width: float) -> str:
    kind, strength = ("diagonal", 1.0) if pair[0] == pair[1] else ("heat", math.sqrt(value))
    return (
        f'<rect class="{kind}" x="{column * width:.2f}%" y="{_HEAD + row * _CELL}" width="{width * 0.92:.2f}%" '
        f'height="{_CELL - 1}" fill-opacity="{strength:.2f}">'
        f"<title>{escape(pair[0])} \u2192 {escape(pair[1])}: {value:.1%}</title></rect>"
    )


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    label = f'role="img" aria-label="{escape(title)}"' if title else 'aria-hidden="true"'
    return f'<svg {label} width="100%" height="{height}">{"".join(parts)}</svg>'
