"""Decisions against labels: precision, recall, F1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .ranking import Array, Labels


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
