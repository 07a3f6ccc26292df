"""The built-in samplers."""

from __future__ import annotations

import numpy as np
import pytest

from cxrlt_cli.contracts import ClassStats, Sampler
from cxrlt_plugins.samplers import uniform

STATS = ClassStats(("Effusion",), (40,), (60,))


def sampler(count: int = 100, seed: int = 0) -> Sampler:
    return uniform.build(np.zeros((count, 1), np.int8), STATS, np.arange(count), seed, 1)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_every_image_comes_once(count: int) -> None:
    order = sampler(count).indices(3)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(count))


def test_order_is_pure_in_seed_and_epoch() -> None:
    one = sampler()
    later = one.indices(7)
    one.indices(1)
    assert np.array_equal(one.indices(7), later)
    assert np.array_equal(sampler().indices(7), later)


def test_epochs_and_seeds_differ() -> None:
    orders = [sampler(seed=seed).indices(epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_order_is_the_same_on_every_release() -> None:
    assert sampler(10, seed=1).indices(2).tolist() == [7, 1, 3, 0, 4, 8, 9, 2, 6, 5]


def test_every_place_is_equally_likely() -> None:
    orders = np.array([sampler(5).indices(epoch) for epoch in range(4000)])
    counts = np.array([np.bincount(column, minlength=5) for column in orders.T])
    # chi-square of 25 cells with 16 degrees of freedom: above 39.3 once in a thousand
    assert ((counts - 800) ** 2 / 800).sum() < 39.3
