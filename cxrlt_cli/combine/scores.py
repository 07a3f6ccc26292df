"""Macro average precision of many candidate scores over the same labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.logistic import Array
from cxrlt_cli.metrics import mean_defined

Labels = npt.NDArray[np.int8]


class Judge:
    """Labels (N, C), prepared once: which images of a class are labelled, and which of those are positive.

    Average precision is the mean over the positives of the precision at their own score, so one sort of the scores, in
    which images need not be followed, is enough. Ties count as in ``metrics.average_precision``.
    """

    def __init__(self, labels: Labels) -> None:
        self._known = [np.flatnonzero(column != UNKNOWN) for column in labels.T]
        self._positive = [np.flatnonzero(column == 1) for column in labels.T]

    def macro_ap(self, scores: npt.NDArray[np.floating]) -> float:
        """Macro average precision of scores (N, C) over the classes with a positive; nan where there is none."""
        found = [self._ap(scores[:, c], c) for c in range(len(self._known)) if len(self._positive[c])]
        return float(mean_defined(np.array(found, np.float64)))

    def _ap(self, column: npt.NDArray[np.floating], c: int) -> float:
        rising, own = np.sort(column[self._known[c]]), np.sort(column[self._positive[c]])
        images = len(rising) - np.searchsorted(rising, own, side="left")
        positives = len(own) - np.searchsorted(own, own, side="left")
        return float((positives / images).mean())


def better(value: float, than: float) -> bool:
    """Whether a score beats another one by more than rounding; anything beats nan."""
    return bool(value > than + 1e-12 or (np.isnan(than) and not np.isnan(value)))


def best_of(scores: list[float]) -> int:
    """The first of the highest scores."""
    chosen = 0
    for number, value in enumerate(scores):
        if better(value, scores[chosen]):
            chosen = number
    return chosen


def judge_members(judge: Judge, log_odds: Array) -> list[float]:
    """Macro average precision of each member, from log-odds (M, N, C)."""
    return [judge.macro_ap(own) for own in log_odds]
