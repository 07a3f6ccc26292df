"""The benchmarks start, and print what their README says. What they measure is not tested: a clock is no test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"`python benchmarks/(\w+\.py)`", README)


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def keys_under(heading: str) -> set[str]:
    section = README.partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


def test_the_readme_names_every_promise() -> None:
    assert set(SCRIPTS) >= {"train_speed.py", "read_speed.py", "predict_speed.py", "help_time.py", "memory.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str) -> None:
    assert run(script, "--help").startswith(f"usage: {script}")


def test_a_line_has_the_documented_keys() -> None:
    lines = run("help_time.py", "--quick").splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    always, often = keys_under("## Every line"), keys_under("## Most lines")
    assert len(always) >= 8
    assert always <= line.keys() <= always | often
    assert line["ratio"] > 0


def test_a_pass_is_compared_with_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    from timing import ratios

    assert ratios([2.0, 1.0], [1.0, 3.0, 5.0]) == [1.0, 4.0]
