"""Fitting calibration and thresholds, and judging patients by what the others taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxrlt_cli import thresholds as rules
from cxrlt_cli.calibration import Calibration, fit_calibration
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.decisions.folds import Labels, patient_codes, patient_folds
from cxrlt_cli.logistic import Array, logit, sigmoid

Decided = npt.NDArray[np.bool_]

#: Bins that keep the distribution of a class's posteriors.
SKETCH = 256


@dataclass(frozen=True, slots=True)
class Decisions:
    """From log-odds to posteriors to decisions, for C classes.

    Attributes:
        classes: the C names.
        calibration: the map of log-odds.
        rule: how thresholds were asked for.
        thresholds: (C,) in (0, 1].
        set_by: what set each threshold: the rule, or what took its place.
        positives: labels 1 per class among the images they were fitted on.
        negatives: labels 0 likewise.
        patients: patients with a positive, per class.
        prevalence: (C,) share of positives the calibrated posteriors hold for.
        sketch: for each class the distribution of its posteriors where they were fitted, (K, 2): mean posterior of a
            bin, and the bin's share of the images.
        shift: (C,) added to calibrated log-odds; not 0 after ``under``.
        provenance: what they were fitted on: split, hash of the dataset, epoch and score of the weights, ...
    """

    classes: tuple[str, ...]
    calibration: Calibration
    rule: str
    thresholds: Array
    set_by: tuple[str, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    patients: tuple[int, ...]
    prevalence: Array
    sketch: tuple[Array, ...]
    shift: Array
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def log_odds(self, log_odds: npt.ArrayLike) -> Array:
        """Log-odds after the link (N, C) -> calibrated log-odds (N, C)."""
        return np.asarray(self.calibration(log_odds) + self.shift)

    def calibrated(self, log_odds: npt.ArrayLike) -> Array:
        """Log-odds after the link (N, C) -> calibrated posteriors (N, C) in [0, 1]."""
        return sigmoid(self.log_odds(log_odds))

    def decide(self, posteriors: npt.ArrayLike) -> Decided:
        """Calibrated posteriors (N, C) -> whether each finding is called present (N, C)."""
        return np.asarray(np.asarray(posteriors) >= self.thresholds)

    def fell_back(self) -> dict[str, str]:
        """The classes that got another calibration or threshold than was asked for, and what they got."""
        found = {}
        for name, used, set_by in zip(self.classes, self.calibration.used, self.set_by, strict=True):
            parts = [f"calibration {used}"] * (used != self.calibration.method)
            parts += [f"threshold {set_by}"] * (set_by != self.rule)
            if parts:
                found[name] = ", ".join(parts)
        return found

    def select(self, classes: Sequence[str]) -> Decisions:
        """The same for some classes, in the given order.

        Raises:
            KeyError: a class is not there.
        """
        place = {name: c for c, name in enumerate(self.classes)}
        order = [place[name] for name in classes]
        own = self.calibration
        steps = {new: own.steps[old] for new, old in enumerate(order) if old in own.steps}
        used = tuple(own.used[c] for c in order)
        return replace(
            self,
            classes=tuple(classes),
            calibration=Calibration(own.method, used, own.slopes[order], own.intercepts[order], steps),
            thresholds=self.thresholds[order],
            prevalence=self.prevalence[order],
            shift=self.shift[order],
            set_by=tuple(self.set_by[c] for c in order),
            positives=tuple(self.positives[c] for c in order),
            negatives=tuple(self.negatives[c] for c in order),
            patients=tuple(self.patients[c] for c in order),
            sketch=tuple(self.sketch[c] for c in order),
        )

    def under(self, prevalence: npt.ArrayLike) -> Decisions:
        """Decisions for images among which findings have another prevalence.

        Posteriors move as the module says. Thresholds of F1 rules are set anew, at the optimum of expected F1 under the
        moved posteriors; so are those of the prevalence and precision rules. Those of the recall rule move with the
        posteriors (recall does not depend on prevalence), fixed ones stay.

        Args:
            prevalence: (C,) in (0, 1); nan leaves a class as it is.
        """
        new = np.asarray(prevalence, dtype=np.float64)
        new = np.where(np.isnan(new), self.prevalence, new)
        moved = logit(new) - logit(self.prevalence)
        at = [
            self.thresholds[c] if step == 0 else self._moved_threshold(c, float(step), float(new[c]))
            for c, step in enumerate(moved.tolist())
        ]
        return replace(self, thresholds=np.array(at, np.float64), prevalence=new, shift=self.shift + moved)

    def _moved_threshold(self, c: int, step: float, share: float) -> float:
        rule, (before, weight) = rules.parse_rule(self.rule), self.sketch[c].T
        if rule.name == "fixed":
            return float(self.thresholds[c])
        if rule.name == "target-recall":
            return float(sigmoid(logit(self.thresholds[c]) + step))
        whole = float(self.shift[c]) + step  # from the images of the sketch, which may not be the last ones
        old = float(sigmoid(logit(share) - whole))
        weight = weight * (before * share / old + (1 - before) * (1 - share) / (1 - old))
        after = sigmoid(logit(before) + whole)
        if rule.name == "prevalence":
            return rules.prevalence_by_posteriors(after, share, weight)
        if rule.name == "target-precision":
            return rules.precision_by_posteriors(after, rule.value, weight)
        return rules.expected_f1(after, weight)


def fit_decisions(
    labels: Labels,
    log_odds: npt.ArrayLike,
    patients: Sequence[str],
    *,
    classes: Sequence[str],
    prevalence: npt.ArrayLike,
    calibration: str = "platt",
    threshold: str | float = "expected-f1",
    provenance: Mapping[str, Any] | None = None,
) -> Decisions:
    """Fit calibration and thresholds.

    Args:
        labels: (N, C): 1, 0, or -1 where unknown.
        log_odds: (N, C), ``link.log_odds_of(logits)``, or the logits where there is no link.
        patients: N identifiers; images with an empty one are patients of their own.
        classes: the C names.
        prevalence: (C,) in (0, 1), share of positives in training, smoothed (``ClassStats.prevalence``).
        calibration: one of ``calibration.METHODS``.
        threshold: a rule of ``thresholds``, as users write it.
        provenance: kept with the decisions.

    Raises:
        UsageError: there is no such rule.
        ValueError: there is no such calibration, or log-odds are not finite.
    """
    rule, training = rules.parse_rule(threshold), np.asarray(prevalence, dtype=np.float64)
    fitted = fit_calibration(labels, log_odds, training, calibration)
    posteriors = sigmoid(fitted(log_odds))
    values, set_by = rules.fit_thresholds(labels, posteriors, rule)
    codes, chosen = patient_codes(patients), _chosen(labels)
    return Decisions(
        classes=tuple(classes),
        calibration=fitted,
        rule=str(rule),
        thresholds=values,
        set_by=set_by,
        positives=tuple((labels == 1).sum(axis=0).tolist()),
        negatives=tuple((labels == 0).sum(axis=0).tolist()),
        patients=tuple(len(np.unique(codes[column == 1])) for column in labels.T),
        prevalence=training if calibration in ("none", "temperature") else _means(posteriors, chosen, training),
        sketch=tuple(_sketch(posteriors[keep, c]) for c, keep in enumerate(chosen.T)),
        shift=np.zeros(labels.shape[1]),
        provenance=dict(provenance or {}),
    )


def _chosen(labels: Labels) -> Decided:
    """(N, C) the entries with a label, or all of a class that has none."""
    known = labels != UNKNOWN
    return np.asarray(known | ~known.any(axis=0))


def _means(posteriors: Array, chosen: Decided, training: Array) -> Array:
    """(C,) mean posterior: what the calibration takes the prevalence to be."""
    if not len(posteriors):
        return training
    means = (posteriors * chosen).sum(axis=0) / chosen.sum(axis=0)
    return np.asarray(np.clip(means, 1e-9, 1 - 1e-9))


def _sketch(posteriors: Array) -> Array:
    """(K, 2) with K <= ``SKETCH``: bins of images in order, fine where there are many images and where there are many
    expected positives."""
    if not len(posteriors):
        return np.array([[0.5, 1.0]])
    rising = np.sort(posteriors)
    depth = np.arange(1, len(rising) + 1) / len(rising) + np.cumsum(rising) / max(rising.sum(), 1e-300)
    bins = np.unique(np.ceil(depth / 2 * SKETCH).clip(1, SKETCH), return_inverse=True)[1]
    counts = np.bincount(bins)
    return np.column_stack([np.bincount(bins, weights=rising) / counts, counts / len(rising)])


# -- cross-fitting -------------------------------------------------------------------------------------------------


class CrossFitted(NamedTuple):
    """What each image was given by decisions that its own patient had no part in: two arrays (N, C)."""

    posteriors: Array
    decisions: Decided


def cross_fitted(
    labels: Labels,
    log_odds: npt.ArrayLike,
    patients: Sequence[str],
    *,
    prevalence: npt.ArrayLike,
    calibration: str = "platt",
    threshold: str | float = "expected-f1",
    folds: int = 5,
    seed: int = 0,
) -> CrossFitted:
    """Calibrate and decide each image with what the other patients' folds teach.

    Args:
        labels, log_odds, patients, prevalence, calibration, threshold: as in ``fit_decisions``.
        folds: parts the patients are dealt to (as many as there are patients, where that is fewer).
        seed: of the folds.

    Raises:
        DataError: there is one patient only.
        UsageError, ValueError: as in ``fit_decisions``.
    """
    u = np.asarray(log_odds, dtype=np.float64)
    fold = patient_folds(labels, patients, folds, seed)
    result = CrossFitted(np.empty(u.shape), np.empty(u.shape, bool))
    names = [str(c) for c in range(u.shape[1])]
    owners = np.asarray(patients, dtype=object)
    for part in range(int(fold.max()) + 1):
        rest, own = fold != part, fold == part
        fitted = fit_decisions(
            labels[rest],
            u[rest],
            owners[rest].tolist(),
            classes=names,
            prevalence=prevalence,
            calibration=calibration,
            threshold=threshold,
        )
        result.posteriors[own] = fitted.calibrated(u[own])
        result.decisions[own] = fitted.decide(result.posteriors[own])
    return result
