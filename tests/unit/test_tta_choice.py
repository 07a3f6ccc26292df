"""Choosing a test-time augmentation: cases in which chance plays no part, and simulations in which it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score

from cxrlt_cli.bootstrap import Resampled
from cxrlt_cli.commands.tta_choice import Choice, _follow_rule, _Measured, _trials, choose, measurements
from cxrlt_cli.errors import DataError

CLASSES = 3
QUICK = {"resamples": 150}


def truth(patients: int = 150, seed: int = 0) -> tuple[npt.NDArray[np.int8], list[str]]:
    """Two images a patient, a quarter of them positive."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((2 * patients, CLASSES)) < 0.25).astype(np.int8)
    return labels, [f"p{number // 2}" for number in range(len(labels))]


def seen(labels: npt.NDArray[np.int8], noise: float, seed: int = 1) -> npt.NDArray[np.float32]:
    """Logits: the label under noise. The same seed gives the same noise."""
    return (labels + noise * np.random.default_rng(seed).normal(size=labels.shape)).astype(np.float32)


def chosen(logits: dict[str, Any], views: dict[str, int], labels: Any, patients: list[str], **more: Any) -> Choice:
    return choose(labels, logits, views, patients, **{**QUICK, **more})


def test_a_better_strategy_is_chosen_and_its_gain_is_the_difference_of_scores() -> None:
    labels, patients = truth()
    logits = {"none": seen(labels, 1.0), "good": seen(labels, 0.4)}
    choice = chosen(logits, {"none": 1, "good": 4}, labels, patients)
    assert choice.name == "good"
    assert set(choice.by_fold) == {"good"}
    assert len(choice.by_fold) == 5
    by_sklearn = {name: average_precision_score(labels, values) for name, values in logits.items()}
    gain = choice.trials["good"].gain
    assert gain is not None
    assert choice.trials["none"].score == pytest.approx(by_sklearn["none"])
    assert gain.value == pytest.approx(by_sklearn["good"] - by_sklearn["none"])
    assert gain.low < gain.value < gain.high
    # chosen in every fold, so the cross-fitted outputs are those of the strategy
    assert choice.gain.value == pytest.approx(gain.value)
    assert choice.gain.low == pytest.approx(gain.low)


def test_equal_outputs_leave_the_plain_images() -> None:
    labels, patients = truth(40)
    plain = seen(labels, 1.0)
    choice = chosen({"none": plain, "same": plain.copy()}, {"none": 1, "same": 9}, labels, patients)
    assert choice.name == "none"
    assert choice.trials["same"].p == 1
    assert choice.gain.value == choice.gain.low == choice.gain.high == 0


def test_a_worse_strategy_is_never_chosen() -> None:
    labels, patients = truth()
    logits = {"none": seen(labels, 0.4), "bad": seen(labels, 1.0)}
    choice = chosen(logits, {"none": 1, "bad": 2}, labels, patients)
    assert choice.trials["bad"].p < 0.05
    assert not choice.trials["bad"].credible
    assert choice.name == "none"


def test_of_two_equal_gains_the_cheaper_one_is_chosen() -> None:
    labels, patients = truth()
    good = seen(labels, 0.4)
    logits = {"none": seen(labels, 1.0), "dear": good, "cheap": good.copy()}
    views = {"none": 1, "dear": 19, "cheap": 3}
    assert chosen(logits, views, labels, patients).name == "cheap"
    assert chosen(dict(reversed(logits.items())), views, labels, patients).name == "cheap"


def test_a_dearer_one_is_chosen_only_where_it_is_credibly_better() -> None:
    labels, patients = truth()
    views = {"none": 1, "cheap": 3, "dear": 19}
    hardly = {"none": seen(labels, 1.0), "cheap": seen(labels, 0.5), "dear": seen(labels, 0.49, seed=5)}
    clearly = {**hardly, "dear": seen(labels, 0.2)}
    first, second = (chosen(logits, views, labels, patients) for logits in (hardly, clearly))
    assert first.trials["dear"].score > first.trials["cheap"].score
    assert first.name == "cheap"
    assert second.name == "dear"


def test_a_dearer_one_that_cannot_be_told_from_a_cheaper_one_is_not_chosen() -> None:
    """The same difference in every resample, as with a single patient, is nothing to go by."""
    spread = np.random.default_rng(0).normal(0, 0.001, 50)
    measured = {
        name: _Measured(point, Resampled("macro_ap", point + sign * spread))
        for name, point, sign in (("none", 0.5, -1), ("cheap", 0.6, 1), ("dear", 0.7, 1))
    }
    assert _follow_rule(measured, _trials(measured, {"none": 1, "cheap": 3, "dear": 19}, "none"), "none") == "cheap"


def test_the_choice_of_a_fold_does_not_know_the_fold() -> None:
    """Changing one fold's labels changes what is chosen for the others, not for itself."""
    labels, patients = truth(120)
    logits = {"none": seen(labels, 1.0), "good": seen(labels, 0.5)}
    views = {"none": 1, "good": 2}
    from cxrlt_cli.decisions import patient_folds

    fold = patient_folds(labels, patients)
    spoilt = {**logits, "good": logits["good"].copy()}
    spoilt["good"][fold == 2] *= -1000  # nonsense in one fold ruins the average precision wherever it counts
    choice = chosen(spoilt, views, labels, patients)
    assert choice.by_fold[2] == "good"
    assert {name for part, name in enumerate(choice.by_fold) if part != 2} == {"none"}


def test_unknown_labels_and_absent_classes_do_not_hurt() -> None:
    labels, patients = truth()
    labels[:, 2] = 0
    labels[::7, 0] = -1
    logits = {"none": seen(labels, 1.0), "good": seen(labels, 0.4)}
    moved = {name: np.where(labels == -1, 99, values).astype(np.float32) for name, values in logits.items()}
    first, second = (chosen(given, {"none": 1, "good": 2}, labels, patients) for given in (logits, moved))
    assert first.name == second.name == "good"
    assert first.trials["good"].score == pytest.approx(second.trials["good"].score)


def test_chance_is_seldom_taken_for_a_gain_and_never_flatters_the_cross_fitted_one() -> None:
    """Three strategies as good as the plain images, on 30 sets of patients."""
    names = ("none", "a", "b", "c")
    made, gains, best = [], [], []
    for seed in range(30):
        labels, patients = truth(60, seed)
        noise = np.random.default_rng(seed + 100).normal(size=(5, *labels.shape))
        logits = {
            name: (labels + noise[4] + 0.5 * own).astype(np.float32) for name, own in zip(names, noise[:4], strict=True)
        }
        choice = chosen(logits, dict.fromkeys(names, 1), labels, patients, resamples=100, folds=2)
        made.append(choice.name != "none")
        gains.append(choice.gain.value)
        best.append(max(trial.gain.value for trial in choice.trials.values() if trial.gain))
    assert sum(made) <= 5  # 5 % would be 1.5; 6 or more have a chance of 0.3 %
    assert np.mean(best) > 0.005  # what reporting the best one would claim
    assert np.mean(gains) < 0.5 * np.mean(best)


def test_progress_is_told_of_every_measurement() -> None:
    labels, patients = truth(20)
    told: list[int] = []
    logits = {"none": seen(labels, 1.0), "good": seen(labels, 0.4)}
    chosen(logits, {"none": 1, "good": 2}, labels, patients, progress=told.append)
    assert told == list(range(1, measurements(2) + 1))


def test_one_patient_is_too_few() -> None:
    labels, _ = truth(5)
    with pytest.raises(DataError, match="patient"):
        chosen({"none": seen(labels, 1.0)}, {"none": 1}, labels, ["p"] * len(labels))
