"""One optimiser step, against the same step written out by hand; and what its images do not depend on."""

from __future__ import annotations

import copy
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from torch import nn

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.engine.distributed import World
from cxrlt_cli.engine.parts import Job, Parts, assemble
from cxrlt_cli.engine.plan import epoch_steps
from cxrlt_cli.engine.step import rate_factor, step_images, train_step
from cxrlt_cli.events import Notice, silent
from cxrlt_cli.optim import lr_factor
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.registry import build

PLAIN = {
    "loss": {"name": "bce", "scale": None},
    "augment": {"rotate": 0.0, "noise": 0.0, "erase": 0.0},
    "reweight": {"scheme": "none"},
}


def built(data: Path, run: Path, **changes: Any) -> tuple[Job, Parts]:
    settings = training.recipe(data, **{**PLAIN, **changes})
    settings["loss"] = "bce"
    work = Job(Recipe.model_validate(settings), load_prepared(data), RunDir(run), torch.device("cpu"), World())
    return work, assemble(work, silent)


def stepped(work: Job, parts: Parts, number: int = 0) -> float:
    step = epoch_steps(parts.sampler, parts.plan, 0, 0, 1)[number]
    with closing(step_images(work, parts, [step])) as images:
        return float(train_step(work, parts, images, step).loss)


def by_hand(parts: Parts, rho: float) -> list[torch.Tensor]:
    """The gradient of a mean cross-entropy where a step of length rho along its gradient leads."""
    net, step = copy.deepcopy(parts.model).train(), epoch_steps(parts.sampler, parts.plan, 0, 0, 1)[0]
    pixels = np.empty((len(step.items), parts.size, parts.size), np.uint8)
    parts.reader.read(parts.rows.train[step.items], pixels)
    images, labels = torch.from_numpy(pixels)[:, None].float() / 255, parts.rows.labels[step.items]
    targets, known = torch.from_numpy(labels == 1).float(), torch.from_numpy(labels >= 0)

    def gradients() -> list[torch.Tensor]:
        entries = nn.functional.binary_cross_entropy_with_logits(net(images), targets, reduction="none")
        return list(torch.autograd.grad(entries[known].mean(), list(net.parameters())))

    first = gradients()
    norm = torch.cat([gradient.flatten() for gradient in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), first, strict=True):
            parameter.add_(rho * gradient / norm)
    return gradients()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_sharpness_aware_gradient_is_the_one_written_out(phantom: Path, tmp_path: Path, accumulate: int) -> None:
    options = {"optim": {"sam": 0.5, "clip": None}, "train": {"accumulate": accumulate}}
    work, parts = built(phantom, tmp_path, **options)
    plain, expected = by_hand(parts, 0.0), by_hand(parts, 0.5)
    stepped(work, parts)
    found = torch.cat([parameter.grad.flatten() for parameter in parts.model.parameters()])
    right, without = (torch.cat([gradient.flatten() for gradient in part]) for part in (expected, plain))
    assert (found - right).norm() < 1e-4 * right.norm()
    assert (without - right).norm() > 1e-2 * right.norm()


def test_running_statistics_follow_the_first_pass_alone(phantom: Path, tmp_path: Path) -> None:
    model = {"backbone": {"name": "timm", "model": "test_resnet", "pretrained": False}}
    found = []
    for sam in (None, 0.5):
        work, parts = built(phantom, tmp_path, model=model, optim={"sam": sam})
        stepped(work, parts)
        found.append({name: value.clone() for name, value in parts.model.named_buffers()})
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    assert max(int(value) for name, value in found[1].items() if name.endswith("num_batches_tracked")) == 1


def test_the_loss_of_a_mixed_batch_does_not_depend_on_accumulation(phantom: Path, tmp_path: Path) -> None:
    mix = {"mixup": 0.4, "cutmix": 1.0, "probability": 0.8}
    losses = []
    for accumulate in (1, 2, 4):
        train = {"accumulate": accumulate, "label_smoothing": 0.1}
        losses.append(stepped(*built(phantom, tmp_path, mix=mix, train=train, augment={"rotate": 5.0})))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    assert losses[0] != pytest.approx(stepped(*built(phantom, tmp_path, augment={"rotate": 5.0})), rel=1e-3)


def test_the_rate_drops_where_the_weights_switch_on(phantom: Path, tmp_path: Path) -> None:
    work, parts = built(phantom, tmp_path, reweight={"start": 0.5, "lr_drop": 0.1})
    optim, total = work.recipe.optim, parts.plan.total
    for step in range(total):
        plain = lr_factor(step, total, optim.warmup, optim.final_lr)
        assert rate_factor(work, parts, step) == pytest.approx(plain * (0.1 if step >= total / 2 else 1))


def test_weights_that_average_one_are_warned_about(phantom: Path, tmp_path: Path) -> None:
    told: list[str] = []
    work, _ = built(phantom, tmp_path, reweight={"scheme": "inverse", "relative_to": "mean"})
    assemble(work, lambda event: told.append(event.text) if isinstance(event, Notice) else None)
    assert any("weighs the positives of" in text and "of 30 classes down" in text for text in told)


def test_stochastic_depth_drops_deeper_blocks_more_often_and_only_in_training() -> None:
    options = {"model": "test_convnext2", "pretrained": False, "drop_path": 0.5}
    network = build("backbones", {"name": "timm", **options}, 1, 32)
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.5)
    images = torch.rand(8, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(images), network(images))
        assert torch.equal(network.eval()(images), network(images))
