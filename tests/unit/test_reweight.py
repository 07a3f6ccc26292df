"""Re-weighting: the published weights, and what the schemes promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.recipe.schema import Reweight
from cxrlt_cli.reweight import class_weights, rate_drop, weighed_down

#: positives of the 30 findings of CXR-LT 2026 in a training split of 128,815 images, Normal first
COUNTS = (
    43585, 13277, 11537, 8996, 8856, 8248, 7197, 7161, 7129, 5439, 5009, 4591, 4544, 3968, 3549, 3216, 3214, 2754, 2387,
    2068, 1719, 1508, 1323, 875, 455, 349, 307, 181, 56, 45,
)  # fmt: skip
SCHEMES = ("inverse", "root-inverse", "effective")


def stats(*positives: int) -> ClassStats:
    names = tuple(f"class {i}" for i in range(len(positives)))
    return ClassStats(names, positives, tuple(128_815 - n for n in positives))


def positive_weights(counts: tuple[int, ...], **options: object) -> np.ndarray:
    return class_weights(stats(*counts), Reweight(**options), 1.0)[0]


def test_published_form_weighs_most_positives_down() -> None:
    weights = positive_weights(COUNTS, scheme="effective", beta=0.9999, relative_to="mean")
    assert weights.mean() == pytest.approx(1)
    assert (weights < 1).sum() == 24
    assert weights[0] == pytest.approx(0.048, abs=5e-4)


def test_default_form_weighs_no_positive_down() -> None:
    weights = positive_weights(COUNTS, scheme="effective")
    assert weights[0] == 1
    assert (np.diff(weights) > 0).all()


@pytest.mark.parametrize("n", [1, 2, 45, 43585])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-9])
def test_effective_number_is_the_sum_of_the_geometric_series(n: int, beta: float) -> None:
    (weight,) = positive_weights((n,), scheme="effective", beta=beta, relative_to="raw")
    assert 1 / weight == pytest.approx(np.sum(beta ** np.arange(n)), rel=1e-6)


def test_inverse_and_root_inverse() -> None:
    assert positive_weights((400, 4, 1), scheme="inverse") == pytest.approx([1, 100, 400])
    assert positive_weights((400, 4, 1), scheme="root-inverse") == pytest.approx([1, 10, 20])
    assert positive_weights((400, 4, 1), scheme="inverse", relative_to="raw") == pytest.approx([1 / 400, 0.25, 1])


def test_weights_switch_on_at_start() -> None:
    config = Reweight(scheme="inverse", start=0.6)
    counts = stats(400, 4)
    assert class_weights(counts, config, 0.5999)[0].tolist() == [1, 1]
    assert class_weights(counts, config, 0.6)[0].tolist() == [1, 100]
    assert class_weights(counts, config, 1.0)[0].tolist() == [1, 100]


@pytest.mark.parametrize(
    ("apply_to", "positives", "negatives"),
    [("positives", [1, 100], [1, 1]), ("negatives", [1, 1], [1, 100]), ("both", [1, 100], [1, 100])],
)
def test_apply_to_chooses_the_side(apply_to: str, positives: list[float], negatives: list[float]) -> None:
    got = class_weights(stats(400, 4), Reweight(scheme="inverse", apply_to=apply_to), 1.0)
    assert [side.tolist() for side in got] == [positives, negatives]


def test_none_is_ones_and_cap_is_the_largest_weight() -> None:
    assert positive_weights(COUNTS, scheme="none").tolist() == [1] * 30
    assert positive_weights((400, 40, 4, 1), scheme="inverse", cap=20.0).tolist() == [1, 10, 20, 20]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("relative_to", ["head", "mean", "raw"])
def test_absent_class_weighs_as_the_most_frequent_and_moves_no_other(scheme: str, relative_to: str) -> None:
    options = {"scheme": scheme, "relative_to": relative_to}
    weights = positive_weights((400, 0, 4), **options)
    assert weights[1] == weights[0]
    assert weights[[0, 2]] == pytest.approx(positive_weights((400, 4), **options))


def test_nothing_but_absent_classes_is_ones() -> None:
    assert positive_weights((0, 0), scheme="effective").tolist() == [1, 1]


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(0, 10**7), min_size=1, max_size=40),
    scheme=st.sampled_from(SCHEMES),
    relative_to=st.sampled_from(["head", "mean", "raw"]),
    beta=st.floats(0, 1, exclude_max=True),
)
def test_weights_are_finite_positive_and_never_fall_with_rarity(
    counts: list[int], scheme: str, relative_to: str, beta: float
) -> None:
    counts.sort(reverse=True)
    weights = positive_weights(tuple(counts), scheme=scheme, relative_to=relative_to, beta=beta)
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    present = weights[: sum(n > 0 for n in counts)]
    assert (np.diff(present) >= -1e-12 * present[1:]).all()


def test_the_rate_drops_at_start() -> None:
    config = Reweight(scheme="effective", start=0.6, lr_drop=0.01)
    assert [rate_drop(config, progress) for progress in (0.0, 0.5999, 0.6, 1.0)] == [1, 1, 0.01, 0.01]
    assert rate_drop(Reweight(scheme="effective", start=0.6), 1.0) == 1


def test_a_drop_from_the_first_step_on_is_refused() -> None:
    with pytest.raises(ValueError, match="set start, or lower lr"):
        Reweight(lr_drop=0.01)


def test_weighed_down_counts_the_positives_that_lose() -> None:
    assert weighed_down(stats(*COUNTS), Reweight(scheme="effective", relative_to="mean", start=0.5)) == 24
    assert weighed_down(stats(*COUNTS), Reweight(scheme="effective")) == 0
    assert weighed_down(stats(*COUNTS), Reweight(scheme="effective", relative_to="mean", apply_to="negatives")) == 0
