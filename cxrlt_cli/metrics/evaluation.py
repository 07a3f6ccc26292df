"""One set of predictions, judged: every figure per class, averaged over all classes and over groups of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import frequency_group
from cxrlt_cli.errors import DataError

from .calibration import brier, ece_of, flat_ece, recalibration
from .confusion import confusion
from .ranking import Array, Labels, auroc_of, average_precision_of, rank

Absent = Literal["skip", "zero"]

#: Classes by their prevalence in the training split: above 10 %, 1 to 10 %, below 1 %.
GROUPS = ("head", "medium", "tail")
#: Classes with fewer positives than this among the images evaluated; they are in a group above as well.
RARE = 20
#: Every group a figure is averaged over, besides all classes.
ALL_GROUPS = (*GROUPS, "rare")
#: Figures of each class; their macro average is called ``macro_`` and this.
PER_CLASS = (
    "ap", "auroc", "f1", "precision", "recall", "f1_at_half", "brier", "ece", "slope", "intercept",
)  # fmt: skip
#: The ones a class without positives has no value of, and which scikit-learn calls 0 there.
NEED_POSITIVES = ("ap", "f1", "precision", "recall", "f1_at_half")


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
        overall: ``macro_`` figures, ``micro_f1``, ``micro_f1_at_half``, ``ece`` (all entries together),
            ``chance_ap``.
        groups: the same macro figures for head, medium, tail and rare classes (``members``).
        counts: how many classes each group has.
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
    counts: Mapping[str, int]
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
            "groups": {
                name: {"classes": self.counts[name]} | {k: _number(v) for k, v in figures.items()}
                for name, figures in self.groups.items()
            },
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
    decisions: npt.NDArray[np.bool_] | None = None,
    absent: Absent = "skip",
) -> Evaluation:
    """Evaluate predictions.

    Args:
        labels: (N, C): 1, 0, -1.
        scores: (N, C), for ranking; logits, as clipped probabilities tie.
        posteriors: (N, C) in [0, 1].
        classes: the C names.
        prevalence: (C,) share of positives in the training split; it sets the groups.
        decisions: (N, C), true where the finding is called present; None for posterior >= 0.5.
        absent: what a class without positives counts as in the macro average of AP, F1, precision and recall: "skip"
            leaves it out, "zero" counts 0, as scikit-learn does. AUROC always leaves it out.

    Raises:
        DataError: a score is nan, or a posterior is not in [0, 1].
    """
    _check(scores, posteriors, classes)
    at_half = posteriors >= 0.5
    called = at_half if decisions is None else decisions
    per_class = _per_class(labels, scores, posteriors, called)
    undefined = {name: tuple(np.asarray(classes)[np.isnan(values)].tolist()) for name, values in per_class.items()}
    if absent == "zero":
        per_class |= {name: np.nan_to_num(per_class[name], nan=0.0) for name in NEED_POSITIVES}
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    chance = positives / np.maximum(positives + negatives, 1)
    pooled = {
        "micro_f1": confusion(labels, called).micro_f1,
        "micro_f1_at_half": confusion(labels, at_half).micro_f1,
        "ece": flat_ece(labels, posteriors),
    }
    groups = members(prevalence, positives)
    return Evaluation(
        classes=tuple(classes),
        group=tuple(group_of(prevalence).tolist()),
        images=len(labels),
        positives=tuple(positives.tolist()),
        negatives=tuple(negatives.tolist()),
        prevalence=tuple(np.asarray(prevalence, dtype=np.float64).tolist()),
        per_class=per_class,
        overall=_floats(macro(per_class, chance)) | pooled,
        groups={name: _floats(macro(per_class, chance, chosen)) for name, chosen in groups.items()},
        counts={name: int(chosen.sum()) for name, chosen in groups.items()},
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
    labels: Labels, scores: npt.NDArray[np.floating], posteriors: Array, decisions: npt.NDArray[np.bool_]
) -> dict[str, Array]:
    ranked = [rank(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    # posteriors rise with scores as a rule, so their own sort then has nothing left to do
    rising = [(each.positive[::-1], posteriors[each.order[::-1], c]) for c, each in enumerate(ranked)]
    counts = confusion(labels, decisions)
    slope, intercept = recalibration(labels, posteriors)
    return {
        "ap": np.array([average_precision_of(each) for each in ranked], dtype=np.float64),
        "auroc": np.array([auroc_of(each) for each in ranked], dtype=np.float64),
        "f1": counts.f1,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1_at_half": confusion(labels, posteriors >= 0.5).f1,
        "brier": brier(labels, posteriors),
        "ece": np.array([ece_of(positive, column) for positive, column in rising], dtype=np.float64),
        "slope": slope,
        "intercept": intercept,
    }


def members(prevalence: npt.ArrayLike, positives: npt.ArrayLike) -> dict[str, npt.NDArray[np.bool_]]:
    """Which classes (C,) are head, medium and tail by training prevalence (C,), and which are rare.

    Rare are those with fewer than ``RARE`` of the positives (C,) among the images evaluated: too few to judge alone.
    """
    group = group_of(prevalence)
    return {name: group == name for name in GROUPS} | {"rare": np.asarray(positives) < RARE}


def macro(
    per_class: Mapping[str, Array], chance: Array, chosen: npt.NDArray[np.bool_] | None = None
) -> dict[str, Array]:
    """Averages over the chosen classes that have a value; ``chance_ap`` over those that have an AP.

    Args:
        per_class: figure -> (..., C), one of ``NEED_POSITIVES`` at least: all of them are known of the same classes.
        chance: (..., C) share of positives.
        chosen: (C,) the classes to average; None for all.

    Returns:
        ``macro_`` figure -> (...), nan where no chosen class has a value.
    """
    columns = {f"macro_{name}": values for name, values in per_class.items()}
    known = next(per_class[name] for name in NEED_POSITIVES if name in per_class)
    columns["chance_ap"] = np.where(np.isnan(known), np.nan, chance)
    return {name: mean_defined(values if chosen is None else values[..., chosen]) for name, values in columns.items()}


def mean_defined(values: Array) -> Array:
    """The mean over the last axis of what is not nan; nan where everything is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    return np.where(count > 0, np.where(defined, values, 0).sum(axis=-1) / np.maximum(count, 1), np.nan)


def _floats(figures: Mapping[str, Array]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
