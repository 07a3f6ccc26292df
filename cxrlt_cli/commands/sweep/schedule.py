"""Carrying a plan out: what may start, what runs, what failed, and how it all stops."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cxrlt_cli.artifacts import RunDir, read_lines
from cxrlt_cli.commands.sweep.engines import STOPPED, Command, Engine, Handle, stop_all
from cxrlt_cli.commands.sweep.plan import Step
from cxrlt_cli.commands.sweep.standing import is_done
from cxrlt_cli.engine.signals import INTERRUPT, NONE, stop_requests
from cxrlt_cli.errors import CxrltError, Interrupted, Terminated
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Started

#: Seconds between two looks at the processes, and at how far they are.
_LOOK, _READ = 0.1, 1.0
#: Lines of a log that are shown when its command failed.
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step ended.

    Attributes:
        how: "there" before we began; "done"; "failed"; "left out" because a step it needs failed.
        code: exit code of a failed command.
        seconds: it took.
    """

    how: Literal["there", "done", "failed", "left out"]
    code: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        """Whether its product is there."""
        return self.how in {"there", "done"}


@dataclass(slots=True)
class _Running:
    step: Step
    handle: Handle
    slot: int
    began: float
    log: Path
    read: float = 0.0


@dataclass(slots=True)
class _Board:
    """The state of a sweep that is being carried out."""

    engine: Engine
    logs: Path
    emit: Emit
    waiting: dict[str, Step]
    ended: dict[str, Ended]
    running: list[_Running] = field(default_factory=list)

    def free_slots(self) -> Iterator[int]:
        taken = {each.slot for each in self.running}
        yield from (slot for slot in range(self.engine.slots) if slot not in taken)


def carry_out(steps: Mapping[str, Step], engine: Engine, logs: Path, emit: Emit) -> dict[str, Ended]:
    """Run every step that is not done, each after the steps it needs; one that fails stops only what needs it.

    Args:
        steps: by key, each after the steps it needs.
        engine: starts commands.
        logs: folder of the commands' output, one file a step.
        emit: told about each step.

    Returns:
        How each step ended.

    Raises:
        Interrupted, Terminated: a signal came; the commands have saved, and the same sweep continues.
    """
    board = _Board(engine, logs, emit, dict(steps), {})
    emit(Started("sweep", len(steps), "steps"))
    with stop_requests() as request:
        try:
            while (board.waiting or board.running) and request.code == NONE:
                _start_ready(board)
                _look(board)
                emit(Advanced("sweep", len(board.ended)))
                if board.running:
                    time.sleep(_LOOK)
        except KeyboardInterrupt:
            pass
        if board.running:
            _stop(board, request.code)
    emit(Finished("sweep"))
    return board.ended


def _start_ready(board: _Board) -> None:
    slots = board.free_slots()
    for key, step in list(board.waiting.items()):
        needs = [board.ended.get(need) for need in step.needs]
        if any(need is not None and not need.good for need in needs):
            _end(board, step, Ended("left out"))
        elif all(need is not None for need in needs):
            if is_done(step):
                _end(board, step, Ended("there"))
                continue
            slot = next(slots, None)
            if slot is not None:
                del board.waiting[key]
                board.running.append(_started(board, step, slot))


def _started(board: _Board, step: Step, slot: int) -> _Running:
    log = board.logs / f"{step.key.replace(' ', '_')}.log"
    board.emit(Started(step.key, step.epochs, "epochs" if step.epochs > 1 else "steps", _epochs(step.run)))
    board.emit(Notice(f"cxrlt {shlex.join(step.arguments)}", "detail"))
    handle = board.engine.start(Command(step.key, step.arguments, log, Path.cwd()), slot)
    return _Running(step, handle, slot, time.monotonic(), log)


def _look(board: _Board) -> None:
    """See which commands ended, and how far the others are."""
    for running in list(board.running):
        code = running.handle.poll()
        if code is None:
            _tell(board, running)
            continue
        board.running.remove(running)
        seconds = time.monotonic() - running.began
        _end(board, running.step, Ended("failed" if code else "done", code, seconds), running.log)


def _tell(board: _Board, running: _Running) -> None:
    now = time.monotonic()
    if running.step.kind == "predict" or now - running.read < _READ:
        return
    running.read = now
    board.emit(Advanced(running.step.key, _epochs(running.step.run), _reading(running.step.run)))


def _history(run: RunDir) -> list[dict[str, float]]:
    try:
        return read_lines(run.metrics)
    except CxrltError:
        return []


def _epochs(run: RunDir) -> int:
    return len(_history(run))


def _reading(run: RunDir) -> str:
    score = next((line.get("macro_ap") for line in reversed(_history(run))), None)
    return "" if score is None else f"dev mAP {score:.4f}"


def _end(board: _Board, step: Step, ended: Ended, log: Path | None = None) -> None:
    board.waiting.pop(step.key, None)
    board.ended[step.key] = ended
    if ended.how == "done":
        note = _reading(step.run) if step.kind != "predict" else ""
        text = f"{step.key}: done in {_duration(ended.seconds)}" + (f", {note}" if note else "")
        board.emit(Finished(step.key, text))
    elif ended.how == "failed":
        board.emit(Finished(step.key))
        board.emit(Notice(f"{step.key} failed with exit code {ended.code} ({log}):\n{_tail(log)}", "warning"))
    elif ended.how == "left out":
        board.emit(Notice(f"{step.key} is left out: what it needs failed", "warning"))
    else:
        board.emit(Notice(f"{step.key} is there", "detail"))


def _tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_SHOWN:])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _stop(board: _Board, code: int) -> None:
    """Let every running command save, then say how to go on.

    A second Ctrl-C does not wait any longer.
    """
    interrupted = code in {NONE, INTERRUPT}
    handles = [running.handle for running in board.running]
    names = ", ".join(running.step.key for running in board.running)
    board.emit(Notice(f"stopping {names}; a second Ctrl-C does not wait until they have saved"))
    try:
        stop_all(handles, signal.SIGINT if interrupted else signal.SIGTERM)
    except KeyboardInterrupt:
        stop_all(handles, signal.SIGKILL, seconds=5.0)
    kind = Interrupted if interrupted else Terminated
    saved = [running.step.key for running in board.running if running.handle.poll() in STOPPED]
    done = sum(ended.good for ended in board.ended.values())
    raise kind(
        f"interrupted with {done} of {done + len(board.waiting) + len(board.running)} steps done"
        + (f"; {', '.join(saved)} saved what they had" if saved else ""),
        cure="The same command continues.",
    )


def first_code(ended: Mapping[str, Ended], order: Sequence[str]) -> int:
    """The exit code of the first step that failed; 0 when none did."""
    codes = [ended[key].code for key in order if key in ended and ended[key].how == "failed"]
    return next((code if code > 0 else 1 for code in codes), 0)
