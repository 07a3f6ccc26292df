"""Small drawings for reports, as inline SVG.

Widths are percentages and heights pixels, so that a drawing fills its column on any screen while its text keeps its
size. Colours are CSS classes (``s0``, ``s1``, ``s2`` for series) of ``templates/base.html``, which knows light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cxrlt_cli.report.text import apart, escape

_BAR, _AXIS, _HEAD, _CELL = 6, 18, 18, 17
#: Height of a bar of a waterfall, and of the room it has.
_BEAM, _LANE = 12, 16


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
    step = _step(largest)
    return [step * index for index in range(math.ceil(largest / step) + 1)]


def _step(length: float) -> float:
    """The round number that divides ``length`` into about four."""
    raw = length / 4
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)


def _log_ticks(largest: float) -> list[float]:
    """Powers of ten from 1 to ``largest``."""
    return [10.0**power for power in range(max(1, math.floor(math.log10(max(largest, 1))) + 1))]


# -- waterfalls ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fall:
    """A row of a waterfall.

    Attributes:
        label: beside the bar, on the left; above it on narrow screens.
        note: likewise, on the right.
        start: the level the row above it left; nan where there is none.
        end: the level it leaves; nan draws nothing but the level of ``start``, for what is not known.
        whiskers: intervals, the one of the thicker line first.
        stands: whether the bar stands on the foot of the axis, in place of floating between ``start`` and ``end``.
        still: whether it neither rises nor falls as far as can be told.
        says: shown where the bar is pointed at.
    """

    label: str
    note: str
    start: float = math.nan
    end: float = math.nan
    whiskers: tuple[tuple[float, float], ...] = ()
    stands: bool = False
    still: bool = False
    says: str = ""


@dataclass(frozen=True, slots=True)
class _Scale:
    """The axis of a waterfall: where it starts and ends, and the foot of the bars that stand."""

    first: float
    last: float

    @property
    def foot(self) -> float:
        return max(self.first, 0.0)

    def place(self, value: float) -> float:
        return 100 * (value - self.first) / (self.last - self.first)

    def ticks(self) -> list[float]:
        step = _step(self.last - self.first)
        inside = range(math.ceil(self.first / step - 1e-9), math.floor(self.last / step + 1e-9) + 1)
        return [step * index for index in inside]


#: The axis of a waterfall starts at 0 where what happens on it takes at least this share of it.
_SHARE = 0.2


def is_cut(rows: Sequence[Fall], observed: float = math.nan) -> bool:
    """Whether the axis of a waterfall of these rows starts above 0, so that lengths of bars do not compare."""
    return _scale(rows, observed).first > 0


def waterfall(rows: Sequence[Fall], *, title: str, observed: float = math.nan) -> str:
    """Bars that begin where the one above ended, from top to bottom, each with its label.

    Where all that happens would be too small to see on an axis from 0, the axis starts later, and bars that stand on
    it are drawn with a break.

    Args:
        rows: from top to bottom; at least one has an ``end``.
        title: read out in place of the drawing.
        observed: a line over the whole height; none for nan.
    """
    scale = _scale(rows, observed)
    ticks = scale.ticks()
    grid = "".join(_upright("grid", scale.place(tick)) for tick in ticks)
    seen = "" if math.isnan(observed) else _upright("l2", scale.place(observed))
    falls = "".join(_fall(row, scale, grid, seen) for row in rows)
    axis = _svg("", _AXIS, [_tick(scale.place(tick), f"{tick:,g}") for tick in ticks])
    foot = f'<div class="fall"><div class="lane">{axis}</div></div>'
    return f'<div class="falls" role="img" aria-label="{escape(title)}">{falls}{foot}</div>'


def _scale(rows: Sequence[Fall], observed: float) -> _Scale:
    values = [observed, *(end for row in rows for end in (row.start, row.end, *sum(row.whiskers, ())))]
    known = [value for value in values if not math.isnan(value)]
    low, high = min(known), max(known)
    if 0 < high - low < _SHARE * high:
        return _Scale(max(0.0, low - 0.4 * (high - low)), high + 0.08 * (high - low))
    first, last = min(low, 0.0), max(high, 0.0)
    return _Scale(first, first + 1.04 * (last - first) if last > first else first + 1)


def _fall(row: Fall, scale: _Scale, grid: str, seen: str) -> str:
    level = "" if math.isnan(row.start) else _upright("level", scale.place(row.start))
    drawn = not math.isnan(row.end)
    # the line of what was observed is drawn again over the bar, which would hide it
    bar = _svg("", _LANE, [*_beam(row, scale), seen, *_whiskers(row, scale)]) if drawn else ""
    words = "" if drawn or not level else " dim"
    return (
        f'<div class="fall"><span class="label">{escape(row.label)}</span><span class="note{words}">{escape(row.note)}'
        f'</span><div class="lane{"" if drawn else " bare"}"><svg class="under" aria-hidden="true">{grid}{seen}{level}'
        f"</svg>{bar}</div></div>"
    )


def _beam(row: Fall, scale: _Scale) -> list[str]:
    start = scale.foot if row.stands else row.start
    kind = "end" if row.stands or row.still else "up" if row.end > start else "down"
    left, right = sorted((scale.place(start), scale.place(row.end)))
    marks = [
        f'<rect class="{kind}" x="{left:.2f}%" y="0" width="{right - left:.2f}%" height="{_BEAM}">'
        f"<title>{escape(row.says)}</title></rect>",
        _upright(kind, scale.place(row.end), 0, _BEAM),
    ]
    if row.stands and scale.first > 0:
        marks.append(f'<path class="break" d="M9 -1l-4 {_BEAM + 2}M14 -1l-4 {_BEAM + 2}"/>')
    return marks


def _whiskers(row: Fall, scale: _Scale) -> list[str]:
    marks, middle = [], _BEAM // 2
    for number, (low, high) in enumerate(row.whiskers):
        ends = scale.place(low), scale.place(high)
        kind = "whisker thick" if number == 0 and len(row.whiskers) > 1 else "whisker"
        level = f'y1="{middle}" y2="{middle}"'
        marks.append(f'<line class="{kind}" x1="{ends[0]:.2f}%" x2="{ends[1]:.2f}%" {level}/>')
        if number == len(row.whiskers) - 1:
            marks += [_upright("whisker", end, middle - 4, middle + 4) for end in ends]
    return marks


def _upright(kind: str, x: float, top: float | str = 0, foot: float | str = "100%") -> str:
    return f'<line class="{kind}" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{foot}"/>'


# -- maps ----------------------------------------------------------------------------------------------------------


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
    ends = [f"{note}{number.get(name, '')}" for name, note in zip(shown, notes, strict=True)]
    texts = [
        f'<text x="100%" y="{_HEAD + row * _CELL + 12}" text-anchor="end">{apart(name)}{escape(end)}</text>'
        for row, (name, end) in enumerate(zip(shown, ends, strict=True))
    ]
    width = 100 / len(names)
    cells = [
        f'<text class="dim tiny" x="{(column + 0.5) * width:.2f}%" y="12" text-anchor="middle">{column + 1}</text>'
        for column in range(len(names))
    ]
    for row, values in enumerate(shares):
        known = [(column, value) for column, value in enumerate(values) if not math.isnan(value)]
        cells.extend(_cell(row, column, value, (shown[row], names[column]), width) for column, value in known)
    longest = max((len(name) + len(end) for name, end in zip(shown, ends, strict=True)), default=0)
    total, margin = _HEAD + len(shown) * _CELL, 16 + 7 * longest
    style = f"grid-template-columns: {margin}px 1fr; min-width: {margin + 14 * len(names)}px"
    return f'<div class="map" style="{style}">{_svg("", total, texts)}{_svg(title, total, cells)}</div>'


def _cell(row: int, column: int, value: float, pair: tuple[str, str], width: float) -> str:
    kind, strength = ("diagonal", 1.0) if pair[0] == pair[1] else ("heat", math.sqrt(value))
    return (
        f'<rect class="{kind}" x="{column * width:.2f}%" y="{_HEAD + row * _CELL}" width="{width * 0.92:.2f}%" '
        f'height="{_CELL - 1}" fill-opacity="{strength:.2f}">'
        f"<title>{escape(pair[0])} \u2192 {escape(pair[1])}: {100 * value:.1f} %</title></rect>"
    )


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    label = f'role="img" aria-label="{escape(title)}"' if title else 'aria-hidden="true"'
    return f'<svg {label} width="100%" height="{height}">{"".join(parts)}</svg>'
