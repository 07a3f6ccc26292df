from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

INFO = {
    "format": 1,
    "name": "demo",
    "status": "finished",
    "created": "2026-03-01T10:00:00+00:00",
    "updated": "2026-03-01T11:00:00+00:00",
    "seed": 0,
    "dataset": {"path": "data/x", "name": "phantom", "hash": "abc", "images": 100, "classes": 30},
    "epochs": 8,
    "best": {"epoch": 7, "macro_ap": 0.31234},
    "continued": [{"at": "now", "step": 3}],
}


def make_run(path: Path, age: int = 0, **changes: Any) -> None:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(INFO | changes))
    stamp = 1_700_000_000 - age
    os.utime(path / "run.json", (stamp, stamp))


def test_list_of_no_runs(cxrlt: Any) -> None:
    done = cxrlt("runs", "list")
    assert done.code == 0
    assert "There is no run in runs. Train one with `cxrlt train RECIPE`." in done.out
    assert cxrlt("runs", "list", "--json").json == {"root": "runs", "runs": []}


def test_list_is_newest_first(cxrlt: Any) -> None:
    make_run(Path("runs/old"), age=100)
    make_run(Path("runs/new"), status="interrupted", best=None)
    lines = [line.split() for line in cxrlt("runs", "list").out.splitlines()[2:]]
    assert lines[0][:3] == ["new", "interrupted", "8"]
    assert lines[1][:5] == ["old", "finished", "8", "0.3123", "phantom"]


def test_a_score_of_another_split_is_marked(cxrlt: Any) -> None:
    make_run(Path("runs/a"), kind="ensemble", split="test")
    assert "0.3123 (test)" in cxrlt("runs", "list").out


def test_lists_of_facts_are_shown_a_fact_a_row(cxrlt: Any) -> None:
    make_run(Path("runs/a"), members=[{"name": "x", "weight": 0.5}], long=["a" * 64, "b" * 64], short=[1, 2])
    done = cxrlt("runs", "show", "runs/a")
    rows = [line.split() for line in done.out.splitlines()]
    for row in (["members.0.weight", "0.5"], ["continued.0.step", "3"], ["long.1", "b" * 64], ["short", "1,", "2"]):
        assert row in rows
    assert max(map(len, done.out.splitlines())) < 100


def test_list_of_another_directory(cxrlt: Any) -> None:
    make_run(Path("elsewhere/a"))
    (run,) = cxrlt("runs", "list", "--root", "elsewhere", "--json").json["runs"]
    assert run["path"] == "elsewhere/a"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', "", '{"name": 3}'])
def test_a_damaged_run_is_listed_as_such(cxrlt: Any, text: str) -> None:
    make_run(Path("runs/good"))
    Path("runs/bad").mkdir()
    Path("runs/bad/run.json").write_text(text)
    done = cxrlt("runs", "list")
    assert done.code == 0
    assert "damaged" in done.out
    assert "good" in done.out
    assert cxrlt("runs", "show", "runs/bad").code == 5


def test_show_takes_the_newest(cxrlt: Any) -> None:
    make_run(Path("runs/old"), age=100)
    make_run(Path("runs/new"), name="newest")
    Path("runs/new/metrics.jsonl").write_text(
        '{"epoch": 1, "loss": 0.5, "macro_ap": null}\n{"epoch": 2, "loss": 0.4}\n'
    )
    Path("runs/new/predictions").mkdir()
    Path("runs/new/predictions/dev.parquet").touch()
    done = cxrlt("runs", "show")
    assert done.code == 0
    assert "newest" in done.out
    assert "dataset.name" in done.out
    assert "predictions dev" in done.out
    assert "weights" not in done.out
    data = cxrlt("runs", "show", "--json").json
    assert [row["loss"] for row in data["history"]] == [0.5, 0.4]


def test_show_of_what_is_no_run(cxrlt: Any) -> None:
    done = cxrlt("runs", "show", "absent")
    assert done.code == 5
    assert "there is no such run directory" in done.err
    assert cxrlt("runs", "show").code == 5
    missing = cxrlt("predict", "absent", "--split", "test")
    assert missing.code == 5
    assert "there is no such run directory" in missing.err


def test_doctor_is_one_paste(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nbroken = acme_gone:build\n")
    done = cxrlt("doctor")
    assert done.code == 0
    assert done.err == ""
    for text in ("cxrlt      0.1.0", "python     3.", "torch 2", "CPUs", "GiB", "free in", "timm", "broken (BROKEN)"):
        assert text in done.out
    assert "ModuleNotFoundError: No module named 'acme_gone'" in done.out


def test_doctor_as_json(cxrlt: Any) -> None:
    data = cxrlt("doctor", "--json").json
    assert data["packages"]["numpy"]
    assert data["disk"]["writable"] is True
    assert not [plugin for kind in data["plugins"].values() for plugin in kind if plugin["broken"]]


def test_doctor_with_a_broken_torch(cxrlt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from cxrlt_cli.commands import doctor

    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch cannot be imported" in doctor._devices()["error"]


def test_a_run_whose_process_is_gone_is_called_killed(cxrlt, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"format": 1, "status": "running"}')
    assert cxrlt("runs", "list", "--json").json["runs"][0]["status"] == "killed"
    descriptor = os.open(run, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert cxrlt("runs", "list", "--json").json["runs"][0]["status"] == "running"
    finally:
        os.close(descriptor)
