"""The worst errors of an evaluation, and which findings false alarms are really about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.metrics import GROUPS
from cxrlt_cli.metrics.calibration import log_odds_of
from cxrlt_cli.report.contents import Array, Judged
from cxrlt_cli.report.shapes import wilson

Kind = Literal["false alarm", "miss"]

#: Errors of one kind shown for each of head, medium and tail, and for one class at most.
IN_A_GROUP, OF_A_CLASS = 8, 2


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that is far on the wrong side.

    Attributes:
        row: of the image.
        c: the class.
        kind: a high posterior without the finding, or a low one with it.
        group: head, medium or tail.
        posterior: of the class.
        beyond: how far the posterior is on the wrong side, in log-odds from the threshold.
    """

    row: int
    c: int
    kind: Kind
    group: str
    posterior: float
    beyond: float


def worst(judged: Judged) -> list[Mistake]:
    """The images furthest on the wrong side of the threshold: some for each group and kind.

    At most ``OF_A_CLASS`` of a class and ``IN_A_GROUP`` of a group and kind, so that frequent findings do not crowd the
    rare ones out; an image stands once in a group and kind. Classes without positives here have no misses, and none
    but wrong decisions are shown.
    """
    found = []
    for group in GROUPS:
        classes = [c for c in judged.order if judged.result.group[c] == group]
        for kind in ("false alarm", "miss"):
            found += _worst_of(mistake for c in classes for mistake in _of_class(judged, c, kind, group))
    return found


def _worst_of(candidates: Iterable[Mistake]) -> list[Mistake]:
    chosen: list[Mistake] = []
    seen: set[int] = set()
    per_class: dict[int, int] = {}
    for one in sorted(candidates, key=lambda one: (-one.beyond, one.c, one.row)):
        if one.row in seen or per_class.get(one.c, 0) >= OF_A_CLASS:
            continue
        chosen.append(one)
        seen.add(one.row)
        per_class[one.c] = per_class.get(one.c, 0) + 1
        if len(chosen) == IN_A_GROUP:
            break
    return chosen


def _of_class(judged: Judged, c: int, kind: Kind, group: str) -> list[Mistake]:
    alarm = kind == "false alarm"
    wrong = (judged.labels[:, c] == (0 if alarm else 1)) & (judged.decisions[:, c] == alarm)
    rows = np.flatnonzero(wrong)
    posterior = judged.posteriors[rows, c]
    order = np.argsort(-posterior if alarm else posterior, kind="stable")[:IN_A_GROUP]
    limit = 0.5 if judged.thresholds is None else float(judged.thresholds[c])
    beyond = (log_odds_of(posterior[order]) - log_odds_of(np.array([limit]))) * (1 if alarm else -1)
    places = zip(rows[order].tolist(), posterior[order].tolist(), beyond.tolist(), strict=True)
    return [Mistake(row, c, kind, group, value, far) for row, value, far in places]


# -- confusions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confusions:
    """What is really there where a finding is wrongly called.

    Attributes:
        alarms: (C,) wrong calls of each class.
        shares: (C, C): of the wrong calls of a row's class with a known label of a column's class, the share that has
            it; nan where there are none, and on the diagonal.
        usual: (C, C): the same share among all images whose label of the row's class is 0.
        likely: (C, C): whether a share is above the usual one by more than chance: of two images at least, and the
            lower end of its 95 % interval (Wilson) is above it.
        nothing: (C,) share of the wrong calls without any known finding; nan where there are none.
    """

    alarms: npt.NDArray[np.int64]
    shares: Array
    usual: Array
    likely: npt.NDArray[np.bool_]
    nothing: Array


def confusions(judged: Judged) -> Confusions:
    """Findings that are present where another one is called and absent."""
    positive, known, absent = judged.labels == 1, judged.labels >= 0, judged.labels == 0
    wrong = absent & judged.decisions
    alarms = wrong.sum(axis=0)
    empty = ~positive.any(axis=1)
    shares, low = _shares(wrong, positive, known)
    usual, _ = _shares(absent, positive, known)
    np.fill_diagonal(shares, np.nan)
    np.fill_diagonal(usual, np.nan)
    nothing = np.where(alarms > 0, (wrong & empty[:, None]).sum(axis=0) / np.maximum(alarms, 1), np.nan)
    return Confusions(alarms, shares, usual, low > usual, nothing)


def _shares(
    chosen: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """(C, C): of the images chosen for a row with a known label of a column, the share that is positive.

    Returns:
        The shares, and the lower ends of their intervals, nan for fewer than two positives.
    """
    rows = chosen.astype(np.float32).T
    hit, all_of = rows @ positive.astype(np.float32), rows @ known.astype(np.float32)
    shares = np.where(all_of > 0, hit / np.maximum(all_of, 1), np.nan).astype(np.float64)
    return shares, np.where(hit > 1, wilson(hit, np.maximum(all_of, 1))[0], np.nan)
