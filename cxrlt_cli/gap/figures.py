"""Figures of images that stand for others: weights for images, and another prevalence for each finding.

Under another prevalence only the balance of a class's positives and negatives changes, not what they look like (label
shift; Saerens, Latinne and Decaestecker 2002). Positives then weigh ``new / old`` and negatives
``(1 - new) / (1 - old)``, where old is the weighted prevalence of the resample at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.metrics import BINS, rank
from cxrlt_cli.metrics.calibration import equal_width_bins

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]
Decided = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]

#: Figures that need scores only, and those that need posteriors and decisions.
RANKING, DECIDED = ("macro_ap", "macro_auroc"), ("macro_f1", "ece")
FIGURES = (*RANKING, *DECIDED)
#: Weights worked on at a time.
_AT_A_TIME = 1 << 22


@dataclass(frozen=True, slots=True)
class Judged:
    """What is scored, and for which images it stands.

    Attributes:
        labels: (N, C): 1, 0, -1 where unknown.
        scores: (N, C) for ranking.
        posteriors: (N, C) in [0, 1].
        decisions: (N, C).
        weights: (N,) >= 0, what each image counts; None for 1.
        prevalence: (C,) in (0, 1), the share of positives to stand for, nan where it stays; None for what is there. Or
            a function of weights (B, N) that gives it for each of them, (B, C).
    """

    labels: Labels
    scores: npt.NDArray[np.floating]
    posteriors: Array
    decisions: Decided
    weights: Array | None = None
    prevalence: Array | Callable[[Array], Array] | None = None


def resampled(judged: Judged, times: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """Figures of each class in B resamples.

    Args:
        judged: what is scored.
        times: (B, N) how often each image occurs.

    Returns:
        The names of ``FIGURES``: (B, C), nan where a class has no positive or, for ``macro_auroc``, no negative. The
        macro figure is the mean over classes; ``ece`` is a sum over 15 equal-width bins, given as (B, 1).
    """
    parts = [_figures(judged, weights) for weights in _weights(judged, times)]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def apart(judged: Judged, times: npt.NDArray[np.uint8]) -> Array:
    """Label minus posterior in each bin of ``ece`` (B, 15), per entry: ``ece`` adds up their sizes."""
    return np.concatenate([_apart(judged, weights) for weights in _weights(judged, times)])


def point(judged: Judged) -> dict[str, Array]:
    """The same figures (C,) of the images as they are."""
    once = np.ones((1, len(judged.labels)), np.uint8)
    return {name: values[0] for name, values in resampled(judged, once).items()}


def _weights(judged: Judged, times: npt.NDArray[np.uint8]) -> Iterator[Array]:
    """What each image counts, (b, N) some resamples at a time."""
    block = max(1, _AT_A_TIME // max(times.shape[1], 1))
    for row in range(0, len(times), block):
        part = times[row : row + block]
        yield (part if judged.weights is None else part * judged.weights).astype(np.float64)


def _figures(judged: Judged, weights: Array) -> dict[str, Array]:
    columns = []
    for c, balance in enumerate(_balances(judged, weights)):
        ranking = _ranking(judged.labels[:, c], judged.scores[:, c], weights, balance)
        columns.append(ranking | {"macro_f1": _f1(judged, c, weights, balance)})
    made = {name: np.stack([each[name] for each in columns], axis=1) for name in (*RANKING, "macro_f1")}
    return made | {"ece": np.abs(_apart(judged, weights)).sum(axis=1, keepdims=True)}


def _apart(judged: Judged, weights: Array) -> Array:
    balances = _balances(judged, weights)
    off = np.sum([_bins(judged, c, weights, balance) for c, balance in enumerate(balances)], axis=0)
    entries = (weights @ (judged.labels != UNKNOWN).astype(np.float64)).sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(off / entries)


def _balances(judged: Judged, weights: Array) -> Iterator[Array]:
    """What positives and negatives (B, 2) of each class count so that positives have their share; 1 where it stays."""
    shares = judged.prevalence(weights) if callable(judged.prevalence) else judged.prevalence
    for c in range(judged.labels.shape[1]):
        labels = judged.labels[:, c]
        positive, known = labels == 1, labels != UNKNOWN
        counts = weights @ np.stack([positive, known & ~positive], axis=1).astype(np.float64)
        yield np.ones_like(counts) if shares is None else _balance(counts, shares[..., c])


def _balance(counts: Array, share: Array) -> Array:
    """The same of one class, whose positives and negatives are (B, 2) and whose share is one number, or (B,)."""
    wanted = np.broadcast_to(np.stack([share, 1 - share], axis=-1), counts.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = counts.sum(axis=1, keepdims=True) * wanted / counts
    return np.where((counts > 0).all(axis=1, keepdims=True) & ~np.isnan(wanted), factor, 1.0)


def _ranking(labels: Labels, scores: npt.NDArray[np.floating], weights: Array, balance: Array) -> dict[str, Array]:
    """AP and AUROC (B,) of one class; ties are one threshold."""
    ranked = rank(labels, scores)
    places = np.flatnonzero(ranked.positive)
    undefined = np.full(len(weights), np.nan)
    if not places.size:
        return {"macro_ap": undefined, "macro_auroc": undefined}
    holding = np.unique(np.searchsorted(ranked.ends, places))
    ends = ranked.ends[holding] + 1
    starts = np.where(holding > 0, ranked.ends[holding - 1] + 1, 0)
    falling = weights[:, ranked.order]
    upto, both = (_sums(each, starts, ends) for each in (falling * ranked.positive, falling))
    found, before, positives = (each * balance[:, :1] for each in upto)
    wrong, wrong_before, negatives = ((whole - part) * balance[:, 1:] for whole, part in zip(both, upto, strict=True))
    gained = found - before
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(found > 0, found / (found + wrong), 0)
        ap = (gained * precision).sum(axis=1) / positives[:, 0]
        below = negatives - (wrong + wrong_before) / 2
        auroc = (gained * below).sum(axis=1) / (positives * negatives)[:, 0]
    return {"macro_ap": ap, "macro_auroc": auroc}


def _sums(falling: Array, starts: Places, ends: Places) -> tuple[Array, Array, Array]:
    """Of weights (B, n) in falling order: those down to each end (B, G), those above each start, all (B, 1)."""
    cuts = np.unique(np.concatenate([[0, falling.shape[1]], starts, ends]))
    upto = np.zeros((len(falling), len(cuts)))
    np.cumsum(np.add.reduceat(falling, cuts[:-1], axis=1), axis=1, out=upto[:, 1:])
    return upto[:, np.searchsorted(cuts, ends)], upto[:, np.searchsorted(cuts, starts)], upto[:, -1:]


def _f1(judged: Judged, c: int, weights: Array, balance: Array) -> Array:
    """F1 (B,) of one class."""
    labels = judged.labels[:, c]
    positive, called = labels == 1, judged.decisions[:, c] & (labels != UNKNOWN)
    hit, miss, false = (
        weights @ side.astype(np.float64) for side in (called & positive, ~called & positive, called & ~positive)
    )
    hit, miss, false = hit * balance[:, 0], miss * balance[:, 0], false * balance[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(hit + miss > 0, 2 * hit / (2 * hit + miss + false), np.nan)


def _bins(judged: Judged, c: int, weights: Array, balance: Array) -> Array:
    """Label minus posterior of one class, added up in each bin (B, BINS)."""
    labels = judged.labels[:, c]
    rows = np.flatnonzero(labels != UNKNOWN)
    posterior, positive = judged.posteriors[rows, c], labels[rows] == 1
    off = np.zeros((2, len(labels), BINS))
    off[np.where(positive, 0, 1), rows, equal_width_bins(posterior)] = positive - posterior
    return np.asarray((weights @ off[0]) * balance[:, :1] + (weights @ off[1]) * balance[:, 1:])
