"""Batches for losses, and how to look at one entry or at the gradient."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from cxrlt_cli.contracts import ClassStats

STATS = ClassStats(("Effusion", "Mass", "Hernia"), (500, 40, 5), (500, 960, 995))
#: The last class has no positive, and the first no negative.
LOPSIDED = ClassStats(("Normal", "Mass", "Hernia"), (1000, 40, 0), (0, 960, 1000))


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """Without ``torch.testing``, whose first call imports half of torch for seconds."""
    np.testing.assert_allclose(got.detach().numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)


def batch(rows: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 2, (rows, 3)), dtype=dtype)
    targets = torch.tensor(rng.integers(0, 2, (rows, 3)), dtype=dtype)
    weight = torch.tensor(rng.uniform(0.2, 3, (rows, 3)), dtype=dtype)
    return logits, targets, weight


def value_and_gradient(loss: nn.Module, logits: Tensor, targets: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets, weight)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def entry(loss: nn.Module, z: float, y: float, klass: int) -> float:
    """The loss of one entry, by weighing every other entry 0."""
    logits, targets, weight = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3), torch.zeros(1, 3)
    logits[0, klass], targets[0, klass], weight[0, klass] = z, y, 1
    return float(loss(logits, targets, weight))


def from_timm(name: str) -> ModuleType:
    """One module of timm's losses, without importing timm, which takes seconds."""
    found = importlib.util.find_spec("timm")
    assert found is not None
    path = Path(str(found.origin)).parent / "loss" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
