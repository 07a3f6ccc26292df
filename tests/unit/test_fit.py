"""Training, killed and continued: the same weights, bit for bit."""

import hashlib
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import training
from safetensors.numpy import load_file

from cxrlt_cli.artifacts import read_card, read_lines, read_predictions
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.metrics import average_precision, mean_defined
from cxrlt_cli.posterior import read_link

Trained = Callable[..., Path]


def digest(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def timeless(run: Path) -> list[dict]:
    rows = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in {"seconds", "images_per_second"}} for row in rows]


@pytest.fixture(scope="module")
def whole(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert training.train(training.recipe(phantom), run) == [0]
    return run


STEPS = 5  # an epoch of the tiny recipe, checked below


@pytest.mark.parametrize("step", [1, STEPS, STEPS + 3])
def test_killed_and_continued_it_ends_in_the_same_weights(
    phantom: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    assert training.train(training.recipe(phantom), run, kill_at=step) == [-signal.SIGKILL]
    assert training.train(training.recipe(phantom), run) == [0]
    assert digest(run) == digest(whole)
    assert timeless(run) == timeless(whole)
    assert all((run_epochs(run)[epoch] == logits).all() for epoch, logits in run_epochs(whole).items())


def run_epochs(run: Path) -> dict[int, np.ndarray]:
    """The logits of dev after every epoch."""
    return {int(path.stem): np.load(path) for path in sorted((run / "predictions" / "dev-epochs").iterdir())}


def test_what_each_epoch_said_about_dev_is_kept(phantom: Path, whole: Path) -> None:
    prepared = load_prepared(phantom)
    labels, kept = prepared.labels[prepared.rows("dev")], run_epochs(whole)
    for line in read_lines(whole / "metrics.jsonl"):
        score = mean_defined(average_precision(labels, kept.pop(line["epoch"])))
        assert score == pytest.approx(line["macro_ap"], abs=1e-12)
    assert not kept


def test_without_saves_within_an_epoch_the_epoch_is_repeated(phantom: Path, whole: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", training.recipe(phantom, train={"save_minutes": 1000.0})
    assert training.train(settings, run, kill_at=STEPS + 3) == [-signal.SIGKILL]
    assert json.loads((run / "last" / "state.json").read_text())["progress"]["epoch"] == 1
    assert training.train(settings, run) == [0]
    assert digest(run) == digest(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_first(phantom: Path, whole: Path, tmp_path: Path, number: int, code: int) -> None:
    run, settings = tmp_path / "run", training.recipe(phantom, train={"save_minutes": 1000.0})
    assert training.train(settings, run, signal_at=(number, 3)) == [code]
    assert json.loads((run / "last" / "state.json").read_text())["progress"]["step"] in {3, 4}
    assert training.train(settings, run) == [0]
    assert digest(run) == digest(whole)


def test_a_torn_state_costs_only_time(phantom: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training.train(training.recipe(phantom), run, kill_at=4)
    file = run / "last" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert training.train(training.recipe(phantom), run) == [0]
    assert digest(run) == digest(whole)


def test_channels_last_continues_exactly_too(phantom: Path, tmp_path: Path) -> None:
    settings = training.recipe(
        phantom,
        model={"backbone": {"name": "timm", "model": "test_resnet", "pretrained": False}},
        train={"channels_last": True, "accumulate": 2, "epochs": 1},
    )
    assert training.train(settings, tmp_path / "one") == [0]
    assert training.train(settings, tmp_path / "two", kill_at=3) == [-signal.SIGKILL]
    assert training.train(settings, tmp_path / "two") == [0]
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_finished_run_holds_what_the_design_promises(phantom: Path, whole: Path) -> None:
    prepared = load_prepared(phantom)
    dev = prepared.rows("dev")
    card, predictions = read_card(whole / "model.safetensors"), read_predictions(whole / "predictions" / "dev.parquet")
    assert card.classes == predictions.classes == prepared.classes
    assert predictions.image_id == prepared.frame["image_id"].iloc[dev].tolist()
    assert np.isfinite(predictions.logits).all()
    rows = read_lines(whole / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS]
    assert card.score == max(row["macro_ap"] for row in rows)
    assert card.epoch == max(rows, key=lambda row: row["macro_ap"])["epoch"]
    link = read_link(whole / "model.safetensors")
    assert link is not None
    assert not (whole / "last").exists()


def test_the_head_starts_at_the_priors(phantom: Path, tmp_path: Path) -> None:
    settings = training.recipe(
        phantom,
        optim={"lr": 1e-12},
        train={"epochs": 1, "average": {}},
        augment={"rotate": 0.0, "noise": 0.0, "erase": 0.0},
        reweight={"start": 1.0},
    )
    assert training.train(settings, tmp_path) == [0]
    link, card = read_link(tmp_path / "model.safetensors"), read_card(tmp_path / "model.safetensors")
    bias = load_file(tmp_path / "model.safetensors")["head.bias"]
    assert link is not None
    np.testing.assert_allclose(link.posterior(bias[None])[0], card.stats.prevalence, rtol=0.02)


def test_a_non_finite_loss_names_epoch_step_and_images(phantom: Path, tmp_path: Path) -> None:
    settings = training.recipe(phantom, optim={"lr": 1e30, "clip": None, "warmup": 0.0})
    assert training.train(settings, tmp_path) == [6]
    message = (tmp_path / "error.txt").read_text()
    assert "at epoch 1, step" in message
    assert "images with outputs that are not finite: " in message
    ids = set(load_prepared(phantom).frame["image_id"])
    named = message.split("not finite: ")[1].split("\n")[0].split(" and ")[0].split(", ")
    assert named
    assert set(named) <= ids


def norm_difference(one: Path, two: Path) -> float:
    a, b = (load_file(run / "model.safetensors") for run in (one, two))
    names = [name for name in a if not name.startswith("link.")]
    squares = sum(float(np.square(a[name].astype(float) - b[name]).sum()) for name in names)
    return math.sqrt(squares / sum(float(np.square(a[name].astype(float)).sum()) for name in names))


@pytest.fixture(scope="module")
def alone(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    assert training.train(training.recipe(phantom, train={"average": {}}), run) == [0]
    return run


def test_two_processes_end_in_the_same_weights(phantom: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert training.train(training.recipe(phantom, train={"average": {}}), run, processes=2) == [0, 0]
    assert norm_difference(alone, run) < 1e-6
    together, single = (read_predictions(path / "predictions" / "dev.parquet") for path in (run, alone))
    assert together.image_id == single.image_id
    np.testing.assert_allclose(together.logits, single.logits, rtol=1e-3, atol=1e-4)


def test_a_run_continues_on_another_number_of_processes(phantom: Path, alone: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", training.recipe(phantom, train={"average": {}})
    assert training.train(settings, run, kill_at=3) == [-signal.SIGKILL]
    assert training.train(settings, run, signal_at=(signal.SIGTERM, 4), processes=2) == [143, 143]
    assert training.train(settings, run) == [0]
    assert norm_difference(alone, run) < 1e-6


def test_a_killed_process_ends_the_others(phantom: Path, tmp_path: Path) -> None:
    codes = training.train(training.recipe(phantom), tmp_path / "run", kill_at=3, processes=2)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0


def test_accumulation_changes_memory_and_not_the_result(phantom: Path, alone: Path, tmp_path: Path) -> None:
    settings = training.recipe(phantom, train={"average": {}, "accumulate": 4})
    assert training.train(settings, tmp_path / "run") == [0]
    assert norm_difference(alone, tmp_path / "run") < 1e-6


def test_patience_stops_early(phantom: Path, tmp_path: Path) -> None:
    settings = training.recipe(phantom, optim={"lr": 1e-12}, train={"epochs": 9, "patience": 1, "average": {}})
    assert training.train(settings, tmp_path) == [0]
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert len(rows) < 9
    assert len(rows) - read_card(tmp_path / "model.safetensors").epoch == 1
    shutil.rmtree(tmp_path / "predictions")


TOGETHER = {
    "loss": {"name": "ap", "memory": 4, "negatives": 16, "bce": 0.5},
    "mix": {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8},
    "optim": {"sam": 0.05},
    "train": {"epochs": 2, "average": {"ema": {"decay": 0.9}, "swa": 2}, "label_smoothing": 0.1},
}


def everything_at_once(phantom: Path) -> dict[str, object]:
    """Mixing, smoothing, sharpness-aware steps, both averages, and a loss that compares images and remembers."""
    return {**training.recipe(phantom, **TOGETHER), "loss": TOGETHER["loss"]}


@pytest.fixture(scope="module")
def together(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("together") / "run"
    assert training.train(everything_at_once(phantom), run) == [0]
    return run


def test_with_everything_on_a_killed_run_ends_in_the_same_weights(
    phantom: Path, together: Path, tmp_path: Path
) -> None:
    assert training.train(everything_at_once(phantom), tmp_path / "run", kill_at=STEPS + 2) == [-signal.SIGKILL]
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == ["0001.safetensors"]
    assert training.train(everything_at_once(phantom), tmp_path / "run") == [0]
    assert digest(tmp_path / "run") == digest(together)
    assert not (tmp_path / "run" / "snapshots").exists()


def test_with_everything_on_two_processes_end_in_the_same_weights(
    phantom: Path, together: Path, tmp_path: Path
) -> None:
    assert training.train(everything_at_once(phantom), tmp_path / "run", processes=2) == [0, 0]
    assert norm_difference(together, tmp_path / "run") < 1e-5
