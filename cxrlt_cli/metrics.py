"""Multi-label metrics, per class and averaged, with unknown labels and absent classes treated openly.

Labels are (N, C): 1, 0, or -1 where unknown. An unknown label leaves its entry out of every figure. Ranking metrics use
scores (logits, say) and treat tied scores as one threshold, as scikit-learn does; the others use posteriors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN, frequency_group
from cxrlt_cli.errors import DataError

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]
Absent = Literal["skip", "zero"]

#: Classes by their prevalence in the training split: above 10 %, 1 to 10 %, below 1 %.
GROUPS = ("head", "medium", "tail")
#: Figures of each class; their macro average is called ``macro_`` and this.
PER_CLASS = ("ap", "auroc", "f1", "precision", "recall", "brier", "ece")
#: The ones a class without positives has no value of, and which scikit-learn calls 0 there.
NEED_POSITIVES = ("ap", "f1", "precision", "recall")
#: Bins of both calibration errors.
BINS = 15


@dataclass(frozen=True, slots=True)
class Ranked:
    """The labelled images of one class, sorted once, from which every ranking metric follows.

    Attributes:
        order: (n,) rows whose label is known, highest score first.
        positive: (n,) whether they are labelled 1, in that order.
        ends: (g,) place of the last image of each group of equal scores.
    """

    order: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]


def rank(labels: Labels, scores: npt.NDArray[np.floating]) -> Ranked:
    """Sort one class: labels (N,) and scores (N,), none of them nan."""
    known = np.flatnonzero(labels != UNKNOWN)
    order = known[np.argsort(-scores[known], kind="stable")]
    falling = scores[order]
    last_of_its_score = np.append(falling[1:] != falling[:-1], True)[: len(order)]
    return Ranked(order, labels[order] == 1, np.flatnonzero(last_of_its_score))


def _hits(ranked: Ranked) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positives among the images down to each threshold, and those gained at it: two arrays (g,)."""
    reached = np.cumsum(ranked.positive, dtype=np.int64)[ranked.ends]
    return reached, np.diff(reached, prepend=0)


def _average_precision(ranked: Ranked) -> float:
    reached, gained = _hits(ranked)
    if not reached.size or not reached[-1]:
        return math.nan
    return float((gained * (reached / (ranked.ends + 1))).sum() / reached[-1])


def _auroc(ranked: Ranked) -> float:
    reached, gained = _hits(ranked)
    positives = int(reached[-1]) if reached.size else 0
    negatives = len(ranked.order) - positives
    if not positives or not negatives:
        return math.nan
    negatives_here = np.diff(ranked.ends, prepend=-1) - gained
    return float((negatives_here * (reached - gained / 2)).sum() / (positives * negatives))


def average_precision(labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    """Average precision per class: ``sum_k (R_k - R_{k-1}) P_k`` over thresholds k, without interpolation.

    Args:
        labels: (N, C).
        scores: (N, C), higher for the finding.

    Returns:
        (C,) in [0, 1]; nan for a class without positives. By chance it is about the share of positives.
    """
    return _each(_average_precision, labels, scores)


def auroc(labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    """Area under the ROC curve per class: P(a positive scores above a negative), ties counting one half.

    Args:
        labels: (N, C).
        scores: (N, C), higher for the finding.

    Returns:
        (C,) in [0, 1]; nan for a class without positives or without negatives.
    """
    return _each(_auroc, labels, scores)


def _each(metric: Callable[[Ranked], float], labels: Labels, scores: npt.NDArray[np.floating]) -> Array:
    return np.array([metric(rank(labels[:, c], scores[:, c])) for c in range(labels.shape[1])], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Confusion:
    """Decisions against known labels, counted per class: int64 (C,) each."""

    true_positives: npt.NDArray[np.int64]
    false_positives: npt.NDArray[np.int64]
    false_negatives: npt.NDArray[np.int64]

    @property
    def precision(self) -> Array:
        """(C,) share of positive decisions that are right; 0 where there is none, nan where no label is positive."""
        made = self.true_positives + self.false_positives
        return self._where_positives(self.true_positives / np.maximum(made, 1))

    @property
    def recall(self) -> Array:
        """(C,) share of positives that are found; nan where no label is positive."""
        return self._where_positives(self.true_positives / np.maximum(self.true_positives + self.false_negatives, 1))

    @property
    def f1(self) -> Array:
        """(C,) ``2 TP / (2 TP + FP + FN)``; nan where no label is positive."""
        return self._where_positives(_f1(self.true_positives, self.false_positives, self.false_negatives))

    @property
    def micro_f1(self) -> float:
        """F1 of all entries together, those of classes without positives included; nan where no label is positive."""
        counts = [side.sum() for side in (self.true_positives, self.false_positives, self.false_negatives)]
        return float(_f1(*counts)) if counts[0] + counts[2] else math.nan

    def _where_positives(self, values: Array) -> Array:
        return np.where(self.true_positives + self.false_negatives > 0, values, np.nan)


def _f1(true: npt.NDArray[np.int64], false: npt.NDArray[np.int64], missed: npt.NDArray[np.int64]) -> Array:
    return np.asarray(2 * true / np.maximum(2 * true + false + missed, 1))


def confusion(labels: Labels, decisions: npt.NDArray[np.bool_]) -> Confusion:
    """Count decisions (N, C) against labels (N, C)."""
    positive, negative = labels == 1, labels == 0
    return Confusion(
        (decisions & positive).sum(axis=0), (decisions & negative).sum(axis=0), (~decisions & positive).sum(axis=0)
    )


def brier(labels: Labels, posteriors: Array) -> Array:
    """Mean squared difference of posterior and label per class (C,); nan where no label is known."""
    known = labels != UNKNOWN
    squares = np.where(known, (posteriors - labels) ** 2, 0).sum(axis=0)
    return np.where(known.any(axis=0), squares / np.maximum(known.sum(axis=0), 1), np.nan)


def ece(labels: Labels, posteriors: Array, bins: int = BINS) -> Array:
    """Expected calibration error per class, over bins of equal count.

    ``sum_b n_b / n |mean label - mean posterior|``. Equal posteriors share a bin, that of the lowest place among them,
    so the result does not depend on the order of the rows.

    Args:
        labels: (N, C).
        posteriors: (N, C) in [0, 1].
        bins: of about n / bins images each.

    Returns:
        (C,) in [0, 1]; nan where no label is known.
    """
    known = labels != UNKNOWN
    columns = ((labels[k, c], posteriors[k, c]) for c, k in enumerate(known.T))
    return np.array([_ece(column_labels == 1, column, bins) for column_labels, column in columns], dtype=np.float64)


def _ece(positive: npt.NDArray[np.bool_], posterior: Array, bins: int) -> float:
    count = len(posterior)
    if not count:
        return math.nan
    order = np.argsort(posterior, kind="stable")
    ascending = posterior[order]
    place = np.arange(count)
    lowest = np.maximum.accumulate(np.where(np.append(True, ascending[1:] != ascending[:-1]), place, 0))
    return _gap(lowest * bins // count, positive[order], ascending)


def flat_ece(labels: Labels, posteriors: Array, bins: int = BINS) -> float:
    """Expected calibration error of all known entries together, over equal-width bins ``(b / bins, (b + 1) / bins]``.

    The figure of CXR-LT. Most entries are sure negatives, so it hides the rare classes: read ``ece`` beside it.
    """
    known = labels != UNKNOWN
    if not known.any():
        return math.nan
    entries = posteriors[known]
    place = np.clip(np.ceil(entries * bins).astype(np.int64) - 1, 0, bins - 1)
    return _gap(place, labels[known] == 1, entries)


def _gap(place: npt.NDArray[np.int64], positive: npt.NDArray[np.bool_], posterior: Array) -> float:
    """Mean over entries of the distance between label and posterior, each averaged over its bin."""
    return float(np.abs(np.bincount(place, weights=positive - posterior)).sum() / len(place))


def group_of(prevalence: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """Head (> 10 %), medium (1 to 10 %) or tail (< 1 %) for each training prevalence (C,)."""
    return np.array([frequency_group(share) for share in np.asarray(prevalence, dtype=np.float64)], dtype=np.str_)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one set of predictions is worth.

    Attributes:
        classes: the C class names.
        group: head, medium or tail, per class.
        images: N.
        positives: labels 1 per class.
        negatives: labels 0 per class.
        prevalence: share of positives in the training split, per class.
        per_class: each of ``PER_CLASS`` -> (C,), nan where undefined.
        overall: ``macro_`` figures, ``micro_f1``, ``ece`` (flattened, equal width), ``chance_ap``.
        groups: the same macro figures and ``classes`` (how many there are) for head, medium and tail.
        absent: what a class without positives counts as: "skip" leaves it out, "zero" counts 0.
        undefined: figure -> names of the classes its macro average leaves out (or, with "zero", counts as 0).
    """

    classes: tuple[str, ...]
    group: tuple[str, ...]
    images: int
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    prevalence: tuple[float, ...]
    per_class: Mapping[str, Array]
    overall: Mapping[str, float]
    groups: Mapping[str, Mapping[str, float]]
    absent: Absent
    undefined: Mapping[str, tuple[str, ...]]

    def summary(self) -> dict[str, float | None]:
        """The overall figures; None where one is undefined."""
        return {name: _number(value) for name, value in self.overall.items()}

    def to_json(self) -> dict[str, object]:
        """Everything, as JSON has it: None in place of nan."""
        return {
            "images": self.images,
            "absent": self.absent,
            "undefined": {name: list(classes) for name, classes in self.undefined.items()},
            "overall": self.summary(),
            "groups": {name: {k: _number(v) for k, v in figures.items()} for name, figures in self.groups.items()},
            "classes": [self._class_json(i) for i in range(len(self.classes))],
        }

    def _class_json(self, i: int) -> dict[str, object]:
        return {
            "name": self.classes[i],
            "group": self.group[i],
            "positives": self.positives[i],
            "negatives": self.negatives[i],
            "training_prevalence": self.prevalence[i],
            **{name: _number(values[i]) for name, values in self.per_class.items()},
        }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def evaluate(
    labels: Labels,
    scores: npt.NDArray[np.floating],
    posteriors: Array,
    classes: Sequence[str],
    prevalence: npt.ArrayLike,
    *,
    absent: Absent = "skip",
) -> Evaluation:
    """Evaluate predictions.

    Args:
        labels: (N, C): 1, 0, -1.
        scores: (N, C), for ranking; logits, as clipped probabilities tie.
        posteriors: (N, C) in [0, 1]; a decision is a posterior >= 0.5.
        classes: the C names.
        prevalence: (C,) share of positives in the training split; it sets the groups.
        absent: what a class without positives counts as in the macro average of AP, F1, precision and recall: "skip"
            leaves it out, "zero" counts 0, as scikit-learn does. AUROC always leaves it out.

    Raises:
        DataError: a score is nan, or a posterior is not in [0, 1].
    """
    _check(scores, posteriors, classes)
    counts = confusion(labels, posteriors >= 0.5)
    per_class = _per_class(labels, scores, posteriors, counts)
    undefined = {name: tuple(np.asarray(classes)[np.isnan(values)].tolist()) for name, values in per_class.items()}
    if absent == "zero":
        per_class |= {name: np.nan_to_num(per_class[name], nan=0.0) for name in NEED_POSITIVES}
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    chance = positives / np.maximum(positives + negatives, 1)
    group = group_of(prevalence)
    return Evaluation(
        classes=tuple(classes),
        group=tuple(group.tolist()),
        images=len(labels),
        positives=tuple(positives.tolist()),
        negatives=tuple(negatives.tolist()),
        prevalence=tuple(np.asarray(prevalence, dtype=np.float64).tolist()),
        per_class=per_class,
        overall=_macro(per_class, chance) | {"micro_f1": counts.micro_f1, "ece": flat_ece(labels, posteriors)},
        groups={
            name: {"classes": int((group == name).sum())} | _macro(per_class, chance, group == name) for name in GROUPS
        },
        absent=absent,
        undefined={name: names for name, names in undefined.items() if names},
    )


def _check(scores: npt.NDArray[np.floating], posteriors: Array, classes: Sequence[str]) -> None:
    cure = "The file of predictions is damaged, or the network's outputs overflowed: predict again in fp32."
    for name, wrong in (("score", np.isnan(scores)), ("posterior", ~((posteriors >= 0) & (posteriors <= 1)))):
        for row, klass in np.argwhere(wrong)[:1]:
            value = (scores if name == "score" else posteriors)[row, klass]
            raise DataError(f"the {name} is {value}", where=f"row {row}, class {classes[klass]}", cure=cure)


def _per_class(
    labels: Labels, scores: npt.NDArray[np.floating], posteriors: Array, counts: Confusion
) -> dict[str, Array]:
    ranked = [rank(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    # posteriors rise with scores as a rule, so their own sort then has nothing left to do
    rising = [(each.positive[::-1], posteriors[each.order[::-1], c]) for c, each in enumerate(ranked)]
    return {
        "ap": np.array([_average_precision(each) for each in ranked], dtype=np.float64),
        "auroc": np.array([_auroc(each) for each in ranked], dtype=np.float64),
        "f1": counts.f1,
        "precision": counts.precision,
        "recall": counts.recall,
        "brier": brier(labels, posteriors),
        "ece": np.array([_ece(positive, column, BINS) for positive, column in rising], dtype=np.float64),
    }


def _macro(
    per_class: Mapping[str, Array], chance: Array, chosen: npt.NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Averages over the chosen classes that have a value; ``chance_ap`` over those that have an AP."""
    columns = {f"macro_{name}": values for name, values in per_class.items()}
    columns["chance_ap"] = np.where(np.isnan(per_class["ap"]), np.nan, chance)
    return {name: _mean(values if chosen is None else values[chosen]) for name, values in columns.items()}


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
