"""Decisions: calibration and thresholds of a model together, fitted, cross-fitted by patient, stored by class name.

``fit_decisions`` learns them from one set of images, usually dev. Judged on that same set they flatter themselves, so
there ``cross_fitted`` is asked instead: each patient is judged by what the other patients taught.

**Another prevalence.** Posteriors hold for the share of positives they were calibrated on. Where only that share
changes, and not what a finding looks like, the log-odds move by ``logit(new) - logit(old)``. A prevalence that is not
known can be estimated from the posteriors of the images at hand (Saerens, Latinne and Decaestecker 2002: EM).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cxrlt_cli import thresholds as rules
from cxrlt_cli.artifacts import replacing
from cxrlt_cli.calibration import Calibration, fit_calibration
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.errors import DataError, RunError
from cxrlt_cli.logistic import Array, logit, sigmoid

Labels = npt.NDArray[np.int8]
Decided = npt.NDArray[np.bool_]

FORMAT = 1
#: Bins that keep the distribution of a class's posteriors.
SKETCH = 256
#: Fewest images from which a prevalence is estimated.
ENOUGH_TO_ESTIMATE = 50


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


def patient_codes(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,) a number for each patient; images without an identifier are patients of their own."""
    named = [name or f"\0{row}" for row, name in enumerate(patients)]
    return np.unique(np.array(named, dtype=str), return_inverse=True)[1].astype(np.int64)


def patient_folds(labels: Labels, patients: Sequence[str], folds: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """Deal whole patients to folds so that the positives of every finding are spread evenly. Pure in its arguments.

    Patients come in the order of their rarity (the sum over findings of their share of all positives), equal ones at
    random; each goes to the fold that has least of what the patient has, rare findings counting more, then to the
    smallest.

    Args:
        labels: (N, C) of 1, 0 and -1.
        patients: N identifiers.
        folds: at least 2; fewer are made where there are fewer patients.
        seed: decides between patients of equal rarity.

    Returns:
        (N,) the fold of every image, from 0.

    Raises:
        DataError: there is one patient only.
    """
    code = patient_codes(patients)
    count = int(code.max(initial=-1)) + 1
    if count < 2:
        raise DataError(
            "decisions cannot be cross-fitted on images of one patient", cure="Give labelled images of more patients."
        )
    have = np.zeros((count, labels.shape[1]))
    np.add.at(have, code, labels == 1)
    have /= np.maximum(have.sum(axis=0), 1)
    images = np.bincount(code) / len(code)
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.lexsort((-images[shuffled], -have[shuffled].sum(axis=1).round(12)))]
    fold, load, size = np.zeros(count, np.int64), np.zeros((min(folds, count), labels.shape[1])), np.zeros(folds)
    size = size[: len(load)]
    for patient in order.tolist():
        crowd = (load @ have[patient]).round(12)
        best = int(np.lexsort((size, crowd))[0])
        fold[patient] = best
        load[best] += have[patient]
        size[best] += images[patient]
    return fold[code]


# -- another prevalence --------------------------------------------------------------------------------------------


def estimate_prevalence(log_odds: npt.ArrayLike, prevalence: npt.ArrayLike, strength: float = 1.0) -> Array:
    """The prevalence among these images, from their posteriors: EM for each class (Saerens et al. 2002).

    The posteriors are moved to the present estimate, and their mean is the next one. With few images or rare findings
    that runs to 0 or far away, so the old prevalence has a say: as much as images with ``strength`` positives among
    them (the mode under a beta prior).

    Args:
        log_odds: (N, C) calibrated log-odds.
        prevalence: (C,) in (0, 1), the one they hold for.
        strength: > 0, positives the old prevalence is worth.

    Returns:
        (C,) in (0, 1).

    Raises:
        DataError: there are fewer than ``ENOUGH_TO_ESTIMATE`` images.
    """
    v, old = np.asarray(log_odds, dtype=np.float64), np.asarray(prevalence, dtype=np.float64)
    check_enough(len(v))
    share, before = old, np.zeros_like(old)
    worth = strength / old
    for _ in range(1000):
        if np.abs(logit(share) - before).max(initial=0) < 1e-6:
            break
        before = logit(share)
        moved = sigmoid(v + before - logit(old))
        share = (moved.sum(axis=0) + strength) / (len(v) + worth)
    return share


def check_enough(images: int) -> None:
    """Make sure that a prevalence can be estimated from so many images.

    Raises:
        DataError: there are fewer than ``ENOUGH_TO_ESTIMATE``.
    """
    if images < ENOUGH_TO_ESTIMATE:
        raise DataError(
            f"{images} images are too few to estimate how frequent findings are among them; it takes "
            f"{ENOUGH_TO_ESTIMATE}",
            cure="State the prevalence, as in --target-prevalence CLASS=0.05, or give more images.",
        )


# -- the file ------------------------------------------------------------------------------------------------------


def write_decisions(path: Path, decisions: Decisions) -> None:
    """Write tensors ``map/CLASS``, ``sketch/CLASS`` and ``steps/CLASS``, and one metadata entry ``decisions``."""
    from safetensors.numpy import save_file

    own = decisions.calibration
    tensors: dict[str, Array] = {}
    for c, name in enumerate(decisions.classes):
        numbers = (*own.slopes[c], own.intercepts[c], decisions.thresholds[c], decisions.prevalence[c])
        tensors[f"map/{name}"] = np.array([*numbers, decisions.shift[c]], np.float64)
        tensors[f"sketch/{name}"] = np.ascontiguousarray(decisions.sketch[c])
        if c in own.steps:
            tensors[f"steps/{name}"] = np.ascontiguousarray(own.steps[c])
    columns = {"used": own.used, **{key: getattr(decisions, key) for key in _COUNTS}}
    about = {
        "format": FORMAT,
        "calibration": own.method,
        "threshold": decisions.rule,
        "classes": [
            {"name": name, **{key: values[c] for key, values in columns.items()}}
            for c, name in enumerate(decisions.classes)
        ],
        "provenance": dict(decisions.provenance),
    }
    with replacing(path) as part:
        save_file(tensors, part, metadata={"decisions": json.dumps(about, ensure_ascii=False, sort_keys=True)})


_COUNTS = ("set_by", "positives", "negatives", "patients")


def read_decisions(path: Path) -> Decisions:
    """Read what ``write_decisions`` wrote.

    Raises:
        RunError: the file is missing, damaged, of another program, or of a newer format.
    """
    import safetensors

    cure = "Make it again with `cxrlt decide RUN`."
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["decisions"])
            if about["format"] > FORMAT:
                raise RunError(
                    f"has format {about['format']}, this cxrlt reads up to {FORMAT}",
                    where=str(path),
                    cure="Install a newer cxrlt.",
                )
            return _parsed(about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        raise RunError("there are no decisions", where=str(path), cure=cure) from None
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"is not a readable file of decisions: {error}", where=str(path), cure=cure) from error


def _parsed(about: Mapping[str, Any], tensors: Mapping[str, Array]) -> Decisions:
    rows = about["classes"]
    names = tuple(str(row["name"]) for row in rows)
    numbers = np.array([tensors[f"map/{name}"] for name in names]).reshape(-1, 6)
    if not np.isfinite(numbers).all():
        raise ValueError("a number in it is not finite")
    steps = {c: tensors[f"steps/{name}"] for c, name in enumerate(names) if f"steps/{name}" in tensors}
    used = tuple(str(row["used"]) for row in rows)
    return Decisions(
        classes=names,
        calibration=Calibration(str(about["calibration"]), used, numbers[:, :2], numbers[:, 2], steps),
        rule=str(about["threshold"]),
        thresholds=numbers[:, 3],
        prevalence=numbers[:, 4],
        shift=numbers[:, 5],
        sketch=tuple(tensors[f"sketch/{name}"] for name in names),
        provenance=about["provenance"],
        set_by=tuple(str(row["set_by"]) for row in rows),
        positives=tuple(int(row["positives"]) for row in rows),
        negatives=tuple(int(row["negatives"]) for row in rows),
        patients=tuple(int(row["patients"]) for row in rows),
    )
