"""Events and results on the screen; the only module that knows rich.

Progress and messages go to stderr, results to stdout. On a terminal stages are live bars; elsewhere they are plain
lines: one for each epoch, and one for each ten per cent of a stage that takes long.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from cxrlt_cli.events import Advanced, EpochEnded, Event, Finished, Notice, Result, Started, Table

#: Width of output that goes to a file or a pipe: nothing is cut or wrapped there.
_UNLIMITED = 100_000
#: Seconds between two plain progress lines of one stage, at least.
_QUIET_SECONDS = 5.0
#: What the line of an epoch shows of its metrics, by what name; all of them are in metrics.jsonl.
_READ = {"loss": "loss", "macro_ap": "mAP", "macro_auroc": "AUROC", "macro_f1": "F1", "images_per_second": "images/s"}
#: Cells of a column that is right-aligned: numbers, bounds, ranges, shares, dashes for "undefined".
_NUMERIC = re.compile(r"(nan|[-+<0-9.,:%±()\[\]/\s\u2012-\u2015\u2212]|(?<=[0-9])e)*")


class Console:
    """Shows events while work goes on, and its result at the end.

    Args:
        quiet: show warnings and the result only.
        verbose: show details as well.
        as_json: print results as one JSON object.
        stdout, stderr: where to write; default: the process's own.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        as_json: bool = False,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet, self._verbose, self._as_json = quiet, verbose, as_json
        self._second = int(os.environ.get("RANK", "0") or 0) > 0  # of several training processes, the first one speaks
        self._stdout, self._stderr = _rich(stdout or sys.stdout), _rich(stderr or sys.stderr)
        self._stages: _Stages = _LiveStages(self._stderr) if _live(self._stderr) else _PlainStages(self._line, clock)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self._stages.close()

    def emit(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Notice):
            self._notice(event)
        elif self._quiet or self._second:
            return
        elif isinstance(event, EpochEnded):
            self._line(_epoch_line(event))
        elif isinstance(event, Started):
            self._stages.started(event)
        elif isinstance(event, Advanced):
            self._stages.advanced(event)
        elif isinstance(event, Table):
            self._table(event, self._stderr)
        else:
            self._stages.finished(event)
            if event.text:
                self._line(event.text)

    def show(self, result: Result) -> None:
        """Print a result to stdout: its blocks for people, or its data as JSON."""
        self._stages.close()
        if self._second:
            return
        if self._as_json:
            text = json.dumps(_plain(result.data), indent=2, ensure_ascii=False, allow_nan=False)
            self._stdout.file.write(text + "\n")
            return
        for number, block in enumerate(result.blocks):
            if number:
                self._stdout.print()
            if isinstance(block, Table):
                self._table(block, self._stdout)
            else:
                self._stdout.print(Text(block), soft_wrap=True)

    def _notice(self, notice: Notice) -> None:
        hidden = self._quiet if notice.level == "info" else not self._verbose
        if self._second or (hidden and notice.level != "warning"):
            return
        if notice.level == "warning":
            self._line(Text.assemble(("warning: ", "yellow"), notice.text))
        else:
            self._line(notice.text)

    def _line(self, line: str | Text) -> None:
        self._stderr.print(Text(line) if isinstance(line, str) else line)

    def _table(self, table: Table, screen: RichConsole) -> None:
        if table.title:
            screen.print(Text(table.title, style="bold"), soft_wrap=True)
        screen.print(_rich_table(table))
        if table.note:
            screen.print(Text(table.note, style="dim"), soft_wrap=True)


# -- stages ------------------------------------------------------------------------------------------------------


class _LiveStages:
    """Live bars, which vanish when their stage ends."""

    def __init__(self, console: RichConsole) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            _Count(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=5,
        )
        self._tasks: dict[str, TaskID] = {}

    def started(self, event: Started) -> None:
        if not self._tasks:
            self._progress.start()
            self._progress.console.show_cursor(True)  # a process that is killed must not take the cursor with it
        self._drop(event.stage)
        self._tasks[event.stage] = self._progress.add_task(
            event.stage, total=event.total, completed=event.done, unit=event.unit, note=""
        )

    def advanced(self, event: Advanced) -> None:
        if event.stage in self._tasks:
            self._progress.update(self._tasks[event.stage], completed=event.done, note=event.note)

    def finished(self, event: Finished) -> None:
        self._drop(event.stage)

    def close(self) -> None:
        for stage in list(self._tasks):
            self._drop(stage)

    def _drop(self, stage: str) -> None:
        if stage not in self._tasks:
            return
        self._progress.remove_task(self._tasks.pop(stage))
        if not self._tasks:
            self._progress.stop()


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f"/{task.total:,.0f}" if task.total else ""
        return Text(f"{task.completed:,.0f}{total} {task.fields['unit']}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{_rate(task.speed)}/s" if task.speed else "")


@dataclass(frozen=True, slots=True)
class _Progress:
    event: Started
    since: float
    shown: float
    tenths: int


class _PlainStages:
    """One line for each ten per cent of a stage, but not more often than every few seconds."""

    def __init__(self, line: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._line, self._clock = line, clock
        self._stages: dict[str, _Progress] = {}

    def started(self, event: Started) -> None:
        now = self._clock()
        self._stages[event.stage] = _Progress(event, now, now, _tenths(event.done, event.total))

    def advanced(self, event: Advanced) -> None:
        stage = self._stages.get(event.stage)
        now = self._clock()
        if stage is None or now - stage.shown < _QUIET_SECONDS:
            return
        tenths = _tenths(event.done, stage.event.total)
        if tenths > stage.tenths and event.done < stage.event.total:
            self._stages[event.stage] = replace(stage, shown=now, tenths=tenths)
            self._line(_progress_line(event, stage, now))

    def finished(self, event: Finished) -> None:
        self._stages.pop(event.stage, None)

    def close(self) -> None:
        self._stages.clear()


_Stages = _LiveStages | _PlainStages


def _tenths(done: int, total: int) -> int:
    return 10 * done // total if total else 0


def _progress_line(event: Advanced, stage: _Progress, now: float) -> str:
    start, seconds = stage.event, now - stage.since
    rate = (event.done - start.done) / seconds if seconds > 0 else 0.0
    parts = [
        f"{start.stage}: {_tenths(event.done, start.total) * 10} %",
        f"{event.done:,}/{start.total:,} {start.unit}",
    ]
    if rate > 0:
        parts += [f"{_rate(rate)}/s", f"{_duration((start.total - event.done) / rate)} left"]
    return "  ".join([*parts, event.note] if event.note else parts)


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _epoch_line(event: EpochEnded) -> str:
    width = len(str(event.epochs))
    shown = {label: event.metrics.get(key) for key, label in _READ.items()}
    readings = [f"{label} {_reading(value)}" for label, value in shown.items() if value is not None]
    mark = ["best"] if event.best else []
    return "  ".join([f"epoch {event.epoch:{width}}/{event.epochs}", *readings, *mark])


def _reading(value: float) -> str:
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1 or value == 0 else f"{value:.3g}"


# -- output ------------------------------------------------------------------------------------------------------


class _Output(RichConsole):
    def on_broken_pipe(self) -> None:
        """Let the error out: the command line ends the process, not rich."""
        raise  # noqa: PLE0704  # called while the BrokenPipeError is handled


def _rich(file: IO[str]) -> RichConsole:
    wide = None if file.isatty() else _UNLIMITED
    return _Output(file=file, width=wide, highlight=False, markup=False, emoji=False)


def _live(console: RichConsole) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _rich_table(table: Table) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, column in enumerate(table.columns):
        numeric = number > 0 and all(_NUMERIC.fullmatch(row[number]) for row in table.rows)
        shown.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown


def _plain(value: object) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite become null, all else unknown becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
