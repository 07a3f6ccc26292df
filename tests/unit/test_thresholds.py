"""Thresholds against brute force over every threshold there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score

from cxrlt_cli.errors import UsageError
from cxrlt_cli.thresholds import (
    ENOUGH_TO_SEARCH,
    Rule,
    expected_f1,
    fit_thresholds,
    parse_rule,
    precision_by_posteriors,
    prevalence_by_posteriors,
    recall_by_posteriors,
    searched_f1,
)

Pairs = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30)


def fitted(labels: np.ndarray, posteriors: np.ndarray, rule: str) -> tuple[float, str]:
    values, set_by = fit_thresholds(labels[:, None], posteriors[:, None], parse_rule(rule))
    return float(values[0]), set_by[0]


def candidates(posteriors: np.ndarray) -> np.ndarray:
    """A threshold at every posterior, between all neighbours, below and above all."""
    levels = np.unique(posteriors)
    return np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, [0.0, 1.0]])


def expected(posteriors: np.ndarray, threshold: float, weights: np.ndarray | float = 1.0) -> float:
    called = posteriors >= threshold
    return float(2 * (weights * posteriors)[called].sum() / ((weights * called).sum() + (weights * posteriors).sum()))


def f1(labels: np.ndarray, called: np.ndarray) -> float:
    return float(2 * (labels & called).sum() / max(labels.sum() + called.sum(), 1))


# -- F1 ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(Pairs)
def test_expected_f1_is_the_best_of_all_thresholds(pairs: list[tuple[int, bool]]) -> None:
    posteriors = np.array([p for p, _ in pairs]) / 20
    if not posteriors.any():
        assert expected_f1(posteriors) == 0.5
        return
    found = expected_f1(posteriors)
    best = max(expected(posteriors, t) for t in candidates(posteriors))
    assert expected(posteriors, found) == pytest.approx(best, abs=1e-12)
    assert found == pytest.approx(best / 2, abs=1e-12)


def test_expected_f1_is_the_best_on_labels_drawn_from_the_posteriors() -> None:
    rng = np.random.default_rng(0)
    posteriors = rng.beta(0.3, 3, 100_000)
    labels = rng.random(len(posteriors)) < posteriors
    grid = np.linspace(0.05, 0.6, 56)
    scores = [f1(labels, posteriors >= t) for t in grid]
    assert expected_f1(posteriors) == pytest.approx(grid[int(np.argmax(scores))], abs=0.02)


def test_weights_stand_for_repeated_images() -> None:
    rng = np.random.default_rng(1)
    posteriors, times = rng.random(50), rng.integers(0, 5, 50)
    repeated = np.repeat(posteriors, times)
    assert expected_f1(posteriors, times.astype(float)) == pytest.approx(expected_f1(repeated))
    share = 0.3
    pairs = [
        (recall_by_posteriors(repeated, 0.8), recall_by_posteriors(posteriors, 0.8, times.astype(float))),
        (precision_by_posteriors(repeated, 0.8), precision_by_posteriors(posteriors, 0.8, times.astype(float))),
        (prevalence_by_posteriors(repeated, share), prevalence_by_posteriors(posteriors, share, times.astype(float))),
    ]
    for left, right in pairs[:2]:
        np.testing.assert_array_equal(repeated >= left, repeated >= right)
    assert np.mean(repeated >= pairs[2][1]) == pytest.approx(share, abs=3 / len(repeated))


@settings(deadline=None)
@given(Pairs)
def test_searched_f1_is_the_best_of_all_thresholds(pairs: list[tuple[int, bool]]) -> None:
    posteriors, labels = np.array([p for p, _ in pairs]) / 20, np.array([y for _, y in pairs])
    if not labels.any():
        return
    found = searched_f1(labels, posteriors)
    best = max(f1(labels, posteriors >= t) for t in candidates(posteriors))
    assert f1(labels, posteriors >= found) == pytest.approx(best, abs=1e-12)


def test_the_f1_of_these_tests_is_scikit_learns() -> None:
    rng = np.random.default_rng(5)
    labels, called = rng.random(100) < 0.3, rng.random(100) < 0.4
    assert f1(labels, called) == pytest.approx(f1_score(labels, called))


def test_neighbours_that_are_one_rounding_apart_are_told_apart() -> None:
    low = 0.3
    posteriors = np.array([low, np.nextafter(low, 1)])
    assert (posteriors >= searched_f1(np.array([False, True]), posteriors)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("positives", "how"), [(ENOUGH_TO_SEARCH - 1, "expected-f1"), (ENOUGH_TO_SEARCH, "searched-f1")]
)
def test_a_search_needs_enough_positives_and_says_so(positives: int, how: str) -> None:
    rng = np.random.default_rng(2)
    posteriors = rng.random(2000)
    labels = np.zeros(2000, np.int8)
    labels[:positives] = 1
    value, set_by = fitted(labels, posteriors, "searched-f1")
    assert set_by == how
    right = searched_f1(labels == 1, posteriors) if how == "searched-f1" else expected_f1(posteriors)
    assert value == right


# -- prevalence, recall, precision ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(Pairs)
def test_prevalence_comes_as_near_as_ties_allow(pairs: list[tuple[int, bool]]) -> None:
    posteriors, labels = np.array([p for p, _ in pairs]) / 21, np.array([y for _, y in pairs]).astype(np.int8)
    value, set_by = fitted(labels, posteriors, "prevalence")
    wanted = labels.sum() if labels.any() else posteriors.sum()
    assert set_by == ("prevalence" if labels.any() else "posteriors")
    nearest = min(abs((posteriors >= t).sum() - wanted) for t in candidates(posteriors))
    assert abs((posteriors >= value).sum() - wanted) == pytest.approx(nearest, abs=1e-12)


def test_recall_holds_for_a_new_positive_whatever_they_look_like() -> None:
    """Over draws of n positives and one more, that one is found with probability R at least (and not much more)."""
    rng = np.random.default_rng(3)
    for count, target in ((9, 0.9), (30, 0.8), (47, 0.9)):
        draws = rng.gamma(0.5, size=(2000, count + 1)) / 20
        labels = np.ones(count, np.int8)
        kept = [row[-1] >= fitted(labels, row[:-1], f"target-recall={target}")[0] for row in draws]
        assert target - 0.02 < np.mean(kept) < target + 1 / count + 0.02


def test_recall_of_too_few_positives_goes_by_posteriors() -> None:
    posteriors = np.array([0.9, 0.5, 0.4, 0.15, 0.05])
    labels = np.array([1, 0, 1, 0, 0], np.int8)
    value, set_by = fitted(labels, posteriors, "target-recall=0.9")
    assert (value, set_by) == (0.4, "posteriors")  # 0.9 + 0.5 + 0.4 of 2.0 expected positives
    assert fitted(np.repeat(labels, 5), np.repeat(posteriors, 5), "target-recall=0.9") == (0.4, "target-recall=0.9")


@pytest.mark.parametrize("seed", range(5))
def test_precision_is_the_lowest_threshold_that_both_labels_and_posteriors_grant(seed: int) -> None:
    rng = np.random.default_rng(seed)
    posteriors = rng.beta(0.5, 2, 400).round(2)
    labels = (rng.random(400) < posteriors).astype(np.int8)
    value, set_by = fitted(labels, posteriors, "target-precision=0.6")
    assert set_by == "target-precision=0.6"
    good = [
        t
        for t in np.unique(posteriors)
        if posteriors[posteriors >= t].mean() >= 0.6
        and labels[posteriors >= t].sum() / ((posteriors >= t).sum() + 1) >= 0.6
    ]
    np.testing.assert_array_equal(posteriors >= value, posteriors >= min(good))
    assert precision_score(labels, posteriors >= value) > 0.6


def test_precision_by_few_positives_goes_by_posteriors() -> None:
    posteriors, labels = np.array([0.9, 0.7, 0.2, 0.1]), np.array([0, 0, 0, 1], np.int8)
    value, set_by = fitted(labels, posteriors, "target-precision=0.75")
    assert set_by == "posteriors"
    assert (posteriors >= value).tolist() == [True, True, False, False]


def test_a_precision_that_nothing_reaches_calls_nothing() -> None:
    posteriors = np.array([0.3, 0.2])
    value, set_by = fitted(np.array([1, 0], np.int8), posteriors, "target-precision=0.9")
    assert (value, set_by) == (1.0, "unreachable")
    assert precision_by_posteriors(posteriors, 0.9) == 1.0


# -- what is left out, what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["expected-f1", "searched-f1", "prevalence", "target-recall=0.8", "target-precision=0.4"]
)
def test_unknown_labels_are_left_out(rule: str) -> None:
    rng = np.random.default_rng(4)
    posteriors = rng.random(900)
    labels = (rng.random(900) < posteriors).astype(np.int8)
    odd = rng.random(300)
    more = np.concatenate([labels, np.full(300, -1, np.int8)])
    assert fitted(labels, posteriors, rule) == fitted(more, np.concatenate([posteriors, odd]), rule)


@pytest.mark.parametrize(
    "rule", ["expected-f1", "searched-f1", "prevalence", "target-recall=0.8", "target-precision=0.65"]
)
@pytest.mark.parametrize("label", [-1, 0])
def test_a_class_without_positives_has_a_threshold_of_its_posteriors(rule: str, label: int) -> None:
    posteriors = np.array([0.8, 0.6, 0.3, 0.1])
    value, set_by = fitted(np.full(4, label, np.int8), posteriors, rule)
    assert 0 < value <= 1
    assert set_by in {"expected-f1", "posteriors"}
    assert (posteriors >= value).sum() in {2, 3}


def test_no_image_at_all() -> None:
    assert fitted(np.zeros(0, np.int8), np.zeros(0), "expected-f1") == (0.5, "0.5")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0.5", Rule("fixed", 0.5)),
        (0.25, Rule("fixed", 0.25)),
        (".3", Rule("fixed", 0.3)),
        ("target-recall=0.9", Rule("target-recall", 0.9)),
    ],
)
def test_rules_are_read_and_written(text: str | float, rule: Rule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(str(rule)) == rule
    assert fit_thresholds(np.zeros((3, 2), np.int8), np.full((3, 2), 0.2), Rule("fixed", 0.3))[0].tolist() == [0.3, 0.3]


@pytest.mark.parametrize(
    "text",
    ["f1", "0", "1", "1.5", "0.5=3", "target-recall", "target-recall=2", "target-recall=x", "", "expected-f1=2", "nan"],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_rule(text)
