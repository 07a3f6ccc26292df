"""Choosing between two heads, and judging the choice by patients who had no say in it."""

from __future__ import annotations

import heads
import numpy as np
import pytest
import torch

from cxrlt_cli.data.splits import fold_rows
from cxrlt_cli.engine.keep_best import better, chosen_by_others, judged_logits, keep_best, mixed_link, mixed_state
from cxrlt_cli.errors import UsageError
from cxrlt_cli.posterior import Link

RECIPE = {"method": "keep-best", "train": {"epochs": 20, "batch_size": 64}, "optim": {"lr": 0.03}}


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels (200, 5), two heads of equal worth, folds."""
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 5)) < 0.2).astype(np.int8)
    ours, theirs = (labels + rng.normal(size=labels.shape) * 2 for _ in range(2))
    return labels, ours, theirs, np.arange(200, dtype=np.int8) // 2 % 5


def test_the_better_ranking_is_kept() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]], np.int8)
    good, bad = labels.astype(float), 1.0 - labels
    assert better(labels, bad, good).tolist() == [True, True, False], "undefined: the joint head stays"
    assert better(labels, good, good).tolist() == [False] * 3, "equal: the joint head stays"


def test_the_judged_have_no_say(scores: tuple[np.ndarray, ...]) -> None:
    """Whatever the labels of a fold are, its own scores come from the same heads; others' may change."""
    labels, ours, theirs, folds = scores
    judged = chosen_by_others(labels, ours, theirs, folds)
    others_changed = False
    for seed in range(5):
        for fold in range(5):
            mine, altered = folds == fold, labels.copy()
            altered[mine] = np.random.default_rng(seed).integers(-1, 2, altered[mine].shape)
            again = chosen_by_others(altered, ours, theirs, folds)
            np.testing.assert_array_equal(again[mine], judged[mine])
            others_changed |= not np.array_equal(again[~mine], judged[~mine])
    assert others_changed, "the labels of a fold decide for the other folds"


def test_every_judged_score_is_one_of_the_two(scores: tuple[np.ndarray, ...]) -> None:
    labels, ours, theirs, folds = scores
    judged = chosen_by_others(labels, ours, theirs, folds)
    assert ((judged == ours) | (judged == theirs)).all()
    for fold in range(5):
        mine = folds == fold
        choice = better(labels[~mine], ours[~mine], theirs[~mine])
        np.testing.assert_array_equal(judged[mine], np.where(choice, theirs, ours)[mine])


@pytest.mark.parametrize("head", [{"name": "linear"}, {"name": "linear", "norm": True}, {"name": "cosine"}])
def test_both_heads_stand_in_one(head: dict) -> None:
    job = heads.job(RECIPE, head=head, loss={"name": "ldam", "scale": 5.0} if head["name"] == "cosine" else None)
    made = keep_best(job)
    taken = set(made.facts["retrained"])
    assert made.ref == job.joint.ref
    assert taken, "a head of random weights must lose some class"
    assert "absent" not in taken
    old = job.joint.module.state_dict()
    for index, name in enumerate(heads.NAMES):
        assert torch.equal(made.state["weight"][index], old["weight"][index].cpu()) == (name not in taken)
    assert made.judged is not None
    assert made.judged.shape == job.joint.logits.shape
    back = made.link.log_odds_of(judged_logits(made))
    np.testing.assert_allclose(back, made.judged, rtol=1e-2, atol=1e-2)


def test_a_logistic_candidate_joins_a_plain_linear_head() -> None:
    made = keep_best(heads.job({"method": "keep-best", "keep": {"candidate": "logistic"}}))
    assert "penalties" in made.facts
    assert made.facts["retrained"]


@pytest.mark.parametrize("head", [{"name": "linear", "norm": True}, {"name": "cosine"}])
def test_heads_that_cannot_be_folded_are_refused(head: dict) -> None:
    with pytest.raises(UsageError, match="cannot be folded") as caught:
        keep_best(heads.job({"method": "keep-best", "keep": {"candidate": "logistic"}}, head=head))
    assert "candidate=crt" in caught.value.cure


def test_a_loss_without_a_link_is_refused() -> None:
    with pytest.raises(UsageError, match="no common scale"):
        keep_best(heads.job({**RECIPE, "loss": "two-way", "train": {"epochs": 1}}))


def test_states_that_differ_beyond_classes_do_not_mix() -> None:
    ours = {"weight": torch.zeros(4, 6), "norm": torch.ones(6)}
    assert mixed_state(ours, {**ours, "norm": torch.zeros(6)}, np.ones(4, bool)) is None
    assert mixed_state(ours, {"weight": ours["weight"]}, np.ones(4, bool)) is None
    assert mixed_state(ours, {**ours, "weight": torch.zeros(4, 7)}, np.ones(4, bool)) is None


def test_mixed_links_keep_each_class_its_own() -> None:
    first = Link(np.array([-2.0, 0.0, 3.0]), np.array([[-4.0, 0.0, 1.0], [-1.0, 0.5, 9.0]]))
    second = Link(np.array([-5.0, 1.0]), np.array([[-5.0, 1.0], [-50.0, 10.0]]))
    mixed = mixed_link(first, second, np.array([False, True]))
    logits = np.linspace(-20, 20, 83)[:, None].repeat(2, axis=1)
    np.testing.assert_allclose(mixed.log_odds_of(logits)[:, 0], first.log_odds_of(logits)[:, 0], atol=1e-9)
    np.testing.assert_allclose(mixed.log_odds_of(logits)[:, 1], second.log_odds_of(logits)[:, 1], atol=1e-9)


def test_folds_hold_whole_patients() -> None:
    job = heads.job(RECIPE)
    labels, patients = job.cohort.dev_labels, np.array(job.cohort.dev_patients)
    folds = fold_rows(labels, patients.tolist(), np.ones(len(labels), bool), 5, 0)
    assert all(len(set(folds[patients == patient].tolist())) == 1 for patient in set(patients.tolist()))
