"""Losses that are no sum over entries: distribution-balanced, two-way, and what they share with average precision."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from built_losses import RANKING, seasoned
from loss_batches import LOPSIDED, STATS, batch, close, entry, from_timm, sigmoid, value_and_gradient
from scipy.special import logsumexp
from torch import nn

from cxrlt_cli.contracts import ClassStats, PluginFault
from cxrlt_cli.posterior import derive
from cxrlt_plugins.losses import ap, bce, db, focal, two_way


@pytest.fixture(params=RANKING.keys())
def loss(request: pytest.FixtureRequest) -> nn.Module:
    """Each loss, with what it remembers of two batches where it remembers any."""
    return seasoned(RANKING[request.param])


# promises every loss makes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["db", "db-focal", "db-lopsided", "two-way", "two-way-sharp"])
def test_gradient_agrees_with_finite_differences(name: str) -> None:
    """Average precision holds a part of itself fixed, and has a test of its own below."""
    loss = RANKING[name]
    logits, targets, weight = batch(6)
    for labels in (targets, 0.1 + 0.8 * targets):
        _, gradient = value_and_gradient(loss, logits, labels, weight)
        for row, klass in np.ndindex(*logits.shape):
            step = torch.zeros_like(logits)
            step[row, klass] = 1e-6
            rise = loss(logits + step, labels, weight) - loss(logits - step, labels, weight)
            assert gradient[row, klass].item() == pytest.approx(rise.item() / 2e-6, rel=1e-5, abs=1e-8)


def test_gradient_pushes_positives_up_and_negatives_down(loss: nn.Module) -> None:
    for seed in range(5):
        logits, targets, weight = batch(64, seed)
        for scaled in (3 * logits, (3 * logits).float()):
            _, gradient = value_and_gradient(loss, scaled, targets, weight)
            assert (gradient[targets == 1] <= 0).all()
            assert (gradient[targets == 0] >= 0).all()
            assert (gradient[targets == 1] < 0).any()
            assert (gradient[targets == 0] > 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(loss: nn.Module, dtype: torch.dtype) -> None:
    size = torch.tensor([15, 20, 88, 104, 745, 1e4, 1e6, 1e20], dtype=dtype)
    logits = torch.cat([size, -size])[:, None].expand(-1, 3)
    mixed = (torch.arange(16)[:, None] + torch.arange(3)) % 2
    for targets in (mixed, 1 - mixed, mixed * 0, mixed * 0 + 1, mixed * 0.5):
        value, gradient = value_and_gradient(loss, logits, targets.to(dtype), torch.ones_like(logits))
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_unknown_rows_are_as_good_as_absent(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    weight[10:] = 0
    close(loss(logits, targets, weight), loss(logits[:10], targets[:10], weight[:10]), rtol=1e-12)


def test_non_finite_input_at_a_known_entry_is_not_hidden(loss: nn.Module) -> None:
    for spoilt in (0, 2):
        tensors = list(batch())
        tensors[1][2] = 1
        tensors[spoilt][2, 1] = math.nan
        assert loss(*tensors).isnan()


def test_batches_of_one_kind_of_label_are_fine(loss: nn.Module) -> None:
    logits, _, weight = batch()
    for target in (0.0, 1.0):
        value, gradient = value_and_gradient(loss, logits, torch.full_like(logits, target), weight)
        assert value >= 0
        assert gradient.isfinite().all()


def test_doubling_all_weights_doubles_the_loss(loss: nn.Module) -> None:
    logits, targets, weight = batch()
    fresh = loss if not getattr(loss, "stateful", False) else ap.build(STATS).eval()  # old weights are remembered
    close(fresh(logits, targets, 2 * weight), 2 * fresh(logits, targets, weight), rtol=1e-12)


def test_they_say_that_they_have_no_posterior(loss: nn.Module) -> None:
    assert loss.pointwise is False
    assert derive(loss, np.ones(3), np.ones(3)) is None
    logits, targets, weight = batch()
    _, gradient = value_and_gradient(loss, logits, targets, weight)
    # and indeed: the slope of one entry moves with the label of another
    targets[5, 0] = 1 - targets[5, 0]
    _, other = value_and_gradient(loss, logits, targets, weight)
    assert (gradient[5, 1:] != other[5, 1:]).any() or (gradient[:5, 0] != other[:5, 0]).any()


# distribution-balanced --------------------------------------------------------------------------------------------


def test_db_weights_by_hand() -> None:
    """Counts 500, 40, 5. A row with all three: sum 1/500 + 1/40 + 1/5 = 0.227."""
    targets = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    ratio = np.array([[0.002 / 0.227, 0.025 / 0.227, 0.2 / 0.227], [1, 12.5, 100], [0.01, 0.125, 1]])
    expected = 0.1 + 1 / (1 + np.exp(-10 * (ratio - 0.2)))
    np.testing.assert_allclose(db.build(STATS).row_weights(targets).numpy(), expected, rtol=1e-6)


def test_db_rows_without_positives_weigh_as_those_of_the_most_frequent_class() -> None:
    loss = db.build(STATS)
    rows = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1e-9, 0, 0]], dtype=torch.float64)
    weights = loss.row_weights(rows)
    close(weights[0], weights[1], rtol=1e-12)
    close(weights[2], weights[1], rtol=1e-12)


def test_db_weights_lie_between_their_bounds() -> None:
    targets = torch.tensor(np.random.default_rng(0).random((200, 3)) < 0.3, dtype=torch.float64)
    weights = db.build(STATS).row_weights(targets)
    assert weights.min() >= 0.1 + 1 / (1 + math.exp(2)) - 1e-9
    assert weights.max() <= 1.1


@pytest.mark.parametrize("z", [-6.0, -1.2, 0.0, 0.7, 5.0])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_db_follows_its_formula(z: float, gamma: float) -> None:
    loss = db.build(STATS, gamma=gamma)
    moved = z - 0.05 * math.log(1000 / 40 - 1) / 2
    # a lone positive has r = 1; a lone negative, in a row without positives, r = 500 / 40
    positive, negative = 0.1 + sigmoid(8), 0.1 + sigmoid(10 * (500 / 40 - 0.2))
    positive *= sigmoid(-moved) ** gamma * math.log1p(math.exp(-moved))
    negative *= sigmoid(2 * moved) ** gamma * math.log1p(math.exp(2 * moved)) / 2
    assert entry(loss, z, 1, 1) == pytest.approx(positive, rel=1e-6)
    assert entry(loss, z, 0, 1) == pytest.approx(negative, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_db_agrees_with_timm(gamma: float) -> None:
    logits, targets, _ = batch(64)
    targets[:, 0] = torch.where(targets.sum(1) == 0, 1, targets[:, 0])  # rows without positives have another rule
    reference = from_timm("distribution_balanced_loss").DistributionBalancedLoss(
        [500, 40, 5], 1000, focal_gamma=gamma, focal_balance=1
    )
    ours = db.build(STATS, gamma=gamma)(logits, targets, torch.ones_like(logits))
    assert ours.item() == pytest.approx(reference(logits, targets).item(), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_db_with_its_parts_off_is_cross_entropy(gamma: float) -> None:
    logits, targets, weight = batch(64)
    off = db.build(STATS, alpha=0.5, beta=0, lamb=1, kappa=0, gamma=gamma)
    value, gradient = value_and_gradient(off, logits, targets, weight)
    plain = focal.build(STATS, gamma=gamma) if gamma else bce.build(STATS)
    expected, expected_gradient = value_and_gradient(plain, logits, targets, weight)
    close(value, expected, rtol=1e-12)
    close(gradient, expected_gradient, rtol=1e-9)


def test_db_with_absent_classes_is_finite() -> None:
    loss = db.build(LOPSIDED)
    for buffer in loss.buffers():
        assert buffer.isfinite().all()
    assert db.build(ClassStats(("A",), (0,), (0,)))(*(t[:, :1] for t in batch())).isfinite()


def test_db_unknown_positives_are_not_counted_in_the_row() -> None:
    logits, targets, weight = batch()
    targets[:] = torch.tensor([1.0, 0, 1])
    weight[:] = torch.tensor([1.0, 1, 0])
    rare = db.build(STATS)(logits, targets, weight)
    targets[:, 2] = 0
    assert rare == db.build(STATS)(logits, targets, weight)


# two-way ----------------------------------------------------------------------------------------------------------


def two_way_reference(z: np.ndarray, y: np.ndarray, tp: float, tn: float) -> float:
    total = 0.0
    for scores, labels in ((z, y), (z.T, y.T)):
        terms = []
        for row, label in zip(scores, labels, strict=True):
            if label.any():
                worst_negative = tn * logsumexp(row[label == 0] / tn) if (label == 0).any() else -np.inf
                terms.append(np.logaddexp(0, worst_negative + tp * logsumexp(-row[label == 1] / tp)))
        total += np.mean(terms) if terms else 0
    return total


@pytest.mark.parametrize("temperatures", [(4.0, 1.0), (1.0, 0.3)])
def test_two_way_follows_its_formula(temperatures: tuple[float, float]) -> None:
    tp, tn = temperatures
    for seed in range(5):
        logits, targets, _ = batch(seed=seed)
        targets[:, 2] = seed % 2  # a class of one kind
        got = two_way.build(STATS, pos_temperature=tp, neg_temperature=tn)(logits, targets, torch.ones_like(logits))
        assert got.item() == pytest.approx(two_way_reference(logits.numpy(), targets.numpy(), tp, tn), rel=1e-9)


def test_two_way_agrees_with_timm() -> None:
    logits, targets, _ = batch(64)
    expected = from_timm("two_way_loss").TwoWayLoss()(logits, targets)
    got = two_way.build(STATS)(logits, targets, torch.ones_like(logits))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_two_way_by_hand() -> None:
    """One positive at logit 1, one negative at 0, in one row: the class way has no second row."""
    stats = ClassStats(("A", "B"), (1, 1), (1, 1))
    z, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    assert two_way.build(stats)(z, y, torch.ones_like(z)).item() == pytest.approx(math.log1p(math.exp(-1)))


def test_two_way_counts_a_heavier_entry_as_several() -> None:
    """In the way along a class, a negative of weight 3 beside one of 1 is three of them, up to the common factor."""
    stats = ClassStats(("A",), (1,), (1,))
    z, y = torch.tensor([[0.5], [1.0], [-0.2]]), torch.tensor([[1.0], [0], [0]])
    heavy = two_way.build(stats)(z, y, torch.tensor([[5.0], [3], [1]])).item()
    # weights relative to the negatives' mean 2 are 1.5 and 0.5; the term weighs (5 + 2) / 2
    worst = math.log(1.5 * math.exp(1.0) + 0.5 * math.exp(-0.2))
    assert heavy == pytest.approx(3.5 * math.log1p(math.exp(worst - 0.5)), rel=1e-6)


def test_two_way_soft_targets_are_continuous() -> None:
    logits, targets, weight = batch()
    loss = two_way.build(STATS)
    close(loss(logits, targets * (1 - 1e-9) + 5e-10, weight), loss(logits, targets, weight), rtol=1e-4)


# options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "options", "named"),
    [
        (db, {"alpha": -0.1}, "alpha is -0.1"),
        (db, {"mu": math.nan}, "mu is nan"),
        (db, {"lamb": 0.0}, "lamb is 0.0"),
        (two_way, {"pos_temperature": 0.0}, "pos_temperature is 0.0"),
        (two_way, {"neg_temperature": -1.0}, "neg_temperature is -1.0"),
        (ap, {"tau": 0.0}, "tau is 0.0"),
        (ap, {"memory": -1}, "memory is -1"),
        (ap, {"negatives": -1}, "negatives is -1"),
        (ap, {"bce": 1.5}, "bce is 1.5"),
    ],
)
def test_options_out_of_range_are_refused(module: ModuleType, options: dict[str, Any], named: str) -> None:
    with pytest.raises(PluginFault, match=named) as fault:
        module.build(STATS, **options)
    assert fault.value.cure
