"""Heads that need no gradient steps on cached features: tau-normalisation, nearest class mean, logistic regression."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.splits import fold_rows
from cxrlt_cli.engine.features import Features
from cxrlt_cli.engine.head_fit import check_proportional
from cxrlt_cli.engine.head_job import AGAIN, CHUNK, HeadJob, NewHead, finished, rebuilt
from cxrlt_cli.engine.signals import leave_if_asked
from cxrlt_cli.events import Advanced, Finished, Started
from cxrlt_cli.metrics import confusion
from cxrlt_cli.posterior import Link
from cxrlt_cli.recipe.retrain import Logistic
from cxrlt_cli.recipe.schema import PluginRef

Array = npt.NDArray[np.float64]

#: The exponents tried where the recipe gives none.
TAUS = tuple(step / 10 for step in range(11))
#: Logits that are log-odds already.
IDENTITY_KNOTS = np.array([-30.0, 30.0])


def identity_link(classes: int) -> Link:
    """The link of logits that are log-odds."""
    return Link(IDENTITY_KNOTS, np.tile(IDENTITY_KNOTS, (classes, 1)))


def _pooled(job: HeadJob) -> Features:
    """The plain features of the training images, which these methods need pooled."""
    return job.cohort.views[0]


def _chunks(features: Features) -> Iterator[tuple[slice, Array]]:
    for start in range(0, len(features), CHUNK):
        part = slice(start, start + CHUNK)
        yield part, np.asarray(features[part], np.float64)


# -- tau-normalisation ---------------------------------------------------------------------------------------------


def tau_norm(job: HeadJob) -> NewHead:
    """Class weights divided by ``norm ** tau`` (arXiv 1910.09217, section 4.2); the bias stays.

    Without a given tau it is the one whose decisions at a logit of 0 have the best macro F1 on dev, the smallest of
    equals. The result has no link: the posteriors of the run's loss do not hold for logits that were rescaled.

    Raises:
        UsageError: the head does not answer in proportion to its class weights.
    """
    check_proportional(job)
    state = dict(job.joint.module.state_dict())
    norms = state["weight"].flatten(1).norm(dim=1)
    chosen = job.recipe.tau is None
    tau = _best_tau(job, state, norms) if job.recipe.tau is None else job.recipe.tau
    factor = _shrinkage(norms, tau).view(-1, *[1] * (state["weight"].ndim - 1))
    head = rebuilt(job, job.joint.ref, {**state, "weight": state["weight"] * factor})
    notes = (f"tau {tau:g} has the best dev macro F1 at a logit of 0; dev has seen that choice.",) if chosen else ()
    return finished(job, head, job.joint.ref, facts={"tau": tau}, notes=notes)


def _shrinkage(norms: Tensor, tau: float) -> Tensor:
    """``1 / norm ** tau`` (C,); 1 for a class whose weights are all 0."""
    return torch.where(norms > 0, norms, torch.ones_like(norms)) ** -tau


def _best_tau(job: HeadJob, state: dict[str, Tensor], norms: Tensor) -> float:
    bias = state["bias"].cpu().double().numpy() if "bias" in state else np.zeros(len(norms))
    plain = job.joint.logits.astype(np.float64) - bias
    scores = []
    for tau in TAUS:
        logits = plain * _shrinkage(norms, tau).cpu().double().numpy() + bias
        scores.append(float(np.nanmean(confusion(job.cohort.dev_labels, logits >= 0).f1)))
    return TAUS[int(np.argmax(scores))]


# -- nearest class mean --------------------------------------------------------------------------------------------


def nearest_mean(job: HeadJob) -> NewHead:
    """Is a feature nearer to the mean of a finding's positives or to that of its known negatives?

    The nearest class mean of arXiv 1910.09217 (section 4.1) with two classes a finding, "there" and "not there". With
    x a feature, p and n the two means:

    - euclidean: ``logit = (|x - n|^2 - |x - p|^2) / 2 = (p - n) x + (|n|^2 - |p|^2) / 2``, a linear head;
    - cosine: features are scaled to length 1 before they are averaged, ``u = p / |p| - n / |n|``, and
      ``logit = cos(x, u) = (cos(x, p) - cos(x, n)) / |u|``, a cosine head.

    Both are above 0 exactly where the positives' mean is nearer. They are no log-odds: there is no link. A finding
    without positives, or without negatives, has weights of 0 and its prior's log-odds as bias.
    """
    cosine = job.recipe.ncm.distance == "cosine"
    labels = job.cohort.labels
    positive, negative = _means(_pooled(job), labels == 1, cosine), _means(_pooled(job), labels == 0, cosine)
    if cosine:
        positive, negative = _unit(positive), _unit(negative)
    weight = positive - negative
    bias = np.zeros(len(weight)) if cosine else ((negative**2).sum(1) - (positive**2).sum(1)) / 2
    lacking = ~((labels == 1).any(0) & (labels == 0).any(0))
    weight[lacking], bias[lacking] = 0, _prior(job)[lacking]
    ref = PluginRef(name="cosine" if cosine else "linear")
    return finished(job, rebuilt(job, ref, _tensors(weight, bias)), ref, notes=_without(job, lacking))


def _means(features: Features, chosen: npt.NDArray[np.bool_], unit: bool) -> Array:
    """Mean features (C, D) of the chosen (N, C) images; 0 where none is."""
    total = np.zeros((chosen.shape[1], features.shape[1]))
    for part, values in _chunks(features):
        total += chosen[part].T.astype(np.float64) @ (_unit(values) if unit else values)
    return np.asarray(total / np.maximum(chosen.sum(0), 1)[:, None])


def _unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


# -- logistic regression -------------------------------------------------------------------------------------------


def logistic(job: HeadJob) -> NewHead:
    """One ridge-penalised logistic regression a class, on standardised features, folded into a linear head.

    Each class minimises ``mean log-loss + penalty / 2 |w|^2`` over the training images whose label is known. The
    penalty is the one with the smallest log-loss when every patient is judged by what the other folds' patients taught.
    The logits are log-odds: the link is the identity. A class with too few positives or negatives keeps its prior.

    Raises:
        Interrupted: somebody asked to stop.
    """
    config, cohort = job.recipe.logistic, job.cohort
    mean, spread = _moments(_pooled(job))
    features = ((np.asarray(_pooled(job), np.float32) - mean) / spread).astype(np.float32)
    folds = fold_rows(cohort.labels, cohort.patients, np.ones(len(features), bool), config.folds, job.recipe.train.seed)
    names = cohort.stats.names
    weight, bias = np.zeros((len(names), features.shape[1])), _prior(job)
    penalties: dict[str, float | None] = {}
    slow: list[str] = []
    job.emit(Started("logistic", len(names), "classes"))
    for index, name in enumerate(names):
        leave_if_asked(job.request, f"stopped at class {name}", cure=AGAIN)
        fitted = _class(features, cohort.labels[:, index], folds, config)
        penalties[name] = fitted.penalty if fitted else None
        if fitted is not None:
            weight[index], bias[index] = fitted.weight, fitted.bias
            slow += [] if fitted.converged else [name]
        job.emit(Advanced("logistic", index + 1))
    job.emit(Finished("logistic"))
    weight /= spread
    bias -= weight @ mean
    ref = PluginRef(name="linear")
    lacking = np.array([penalties[name] is None for name in names])
    notes = _without(job, lacking)
    notes += (f"Not converged in {config.max_iter} iterations: {', '.join(slow)}.",) if slow else ()
    head = rebuilt(job, ref, _tensors(weight, bias))
    link, facts = identity_link(len(names)), {"penalties": penalties}
    return finished(job, head, ref, loss=PluginRef(name="bce"), link=link, facts=facts, notes=notes)


def _moments(features: Features) -> tuple[Array, Array]:
    """Mean and standard deviation (D,) of features (N, D); 1 in place of a deviation of 0."""
    count = len(features)
    mean = sum((values.sum(0) for _, values in _chunks(features)), np.zeros(features.shape[1])) / count
    squares = sum((((values - mean) ** 2).sum(0) for _, values in _chunks(features)), np.zeros(features.shape[1]))
    spread = np.sqrt(squares / count)
    return mean, np.where(spread > 0, spread, 1.0)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Weights (D,) on standardised features, a bias, the penalty, and whether the last fit converged."""

    weight: Array
    bias: float
    penalty: float
    converged: bool


def _class(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int8], folds: npt.NDArray[np.int8], config: Logistic
) -> _Fit | None:
    """One class, or None where it has too few positives or negatives to learn from."""
    known = np.flatnonzero(labels != UNKNOWN)
    x, y, fold = features[known], labels[known] == 1, folds[known]
    if min(y.sum(), (~y).sum()) < config.min_positives:
        return None
    # from strong to weak, each starting where the one before ended
    penalties = sorted(config.penalties, reverse=True)
    penalty = penalties[0] if len(penalties) == 1 else _cross_fitted(x, y, fold, penalties, config)
    model, converged = _regression(x, y, penalty, config)
    return _Fit(model.coef_[0].astype(np.float64), float(model.intercept_[0]), penalty, converged)


def _cross_fitted(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[np.bool_],
    fold: npt.NDArray[np.int8],
    penalties: Sequence[float],
    config: Logistic,
) -> float:
    """The penalty with the smallest log-loss summed over the folds; the strongest where no fold can be judged."""
    losses = np.zeros(len(penalties))
    for index in range(config.folds):
        mine = fold == index
        if not mine.any() or min(y[~mine].sum(), (~y[~mine]).sum()) == 0:
            continue
        model = None
        for place, penalty in enumerate(penalties):
            model, _ = _regression(x[~mine], y[~mine], penalty, config, model)
            losses[place] += np.logaddexp(0, np.where(y[mine], -1, 1) * model.decision_function(x[mine])).sum()
    return penalties[int(np.argmin(losses))]


def _regression(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.bool_], penalty: float, config: Logistic, start: Any = None
) -> tuple[Any, bool]:
    """A fitted scikit-learn model, and whether it converged. Its C is one over penalty and images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    strength = 1 / (penalty * len(y))
    model = start or LogisticRegression(C=strength, max_iter=config.max_iter, warm_start=True)
    model.set_params(C=strength)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y)
    return model, not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


# -- shared --------------------------------------------------------------------------------------------------------


def _prior(job: HeadJob) -> Array:
    prior = np.array(job.cohort.stats.prevalence)
    return np.asarray(np.log(prior) - np.log1p(-prior))


def _tensors(weight: Array, bias: Array) -> dict[str, Tensor]:
    return {"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()}


def _without(job: HeadJob, lacking: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    named = ", ".join(np.array(job.cohort.stats.names)[lacking].tolist())
    return (f"Too few labels to learn from, so the prior stands alone: {named}.",) if named else ()
