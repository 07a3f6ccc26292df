"""The optimism of the best of several epochs, where the truth is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from cxrlt_cli.gap import optimism

Array = npt.NDArray[np.float64]


def mean_of(truth: Array, mixing: Array, worlds: int = 150, resamples: int = 300) -> tuple[float, float]:
    """True and estimated optimism, averaged over worlds whose scores err by ``mixing`` times normal noise."""
    rng = np.random.default_rng(0)
    real, estimated = [], []
    for _ in range(worlds):
        scores = truth + mixing @ rng.normal(size=len(truth))
        reps = scores[:, None] + mixing @ rng.normal(size=(len(truth), resamples)) + 0.3  # resamples may have a bias
        kept = int(scores.argmax())
        real.append(scores[kept] - truth[kept])
        estimated.append(optimism(scores, reps, {"figure": reps}, kept).optimism["figure"])
    return float(np.mean(real)), float(np.mean(estimated))


@pytest.mark.parametrize("epochs", [4, 8, 15])
def test_equal_epochs(epochs: int) -> None:
    """The best of E equal ones flatters itself by the mean of the largest of E normal numbers; 0.75 to 1 is found."""
    real, found = mean_of(np.zeros(epochs), np.eye(epochs))
    largest = np.random.default_rng(1).normal(size=(20_000, epochs)).max(axis=1).mean()
    assert real == pytest.approx(largest, rel=0.1)
    assert 0.72 * largest < found < largest


def test_a_plateau_of_epochs_that_err_together() -> None:
    epochs = np.arange(8)
    mixing = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(epochs, epochs)))
    real, found = mean_of(-3 * np.exp(-epochs / 1.5), mixing)
    assert 0.6 * real < found < 1.2 * real


def test_one_epoch_far_ahead_flatters_nobody() -> None:
    real, found = mean_of(np.array([0.0, 0.0, 9.0]), np.eye(3))
    assert real == pytest.approx(0, abs=0.2)
    assert found == pytest.approx(0, abs=0.01)


def test_errors_common_to_all_epochs_cancel() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=500)
    reps = np.array([[0.5], [0.6], [0.55]]) + common
    found = optimism([0.5, 0.6, 0.55], reps, {"figure": reps}, kept=1)
    assert found.optimism["figure"] == pytest.approx(0, abs=1e-12)
    assert found.chosen.tolist() == [0, 1, 0]


def test_gains_are_never_negative_and_average_to_the_optimism() -> None:
    rng = np.random.default_rng(2)
    reps = rng.normal(size=(5, 400))
    found = optimism(np.zeros(5), reps, {"chosen by": reps, "other": rng.normal(size=(5, 400))}, kept=3)
    assert found.gains["chosen by"].min() >= -1e-12
    assert found.optimism["chosen by"] == pytest.approx(found.gains["chosen by"].mean())
    assert found.optimism["other"] == pytest.approx(0, abs=0.15)  # a figure the choice knows nothing of
    assert found.chosen.sum() == pytest.approx(1)


def test_resamples_without_a_value_have_no_say() -> None:
    reps = np.array([[0.0, 1.0, np.nan, -1.0], [0.5, 0.5, 0.5, 0.5]])
    found = optimism([0.0, 0.5], reps, {"figure": reps}, kept=1)
    assert np.isfinite(found.gains["figure"]).all()
