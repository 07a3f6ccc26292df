"""The code blocks of plugins/README.md: they are the files of plugins/example, and their commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from cxrlt_cli.cli.prepare import prepare
from cxrlt_cli.contracts import GROUPS, HOST_PARAMETERS
from cxrlt_cli.source_command import _HANDED

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "plugins" / "README.md"
EXAMPLE = ROOT / "plugins" / "example"


class Block(NamedTuple):
    """A fenced block: its language, what follows the language (``file=...``), its text."""

    language: str
    title: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", README.read_text(), re.M | re.S)]


def of(title: str) -> str:
    (text,) = [block.text for block in BLOCKS if block.title == title]
    return text


@pytest.mark.parametrize("name", ["pyproject.toml", "cxrlt_example.py"])
def test_the_example_is_shown_as_it_is(name: str) -> None:
    assert of(f"file={name}") == (EXAMPLE / name).read_text()


def test_every_block_is_shown_or_run() -> None:
    titles = {(block.language, block.title) for block in BLOCKS}
    expected = {("toml", "file=pyproject.toml"), ("python", "file=cxrlt_example.py")}
    assert titles == expected | {("yaml", "recipe=brier.yaml"), ("console", "")}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the blocks, as ``pip install`` would leave it, on the path of a process."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads(of("file=pyproject.toml"))["project"]
    info = site / f"cxrlt_example-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (site / "cxrlt_example.py").write_text(of("file=cxrlt_example.py"))
    (site / "brier.yaml").write_text(of("recipe=brier.yaml"))
    return site


COMMANDS = [line[2:] for block in BLOCKS if block.language == "console" for line in block.text.splitlines()]


def test_the_only_command_that_is_not_run_installs_the_example() -> None:
    assert [command for command in COMMANDS if command.startswith("pip ")] == ["pip install ./plugins/example"]
    assert (ROOT / "plugins/example/pyproject.toml").is_file()


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("pip ")])
def test_commands_run(command: str, installed: Path) -> None:
    program, *arguments = shlex.split(command)
    module = {"cxrlt": ["-m", "cxrlt_cli"], "python": []}[program]
    folder = installed if program == "cxrlt" else ROOT
    environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *module, *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "losses" in arguments or "brier" in arguments:
        assert "brier" in done.stdout


def test_every_kind_is_in_the_table() -> None:
    text = README.read_text()
    for kind, group in GROUPS.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{group}`")]
        assert f"build({', '.join([*HOST_PARAMETERS[kind], '*'])}" in row


def test_every_option_of_prepare_is_named_as_taken() -> None:
    taken = set(prepare.__annotations__) - {"emit", "return", "out", *_HANDED}
    text = README.read_text().partition("options of\n  `cxrlt prepare` itself")[2].partition(")")[0]
    assert set(re.findall(r"`(\w+)`", text)) == taken
