"""Heads on made-up features, without images or a backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.engine.head_job import Cohort, HeadJob, Joint, head_logits
from cxrlt_cli.engine.signals import StopRequest
from cxrlt_cli.events import Emit, silent
from cxrlt_cli.posterior import derive
from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import PluginRef
from cxrlt_cli.registry import build

NAMES = ("common", "usual", "rare", "absent")
WIDTH = 6


def draw(count: int, seed: int, *, plain: bool = False) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """Features (count, 6), and labels (count, 4) that depend on them; the last class never occurs.

    The features differ in scale and place, unless they are ``plain``.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, WIDTH))
    slopes = np.random.default_rng(99).normal(size=(WIDTH, len(NAMES)))
    chance = 1 / (1 + np.exp(-(features @ slopes + [0.5, -1.0, -3.0, -99.0])))
    labels = (rng.random(chance.shape) < chance).astype(np.int8)
    labels[rng.random(labels.shape) < 0.05] = -1
    labels[:, -1] = np.where(labels[:, -1] == 1, 0, labels[:, -1])
    scaled = features if plain else features * [1, 10, 0.1, 1, 3, 1] + [0, 5, 0, -2, 0, 100]
    return scaled.astype(np.float32), labels


def job(
    recipe: dict[str, Any] | Retrain,
    *,
    head: dict[str, Any] | None = None,
    loss: dict[str, Any] | None = None,
    views: int = 1,
    count: int = 400,
    plain: bool = False,
    request: StopRequest | None = None,
    emit: Emit = silent,
) -> HeadJob:
    """A job on drawn features, with a joint head of random weights."""
    chosen = recipe if isinstance(recipe, Retrain) else Retrain.model_validate({"name": "head", **recipe})
    features, labels = draw(count, 1, plain=plain)
    dev, dev_labels = draw(240, 2, plain=plain)
    counts = [tuple((labels == value).sum(0).tolist()) for value in (1, 0)]
    stats = ClassStats(NAMES, counts[0], counts[1])
    drawn = tuple(features + np.float32(0.01 * view) for view in range(views))
    patients, dev_patients = ([f"p{row // 2}" for row in range(size)] for size in (count, len(dev)))
    cohort = Cohort(stats, labels, patients, drawn, dev_labels, dev_patients, dev)
    return HeadJob(
        chosen, cohort, _joint(stats, dev, head, loss), WIDTH, torch.device("cpu"), request or StopRequest(), emit
    )


def _joint(
    stats: ClassStats, dev: npt.NDArray[np.float32], head: dict[str, Any] | None, loss: dict[str, Any] | None
) -> Joint:
    ref = PluginRef.model_validate(head or {"name": "linear"})
    told = PluginRef.model_validate(loss or {"name": "bce"})
    torch.manual_seed(5)
    module = build("heads", ref, WIDTH, stats)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    ones = np.ones(len(stats.names))
    link = derive(build("losses", told, stats), ones, ones)
    return Joint(module.eval(), ref, told, link, head_logits(module, dev, torch.device("cpu")))
