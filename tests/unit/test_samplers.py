"""The built-in samplers: how often each image is drawn, and that nothing else decides it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_cli.contracts import ClassStats, PluginFault, Sampler
from cxrlt_plugins.samplers import class_aware, progressive, repeat_factor, root, uniform
from cxrlt_plugins.samplers.weighted import UNIT, length, patients_of, spread

STATS = ClassStats(("Effusion",), (40,), (60,))
MODULES = {
    "uniform": uniform,
    "class-aware": class_aware,
    "root": root,
    "progressive": progressive,
    "repeat-factor": repeat_factor,
}
every_sampler = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
#: The samplers that can draw an image several times.
uneven = pytest.mark.parametrize("module", list(MODULES.values())[1:], ids=list(MODULES)[1:])
EPOCHS = 5


def long_tail(count: int = 400, seed: int = 0) -> np.ndarray:
    """Labels of 40, 10 and 1 %, a class without positives, one known only in parts; every row has several patterns."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 5)) < [0.4, 0.1, 0.01, 0.0, 0.2]).astype(np.int8)
    labels[rng.random(count) < 0.3, 4] = -1
    labels[0, 2] = 1
    return labels


def owners(count: int = 400, seed: int = 0) -> np.ndarray:
    """Patients with 1 to about 20 images; their codes have gaps."""
    return 3 * np.random.default_rng(seed).geometric(0.02, count).astype(np.int64)


def make(module: Any, labels: np.ndarray, patients: np.ndarray | None = None, seed: int = 0, **options: Any) -> Sampler:
    patients = np.arange(len(labels)) if patients is None else patients
    return module.build(labels, STATS, patients, seed, EPOCHS, **options)


def permutation(count: int = 100, seed: int = 0) -> Sampler:
    return make(uniform, np.zeros((count, 1), np.int8), seed=seed)


# -- every sampler -------------------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("options", [{}, {"cap": 2}])
def test_an_order_is_pure_in_seed_and_epoch(module, options) -> None:
    labels, patients = long_tail(), owners()
    one = make(module, labels, patients, 7, **options)
    later = one.indices(4)
    one.indices(1)
    assert np.array_equal(one.indices(4), later)
    assert np.array_equal(make(module, labels, patients, 7, **options).indices(4), later)
    orders = [make(module, labels, patients, seed, **options).indices(epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@every_sampler
def test_codes_of_patients_are_only_names(module) -> None:
    labels, patients = long_tail(), owners()
    renamed = make(module, labels, patients * 1000 + 7, cap=2).indices(2)
    assert np.array_equal(make(module, labels, patients, cap=2).indices(2), renamed)


@every_sampler
@pytest.mark.parametrize("options", [{}, {"cap": 1}, {"cap": 3}])
def test_an_image_and_a_patient_come_as_often_as_expected_to_less_than_one(module, options) -> None:
    labels, patients = long_tail(), owners()
    sampler = make(module, labels, patients, **options)
    for epoch in range(EPOCHS):
        order, expected = sampler.indices(epoch), sampler.expected(epoch)
        assert len(order) == expected.sum() == len(sampler.indices(0))
        assert (abs(np.bincount(order, minlength=400) - expected) < 1).all()
        if options:
            drawn = np.bincount(patients[order], minlength=patients.max() + 1)
            assert (abs(drawn - np.bincount(patients, weights=expected)) < 1).all()


@every_sampler
@pytest.mark.parametrize("cap", [1, 2, 7])
def test_no_patient_exceeds_the_cap(module, cap) -> None:
    labels, patients = long_tail(), owners()
    sampler = make(module, labels, patients, cap=cap)
    for epoch in range(EPOCHS):
        assert np.bincount(patients[sampler.indices(epoch)]).max() <= cap
        assert np.bincount(patients, weights=sampler.expected(epoch)).max() <= cap


@every_sampler
def test_draws_are_as_frequent_as_expected(module) -> None:
    labels, patients = long_tail(60), np.arange(60) // 6
    options = {"cap": 4 if module is uniform else 8} | ({"threshold": 0.3} if module is repeat_factor else {})
    made = np.array(
        [np.bincount(make(module, labels, patients, n, **options).indices(2), minlength=60) for n in range(1000)]
    )
    expected = make(module, labels, patients, **options).expected(2)
    chance = expected - np.floor(expected)
    free = (chance > 1e-6) & (chance < 1 - 1e-6)
    assert free.sum() >= 10
    assert np.array_equal(made.mean(0)[~free], np.round(expected[~free]))
    z = (made.mean(0) - expected)[free] / np.sqrt(chance[free] * (1 - chance[free]) / len(made))
    # the sum of squares of n standard normal numbers has mean n and variance 2 n: above that by 4 standard deviations
    # less than once in a thousand
    assert (z**2).sum() < free.sum() + 4 * np.sqrt(2 * free.sum())


@every_sampler
def test_every_place_of_an_epoch_is_equally_likely(module) -> None:
    sampler = make(module, np.eye(5, dtype=np.int8))
    orders = np.array([sampler.indices(epoch) for epoch in range(2000)])
    counts = np.array([np.bincount(column, minlength=5) for column in orders.T])
    # chi-square of 25 cells with 16 degrees of freedom: above 39.3 once in a thousand
    assert ((counts - 400) ** 2 / 400).sum() < 39.3


@every_sampler
@pytest.mark.parametrize("cap", [0, -1])
def test_a_cap_below_one_is_refused(module, cap) -> None:
    with pytest.raises(PluginFault, match=f"cap is {cap}"):
        make(module, long_tail(), cap=cap)


# -- uniform -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_every_image_comes_once(count: int) -> None:
    order = permutation(count).indices(3)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(count))


def test_order_is_the_same_on_every_release() -> None:
    assert permutation(10, seed=1).indices(2).tolist() == [7, 1, 3, 0, 4, 8, 9, 2, 6, 5]
    tail = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.int8)
    assert make(class_aware, tail, seed=1, draws=8).indices(2).tolist() == [0, 3, 3, 2, 1, 2, 3, 3]


def test_a_capped_epoch_holds_some_images_of_each_patient() -> None:
    patients = np.array([0] * 7 + [1] * 2 + [2])
    sampler = make(uniform, np.zeros((10, 1), np.int8), patients, cap=3)
    np.testing.assert_allclose(sampler.expected(0), [3 / 7] * 7 + [1] * 3, atol=1e-8)
    orders = [sampler.indices(epoch) for epoch in range(30)]
    for order in orders:
        assert len(set(order)) == len(order) == 6
        assert np.bincount(patients[order]).tolist() == [3, 2, 1]
    assert set(np.concatenate(orders)) == set(range(10))


# -- by class ------------------------------------------------------------------------------------------------------


def by_hand(labels: np.ndarray, power: float, extra: bool = False) -> list[float]:
    """The chance of each image: a class with ~ n^power, then one of its images; sum over classes."""
    sets = [[i for i, row in enumerate(labels) if row[c] == 1] for c in range(labels.shape[1])]
    if extra:
        sets.append([i for i, row in enumerate(labels) if not (row == 1).any()])
    sets = [members for members in sets if members]
    total = sum(len(members) ** power for members in sets)
    return [sum(len(m) ** power / total / len(m) for m in sets if i in m) for i in range(len(labels))]


@pytest.mark.parametrize(("module", "power"), [(class_aware, 0.0), (root, 0.5)])
@pytest.mark.parametrize("no_finding", ["skip", "class"])
@pytest.mark.parametrize("draws", [None, 37, 1500])
def test_images_are_drawn_in_proportion_to_the_formula(module, power, no_finding, draws) -> None:
    labels = long_tail()
    sampler = make(module, labels, no_finding=no_finding, draws=draws)
    expected = np.array(by_hand(labels, power, no_finding == "class")) * (draws or 400)
    np.testing.assert_allclose(sampler.expected(0), expected, atol=1e-6)


def test_disjoint_classes_are_drawn_alike() -> None:
    labels = np.repeat(np.eye(3, dtype=np.int8), [90, 9, 1], axis=0)
    sampler = make(class_aware, labels, draws=300)
    np.testing.assert_allclose(sampler.expected(0) @ labels, [100, 100, 100], atol=1e-5)
    np.testing.assert_allclose(labels[sampler.indices(0)].sum(0), [100, 100, 100], atol=10)
    share = np.sqrt([90, 9, 1]) / np.sqrt([90, 9, 1]).sum()
    np.testing.assert_allclose(make(root, labels, draws=300).expected(0) @ labels, share * 300, atol=1e-5)


def test_an_unknown_label_is_no_positive() -> None:
    labels = long_tail()
    known = np.where(labels == -1, 0, labels)
    for module in (class_aware, root, progressive, repeat_factor):
        assert np.array_equal(make(module, labels).expected(3), make(module, known).expected(3))


def test_images_without_a_finding_are_skipped_or_a_class_of_their_own() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 0], [0, -1]], np.int8)
    np.testing.assert_allclose(make(class_aware, labels).expected(0), np.array([1 / 4, 1 / 4, 1 / 2, 0, 0]) * 5)
    own = make(class_aware, labels, no_finding="class").expected(0)
    np.testing.assert_allclose(own, np.array([1, 1, 2, 1, 1]) / 6 * 5, atol=1e-8)


@pytest.mark.parametrize("module", [class_aware, root, progressive])
def test_no_positive_at_all_is_refused(module) -> None:
    labels = np.array([[0, -1], [0, 0]], np.int8)
    with pytest.raises(PluginFault, match="no training image is labelled with any finding"):
        make(module, labels)
    assert sorted(make(module, labels, no_finding="class").indices(0)) == [0, 1]


# -- progressive ---------------------------------------------------------------------------------------------------


def test_progressive_goes_from_all_images_alike_to_all_classes_alike() -> None:
    labels = long_tail()
    sampler, balanced = make(progressive, labels), np.array(by_hand(labels, 0.0)) * 400
    for epoch, share in enumerate([0, 0.25, 0.5, 0.75, 1]):
        np.testing.assert_allclose(sampler.expected(epoch), 1 - share + share * balanced, atol=1e-6)
    assert sorted(sampler.indices(0)) == list(range(400))
    assert np.array_equal(sampler.expected(EPOCHS + 3), sampler.expected(EPOCHS - 1))


def test_progressive_in_one_epoch_is_natural() -> None:
    labels = long_tail()
    sampler = progressive.build(labels, STATS, np.arange(400), 0, 1)
    assert sorted(sampler.indices(0)) == list(range(400))


# -- repeat factor -------------------------------------------------------------------------------------------------


def test_repeat_factors_are_those_of_the_rarest_finding() -> None:
    labels = np.zeros((400, 3), np.int8)
    labels[:100, 0] = 1  # 25 %: above the threshold
    labels[96:112, 1] = 1  # 4 %: sqrt(0.16 / 0.04) = 2
    labels[111:115, 2] = 1  # 1 %: sqrt(0.16 / 0.01) = 4, of which one has the other as well
    factors = np.array([1.0] * 96 + [2] * 15 + [4] * 4 + [1] * 285)
    np.testing.assert_allclose(repeat_factor.factors(labels, 0.16), factors)
    whole = make(repeat_factor, labels, threshold=0.16, draws=int(factors.sum()))
    for epoch in range(3):  # whole numbers leave nothing to chance
        assert np.array_equal(np.bincount(whole.indices(epoch), minlength=400), factors)
    np.testing.assert_allclose(
        make(repeat_factor, labels, threshold=0.16).expected(0), factors * 400 / factors.sum(), atol=1e-6
    )


def test_fractions_are_rounded_up_as_often_as_they_say() -> None:
    labels = np.zeros((40, 1), np.int8)
    labels[:4] = 1  # 10 %: sqrt(0.225 / 0.1) = 1.5
    sampler = make(repeat_factor, labels, threshold=0.225, draws=42)
    np.testing.assert_allclose(sampler.expected(0), [1.5] * 4 + [1] * 36, atol=1e-8)
    counts = np.array([np.bincount(sampler.indices(epoch), minlength=40) for epoch in range(2000)])
    assert set(counts[:, :4].ravel()) == {1, 2}
    assert (counts[:, 4:] == 1).all()
    # a standard error of 0.011
    assert (abs(counts[:, :4].mean(0) - 1.5) < 0.05).all()


def test_frequent_classes_are_not_repeated() -> None:
    assert sorted(make(repeat_factor, long_tail(), threshold=1e-4).indices(1)) == list(range(400))


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_refused(threshold) -> None:
    with pytest.raises(PluginFault, match="threshold is"):
        make(repeat_factor, long_tail(), threshold=threshold)


# -- caps ----------------------------------------------------------------------------------------------------------


def test_one_patient_who_owns_every_positive() -> None:
    labels = np.zeros((50, 2), np.int8)
    labels[:6, 0] = labels[6:8, 1] = 1
    patients = np.array([9] * 8 + list(range(100, 142)))
    alone = make(class_aware, labels, patients, cap=3)
    assert len(alone.indices(0)) == 3  # nobody else can be drawn
    shared = make(class_aware, labels, patients, cap=3, no_finding="class")
    expected = shared.expected(0)
    np.testing.assert_allclose(np.bincount(patients, weights=expected)[[9, 100]], [3, 47 / 42], atol=1e-6)
    np.testing.assert_allclose(expected[6] / expected[0], 3, atol=1e-6)  # within a patient, as the weights are


def test_what_is_above_the_cap_goes_to_the_others_by_their_weights() -> None:
    # weights 8, 4, 2, 1, 1 and 16 draws: at a cap of 5, patients 0 and 1 are full, and 6 are left for 2, 1 and 1
    weights, patients = np.array([8.0, 4, 2, 1, 1]), patients_of(np.arange(5), 5)
    np.testing.assert_allclose(spread(weights, patients, 16) / UNIT, [5, 5, 3, 1.5, 1.5], atol=1e-8)


@uneven
def test_more_draws_than_the_cap_allows_are_refused(module) -> None:
    labels = np.ones((10, 1), np.int8)
    with pytest.raises(PluginFault, match="9 draws are more than the 8 that a cap of 4 a patient allows"):
        make(module, labels, np.arange(10) % 2, cap=4, draws=9)
    assert len(make(module, labels, np.arange(10) % 2, cap=4).indices(0)) == 8
    with pytest.raises(PluginFault, match="draws is 0"):
        make(module, labels, draws=0)


def test_what_rounding_leaves_over_goes_to_no_image_of_weight_0() -> None:
    """Of the first patient all rates are below one unit."""
    units = spread(np.array([0.0, 7.0, 1e-9, 0.0]), patients_of(np.array([0, 1, 0, 0]), None), 1)
    assert units.tolist() == [0, UNIT - 1, 1, 0]


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 1.0, 7.0, 1e6]), min_size=1, max_size=30).filter(any),
    cap=st.none() | st.integers(1, 9),
    data=st.data(),
)
@settings(deadline=None)
def test_rates_are_exact_whatever_is_asked(weights: list[float], cap: int | None, data: st.DataObject) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(weights), max_size=len(weights))))
    patients, array = patients_of(codes, cap), np.array(weights)
    most = 60 if cap is None else length(array, patients_of(codes, cap), None)
    draws = data.draw(st.integers(1, max(most, 1)))
    units = spread(array, patients, draws)
    assert sum(map(int, units)) == draws * UNIT
    assert (units >= 0).all()
    assert not units[array == 0].any()
    sums = [
        sum(int(u) for u, c in zip(units, patients.codes, strict=True) if c == code) for code in set(patients.codes)
    ]
    assert cap is None or max(sums) <= cap * UNIT
    if cap is None:
        exact = [Fraction(w) * draws / sum(map(Fraction, weights)) for w in weights]
        assert all(abs(Fraction(int(u), UNIT) - e) < 1e-6 for u, e in zip(units, exact, strict=True))
