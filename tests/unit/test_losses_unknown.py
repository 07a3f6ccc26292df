"""What every built-in loss promises about unknown labels and about precision."""

from __future__ import annotations

import math

import pytest
import torch
from built_losses import POINTWISE, RANKING, seasoned
from loss_batches import batch, value_and_gradient
from torch import nn

LOSSES = {**POINTWISE, **RANKING}


@pytest.fixture(params=LOSSES.keys())
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return seasoned(LOSSES[request.param])


def test_unknown_entries_have_no_say_whatever_they_hold(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    hidden = torch.zeros_like(weight, dtype=torch.bool)
    hidden[3], hidden[:, 1] = True, True
    weight = weight.masked_fill(hidden, 0)
    expected, expected_gradient = value_and_gradient(loss, logits, targets, weight)
    for logit, target in ((0.0, -1.0), (math.nan, math.nan), (math.inf, -1.0), (-math.inf, math.inf)):
        value, gradient = value_and_gradient(
            loss, logits.masked_fill(hidden, logit), targets.masked_fill(hidden, target), weight
        )
        assert value == expected
        assert torch.equal(gradient, expected_gradient)
        assert torch.equal(gradient[hidden], torch.zeros_like(gradient[hidden]))


def test_nothing_known_is_zero_with_zero_gradient(loss: nn.Module) -> None:
    logits, _, weight = batch()
    value, gradient = value_and_gradient(loss, logits, torch.full_like(logits, -1), 0 * weight)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(loss: nn.Module, dtype: torch.dtype) -> None:
    logits, targets, weight = batch(dtype=torch.float32)
    low = logits.to(dtype)
    value, gradient = value_and_gradient(loss, low, targets.to(torch.int8), weight)
    expected, expected_gradient = value_and_gradient(loss, low.float(), targets, weight)
    assert value.dtype == torch.float32
    assert value == expected
    assert gradient.dtype == dtype
    assert torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("rounding", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_does_not_lower_the_precision(loss: nn.Module, rounding: torch.dtype) -> None:
    logits, targets, weight = batch(dtype=torch.float32)
    logits = logits.to(rounding).float()
    expected = loss(logits, targets, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, targets, weight), expected)


def test_float64_stays_float64(loss: nn.Module) -> None:
    assert loss(*batch()).dtype == torch.float64
    assert loss(*batch(dtype=torch.float32)).dtype == torch.float32
