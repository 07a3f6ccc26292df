"""What the author of a loss should prove; the contract is in cxrlt_cli.contracts.Loss."""

from __future__ import annotations

import torch
from cxrlt_example import build

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.testing import verify

STATS = ClassStats(names=("a", "b", "c"), positives=(50, 5, 1), negatives=(50, 95, 99))
LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None].repeat(1, 3)


def value(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The loss; every entry known, unless weights say otherwise."""
    return build(STATS, gain=1.0)(logits, targets, torch.ones_like(logits) if weight is None else weight)


def slope(target: float) -> torch.Tensor:
    """The gradient of each entry's own loss, where all labels are the target."""
    logits = LOGITS.clone().requires_grad_()
    value(logits, torch.full_like(LOGITS, target)).backward()
    assert logits.grad is not None
    return logits.grad * LOGITS.numel()


def test_it_keeps_the_contract() -> None:
    verify("losses", build)


def test_it_is_the_squared_error() -> None:
    targets = torch.rand(LOGITS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(value(LOGITS, targets), (torch.sigmoid(LOGITS) - targets).square().mean())


def test_it_falls_towards_the_label() -> None:
    assert (slope(1.0) <= 0).all()
    assert (slope(0.0) >= 0).all()


def test_its_posterior_is_the_probability() -> None:
    negative, positive = slope(0.0), slope(1.0)
    assert torch.allclose(negative / (negative - positive), torch.sigmoid(LOGITS))


def test_learning_rates_of_cross_entropy_carry_over() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    build(STATS)(logits, torch.ones(1, 3), torch.ones(1, 3)).backward()
    assert logits.grad is not None
    assert torch.allclose(logits.grad * 3, torch.full((1, 3), -0.5))


def test_unknown_labels_do_not_count() -> None:
    weight = torch.ones_like(LOGITS)
    weight[:, 1] = 0
    targets = torch.zeros_like(LOGITS)
    targets[:, 1] = -1
    assert torch.allclose(value(LOGITS, targets, weight), torch.sigmoid(LOGITS[:, 0]).square().mean())


def test_a_batch_without_labels_is_no_harm() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = value(logits, torch.full_like(LOGITS, float("nan")), torch.zeros_like(LOGITS))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
