"""For each class the joint head or a re-trained one, and what such a choice is worth.

Both heads learned from the training split; dev labels only choose between them. A choice that is judged by the labels
it was made with looks better than it is. So the judgement is cross-fitted: dev patients are dealt into folds, and each
fold is scored by the heads that the other folds' labels chose. The head that is kept is chosen by all of dev.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrlt_cli.data.splits import fold_rows
from cxrlt_cli.engine.closed_heads import logistic
from cxrlt_cli.engine.head_fit import retrain_rows
from cxrlt_cli.engine.head_job import HeadJob, Joint, NewHead, finished, loss_of, metrics_line, rebuilt
from cxrlt_cli.errors import UsageError
from cxrlt_cli.metrics import average_precision
from cxrlt_cli.posterior import Link

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]
Choice = npt.NDArray[np.bool_]

_CURE = "Use `--set keep.candidate=crt`, or one of the two heads alone: crt, logistic, or the run itself."


def keep_best(job: HeadJob) -> NewHead:
    """Train the candidate, choose class by class, fold both into one head.

    Raises:
        UsageError: the two heads cannot stand in one, or one of them has no posterior link to compare it by.
    """
    joint = job.joint
    _check_same_head(job)
    candidate = retrain_rows(job) if job.recipe.keep.candidate == "crt" else logistic(job)
    if joint.link is None or candidate.link is None:
        raise UsageError(
            "the joint head and the re-trained one have no common scale: a loss has no posterior link",
            where=job.recipe.method,
            cure="Choose a pointwise loss, such as bce, or use the method crt.",
        )
    ours, theirs = joint.link.log_odds_of(joint.logits), candidate.link.log_odds_of(candidate.logits)
    labels = job.cohort.dev_labels
    everyone = np.ones(len(labels), bool)
    folds = fold_rows(labels, job.cohort.dev_patients, everyone, job.recipe.keep.folds, job.recipe.train.seed)
    choice = better(labels, ours, theirs)
    judged = chosen_by_others(labels, ours, theirs, folds)
    return _folded(job, joint, candidate, choice, judged)


def better(labels: Labels, ours: Array, theirs: Array) -> Choice:
    """(C,) whether the second head ranks these images better; the first one where they are equal or undefined.

    Args:
        labels: (N, C).
        ours: (N, C) scores of the first head.
        theirs: (N, C) scores of the second one.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(average_precision(labels, theirs) > average_precision(labels, ours))


def chosen_by_others(labels: Labels, ours: Array, theirs: Array, folds: npt.NDArray[np.int8]) -> Array:
    """(N, C) log-odds, each image's from the head that the other folds' labels chose for the class.

    Args:
        labels: (N, C).
        ours: (N, C) log-odds of the first head.
        theirs: (N, C) log-odds of the second one.
        folds: (N,) of the images; a patient is in one fold.
    """
    judged = np.empty_like(ours)
    for fold in np.unique(folds):
        mine = folds == fold
        choice = better(labels[~mine], ours[~mine], theirs[~mine])
        judged[mine] = np.where(choice, theirs[mine], ours[mine])
    return judged


def _check_same_head(job: HeadJob) -> None:
    """Before anything is trained: a logistic regression fits beside a plain linear head only."""
    options = {key: value for key, value in job.joint.ref.options.items() if value}
    if job.recipe.keep.candidate == "logistic" and (job.joint.ref.name != "linear" or "norm" in options):
        raise _cannot_fold(job, "a logistic regression is a plain linear head on features as they are")


def _cannot_fold(job: HeadJob, why: str) -> UsageError:
    what = f"the head '{job.joint.ref.name}' of this run and the re-trained one cannot be folded into one: {why}"
    return UsageError(what, where=job.recipe.method, cure=_CURE)


def _folded(job: HeadJob, joint: Joint, candidate: NewHead, choice: Choice, judged: Array) -> NewHead:
    state = mixed_state(joint.module.state_dict(), candidate.state, choice)
    if state is None:
        raise _cannot_fold(job, "they differ in more than what belongs to one class each")
    assert joint.link is not None
    assert candidate.link is not None
    link = mixed_link(joint.link, candidate.link, choice)
    names = job.cohort.stats.names
    facts = {
        "candidate": job.recipe.keep.candidate,
        "retrained": [name for name, taken in zip(names, choice, strict=True) if taken],
        **candidate.facts,
    }
    taken = f"{int(choice.sum())} of {len(names)} classes take the re-trained head."
    loss = loss_of(job) if job.recipe.keep.candidate == "crt" else joint.loss
    made = finished(
        job,
        rebuilt(job, joint.ref, state),
        joint.ref,
        loss=loss,
        link=link,
        facts=facts,
        notes=(*candidate.notes, taken),
    )
    expected = np.where(choice, candidate.logits, joint.logits)
    if not np.allclose(made.logits, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max())):
        raise _cannot_fold(job, "a class's logits depend on the other classes' weights")
    made = replace(made, judged=judged)
    return replace(made, history=[metrics_line(job, judged_logits(made), link)])


def mixed_state(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], choice: Choice) -> dict[str, Tensor] | None:
    """Rows of the second head for the chosen classes (C,), all else of the first; None where the rest differs."""
    pick = torch.from_numpy(choice)
    mixed: dict[str, Tensor] = {}
    if ours.keys() != theirs.keys():
        return None
    for name, tensor in ours.items():
        first, second = tensor.detach().cpu(), theirs[name].detach().cpu()
        if first.shape != second.shape:
            return None
        if first.ndim and len(first) == len(pick):
            mixed[name] = torch.where(pick.view(-1, *[1] * (first.ndim - 1)), second, first)
        elif torch.equal(first, second):
            mixed[name] = first
        else:
            return None
    return mixed


def mixed_link(ours: Link, theirs: Link, choice: Choice) -> Link:
    """The second link for the chosen classes (C,), the first for the others, on the knots of both: neither changes."""
    knots = np.union1d(ours.logit, theirs.logit)
    grid = np.repeat(knots[:, None], len(choice), axis=1)
    rows = np.where(choice, theirs.log_odds_of(grid), ours.log_odds_of(grid)).T
    return Link(knots, np.ascontiguousarray(np.maximum.accumulate(rows, axis=1)))


def judged_logits(made: NewHead) -> npt.NDArray[np.float32]:
    """The judged log-odds (M, C) on the scale of the head that is kept: what its link would turn into them."""
    assert made.judged is not None
    assert made.link is not None
    own = made.link.log_odds_of(made.logits)
    logits = made.logits.copy()
    for index, row in enumerate(made.link.log_odds):
        other = np.flatnonzero(~np.isclose(made.judged[:, index], own[:, index], rtol=1e-4, atol=1e-4))
        logits[other, index] = _inverse(made.link.logit, row, made.judged[other, index])
    return logits


def _inverse(knots: Array, row: Array, log_odds: Array) -> Array:
    """Logits (N,) of log-odds (N,) of one class, with the slopes of the table's ends beyond it."""
    inside = np.interp(log_odds, row, knots)
    bottom, top = ((row[end + 1] - row[end]) / (knots[end + 1] - knots[end]) for end in (0, -2))
    below = (log_odds - row[0]) / bottom if bottom else np.zeros_like(log_odds)
    above = (log_odds - row[-1]) / top if top else np.zeros_like(log_odds)
    return np.asarray(inside + np.minimum(below, 0) + np.maximum(above, 0))
