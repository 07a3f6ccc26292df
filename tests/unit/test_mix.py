"""Mixup and CutMix: shares, partners and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from cxrlt_cli.data.mix import Mixing, draw_mixing, mix, symmetric_beta
from cxrlt_cli.recipe.schema import Mix

BOTH = Mix(mixup=0.4, cutmix=1.0, probability=0.7)


def drawn(config: Mix = BOTH, *, batch: int = 4000, size: int = 32, **place: int) -> Mixing:
    found = draw_mixing(config, **{"seed": 1, "epoch": 2, "step": 3, **place}, batch=batch, size=size)
    assert found is not None
    return found


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0, 2.0, 30.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    uniform = np.random.default_rng(0).random((2, 20_000))
    assert stats.kstest(symmetric_beta(alpha, *uniform), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3])
def test_extreme_draws_stay_shares(alpha: float) -> None:
    ends = np.array([0.0, 0.5, 1 - 2.0**-53])
    found = symmetric_beta(alpha, *(part.ravel() for part in np.meshgrid(ends, [0.0, 0.25, 0.5, 1 - 2.0**-53])))
    assert ((found >= 0) & (found <= 1)).all()


def test_nothing_is_drawn_where_the_recipe_mixes_nothing() -> None:
    for config in (Mix(), Mix(mixup=1.0, probability=0.0)):
        assert draw_mixing(config, seed=0, epoch=0, step=0, batch=4, size=8) is None


def test_partners_form_one_circle() -> None:
    partner, at, seen = drawn(batch=50).partner, 0, []
    for _ in range(50):
        seen.append(at)
        at = int(partner[at])
    assert sorted(seen) == list(range(50))
    assert at == 0


def test_a_lone_image_is_its_own_partner() -> None:
    assert drawn(batch=1).partner.tolist() == [0]


def test_draws_are_pure_and_differ_by_step_epoch_and_seed() -> None:
    first = drawn(batch=16)
    assert np.array_equal(first.share, drawn(batch=16).share)
    for place in ({"seed": 2}, {"epoch": 3}, {"step": 4}):
        assert not np.array_equal(first.share, drawn(batch=16, **place).share)


def test_as_many_are_mixed_as_asked_and_either_way_as_often() -> None:
    mixing = drawn()
    mixed = mixing.share < 1
    assert mixed.mean() == pytest.approx(0.7, abs=0.03)
    # A pasted rectangle may be empty, so that the image is not mixed: fewer than half of the mixed ones are pasted.
    assert mixing.pasted[mixed].mean() == pytest.approx(0.5, abs=0.03)
    assert not drawn(Mix(mixup=0.4)).pasted.any()
    assert (drawn(Mix(cutmix=1.0)).share < 1).mean() > 0.95


def test_the_share_is_that_of_the_pixels_left() -> None:
    mixing = drawn(Mix(cutmix=0.5), batch=64, size=13)
    images = torch.zeros(64, 1, 13, 13)
    for place in range(64):
        images[mixing.partner[place]] = 1.0
        out = mix(images, mixing, np.arange(64), 64)[place]
        images[mixing.partner[place]] = 0.0
        assert 1 - out.mean().item() == pytest.approx(mixing.share[place], abs=1e-6)


def test_pixels_by_hand() -> None:
    images = torch.tensor([[[0.0, 0.2], [0.4, 0.6]], [[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]])[:, None]
    box = np.array([[0, 0, 0, 0], [1, 0, 2, 2], [0, 0, 0, 0]])
    mixing = Mixing(np.array([1, 0, 0]), np.array([0.25, 0.5, 1.0]), box)
    out = mix(images, mixing, np.arange(3), 3)[:, 0]
    torch.testing.assert_close(out[0], torch.tensor([[0.75, 0.8], [0.85, 0.9]]))
    assert torch.equal(out[1], torch.tensor([[1.0, 1.0], [0.4, 0.6]]))
    assert torch.equal(out[2], images[2, 0])


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_chunks_are_mixed_as_the_whole_batch_is(parts: int) -> None:
    mixing = drawn(batch=12, size=9)
    images = torch.rand(12, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    whole = mix(images, mixing, np.arange(12), 12)
    for places in np.arange(12).reshape(parts, -1):
        held = mixing.needed(places)
        assert len(held) == len(set(held.tolist()))
        assert torch.equal(mix(images[held], mixing, held, len(places)), whole[places])
