"""Targets and weights of a batch: labels, unknown ones, class weights, smoothing, mixing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.data.mix import Mixing
from cxrlt_cli.engine.targets import make_targets, smoothing_level
from cxrlt_cli.recipe.schema import Train
from cxrlt_cli.registry import build

ONES = (np.ones(2), np.ones(2))
WEIGHTS = (np.array([3.0, 5.0]), np.array([1.0, 2.0]))
LABELS = np.array([[1, 0], [0, -1], [-1, 1], [-1, -1]], np.int8)


def mixing(partner: list[int], share: list[float]) -> Mixing:
    return Mixing(np.array(partner), np.array(share), np.zeros((len(partner), 4), np.int64))


def test_hard_labels_keep_their_class_weights() -> None:
    found = make_targets(LABELS, WEIGHTS)
    assert found.target.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]
    assert found.weight.tolist() == [[3, 2], [1, 0], [0, 5], [0, 0]]
    assert found.known() == 4
    assert found.known(np.array([0, 2])) == 3


def test_mixed_labels_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1]], np.int8)
    found = make_targets(labels, ONES, mixing=mixing([1, 0], [0.75, 0.5]))
    np.testing.assert_allclose(found.target, [[0.75, 0.25], [0.5, 0.5]])
    np.testing.assert_allclose(found.weight, 1)


def test_mixed_weights_by_hand() -> None:
    labels = np.array([[1, 0], [0, 1]], np.int8)
    found = make_targets(labels, WEIGHTS, mixing=mixing([1, 0], [0.75, 0.5]))
    # class 0 of image 0: 0.75 of a positive weighing 3, 0.25 of a negative weighing 1
    np.testing.assert_allclose(found.weight[0], [0.75 * 3 + 0.25 * 1, 0.75 * 2 + 0.25 * 5])
    np.testing.assert_allclose(found.target[0], [2.25 / 2.5, 1.25 / 2.75])


def test_an_unknown_label_adds_nothing_to_a_mixture() -> None:
    found = make_targets(LABELS, ONES, mixing=mixing([1, 2, 3, 3], [0.75, 0.5, 1.0, 0.3]))
    np.testing.assert_allclose(found.target, [[0.75, 0], [0, 1], [0, 1], [0, 0]])
    np.testing.assert_allclose(found.weight, [[1, 0.75], [0.5, 0.5], [0, 1], [0, 0]])


def test_an_image_that_is_wholly_covered_has_its_partners_labels() -> None:
    found = make_targets(LABELS[:2], WEIGHTS, mixing=mixing([1, 0], [0.0, 1.0]))
    assert found.target.tolist() == [[0, 0], [0, 0]]
    assert found.weight.tolist() == [[1, 0], [1, 0]]


def test_smoothing_by_hand() -> None:
    found = make_targets(LABELS, ONES, smoothing=0.2, level=np.array([0.5, 0.1]))
    np.testing.assert_allclose(found.target[0], [0.9, 0.02], rtol=1e-6)
    np.testing.assert_allclose(found.weight, [[1, 1], [1, 0], [0, 1], [0, 0]])


def test_smoothing_towards_prevalence_leaves_the_mean_label() -> None:
    labels = np.array([[1], [0], [0], [0]], np.int8)
    found = make_targets(labels, (np.ones(1), np.ones(1)), smoothing=0.3, level=0.25)
    assert found.target.mean() == pytest.approx(0.25)


def test_levels() -> None:
    stats = ClassStats(("a", "b"), (9, 0), (90, 99))
    assert smoothing_level(stats, Train(smooth_towards="half")).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(smoothing_level(stats, Train()), stats.prevalence)


@pytest.mark.parametrize("name", ["bce", "asl", "focal", "ldam", "wbce", "hill"])
def test_a_mixed_loss_is_the_mixture_of_the_losses(name: str) -> None:
    """For losses linear in their target: sum over entries, times the count each loss divided by."""
    stats = ClassStats(("a", "b"), (30, 3), (70, 97))
    loss = build("losses", {"name": name}, stats)
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.7, 0.4], [0.0, 1.0]], dtype=torch.float64)
    share = np.array([0.7, 0.2, 1.0, 0.6])
    partner = np.array([2, 0, 1, 1])

    def summed(labels: np.ndarray, **options: object) -> torch.Tensor:
        found = make_targets(labels, WEIGHTS, **options)
        rows = [
            loss(logits[[i]], torch.tensor(found.target[[i]]).double(), torch.tensor(found.weight[[i]]).double())
            * found.known(np.array([i]))
            for i in range(4)
        ]
        return torch.stack(rows)

    mixed = summed(LABELS, mixing=mixing(partner.tolist(), share.tolist()))
    expected = torch.tensor(share) * summed(LABELS) + torch.tensor(1 - share) * summed(LABELS[partner])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-7)
