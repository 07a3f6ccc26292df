"""Curves of one class in a small panel, and all classes in one picture.

A panel is a drawing of fixed shape that scales with its column. Axes of posteriors are in log-odds, as the posteriors
and thresholds of rare findings lie close to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cxrlt_cli.report.text import escape

_WIDTH, _HEIGHT = 220, 178
_LEFT, _RIGHT, _TOP, _BOTTOM = 30, 6, 6, 32

Points = Iterable[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its name, where its ticks are, and how a value becomes a place from 0 to 1."""

    label: str
    ticks: tuple[float, ...]
    place: Callable[[float], float]


def linear(label: str) -> Axis:
    """From 0 to 1, evenly."""
    return Axis(label, (0, 0.25, 0.5, 0.75, 1), lambda value: min(max(value, 0.0), 1.0))


#: Axes in log-odds end at this probability and its complement.
LEAST = 0.001


def log_odds(label: str) -> Axis:
    """From 0.001 to 0.999 in log-odds; what lies beyond is drawn at the ends."""
    return Axis(label, (0.001, 0.01, 0.1, 0.5, 0.9, 0.99), _log_odds_place)


def _log_odds_place(value: float) -> float:
    inside = min(max(value, LEAST), 1 - LEAST)
    return 0.5 + 0.5 * math.log(inside / (1 - inside)) / math.log((1 - LEAST) / LEAST)


@dataclass(frozen=True, slots=True)
class Panel:
    """Where values lie in a drawing with two axes."""

    across: Axis
    up: Axis

    def x(self, value: float) -> str:
        """Pixels from the left."""
        return _short(_LEFT + self.across.place(value) * (_WIDTH - _LEFT - _RIGHT))

    def y(self, value: float) -> str:
        """Pixels from the top."""
        return _short(_HEIGHT - _BOTTOM - self.up.place(value) * (_HEIGHT - _TOP - _BOTTOM))

    def line(self, points: Points, kind: str) -> str:
        """Straight lines between points; ``kind`` is a CSS class. Nothing for fewer than two points."""
        places = [f"{self.x(x)} {self.y(y)}" for x, y in points]
        return f'<path class="{kind}" d="M{"L".join(places)}"/>' if len(places) > 1 else ""

    def steps(self, edges: Sequence[float], heights: Sequence[float], kind: str) -> str:
        """A step from each of the edges (n + 1) to the next, at each of the heights (n)."""
        if not len(heights):
            return ""
        parts = [f"M{self.x(edges[0])} {self.y(heights[0])}"]
        for number, height in enumerate(heights):
            parts += [f"V{self.y(height)}"] if number else []
            parts.append(f"H{self.x(edges[number + 1])}")
        return f'<path class="{kind}" d="{"".join(parts)}"/>'

    def dot(self, x: float, y: float, kind: str, says: str = "") -> str:
        """A dot; what it says is shown where it is pointed at."""
        return f'<circle class="{kind}" cx="{self.x(x)}" cy="{self.y(y)}" r="3">{_says(says)}</circle>'

    def whisker(self, x: float, low: float, high: float, kind: str) -> str:
        """An upright interval."""
        return f'<path class="{kind}" d="M{self.x(x)} {self.y(low)}V{self.y(high)}"/>'

    def upright(self, x: float, kind: str, says: str = "") -> str:
        """A line over the whole height."""
        return f'<path class="{kind}" d="M{self.x(x)} {_TOP}V{_HEIGHT - _BOTTOM}">{_says(says)}</path>'

    def level(self, y: float, kind: str, says: str = "") -> str:
        """A line over the whole width."""
        return f'<path class="{kind}" d="M{_LEFT} {self.y(y)}H{_WIDTH - _RIGHT}">{_says(says)}</path>'

    def drawn(self, marks: Iterable[str], title: str) -> str:
        """The drawing."""
        return (
            f'<svg class="panel" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
            f"{self._axes()}{''.join(marks)}</svg>"
        )

    def _axes(self) -> str:
        foot = _HEIGHT - _BOTTOM
        upright = "".join(f"M{self.x(tick)} {_TOP}V{foot}" for tick in self.across.ticks)
        level = "".join(f"M{_LEFT} {self.y(tick)}H{_WIDTH - _RIGHT}" for tick in self.up.ticks)
        below = (
            f'<text x="{self.x(tick)}" y="{foot + 13}" text-anchor="middle">{_tick(tick)}</text>'
            for tick in self.across.ticks
        )
        beside = (
            f'<text x="{_LEFT - 4}" y="{float(self.y(tick)) + 3:.0f}" text-anchor="end">{_tick(tick)}</text>'
            for tick in self.up.ticks
        )
        name = f'<text x="{(_WIDTH + _LEFT) // 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(self.across.label)}'
        return f'<path class="grid" d="{upright}{level}"/>{"".join(below)}{"".join(beside)}{name}</text>'


def _tick(value: float) -> str:
    return f"{value:g}".replace("0.", ".", 1) if 0 < value < 1 else f"{value:g}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _says(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


# -- intervals in tables -------------------------------------------------------------------------------------------


def interval_bar(value: float, low: float, high: float, chance: float = math.nan) -> str:
    """A bar from 0 to 1 with an interval, the value in it, and what chance would give; nothing for no value."""
    if math.isnan(value):
        return ""
    marks = ['<rect class="span" x="0" y="5" width="100%" height="2"/>']
    if not math.isnan(low):
        marks.append(f'<rect class="s0" x="{100 * low:.1f}%" y="4" width="{100 * (high - low):.1f}%" height="4"/>')
    if not math.isnan(chance):
        marks.append(f'<rect class="mark" x="{100 * min(chance, 0.985):.1f}%" y="1" width="1" height="10"/>')
    marks.append(f'<circle class="s0" cx="{100 * value:.1f}%" cy="6" r="3.5"/>')
    return f'<svg class="range" width="56" height="12" aria-hidden="true">{"".join(marks)}</svg>'


# -- all classes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rare:
    """A class in the picture of the long tail: training prevalence, average precision, its interval and chance."""

    name: str
    share: float
    value: float
    low: float
    high: float
    chance: float
    says: str


#: Height of the picture, of what is below the axis and of what is above 1, in pixels.
_TALL, _FOOT, _SKY = 330, 34, 22
#: Room for the labels of the upright axis and at the right edge, in per cent of the width.
_START, _END = 5.0, 98.5
_EDGES = (0.01, 0.1)
_GROUPS = ("tail, below 1 %", "medium, 1 to 10 %", "head, above 10 %")


def long_tail(rows: Sequence[Rare]) -> str:
    """Average precision against training prevalence on a logarithmic axis, tail, medium and head shaded.

    Classes without a training example stand at the left edge. Text keeps its size on any screen; names are left out
    where they would cover each other, and on narrow screens, and are said where a dot is pointed at.
    """
    least = min((row.share for row in rows if row.share > 0), default=0.001)
    first = 10.0 ** math.floor(math.log10(min(least, 0.01)) + 1e-9)
    first = min(first, least / 1.2, _EDGES[0] / 2)  # the tail has room for its name, if nothing else

    def x(share: float) -> float:
        return _START + (_END - _START) * math.log(max(share, first) / first) / math.log(1 / first)

    def y(value: float) -> float:
        return _SKY + (1 - value) * (_TALL - _FOOT - _SKY)

    marks = [*_bands(x), *_scales(x, y, first)]
    for row in (row for row in rows if not math.isnan(row.value)):
        marks += _rare_marks(row, x(row.share), y)
    marks += _names([row for row in rows if not math.isnan(row.value)], x, y)
    title = "Average precision of each class against its share of positives in training"
    return (
        f'<svg class="tail" role="img" aria-label="{title}" width="100%" height="{_TALL}">{"".join(marks)}'
        f'<text class="dim" x="50%" y="{_TALL - 2}" text-anchor="middle">share of positives in training</text></svg>'
    )


def _bands(x: Callable[[float], float]) -> list[str]:
    edges = (_START, *(x(edge) for edge in _EDGES), _END)
    marks = []
    for number, name in enumerate(_GROUPS):
        left, right = edges[number : number + 2]
        marks.append(
            f'<rect class="band{number}" x="{left:.2f}%" y="0" width="{right - left:.2f}%" height="{_TALL - _FOOT}"/>'
            f'<text class="dim" x="{(left + right) / 2:.2f}%" y="14" text-anchor="middle">{name.partition(",")[0]}'
            f'<tspan class="wide">,{name.partition(",")[2]}</tspan></text>'
        )
    return marks


def _scales(x: Callable[[float], float], y: Callable[[float], float], first: float) -> list[str]:
    marks = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        place = y(tick)
        marks.append(
            f'<line class="grid" x1="{_START}%" x2="{_END}%" y1="{place:.1f}" y2="{place:.1f}"/>'
            f'<text class="dim" x="{_START - 0.8}%" y="{place + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    powers = range(math.ceil(math.log10(first) - 1e-9), 1)
    for share in (10.0**power for power in powers):
        anchor = "end" if share == 1 else "middle"
        where = f'x="{x(share):.2f}%" y="{_TALL - _FOOT + 15}"'
        marks.append(f'<text class="dim" {where} text-anchor="{anchor}">{100 * share:g} %</text>')
    return marks


def _rare_marks(row: Rare, x: float, y: Callable[[float], float]) -> list[str]:
    level = f'y1="{y(row.chance):.1f}" y2="{y(row.chance):.1f}"'
    marks = [f'<line class="mark" x1="{x - 0.7:.2f}%" x2="{x + 0.7:.2f}%" {level}/>']
    if not math.isnan(row.low):
        marks.append(f'<line class="l0" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y(row.low):.1f}" y2="{y(row.high):.1f}"/>')
    return [*marks, f'<circle class="s0" cx="{x:.2f}%" cy="{y(row.value):.1f}" r="4.5">{_says(row.says)}</circle>']


#: Width the picture has on a wide screen, in pixels, and the room a letter takes; for placing names only.
_SCREEN, _LETTER = 928.0, 6.2


def _names(rows: Sequence[Rare], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Names beside their dots, where there is room: on the right, or else on the left."""
    dots = [(x(row.share) * _SCREEN / 100, y(row.value)) for row in rows]
    taken = [(left - 6, left + 6, top - 6, top + 6) for left, top in dots]
    marks = []
    for row, (centre, top) in zip(rows, dots, strict=True):
        length = len(row.name) * _LETTER
        for anchor, left in (("start", centre + 8), ("end", centre - 8 - length)):
            box = (left, left + length, top - 6, top + 6)
            if left < 0.01 * _START * _SCREEN or box[1] > _SCREEN or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            shift = 8 if anchor == "start" else -8
            marks.append(
                f'<text class="wide" x="{x(row.share):.2f}%" dx="{shift}" y="{top + 4:.1f}" text-anchor="{anchor}">'
                f"{escape(row.name)}</text>"
            )
            break
    return marks


_Box = tuple[float, float, float, float]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
