"""A command line in this process: quick, and the exit status, stdout and stderr are at hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cxrlt_cli.cli import main


class Outcome(NamedTuple):
    """What a command did: exit status, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout as one JSON value; fails when there is anything else on it."""
        return json.loads(self.out)


Run = Callable[..., Outcome]


@pytest.fixture
def cxrlt(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """``cxrlt("plugins", "list")`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("RANK", "WORLD_SIZE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cxrlt", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        out, err = capfd.readouterr()
        assert isinstance(code, int) or code is None
        return Outcome(code or 0, out, err)

    return run
