"""What is saved in place of the best epoch: means of epochs, made from what lies in the run directory alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import training
from safetensors.numpy import load_file
from torch import Tensor, nn

from cxrlt_cli.artifacts import RunDir, read_card, read_predictions
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.engine import averages
from cxrlt_cli.engine import fit as engine
from cxrlt_cli.engine.averages import greedy_soup, ingredients, mean_of, take_snapshot
from cxrlt_cli.engine.distributed import World
from cxrlt_cli.engine.parts import Job, assemble
from cxrlt_cli.engine.state import read_state
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Advanced, Event, silent
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.posterior import read_link
from cxrlt_cli.recipe.schema import Recipe


def job(data: Path, run: Path, **changes: Any) -> Job:
    run.mkdir(parents=True, exist_ok=True)
    settings = Recipe.model_validate(training.recipe(data, **changes))
    return Job(settings, load_prepared(data), RunDir(run), torch.device("cpu"), World())


def small(data: Path, run: Path, average: dict[str, Any], model: str = "test_resnet", **train: Any) -> Job:
    backbone = {"name": "timm", "model": model, "pretrained": False}
    limits = {"epochs": 3, "batch_size": 60, "average": average, **train}
    return job(data, run, model={"backbone": backbone}, train=limits, reweight={"start": 0.0})


# -- which epochs ------------------------------------------------------------------------------------------------


def history(*scores: float) -> list[dict[str, Any]]:
    return [{"epoch": i + 1, "step": 10 * (i + 1), "macro_ap": score} for i, score in enumerate(scores)]


def faked(average: dict[str, int], start: float, run: RunDir | None = None) -> Any:
    settings = {"train": {"average": average}, "reweight": {"scheme": "inverse", "start": start}}
    recipe = Recipe.model_validate({"data": {"path": "x"}, "model": {"backbone": "timm"}, **settings})
    return SimpleNamespace(recipe=recipe, run=run), SimpleNamespace(plan=SimpleNamespace(total=50))


def chosen(average: dict[str, int], start: float, *scores: float) -> list[int]:
    return ingredients(*faked(average, start), history(*scores))


def test_swa_takes_the_last_epochs() -> None:
    assert chosen({"swa": 3}, 0.0, 0.1, 0.5, 0.3, 0.2) == [2, 3, 4]
    assert chosen({"swa": 3}, 0.0, 0.1, 0.5) == [1, 2]


def test_a_soup_tries_the_best_epochs_the_best_first() -> None:
    assert chosen({"soup": 3}, 0.0, 0.1, 0.5, 0.3, 0.5) == [2, 4, 3]


def test_epochs_under_other_weights_are_left_out() -> None:
    assert chosen({"swa": 4}, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5) == [3, 4, 5]
    assert chosen({"soup": 4}, 0.5, 0.9, 0.2, 0.3, 0.4, 0.5) == [1, 2]


def test_nothing_is_averaged_unasked() -> None:
    assert chosen({}, 0.0, 0.1, 0.2) == []


@pytest.mark.parametrize("average", [{"swa": 2}, {"soup": 2}])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_wanted_in_the_end_was_kept(tmp_path: Path, average: dict[str, int], seed: int) -> None:
    """Also when the last epoch is done again from the state before it, and not the whole run is."""
    scores, run, net = np.random.default_rng(seed).random(7).tolist(), RunDir(tmp_path), nn.Linear(1, 1)
    fake = faked(average, 0.4, run)
    for epoch in range(1, 8):
        take_snapshot(run, epoch, net)
        averages.drop_snapshots(*fake, history(*scores[:epoch]))
        for known in (history(*scores[:epoch]), history(*scores[: epoch - 1])):
            assert all(run.snapshot(wanted).exists() for wanted in ingredients(*fake, known))
        assert len(list(run.snapshots.iterdir())) <= 6


@pytest.mark.parametrize(
    ("scores", "expected"),
    [({(3, 1): 0.6, (3, 1, 2): 0.59}, [3, 1]), ({(3, 1): 0.4, (3, 2): 0.5}, [3, 2]), ({(3, 1): 0.4, (3, 2): 0.4}, [3])],
)
def test_greedy_soup_by_hand(scores: dict[tuple[int, ...], float], expected: list[int]) -> None:
    def score(epochs: Sequence[int]) -> float:
        return scores[tuple(epochs)]

    assert greedy_soup([3, 1, 2], 0.5, score) == expected


# -- the mean ----------------------------------------------------------------------------------------------------


def test_the_mean_of_snapshots(tmp_path: Path) -> None:
    run, net, weights = RunDir(tmp_path), nn.BatchNorm1d(3), []
    for epoch in (1, 2, 3):
        nn.init.normal_(net.weight)
        net(torch.randn(4, 3))
        weights.append(net.weight.detach().double().clone())
        take_snapshot(run, epoch, net)
    mean = mean_of(run, [1, 2, 3])
    torch.testing.assert_close(mean["weight"], torch.stack(weights).mean(0), rtol=1e-12, atol=0)
    assert mean["num_batches_tracked"].item() == 3


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the weights of epoch 2"):
        mean_of(RunDir(tmp_path), [2])


def test_running_statistics_are_those_of_the_training_images(phantom: Path, tmp_path: Path) -> None:
    work = small(phantom, tmp_path, {"swa": 2})
    parts = assemble(work, silent)
    norm = next(module for module in parts.model.modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    averages.refresh_norms(work, parts)
    hook.remove()
    expected = torch.stack([batch.mean((0, 2, 3)) for batch in seen]).mean(0)
    assert len(seen) == parts.plan.steps
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    assert norm.momentum == 0.1
    assert not parts.model.training


# -- whole runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "discard_snapshots", lambda run: None)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("ema", [None, {"decay": 0.5}])
def test_swa_saves_the_mean_of_the_last_epochs(phantom: Path, tmp_path: Path, ema: dict[str, float] | None) -> None:
    work = small(phantom, tmp_path, {"swa": 2, "ema": ema}, model="test_convnext2")
    outcome = engine.fit(work, None, silent)
    saved, snapshots = load_file(work.run.model), sorted(work.run.snapshots.iterdir())
    assert [path.name for path in snapshots] == ["0001.safetensors", "0002.safetensors", "0003.safetensors"]
    last = [load_file(path) for path in snapshots[1:]]
    for name, value in last[0].items():
        np.testing.assert_allclose(saved[name], (value.astype(float) + last[1][name]) / 2, rtol=1e-6, atol=1e-9)
    assert outcome.average is not None
    assert (outcome.average["kind"], outcome.average["epochs"]) == ("swa", [2, 3])
    card = read_card(work.run.model)
    assert (card.epoch, card.score) == (3, outcome.average["macro_ap"])
    assert_scored(work, outcome.average["macro_ap"])


def assert_scored(work: Job, macro_ap: float) -> None:
    """The saved predictions and link have the score that was told."""
    dev, names = work.prepared.rows("dev"), work.prepared.classes
    logits = read_predictions(work.run.predictions("dev")).logits
    link, share = read_link(work.run.model), np.array(work.prepared.stats(work.prepared.rows("train")).share)
    assert link is not None
    found = evaluate(work.prepared.labels[dev], logits, link.posterior(logits), names, share)
    assert found.summary()["macro_ap"] == pytest.approx(macro_ap)


def test_a_soup_is_no_worse_than_the_best_epoch_and_leaves_nothing_behind(phantom: Path, tmp_path: Path) -> None:
    work = small(phantom, tmp_path, {"soup": 3}, model="test_convnext2")
    outcome = engine.fit(work, None, silent)
    assert outcome.average is not None
    assert outcome.average["macro_ap"] >= outcome.best_score
    assert outcome.best_epoch in outcome.average["epochs"]
    assert not work.run.snapshots.exists()


class Died(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


def dies_at(step: int) -> Callable[[Event], None]:
    seen = 0

    def emit(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, Advanced) and event.stage.startswith("epoch")
        if seen == step:
            raise Died

    return emit


class Remembers(nn.Module):
    """Pulls logits towards the mean logit of what it saw, which it remembers."""

    pointwise, stateful = False, True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        loss = (weight * (logits - targets - self.mean).square()).sum() / weight.count_nonzero().clamp(min=1)
        if self.training:
            self.mean.lerp_(logits.detach().mean(), 0.3)
        return loss


@pytest.mark.parametrize("step", [1, 4])
def test_everything_together_continues_bitwise(
    phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Mixing, smoothing, SAM, SWA, batch norms and a loss that remembers, interrupted in an epoch and between two."""

    def with_memory(work: Job, emit: Callable[[Event], None]) -> Any:
        parts = assemble(work, emit)
        object.__setattr__(parts, "loss", Remembers())
        return parts

    monkeypatch.setattr(engine, "assemble", with_memory)

    def work(run: str) -> Job:
        options = {"mix": {"mixup": 0.4, "cutmix": 1.0}, "optim": {"sam": 0.05}}
        train = {"epochs": 2, "batch_size": 40, "average": {"ema": {"decay": 0.5}, "swa": 2}, "label_smoothing": 0.1}
        model = {"backbone": {"name": "timm", "model": "test_resnet", "pretrained": False}}
        return job(phantom, tmp_path / run, model=model, train=train, **options)

    engine.fit(work("whole"), None, silent)
    with pytest.raises(Died):
        engine.fit(work("cut"), None, dies_at(step))
    engine.fit(work("cut"), read_state(tmp_path / "cut", silent), silent)
    first, second = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "cut"))
    assert first == second
