"""Calibration against scikit-learn, closed forms and simulated classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cxrlt_cli.calibration import (
    METHODS,
    NO_SHRINKAGE,
    Calibration,
    Shrinkage,
    fit_calibration,
    identity,
    pool_adjacent_violators,
)
from cxrlt_cli.logistic import logit, sigmoid, softplus

PREVALENCE = np.geomspace(0.4, 0.01, 6)


def drawn(
    seed: int, count: int, slopes: np.ndarray | float = 1.0, shifts: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and log-odds of classes whose right map is ``k + slope (u - k) + shift``."""
    rng = np.random.default_rng(seed)
    k = logit(PREVALENCE)
    u = k + 2 * rng.normal(size=(count, len(PREVALENCE)))
    labels = rng.random(u.shape) < sigmoid(k + slopes * (u - k) + shifts)
    return labels.astype(np.int8), u


def log_loss(labels: np.ndarray, log_odds: np.ndarray) -> np.ndarray:
    return np.asarray((softplus(log_odds) - labels * log_odds).mean(axis=0))


# -- against scikit-learn and closed forms -------------------------------------------------------------------------


def test_platt_without_shrinkage_is_logistic_regression() -> None:
    labels, u = drawn(0, 3000, slopes=1.7, shifts=0.5)
    found = fit_calibration(labels, u, PREVALENCE, "platt", NO_SHRINKAGE)
    for c in range(len(PREVALENCE)):
        reference = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(u[:, [c]], labels[:, c])
        np.testing.assert_allclose(found.slopes[c], reference.coef_[0, 0], rtol=1e-6)
        np.testing.assert_allclose(found.intercepts[c], reference.intercept_[0], rtol=1e-6, atol=1e-7)


def test_beta_without_shrinkage_is_logistic_regression_on_its_two_features() -> None:
    labels, u = drawn(1, 6000, slopes=0.8, shifts=0.3)
    found = fit_calibration(labels, u, PREVALENCE, "beta", NO_SHRINKAGE)
    s = sigmoid(u)
    for c in range(3):  # of the rare classes the optimum has a slope below 0, which is not allowed
        features = np.column_stack([np.log(s[:, c]), -np.log(1 - s[:, c])])
        reference = LogisticRegression(C=np.inf, tol=1e-12, max_iter=5000).fit(features, labels[:, c])
        assert (reference.coef_ > 0).all()
        np.testing.assert_allclose(found.slopes[c], reference.coef_[0], rtol=1e-4)
        np.testing.assert_allclose(found.intercepts[c], reference.intercept_[0], atol=1e-4)


def test_temperature_is_the_one_slope_of_least_log_loss() -> None:
    labels, u = drawn(2, 4000)
    sharp = 2.5 * u
    found = fit_calibration(labels, sharp, PREVALENCE, "temperature")
    best = minimize_scalar(lambda a: log_loss(labels, a * sharp).sum(), bounds=(0.05, 5), method="bounded")
    np.testing.assert_allclose(found.slopes, best.x, rtol=2e-3)
    assert not found.intercepts.any()
    np.testing.assert_allclose(found.slopes[0, 0], 1 / 2.5, rtol=0.03)


def test_a_binary_score_gives_the_two_shares() -> None:
    """With two values of the score, logistic regression reproduces the share of positives at each."""
    u = np.array([-1.0] * 40 + [2.0] * 60)[:, None]
    labels = np.array([1] * 10 + [0] * 30 + [1] * 45 + [0] * 15, np.int8)[:, None]
    found = sigmoid(fit_calibration(labels, u, [0.5], "platt", NO_SHRINKAGE)(np.array([[-1.0], [2.0]])))
    np.testing.assert_allclose(found[:, 0], [0.25, 0.75], rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(5000, 1)).round(1)  # many ties
    labels = (rng.random(u.shape) < sigmoid(1.5 * u)).astype(np.int8)
    labels[:50] = -1
    known = labels[:, 0] != -1
    found = fit_calibration(labels, u, [0.5], "isotonic")
    assert found.used == ("isotonic",)
    reference = IsotonicRegression(out_of_bounds="clip").fit(u[known, 0], labels[known, 0])
    at = np.linspace(-5, 5, 301)
    half = 0.5 / (known.sum() + 1)
    np.testing.assert_allclose(
        sigmoid(found(at[:, None]))[:, 0], np.clip(reference.predict(at), half, 1 - half), rtol=1e-9, atol=half
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=40))
def test_pooling_is_scikit_learns_with_any_ties(pairs: list[tuple[int, int]]) -> None:
    scores, values = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    x, y = pool_adjacent_violators(scores, values)
    reference = IsotonicRegression().fit(scores, values)
    np.testing.assert_allclose(y, reference.predict(x), atol=1e-12)


# -- shrinkage -----------------------------------------------------------------------------------------------------


def test_a_class_with_many_positives_follows_its_own_labels() -> None:
    slopes = np.array([0.5, 2.0, 1.0, 1.0, 1.0, 1.0])
    labels, u = drawn(3, 20_000, slopes=slopes)
    own = fit_calibration(labels, u, PREVALENCE, "platt", NO_SHRINKAGE)
    shrunk = fit_calibration(labels, u, PREVALENCE)
    np.testing.assert_allclose(shrunk.slopes[:2], own.slopes[:2], rtol=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_a_class_with_three_positives_nearly_takes_the_shared_map(seed: int) -> None:
    labels, u = drawn(40 + seed, 4000, slopes=1.6, shifts=0.4)
    positives, rest = np.flatnonzero(labels[:, 5] == 1), np.flatnonzero(labels[:, 5] == 0)
    labels[positives[3:], 5] = -1
    labels[rest[len(rest) * 3 // len(positives) :], 5] = -1
    found = fit_calibration(labels, u, PREVALENCE)
    alone = fit_calibration(labels, u, PREVALENCE, "platt", NO_SHRINKAGE)
    assert (labels[:, 5] == 1).sum() == 3
    here, there = (abs(np.log(fitted.slopes[5, 0] / 1.6)) for fitted in (found, alone))
    assert here < 0.15
    assert here < there


def test_shrinkage_makes_rare_classes_better_on_new_images() -> None:
    """Twenty rare classes with 2 to 12 positives each, whose right maps differ a little."""
    rng = np.random.default_rng(5)
    count, classes = 600, 20
    prevalence = np.full(classes, 0.01)
    slopes, shifts = np.exp(0.3 + 0.2 * rng.normal(size=classes)), 0.5 + 0.3 * rng.normal(size=classes)
    k = logit(prevalence)

    def images(number: int) -> tuple[np.ndarray, np.ndarray]:
        u = k + 2 * rng.normal(size=(number, classes))
        return (rng.random(u.shape) < sigmoid(k + slopes * (u - k) + shifts)).astype(np.int8), u

    labels, u = images(count)
    new_labels, new_u = images(20_000)
    losses = {
        name: log_loss(new_labels, fitted(new_u)).mean()
        for name, fitted in {
            "shrunk": fit_calibration(labels, u, prevalence),
            "alone": fit_calibration(labels, u, prevalence, "platt", NO_SHRINKAGE),
            "one map": fit_calibration(labels, u, prevalence, "platt", Shrinkage(1.0, 1e-3, 1e-3, np.inf)),
            "nothing": identity(classes),
        }.items()
    }
    assert losses["shrunk"] < min(losses["alone"], losses["one map"], losses["nothing"]), losses


def test_how_near_depends_on_how_much_the_classes_differ() -> None:
    rng = np.random.default_rng(6)
    few, other = 30, 19
    prevalence = np.full(other + 1, 0.05)
    k = logit(prevalence)
    distance = {}
    for spread in (0.02, 1.0):
        shifts = np.append(spread * rng.normal(size=other), 1.5)
        u = k + 2 * rng.normal(size=(3000, other + 1))
        labels = (rng.random(u.shape) < sigmoid(u + shifts)).astype(np.int8)
        labels[few * 4 :, -1] = -1
        at_prior = k[-1:] * np.ones((1, other + 1))
        found = fit_calibration(labels, u, prevalence)
        distance[spread] = abs(found(at_prior)[0, -1] - k[-1] - shifts[-1])
    assert distance[0.02] > 2 * distance[1.0]


def test_classes_that_have_nothing_to_teach_take_the_shared_map() -> None:
    labels, u = drawn(7, 4000, slopes=1.5, shifts=0.7)
    labels[:, 4] = 0  # no positive
    labels[labels[:, 3] == 0, 3] = -1  # no negative
    labels[:, 2] = -1  # nothing known
    found = fit_calibration(labels, u, PREVALENCE)
    assert found.used == ("platt", "platt", "shared", "shared", "shared", "platt")
    about_prior = found(logit(PREVALENCE)[None])[0] - logit(PREVALENCE)
    np.testing.assert_allclose(found.slopes[2:5], found.slopes[2, 0])
    np.testing.assert_allclose(about_prior[2:5], about_prior[2])
    assert found.slopes[2, 0] == pytest.approx(1.5, rel=0.1)
    assert about_prior[2] == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize("method", METHODS)
def test_without_any_label_nothing_is_changed(method: str) -> None:
    _, u = drawn(8, 50)
    found = fit_calibration(np.full(u.shape, -1, np.int8), u, PREVALENCE, method)
    np.testing.assert_allclose(found(u), u, rtol=1e-12)
    assert set(found.used) == {"none" if method == "none" else "shared"}


# -- what every map keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_images_is_never_turned_round(method: str) -> None:
    labels, u = drawn(9, 4000)
    labels[:, 3] = 1 - labels[:, 3]  # a class whose scores point the wrong way
    found = fit_calibration(labels, u, PREVALENCE, method)
    ladder = np.repeat(np.linspace(-50, 50, 2001)[:, None], len(PREVALENCE), axis=1)
    steps = np.diff(found(ladder), axis=0)
    assert (steps >= 0).all()
    if method != "isotonic":
        assert (steps > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_unknown_labels_are_left_out(method: str) -> None:
    labels, u = drawn(10, 3000)
    rng = np.random.default_rng(0)
    odd = np.where(rng.random((500, u.shape[1])) < 0.5, 1e3, -1e3)
    more = np.concatenate([labels, np.full(odd.shape, -1, np.int8)])
    left, right = (
        fit_calibration(*pair, PREVALENCE, method) for pair in ((labels, u), (more, np.concatenate([u, odd])))
    )
    np.testing.assert_allclose(left(u), right(u), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shrinkage", [None, NO_SHRINKAGE])
def test_separated_labels_and_extreme_log_odds_give_finite_maps(method: str, shrinkage: Shrinkage | None) -> None:
    u = np.concatenate([np.full((30, 2), -800.0), np.full((30, 2), 800.0), [[3.0, 0.0], [-3.0, 0.0]]])
    labels = (u > 0).astype(np.int8)
    found = fit_calibration(labels, u, [0.3, 0.01], method, shrinkage)
    assert np.isfinite(found(u)).all()
    posteriors = sigmoid(found(u))
    assert (posteriors[:30] < 0.05).all()
    assert (posteriors[30:60, 0] > 0.5).all()


def test_isotonic_needs_a_thousand_positives_and_says_so() -> None:
    labels, u = drawn(11, 4000)
    assert (labels[:, 0] == 1).sum() > 1000 > (labels[:, 3] == 1).sum()
    found, platt = fit_calibration(labels, u, PREVALENCE, "isotonic"), fit_calibration(labels, u, PREVALENCE)
    assert found.used[0] == "isotonic"
    assert found.used[3:] == ("platt",) * 3
    np.testing.assert_array_equal(found(u)[:, 3:], platt(u)[:, 3:])


def test_none_changes_no_bit() -> None:
    labels, u = drawn(12, 20)
    np.testing.assert_array_equal(fit_calibration(labels, u, PREVALENCE, "none")(u), u)


def test_the_family_is_that_of_the_docstring() -> None:
    u = np.linspace(-6, 6, 50)[:, None]
    s = sigmoid(u)
    found = Calibration("beta", ("beta",), np.array([[1.3, 0.4]]), np.array([0.2]))(u)
    np.testing.assert_allclose(found, 1.3 * np.log(s) - 0.4 * np.log(1 - s) + 0.2, rtol=1e-9)


def test_the_best_of_a_family_is_found_on_any_start() -> None:
    """Newton's method with shrinkage reaches a point from which no small step lowers the objective."""
    labels, u = drawn(13, 800, slopes=3.0, shifts=-2.0)
    prior = Shrinkage(shared=np.inf, slope=0.4, intercept=0.6, weight=np.inf)
    found = fit_calibration(labels[:, :1], u[:, :1], PREVALENCE[:1], "platt", prior)
    k = logit(PREVALENCE[:1])
    alpha, beta = np.log(found.slopes[:, 0]), found(k[None])[0] - k

    def objective(da: float, db: float) -> float:
        v = k + np.exp(alpha + da) * (u[:, :1] - k) + beta + db
        # one class with an unbounded shared value: that value is the class's own, so the prior costs nothing
        return float(log_loss(labels[:, :1], v).sum())

    here = objective(0, 0)
    for step in (1e-3, -1e-3):
        assert objective(step, 0) >= here - 1e-9
        assert objective(0, step) >= here - 1e-9


def test_refusals() -> None:
    labels, u = drawn(14, 20)
    with pytest.raises(ValueError, match="unknown calibration 'plat'; there are none, temperature"):
        fit_calibration(labels, u, PREVALENCE, "plat")
    u[3, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        fit_calibration(labels, u, PREVALENCE)
