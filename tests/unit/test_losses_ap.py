"""Average precision as a loss: against its definition, against scikit-learn, and what it remembers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from loss_batches import STATS, batch, close, value_and_gradient
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from cxrlt_cli.contracts import ClassStats
from cxrlt_plugins.losses import ap, bce


def precision_missing(z: np.ndarray, y: np.ndarray, w: np.ndarray, tau: float) -> float:
    """The definition, one loop at a time: the mean over positives i of w_i (1 - precision at i)."""
    sum_, count = 0.0, 0
    for i in np.flatnonzero(y == 1):
        above = 1 / (1 + np.exp(-(z - z[i]) / tau))
        above[i] = 1
        found, false = (w * y * above).sum(), (w * (1 - y) * above).sum()
        sum_, count = sum_ + w[i] * false / (found + false), count + 1
    return sum_ / count


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_ap_follows_its_definition(tau: float) -> None:
    logits, targets, weight = batch(40)
    got = ap.build(STATS, tau=tau)(logits, targets, weight).item()
    columns = [precision_missing(*(t[:, c].numpy() for t in (logits, targets, weight)), tau) for c in range(3)]
    assert got == pytest.approx(np.mean(columns), rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_ap_becomes_average_precision(weighted: bool) -> None:
    logits, targets, weight = batch(60)
    weight = weight if weighted else torch.ones_like(weight)
    got = ap.build(STATS, tau=1e-5, memory=0, negatives=0)(logits, targets, weight).item()
    expected = []
    for z, y, w in zip(logits.T.numpy(), targets.T.numpy(), weight.T.numpy(), strict=True):
        expected.append(w[y == 1].mean() * (1 - average_precision_score(y, z, sample_weight=w)))
    assert got == pytest.approx(np.mean(expected), rel=1e-9)


def test_ap_by_hand_with_a_tie() -> None:
    """Positive and negative at the same logit: half the negative is above, precision 1 / 1.5."""
    stats = ClassStats(("A",), (1,), (1,))
    z, y = torch.zeros(2, 1), torch.tensor([[1.0], [0]])
    value, gradient = value_and_gradient(ap.build(stats), z, y, torch.ones(2, 1))
    assert value.item() == pytest.approx(1 / 3)
    # d (f / (1 + f)) = df / (1 + f)^2 with df = 1/4
    close(gradient, torch.tensor([[-0.25 / 2.25], [0.25 / 2.25]]))


def test_ap_gradient_is_that_of_the_negatives_above() -> None:
    """Finite differences with the positives above held where they are."""
    logits, targets, weight = batch(8)
    loss = ap.build(STATS, memory=0, negatives=0).eval()
    _, gradient = value_and_gradient(loss, logits, targets, weight)
    z0, y, w = (t.numpy() for t in (logits, targets, weight))

    def held(z: np.ndarray) -> float:
        parts = []
        for c in range(3):
            rows = np.flatnonzero(y[:, c] == 1)
            missing = []
            for i in rows:
                before, after = (1 / (1 + np.exp(-(v[:, c] - v[i, c]))) for v in (z0, z))
                before[i] = 1
                found = (w[:, c] * y[:, c] * before).sum()
                false = (w[:, c] * (1 - y[:, c]) * after).sum()
                missing.append(w[i, c] * false / (found + false))
            parts.append(np.mean(missing))
        return float(np.mean(parts))

    for row, klass in np.ndindex(*z0.shape):
        step = np.zeros_like(z0)
        step[row, klass] = 1e-6
        rise = (held(z0 + step) - held(z0 - step)) / 2e-6
        assert gradient[row, klass].item() == pytest.approx(rise, rel=1e-5, abs=1e-9)


def memory_of(loss: ap.AveragePrecision, klass: int) -> tuple[list[float], list[float]]:
    """Remembered logits of positives and of negatives, sorted."""
    kept = torch.where(loss.kept_weight[klass] > 0, loss.kept_logits[klass], math.nan)
    sides = kept[: loss.memory], kept[loss.memory :]
    return tuple(sorted(v for v in side.tolist() if not math.isnan(v)) for side in sides)  # type: ignore[return-value]


def feed(loss: nn.Module, z: list[float], y: list[float], w: list[float] | None = None) -> Tensor:
    column = lambda values: torch.tensor(values)[:, None]  # noqa: E731
    return loss(column(z), column(y), column(w or [1.0] * len(z)))


ONE = ClassStats(("A",), (5,), (95,))


def test_ap_remembers_the_last_of_each_kind() -> None:
    loss = ap.build(ONE, memory=2, negatives=3)
    feed(loss, [1, 2, 3], [1, 0, 0])
    assert memory_of(loss, 0) == ([1], [2, 3])
    feed(loss, [4, 5, 6], [1, 0, 0])
    assert memory_of(loss, 0) == ([1, 4], [3, 5, 6])
    feed(loss, [7, 8], [1, 0])
    assert memory_of(loss, 0) == ([4, 7], [5, 6, 8])
    feed(loss, [10, 11, 12, 13, 14], [1, 1, 1, 1, 0])  # more at once than there is room for: the last ones
    assert memory_of(loss, 0) == ([12, 13], [6, 8, 14])
    feed(loss, [15], [1])
    assert memory_of(loss, 0) == ([13, 15], [6, 8, 14])


def test_ap_never_remembers_what_is_unknown_or_not_finite() -> None:
    loss = ap.build(ONE, memory=1, negatives=1)
    feed(loss, [1, 2, math.nan, math.inf, 3], [1, 0, -1, math.nan, 1], [1, 1, 0, 0, 0])
    assert memory_of(loss, 0) == ([1], [2])
    feed(loss, [math.nan, math.inf], [1, 0])
    assert memory_of(loss, 0) == ([1], [2])
    assert loss.kept_logits.isfinite().all()
    assert loss.kept_targets.isfinite().all()


def test_ap_remembers_soft_targets_on_their_nearer_side() -> None:
    loss = ap.build(ONE, memory=2, negatives=2)
    feed(loss, [1, 2], [0.75, 0.25])
    assert memory_of(loss, 0) == ([1], [2])
    assert loss.kept_targets[0].tolist() == [0.75, 0, 0.25, 0]


def test_ap_memory_counts_as_if_it_were_in_the_batch() -> None:
    logits, targets, weight = (t.float() for t in batch(24))
    loss = ap.build(STATS, memory=32, negatives=32)
    loss(logits[:16], targets[:16], weight[:16])
    close(loss(logits[16:], targets[16:], weight[16:]), ap.build(STATS)(logits, targets, weight), rtol=1e-5)


def test_ap_batch_without_positives_learns_from_the_remembered_ones() -> None:
    loss = ap.build(ONE)
    feed(loss, [0.0], [1])
    z, ones = torch.tensor([[1.0], [-1.0]]), torch.ones(2, 1)
    value, gradient = value_and_gradient(loss, z, 0 * z, ones)
    assert value.item() == pytest.approx(0.5)  # sigmoid(1) + sigmoid(-1) is 1 beside 1 positive
    assert (gradient > 0).all()
    fresh, nothing = value_and_gradient(ap.build(ONE), z, 0 * z, ones)
    assert fresh == 0
    assert not nothing.any()


def test_ap_changes_its_memory_in_training_mode_only() -> None:
    loss = ap.build(STATS)
    assert loss.stateful
    loss.eval()
    before = copy.deepcopy(loss.state_dict())
    first = loss(*batch())
    assert loss(*batch()) == first
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    loss.train()(*batch())
    assert not torch.equal(before["kept_logits"], loss.state_dict()["kept_logits"])


def test_ap_continues_from_its_state() -> None:
    loss = ap.build(STATS, memory=4, negatives=8)
    for seed in range(3):
        loss(*batch(seed=seed))
    again = ap.build(STATS, memory=4, negatives=8)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for seed in range(3, 6):
        values = [each(*batch(seed=seed)).item() for each in (loss, again)]
        assert values[0] == values[1]
    assert set(loss.state_dict()) == {"kept_logits", "kept_targets", "kept_weight", "written"}


def test_ap_does_not_push_what_it_remembers() -> None:
    loss = ap.build(ONE)
    z = torch.tensor([[1.0], [0.0]], requires_grad=True)
    loss(z, torch.tensor([[1.0], [0]]), torch.ones(2, 1)).backward()
    loss(torch.zeros(2, 1, requires_grad=True), torch.tensor([[1.0], [0]]), torch.ones(2, 1)).backward()
    assert not any(buffer.requires_grad for buffer in loss.buffers())


def test_ap_mixes_in_cross_entropy() -> None:
    logits, targets, weight = batch()
    parts = ap.build(STATS)(logits, targets, weight), bce.build(STATS)(logits, targets, weight)
    close(ap.build(STATS, bce=0.25)(logits, targets, weight), 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-12)


def test_ap_learns_a_ranking() -> None:
    """Ten steps of plain descent on the logits themselves raise true average precision."""
    logits, targets, _ = batch(40, dtype=torch.float32)
    weight, loss = torch.ones_like(logits), ap.build(STATS)

    def scores(z: Tensor) -> np.ndarray:
        return np.array([average_precision_score(targets[:, c], z[:, c]) for c in range(3)])

    z = logits.clone()
    for _ in range(10):
        _, gradient = value_and_gradient(loss, z, targets, weight)
        z = z - 30 * gradient
    assert (scores(z) > scores(logits)).all()
