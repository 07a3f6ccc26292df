"""`cxrlt train` as a user meets it: begin, continue, refuse, launch."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import make_dataset

from cxrlt_cli.artifacts import read_lines

RECIPE = """
data: {path: data}
model:
  backbone: {name: timm, model: test_convnext2, pretrained: false}
  in_chans: 1
loss: bce
optim: {lr: 1e-3}
train: {epochs: 2, batch_size: 10}
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with a prepared dataset of 32 training images and a recipe."""
    make_dataset(tmp_path / "data", folds=3)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


def train_in_process(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "cxrlt_cli", "train", "tiny.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_run_directory_is_made_and_said(workplace: Path, cxrlt) -> None:
    outcome = cxrlt("train", "tiny.yaml")
    assert outcome.code == 0
    run = workplace / "runs" / "tiny"
    names = {path.name for path in run.iterdir()}
    files = {"recipe.resolved.yaml", "run.json", "model.safetensors", "metrics.jsonl", "decisions.safetensors"}
    assert names == files | {"predictions"}
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["best"]["macro_ap"] == max(row["macro_ap"] for row in read_lines(run / "metrics.jsonl"))
    assert info["plugins"]["losses"].startswith("cxrlt:bce")
    assert "runs/tiny/model.safetensors" in outcome.out
    assert "epoch 2/2" in outcome.err


def test_a_finished_run_is_not_trained_again(workplace: Path, cxrlt) -> None:
    cxrlt("train", "tiny.yaml")
    before = (workplace / "runs/tiny/model.safetensors").stat().st_mtime_ns
    outcome = cxrlt("train", "tiny.yaml", "--json")
    assert outcome.code == 0
    assert "already finished" in outcome.err
    assert json.loads(outcome.out)["status"] == "finished"
    assert (workplace / "runs/tiny/model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_is_refused_with_the_differences(workplace: Path, cxrlt) -> None:
    cxrlt("train", "tiny.yaml")
    outcome = cxrlt("train", "tiny.yaml", "--set", "optim.lr=2e-3", "--set", "train.patience=3")
    assert outcome.code == 5
    assert "optim.lr: 0.001 -> 0.002" in outcome.err
    assert "patience" not in outcome.err
    assert "--fresh" in outcome.err


def test_fresh_moves_the_old_run_aside(workplace: Path, cxrlt) -> None:
    cxrlt("train", "tiny.yaml")
    outcome = cxrlt("train", "tiny.yaml", "--set", "optim.lr=2e-3", "--fresh")
    assert outcome.code == 0
    (aside,) = [path for path in (workplace / "runs").iterdir() if ".before-" in path.name]
    assert (aside / "model.safetensors").exists()
    assert "moved the earlier run" in outcome.err


def test_other_data_under_the_same_path_is_refused(workplace: Path, cxrlt) -> None:
    cxrlt("train", "tiny.yaml")
    (workplace / "data").rename(workplace / "old")
    make_dataset(workplace / "data", folds=3, seed=1)
    outcome = cxrlt("train", "tiny.yaml")
    assert outcome.code == 5
    assert "trained on other data" in outcome.err


def test_a_run_that_lost_nothing_may_change_its_recipe(workplace: Path, cxrlt) -> None:
    missing = cxrlt("train", "tiny.yaml", "--set", "model.backbone.pretrained=absent.safetensors")
    assert missing.code == 4
    assert "no such weights file" in missing.err
    assert cxrlt("train", "tiny.yaml").code == 0


def test_dry_run_writes_nothing(workplace: Path, cxrlt) -> None:
    outcome = cxrlt("train", "tiny.yaml", "--dry-run", "--json")
    assert outcome.code == 0
    plan = json.loads(outcome.out)
    assert (plan["training_images"], plan["steps_per_epoch"], plan["steps"]) == (32, 3, 6)
    assert not (workplace / "runs").exists()


def test_expected_draws_are_shown_before_training(workplace: Path, cxrlt) -> None:
    sampler = ("--set", "sampler={name: class-aware, cap: 3}")
    dry = cxrlt("train", "tiny.yaml", "--dry-run", *sampler)
    assert "Expected draws of the sampler class-aware" in dry.out
    outcome = cxrlt("train", "tiny.yaml", "--json", *sampler)
    assert outcome.code == 0
    assert outcome.err.index("Expected draws of the sampler class-aware") < outcome.err.index("epoch 1/2")
    draws = json.loads(outcome.out)["draws"]
    assert draws == json.loads(cxrlt("train", "tiny.yaml", "--dry-run", "--json", *sampler).out)["draws"]
    assert draws["most_of_a_patient"] <= 3
    assert "draws" not in json.loads(cxrlt("train", "tiny.yaml", "--dry-run", "--json").out)


def test_a_head_that_needs_a_map_is_refused_where_there_is_none(workplace: Path, cxrlt) -> None:
    spatial = ("--set", "model.head=csra", "--set", "model.backbone.model=test_vit", "--set", "data.size=32")
    outcome = cxrlt("train", "tiny.yaml", "--dry-run", *spatial)
    assert outcome.code == 4
    assert "not (B, 64, h, w)" in outcome.err


def test_a_fold_trains_on_the_other_folds(workplace: Path, cxrlt) -> None:
    outcome = cxrlt("train", "tiny.yaml", "--dry-run", "--json", "--set", "data.fold=1")
    plan = json.loads(outcome.out)
    assert plan["training_images"] + plan["dev_images"] == 60


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["absent.yaml"], 2, "absent.yaml"),
        (["tiny.yaml", "--set", "data.path=nowhere"], 3, "no such directory"),
        (["tiny.yaml", "--set", "data.fold=7"], 3, "no fold 7"),
        (["tiny.yaml", "--set", "data.size=64"], 3, "more than the 32 px"),
        (["tiny.yaml", "--set", "train.batch_size=33"], 2, "more than the 32 training images"),
        (["tiny.yaml", "--set", "model.backbone.model=resnet5"], 4, "no model 'resnet5'"),
        (["tiny.yaml", "--set", "data.size=16"], 4, "cannot process images of 16 x 16 px"),
        (["tiny.yaml", "--device", "tpu9"], 2, "tpu9"),
        (["tiny.yaml", "--device", "cuda:77"], 2, "cuda:77"),
        (["tiny.yaml", "--devices", "3"], 2, "cannot be shared out over 3 devices"),
        (["tiny.yaml", "--out", "tiny.yaml"], 3, "cannot be written"),
        (["tiny.yaml", "--out", "data"], 5, "not empty and not a run directory"),
    ],
)
def test_what_cannot_be_trained_is_said(workplace: Path, cxrlt, arguments: list[str], code: int, message: str) -> None:
    outcome = cxrlt("train", *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_weights_from_the_hub_fail_at_once_without_a_network(workplace: Path, cxrlt, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = cxrlt("train", "tiny.yaml", "--set", "model.backbone={model: convnext_atto, pretrained: true}")
    assert outcome.code == 4
    assert "not reachable" in outcome.err
    assert "pretrained" in outcome.err


def test_two_trainings_cannot_share_a_run_directory(workplace: Path, cxrlt) -> None:
    run = workplace / "runs" / "tiny"
    run.mkdir(parents=True)
    descriptor = os.open(run, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        outcome = cxrlt("train", "tiny.yaml")
    finally:
        os.close(descriptor)
    assert outcome.code == 5
    assert "another process is training" in outcome.err


def test_out_of_memory_names_the_batch_and_what_to_try(workplace: Path, cxrlt, monkeypatch) -> None:
    import torch

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("cxrlt_cli.engine.fit.train_step", exhausted)
    outcome = cxrlt("train", "tiny.yaml")
    assert outcome.code == 6
    assert "train.batch_size 10" in outcome.err
    assert "--set train.accumulate=2" in outcome.err


def until(run: Path, epochs: int) -> None:
    for _ in range(600):
        if len(read_lines(run / "metrics.jsonl")) >= epochs:
            return
        time.sleep(0.1)
    raise AssertionError("the training did not get that far")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues(workplace: Path, number: int, code: int) -> None:
    child = train_in_process(workplace, "--set", "train.epochs=500")
    until(workplace / "runs/tiny", 2)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert "Run the same command again to continue" in err
    assert json.loads((workplace / "runs/tiny/run.json").read_text())["status"] == "interrupted"
    done = len(read_lines(workplace / "runs/tiny/metrics.jsonl"))
    again = train_in_process(workplace, "--set", "train.epochs=500")
    until(workplace / "runs/tiny", done + 1)
    again.send_signal(signal.SIGINT)
    _, err = again.communicate(timeout=60)
    assert "continuing" in err


@pytest.mark.slow
def test_devices_launches_processes_and_speaks_once(workplace: Path) -> None:
    child = train_in_process(workplace, "--devices", "2")
    out, err = child.communicate(timeout=180)
    assert child.returncode == 0, err
    assert out.count("best epoch") == 1
    assert err.count("epoch 2/2  loss") == 1
    info = json.loads((workplace / "runs/tiny/run.json").read_text())
    assert (info["status"], info["processes"]) == ("finished", 2)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_saves_and_has_its_code(workplace: Path, number: int, code: int) -> None:
    child = train_in_process(workplace, "--devices", "2", "--set", "train.epochs=500")
    until(workplace / "runs/tiny", 2)
    child.send_signal(number)
    _, err = child.communicate(timeout=90)
    assert child.returncode == code, err
    assert err.count("Run the same command again to continue") == 1
    assert (workplace / "runs/tiny/last/state.json").exists()
    assert json.loads((workplace / "runs/tiny/run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_a_killed_rank_is_started_again(workplace: Path) -> None:
    child = train_in_process(workplace, "--devices", "2", "--set", "train.epochs=40")
    until(workplace / "runs/tiny", 2)
    ranks = subprocess.run(
        ["pgrep", "-f", "cxrlt_cli train tiny.yaml --set"], capture_output=True, text=True, check=True
    )
    workers = [int(pid) for pid in ranks.stdout.split() if int(pid) != child.pid]
    os.kill(max(workers), signal.SIGKILL)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 0, err
    assert "a process was lost" in err
    assert len(read_lines(workplace / "runs/tiny/metrics.jsonl")) == 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent ended")
def test_processes_of_a_killed_launcher_save_and_end(workplace: Path) -> None:
    """Each process holds the pipe of stderr open, so that it ends only when all of them have."""
    child = train_in_process(workplace, "--devices", "2", "--set", "train.epochs=500")
    until(workplace / "runs/tiny", 2)
    child.kill()
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert "stopped and saved" in err
    assert (workplace / "runs/tiny/last/state.json").exists()
    assert json.loads((workplace / "runs/tiny/run.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
def test_an_error_in_several_processes_is_said_once(workplace: Path) -> None:
    child = train_in_process(workplace, "--devices", "2", "--set", "model.backbone.pretrained=absent.safetensors")
    _, err = child.communicate(timeout=180)
    assert child.returncode == 4
    assert err.count("no such weights file") == 1


@pytest.mark.slow
def test_torchrun_is_a_launcher_too(workplace: Path) -> None:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cxrlt_cli"]
    done = subprocess.run(
        [sys.executable, *command, "train", "tiny.yaml"],
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
