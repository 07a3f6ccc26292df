"""What the library tells its caller while it works.

Library code never prints: it calls ``emit`` with one of these. ``console.py`` turns them into bars, tables and lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for the user. ``level`` decides whether ``-q`` and ``-v`` show it."""

    text: str
    level: Literal["detail", "info", "warning"] = "info"


@dataclass(frozen=True, slots=True)
class Started:
    """A stage of ``total`` units begins (``done`` of them finished before, when work is continued)."""

    stage: str
    total: int
    unit: str = "images"
    done: int = 0


@dataclass(frozen=True, slots=True)
class Advanced:
    """``done`` units of ``stage`` are finished; ``note`` is a short live reading such as the loss."""

    stage: str
    done: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The stage ended; ``text`` is its closing line, empty for none."""

    stage: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """One epoch of training was evaluated. ``metrics`` is the object also written to ``metrics.jsonl``."""

    epoch: int
    epochs: int
    best: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """A table, already formatted: every cell is text. The first column is left-aligned, the others right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""


Event = Notice | Started | Advanced | Finished | EpochEnded | Table
Emit = Callable[[Event], None]


def silent(event: Event) -> None:
    """An ``emit`` that drops every event."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command hands back.

    Attributes:
        data: for ``--json``.
        blocks: tables and paragraphs, for people.
        code: exit code; not 0 when the work was done but part of the input had to be left out.
    """

    data: Mapping[str, object]
    blocks: tuple[Table | str, ...] = ()
    code: int = 0
