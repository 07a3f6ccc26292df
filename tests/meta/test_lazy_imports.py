"""What must answer at once loads none of the heavy libraries; by module list, not by clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "torchvision", "timm", "pandas", "sklearn", "scipy", "pyarrow", "PIL", "numpy", "jinja2"}

PROBE = """
import json, sys
from cxrlt_cli.cli import main
sys.argv[0] = "cxrlt"
try:
    main()
finally:
    print("MODULES " + json.dumps(sorted({name.split(".")[0] for name in sys.modules})), file=sys.stderr)
"""


def loaded(*arguments: str, folder: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=folder, check=False
    )
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES "))
    return set(json.loads(line.removeprefix("MODULES ")))


@pytest.mark.parametrize(
    "command",
    ["--help", "--version", "train --help", "prepare --help", "predict --help", "trian", "plugins --help"],
)
def test_help_loads_next_to_nothing(command: str, tmp_path: Path) -> None:
    assert loaded(*command.split(), folder=tmp_path) & (HEAVY | {"rich", "yaml", "cxrlt_plugins"}) == set()


@pytest.mark.parametrize(
    "command",
    [
        "plugins list",
        "plugins list --json",
        "recipe list",
        "recipe show demo_phantom",
        "recipe schema",
        "prepare phantum",
    ],
)
def test_lists_load_nothing_heavy(command: str, tmp_path: Path) -> None:
    assert loaded(*command.split(), folder=tmp_path) & (HEAVY | {"cxrlt_plugins"}) == set()


def test_runs_need_no_network(tmp_path: Path) -> None:
    assert loaded("runs", "list", folder=tmp_path) & (HEAVY - {"numpy"}) == set()


def test_the_help_of_a_source_needs_no_network(tmp_path: Path) -> None:
    assert (
        loaded("prepare", "phantom", "--help", folder=tmp_path) & {"torch", "torchvision", "timm", "sklearn"} == set()
    )


def test_the_probe_would_notice(tmp_path: Path) -> None:
    assert "torch" in loaded("plugins", "show", "bce", folder=tmp_path)
