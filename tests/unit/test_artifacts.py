"""The run directory: written whole or not at all, read with one clear error."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cxrlt_cli.artifacts import (
    ModelCard,
    Predictions,
    RunDir,
    find_run,
    list_runs,
    read_card,
    read_json,
    read_lines,
    read_predictions,
    replacing,
    writable_directory,
    write_json,
    write_lines,
    write_predictions,
    write_text,
)
from cxrlt_cli.errors import DataError, RunError

CARD = ModelCard(
    classes=("a", "b µ"),
    positives=(3, 1),
    negatives=(7, 9),
    image_size=32,
    in_chans=1,
    fit="pad",
    backbone={"name": "timm", "model": "resnet18"},
    head={"name": "linear"},
    loss={"name": "bce"},
    views=("PA",),
    score=0.25,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    script = (
        "import os, sys, pathlib\n"
        "from cxrlt_cli.artifacts import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with replacing(path) as part:
        save_file({"x": np.zeros(1)}, part)
    reference = tmp_path / "plain"
    reference.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)


def test_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"score": float("nan")})
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("content", ["", "{", "\udcff"])
def test_damaged_json_is_a_run_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match="cannot be read"):
        read_json(path)


def test_lines_come_back(tmp_path: Path) -> None:
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": None}]
    write_lines(tmp_path / "m.jsonl", rows)
    assert read_lines(tmp_path / "m.jsonl") == rows
    assert read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "m.jsonl").write_text('{"epoch": 1}\n{"ep')
    with pytest.raises(RunError, match="cannot be read"):
        read_lines(tmp_path / "m.jsonl")


def make_run(path: Path, when: int) -> RunDir:
    run = RunDir(path)
    write_json(run.run_json, {"format": 1})
    os.utime(run.run_json, ns=(when, when))
    return run


def test_the_newest_run_is_found(tmp_path: Path) -> None:
    make_run(tmp_path / "b", 2_000_000_000)
    make_run(tmp_path / "a", 1_000_000_000)
    (tmp_path / "not-a-run").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["b", "a"]
    assert find_run(None, tmp_path).name == "b"
    with pytest.raises(RunError, match="there is no run with weights"):
        find_run(None, tmp_path, trained=True)
    for name in "ab":
        (tmp_path / name / "model.safetensors").touch()
    assert find_run(None, tmp_path, trained=True).name == "b"
    (tmp_path / "b" / "model.safetensors").unlink()
    assert find_run(None, tmp_path, trained=True).name == "a"
    assert find_run(tmp_path / "a").name == "a"


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run"):
        find_run(None, tmp_path / "runs")
    with pytest.raises(RunError, match=r"has no run\.json"):
        find_run(tmp_path)
    with pytest.raises(RunError, match="no such run directory"):
        find_run(tmp_path / "absent")


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": "1"}'])
def test_a_foreign_run_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=r"not the run\.json of a run"):
        RunDir(tmp_path).info()


def test_a_newer_format_asks_for_a_newer_cxrlt(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": 99})
    with pytest.raises(RunError, match="has format 99") as caught:
        RunDir(tmp_path).info()
    assert "newer cxrlt" in caught.value.cure


def test_the_card_comes_back_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"head.weight": np.ones((2, 3))}, path, metadata=CARD.metadata())
    assert read_card(path) == CARD
    assert CARD.stats.known == (10, 10)


def test_a_card_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"conv1.weight": np.ones((2, 3))}, path)
    with pytest.raises(RunError, match="another program"):
        read_card(path)
    save_file({"conv1.weight": np.ones((2, 3))}, path, metadata={"card": json.dumps({"classes": []})})
    with pytest.raises(RunError, match="damaged model card"):
        read_card(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"head.weight": np.ones((200, 3))}, path, metadata=CARD.metadata())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="not a readable safetensors file"):
        read_card(path)
    with pytest.raises(RunError, match="file is missing"):
        read_card(tmp_path / "absent.safetensors")


def test_predictions_come_back_exactly(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    logits[0, 0] = 1e30
    written = Predictions(("a", "b.logit"), ["x", "y", "007"], ["1", "1", "2"], logits)
    write_predictions(tmp_path / "dev.parquet", written)
    read = read_predictions(tmp_path / "dev.parquet")
    assert (read.classes, read.image_id, read.patient_id) == (written.classes, written.image_id, written.patient_id)
    np.testing.assert_array_equal(read.logits, logits)


def test_foreign_predictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no predictions"):
        read_predictions(tmp_path / "dev.parquet")
    (tmp_path / "dev.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(RunError, match="cannot be read"):
        read_predictions(tmp_path / "dev.parquet")


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        writable_directory(tmp_path / "file" / "out")
