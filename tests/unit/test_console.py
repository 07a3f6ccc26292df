from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from cxrlt_cli.console import Console
from cxrlt_cli.events import Advanced, EpochEnded, Event, Finished, Notice, Result, Started, Table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Screen:
    """A console whose streams and clock the test holds."""

    def __init__(self, *, terminal: bool = False, **settings: bool) -> None:
        stream = Terminal if terminal else io.StringIO
        self.out, self.err, self.now = stream(), stream(), 0.0
        self.console = Console(stdout=self.out, stderr=self.err, clock=lambda: self.now, **settings)

    def lines(self, *events: Event) -> list[str]:
        for event in events:
            self.console.emit(event)
        return self.err.getvalue().splitlines()

    def shown(self, *blocks: Table | str) -> str:
        self.console.show(Result({}, blocks))
        return self.out.getvalue()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


# -- plain lines -------------------------------------------------------------------------------------------------


def test_a_table_between_events_goes_to_stderr() -> None:
    table = Table(("finding", "drawn"), (("Mass", "12"),), "Expected draws", "of one epoch")
    screen = Screen()
    lines = screen.lines(Notice("before"), table)
    assert lines[:2] == ["before", "Expected draws"]
    assert any("Mass" in line and "12" in line for line in lines)
    assert lines[-1] == "of one epoch"
    assert screen.out.getvalue() == ""
    assert Screen(quiet=True).lines(table) == []


def test_a_slow_stage_has_a_line_for_each_ten_per_cent() -> None:
    screen = Screen()
    screen.lines(Started("decode", 1000))
    for done in range(1, 1001):
        screen.now += 1
        screen.lines(Advanced("decode", done))
    lines = screen.lines(Finished("decode", "decoded 1,000 images"))
    assert [line.split()[1] for line in lines[:-1]] == [str(tenth * 10) for tenth in range(1, 10)]
    assert lines[0] == "decode: 10 %  100/1,000 images  1/s  15:00 left"
    assert lines[-1] == "decoded 1,000 images"


def test_a_quick_stage_has_none() -> None:
    screen = Screen()
    screen.lines(Started("decode", 1000))
    for done in range(1, 1001):
        screen.now += 0.001
        screen.lines(Advanced("decode", done))
    assert screen.lines(Finished("decode")) == []


def test_lines_of_a_fairly_quick_stage_are_seconds_apart() -> None:
    screen = Screen()
    screen.lines(Started("decode", 100))
    for done in range(1, 100):
        screen.now += 0.2
        screen.lines(Advanced("decode", done))
    assert len(screen.lines()) == 3


def test_a_note_is_shown() -> None:
    screen = Screen()
    screen.now = 10
    screen.lines(Started("epoch 1/3", 10, "steps"))
    screen.now = 20
    assert screen.lines(Advanced("epoch 1/3", 5, "loss 0.3"))[0].endswith("5/10 steps  0.5/s  0:10 left  loss 0.3")


def test_work_that_was_done_before_does_not_count_for_the_rate() -> None:
    screen = Screen()
    screen.lines(Started("decode", 1000, "images", 800))
    screen.now = 10
    assert "900/1,000 images  10/s  0:10 left" in screen.lines(Advanced("decode", 900))[0]


def test_events_of_an_unknown_stage_are_no_harm() -> None:
    assert Screen().lines(Advanced("x", 1), Finished("x")) == []


def test_a_stage_without_a_total_is_no_harm() -> None:
    screen = Screen()
    screen.lines(Started("x", 0))
    screen.now = 60
    assert screen.lines(Advanced("x", 7), Finished("x")) == []


def test_an_epoch_is_one_line() -> None:
    metrics = {
        "step": 7,
        "loss": 0.12345,
        "chance_ap": 0.1,
        "macro_ap": 0.5,
        "macro_f1": 0.0,
        "images_per_second": 12.62,
    }
    (line,) = Screen().lines(EpochEnded(3, 10, True, metrics))
    assert line == "epoch  3/10  loss 0.1235  mAP 0.5000  F1 0.0000  images/s 12.6  best"


def test_an_epoch_with_undefined_values() -> None:
    (line,) = Screen().lines(EpochEnded(1, 1, False, {"macro_ap": math.nan, "images_per_second": None}))  # type: ignore[dict-item]  # a run without a clock
    assert line == "epoch 1/1  mAP nan"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["info", "warning: careful"]),
        ({"quiet": True}, ["warning: careful"]),
        ({"verbose": True}, ["detail", "info", "warning: careful"]),
    ],
)
def test_levels_of_notices(settings: dict[str, bool], expected: list[str]) -> None:
    events = (Notice("detail", "detail"), Notice("info"), Notice("careful", "warning"))
    assert Screen(**settings).lines(*events) == expected


def test_quiet_shows_no_progress() -> None:
    screen = Screen(quiet=True)
    screen.lines(Started("x", 10))
    screen.now = 60
    assert screen.lines(Advanced("x", 5), Finished("x", "done"), EpochEnded(1, 2, True)) == []


def test_the_second_process_keeps_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    screen = Screen()
    assert screen.lines(Notice("x"), Notice("y", "warning"), EpochEnded(1, 2, True)) == []
    assert screen.shown("text") == ""


def test_text_is_never_markup() -> None:
    assert Screen().lines(Notice("[bold]x[/bold] :smile: [/]")) == ["[bold]x[/bold] :smile: [/]"]


def test_long_lines_are_whole_in_a_pipe() -> None:
    text = " ".join(["word"] * 100)
    assert Screen().lines(Notice(text)) == [text]


# -- a terminal --------------------------------------------------------------------------------------------------


def test_a_terminal_has_live_bars_that_vanish() -> None:
    screen = Screen(terminal=True)
    screen.lines(Started("decode", 100), Advanced("decode", 50, "3 unreadable"))
    screen.console._stages._progress.refresh()  # type: ignore[union-attr]  # the live kind, on a terminal
    shown = screen.err.getvalue()
    assert "decode" in shown
    assert "50/100 images" in shown
    assert "3 unreadable" in shown
    screen.lines(Finished("decode", "decoded"))
    assert screen.err.getvalue().rstrip().endswith("decoded")


def test_the_cursor_is_never_left_hidden() -> None:
    screen = Screen(terminal=True)
    screen.lines(Started("decode", 100))
    shown = screen.err.getvalue()
    screen.console._stages.close()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_bars_end_when_an_error_escapes() -> None:
    screen = Screen(terminal=True)
    screen.lines(Started("decode", 100))
    with pytest.raises(ValueError, match="x"), screen.console:
        raise ValueError("x")
    assert not screen.console._stages._tasks  # type: ignore[union-attr]  # the live kind, on a terminal


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Notice("careful", "warning")
    assert "\x1b[33m" in Screen(terminal=True).lines(event)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert Screen(terminal=True).lines(event) == ["warning: careful"]


def test_a_dumb_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert Screen(terminal=True).lines(Started("x", 10), Notice("hello")) == ["hello"]


def test_a_narrow_terminal_keeps_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(("class", "n", "note"), (("Subcutaneous Emphysema", "1,307", "a note that is long enough"),))
    shown = Screen(terminal=True).shown(table)
    assert max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in shown.splitlines()) <= 40
    for word in ("Subcutaneous", "Emphysema", "1,307", "enough"):
        assert word in shown


# -- results -----------------------------------------------------------------------------------------------------


def test_a_table_in_a_pipe_is_neither_cut_nor_wrapped() -> None:
    table = Table(("class", "AP"), (("x" * 200, "0.5"), ("y", "nan")), title="Scores", note="Left out: none.")
    lines = Screen().shown(table).splitlines()
    assert lines[0] == "Scores"
    assert lines[3] == "x" * 200 + "   0.5"
    assert lines[-1] == "Left out: none."


def test_numbers_are_right_aligned_and_text_is_not() -> None:
    rows = (("a", "1,307", "0.5 ± 0.1", "text"), ("b", "2", "-", "3"))
    lines = [line.rstrip() for line in Screen().shown(Table(("k", "n", "AP", "note"), rows)).splitlines()]
    assert lines[2] == "a   1,307   0.5 ± 0.1   text"
    assert lines[3] == "b       2           -   3"


def test_cells_are_never_markup() -> None:
    assert "[red]Mass[/red]" in Screen().shown(Table(("class",), (("[red]Mass[/red]",),)))


def test_blocks_are_apart() -> None:
    assert Screen().shown("one", "two") == "one\n\ntwo\n"


def test_json_is_one_object_and_nothing_else() -> None:
    screen = Screen(as_json=True)
    data = {
        "nan": math.nan,
        "inf": [math.inf],
        "numpy": np.array([1.5, np.nan], np.float32),
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        "path": Path("a/b"),
        "set": ("x",),
        "text": "Mässe",
        1: None,
    }
    screen.console.show(Result(data, (Table(("a",), (("b",),)), "text")))
    assert json.loads(screen.out.getvalue()) == {
        "nan": None,
        "inf": [None],
        "numpy": [1.5, None],
        "scalar": 3,
        "flag": True,
        "path": "a/b",
        "set": ["x"],
        "text": "Mässe",
        "1": None,
    }
    assert "Mässe" in screen.out.getvalue()


def test_progress_never_touches_stdout() -> None:
    screen = Screen()
    screen.lines(Started("x", 10), Notice("y"), EpochEnded(1, 2, True), Finished("x", "z"))
    assert screen.out.getvalue() == ""
