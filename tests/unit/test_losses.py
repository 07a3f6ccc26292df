"""The built-in losses against closed forms, finite differences and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from built_losses import POINTWISE
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import STATS, batch, close, entry, sigmoid, value_and_gradient
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrlt_cli.contracts import PluginFault
from cxrlt_plugins.losses import asl, ldam

every_loss = pytest.mark.parametrize("loss", POINTWISE.values(), ids=POINTWISE.keys())


# formulas -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-30.0, -3.2, -0.1, 0.0, 0.7, 2.9, 30.0])
def test_bce_is_the_bernoulli_likelihood(z: float) -> None:
    assert entry(POINTWISE["bce"], z, 1, 0) == pytest.approx(math.log1p(math.exp(-z)), rel=1e-12)
    assert entry(POINTWISE["bce"], z, 0, 0) == pytest.approx(math.log1p(math.exp(z)), rel=1e-12)


def test_bce_agrees_with_torch() -> None:
    logits, targets, weight = batch()
    expected = binary_cross_entropy_with_logits(logits, targets, weight)
    close(POINTWISE["bce"](logits, targets, weight), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("z", [-4.0, -2.5, 0.0, 1.5, 4.0])
@pytest.mark.parametrize("options", [(4.0, 1.0, 0.05), (2.0, 0.0, 0.05), (1.5, 0.5, 0.0), (0.5, 3.0, 0.2)])
def test_asl_follows_its_formula(z: float, options: tuple[float, float, float]) -> None:
    gamma_neg, gamma_pos, clip = options
    loss = asl.build(STATS, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    p = sigmoid(z)
    pm = max(p - clip, 0)
    assert entry(loss, z, 1, 1) == pytest.approx((1 - p) ** gamma_pos * -math.log(p), rel=1e-12)
    assert entry(loss, z, 0, 1) == pytest.approx(pm**gamma_neg * -math.log(1 - pm), rel=1e-12)


@pytest.mark.parametrize("z", [-0.4, 0.0, 0.3, 1.1])
@pytest.mark.parametrize("klass", [0, 1, 2])
def test_ldam_follows_its_formula(z: float, klass: int) -> None:
    margin = 0.5 * (5 / STATS.positives[klass]) ** 0.25
    assert entry(POINTWISE["ldam"], z, 1, klass) == pytest.approx(math.log1p(math.exp(-30 * (z - margin))), rel=1e-5)
    assert entry(POINTWISE["ldam"], z, 0, klass) == pytest.approx(math.log1p(math.exp(30 * z)), rel=1e-12)


@pytest.mark.parametrize(
    "special",
    [asl.build(STATS, gamma_neg=0, gamma_pos=0, clip=0), ldam.build(STATS, max_margin=0, scale=1)],
    ids=["asl(0,0,0)", "ldam(0,1)"],
)
def test_special_cases_are_bce(special: nn.Module) -> None:
    logits, targets, weight = batch(64)
    value, gradient = value_and_gradient(special, 8 * logits, targets, weight)
    expected, expected_gradient = value_and_gradient(POINTWISE["bce"], 8 * logits, targets, weight)
    close(value, expected, rtol=1e-12, atol=0)
    close(gradient, expected_gradient, rtol=1e-9, atol=1e-18)


def test_margins_grow_with_rarity_and_the_rarest_has_the_largest() -> None:
    assert ldam.class_margins((1600, 100, 0, 100), 0.5) == pytest.approx([0.25, 0.5, 0.5, 0.5])
    assert ldam.class_margins((0, 0), 0.5) == [0.5, 0.5]


# gradients ------------------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_gradient_agrees_with_finite_differences(loss: nn.Module, soft: bool) -> None:
    logits, targets, weight = batch(6)
    if soft:
        targets = 0.1 + 0.8 * targets
    value, gradient = value_and_gradient(loss, logits, targets, weight)
    rounding = 1e-8 * (1 + value.item())
    for row, klass in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[row, klass] = 1e-6
        rise = loss(logits + step, targets, weight) - loss(logits - step, targets, weight)
        assert gradient[row, klass].item() == pytest.approx(rise.item() / 2e-6, rel=1e-5, abs=rounding)


@every_loss
def test_gradient_pushes_positives_up_and_negatives_down(loss: nn.Module) -> None:
    grid = torch.linspace(-60, 60, 4001, dtype=torch.float64)[:, None].expand(-1, 3)
    ones = torch.ones_like(grid)
    for dtype in (torch.float32, torch.float64):
        _, positive = value_and_gradient(loss, grid.to(dtype), ones, ones)
        _, negative = value_and_gradient(loss, grid.to(dtype), 0 * ones, ones)
        assert (positive <= 0).all()
        assert (negative >= 0).all()
        assert (positive < 0).any()
        assert (negative > 0).any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(loss: nn.Module, dtype: torch.dtype) -> None:
    magnitudes = torch.tensor([15, 17, 20, 37, 40, 88, 89, 104, 745, 1e4, 1e6, 1e30], dtype=dtype)
    logits = torch.cat([magnitudes, -magnitudes])[:, None].expand(-1, 3)
    for target in (0.0, 0.5, 1.0):
        value, gradient = value_and_gradient(loss, logits, torch.full_like(logits, target), torch.ones_like(logits))
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_bce_gradient_keeps_its_precision_where_the_answer_is_nearly_right() -> None:
    logits = torch.tensor([[25.0], [-25.0]])
    _, gradient = value_and_gradient(POINTWISE["bce"], logits, torch.tensor([[1.0], [0.0]]), torch.ones(2, 1))
    exact = math.exp(-25) / (1 + math.exp(-25)) / 2
    close(gradient, torch.tensor([[-exact], [exact]]), rtol=1e-5, atol=0)


def test_discarded_negatives_have_no_gradient() -> None:
    below = math.log(0.05 / 0.95) - 1e-6
    logits = torch.full((4, 3), below, dtype=torch.float64)
    value, gradient = value_and_gradient(POINTWISE["asl"], logits, torch.zeros(4, 3), torch.ones(4, 3))
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


# targets, weights, reduction ------------------------------------------------------------------------------------------


@every_loss
def test_soft_target_mixes_the_two_parts(loss: nn.Module) -> None:
    logits, _, weight = batch()
    ones = torch.ones_like(logits)
    mixed = loss(logits, 0.3 * ones, weight)
    close(mixed, 0.3 * loss(logits, ones, weight) + 0.7 * loss(logits, 0 * ones, weight))


@every_loss
def test_non_finite_input_at_a_known_entry_is_not_hidden(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    logits[2, 1] = math.nan
    assert loss(logits, targets, weight).isnan()
    logits, targets, weight = batch()
    weight[2, 1] = math.nan
    assert loss(logits, targets, weight).isnan()


@every_loss
def test_batches_without_positives_or_negatives_are_fine(loss: nn.Module) -> None:
    logits, _, weight = batch()
    for target in (0.0, 1.0):
        value, gradient = value_and_gradient(loss, logits, torch.full_like(logits, target), weight)
        assert value.isfinite()
        assert value > 0
        assert gradient.isfinite().all()


@every_loss
def test_repeating_the_batch_changes_nothing(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    weight[2, 0] = 0
    once = loss(logits, targets, weight)
    close(loss(logits.repeat(2, 1), targets.repeat(2, 1), weight.repeat(2, 1)), once)


@every_loss
def test_weights_scale_their_entry_and_not_the_count(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    parts = torch.stack([loss(logits[:, c : c + 1].expand(-1, 3), targets[:, c : c + 1].expand(-1, 3),
                              weight * torch.eye(3)[c]) for c in range(3)])  # fmt: skip
    close(parts.mean(), loss(logits, targets, weight))
    close(loss(logits, targets, 2 * weight), 2 * loss(logits, targets, weight))


@every_loss
def test_losses_are_pointwise(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    _, gradient = value_and_gradient(loss, logits, targets, weight)
    other_logits, other_targets, other_weight = batch(seed=1)
    other_logits[5, 1], other_targets[5, 1], other_weight[5, 1] = logits[5, 1], targets[5, 1], weight[5, 1]
    _, other_gradient = value_and_gradient(loss, other_logits, other_targets, other_weight)
    assert loss.pointwise
    assert other_gradient[5, 1] == gradient[5, 1]


@settings(max_examples=50, deadline=None)
@given(
    z=st.floats(-1e4, 1e4, width=32),
    y=st.floats(0, 1, width=32),
    gamma_neg=st.floats(0, 8, width=32),
    gamma_pos=st.floats(0, 8, width=32),
    clip=st.one_of(st.just(0.0), st.floats(1e-12, 0.5)),
)
def test_asl_is_finite_and_not_negative_for_all_options(
    z: float, y: float, gamma_neg: float, gamma_pos: float, clip: float
) -> None:
    loss = asl.build(STATS, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
    logits = torch.full((1, 3), z)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(logits, y), torch.ones_like(logits))
    assert value >= 0
    assert value.isfinite()
    assert gradient.isfinite().all()


# options --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "named"),
    [
        (asl, {"gamma_neg": -1.0}, "gamma_neg is -1.0"),
        (asl, {"gamma_pos": math.inf}, "gamma_pos is inf"),
        (asl, {"clip": 1.0}, "clip is 1.0"),
        (ldam, {"max_margin": -0.5}, "max_margin is -0.5"),
        (ldam, {"scale": 0.0}, "scale is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(module: object, options: dict[str, float], named: str) -> None:
    with pytest.raises(PluginFault, match=named) as fault:
        module.build(STATS, **options)  # type: ignore[attr-defined]  # a module with a factory
    assert fault.value.cure
