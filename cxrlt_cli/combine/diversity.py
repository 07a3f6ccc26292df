"""How much members differ: an ensemble of equals that agree gains nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from cxrlt_cli.logistic import Array
from cxrlt_cli.metrics import mean_defined

Called = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two members compared.

    Attributes:
        first, second: their numbers.
        correlation: of their log-odds over the images, averaged over the classes; nan where nothing varies.
        disagreement: share of all decisions in which they differ.
        called_by_one: share of the findings called by either that only one of them calls; nan where none is called.
    """

    first: int
    second: int
    correlation: float
    disagreement: float
    called_by_one: float


def diversity(log_odds: Array, called: Called) -> list[Pair]:
    """Every pair of M members.

    Args:
        log_odds: (M, N, C).
        called: (M, N, C) their decisions.
    """
    return [_pair(log_odds, called, a, b) for a, b in combinations(range(len(log_odds)), 2)]


def _pair(log_odds: Array, called: Called, a: int, b: int) -> Pair:
    differ, either = called[a] != called[b], called[a] | called[b]
    by_one = float(differ.sum() / either.sum()) if either.any() else float("nan")
    return Pair(a, b, _correlation(log_odds[a], log_odds[b]), float(differ.mean()), by_one)


def _correlation(first: Array, second: Array) -> float:
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        by_class = np.where(spread > 0, (x * y).sum(axis=0) / spread, np.nan)
    return float(mean_defined(by_class))
