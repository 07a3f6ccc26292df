"""Figures of images that stand for others: weights for images, and another prevalence for each finding.

Under another prevalence only the balance of a class's positives and negatives changes, not what they look like (label
shift; Saerens, Latinne and Decaestecker 2002). Positives then weigh ``new / old`` and negatives
``(1 - new) / (1 - old)``, where old is the weighted prevalence of the resample at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        prevalence: (C,) in (0, 1), the share of positives to stand for, nan where it stays; None for what is there.
    """

    labels: Labels
    scores: npt.NDArray[np.floating]
    posteriors: Array
    decisions: Decided
    weights: Array | None = None
    prevalence: Array | None = None


def resampled(judged: Judged, times: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """Figures of each class in B resamples.

    Args:
        judged: what is scored.
        times: (B, N) how often each image occurs.

    Returns:
        The names of ``FIGURES``: (B, C), nan where a class has no positive or, for ``macro_auroc``, no negative. The
        macro figure is the mean over classes; ``ece`` is a sum over 15 equal-width bins, given as (B, 1).
    """
    block = max(1, _AT_A_TIME // max(times.shape[1], 1))
    parts = [_block(judged, times[row : row + block]) for row in range(0, len(times), block)]
    return {name: np.concatenate([part[name] for part in parts]) for name in FIGURES}


def point(judged: Judged) -> dict[str, Array]:
    """The same figures (C,) of the images as they are."""
    once = np.ones((1, len(judged.labels)), np.uint8)
    return {name: values[0] for name, values in resampled(judged, once).items()}


def _block(judged: Judged, times: npt.NDArray[np.uint8]) -> dict[str, Array]:
    weights = times if judged.weights is None else times * judged.weights
    weights = weights.astype(np.float64)
    columns = list(_classes(judged, weights))
    made = {name: np.stack([each[name] for each in columns], axis=1) for name in (*RANKING, "macro_f1")}
    off = np.sum([each["bins"] for each in columns], axis=0)
    entries = np.sum([each["known"] for each in columns], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        made["ece"] = (np.abs(off).sum(axis=1) / entries)[:, None]
    return made


def _classes(judged: Judged, weights: Array) -> Iterator[Mapping[str, Array]]:
    for c in range(judged.labels.shape[1]):
        labels = judged.labels[:, c]
        positive, known = labels == 1, labels != UNKNOWN
        counts = np.stack([positive, known & ~positive], axis=1).astype(np.float64)
        share = np.nan if judged.prevalence is None else float(judged.prevalence[c])
        balance = _balance(weights @ counts, share)
        yield {
            **_ranking(labels, judged.scores[:, c], weights, balance),
            **_decided(judged, c, weights, balance),
        }


def _balance(counts: Array, share: float) -> Array:
    """What positives and negatives (B, 2) count so that positives are a share of them; 1 where it stays."""
    if np.isnan(share):
        return np.ones_like(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = counts.sum(axis=1, keepdims=True) * np.array([share, 1 - share]) / counts
    return np.where((counts > 0).all(axis=1, keepdims=True), wanted, 1.0)


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


def _decided(judged: Judged, c: int, weights: Array, balance: Array) -> dict[str, Array]:
    """F1 (B,), known entries (B,), and label minus posterior added up in each bin (B, BINS)."""
    labels = judged.labels[:, c]
    positive, known = labels == 1, labels != UNKNOWN
    called = judged.decisions[:, c] & known
    hit, miss, false = (
        weights @ side.astype(np.float64) for side in (called & positive, ~called & positive, called & ~positive)
    )
    hit, miss, false = hit * balance[:, 0], miss * balance[:, 0], false * balance[:, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        f1 = np.where(hit + miss > 0, 2 * hit / (2 * hit + miss + false), np.nan)
    off = np.zeros((2, len(labels), BINS))
    rows, posterior = np.flatnonzero(known), judged.posteriors[known, c]
    side = np.where(positive[rows], 0, 1)
    off[side, rows, equal_width_bins(posterior)] = positive[rows] - posterior
    bins = (weights @ off[0]) * balance[:, :1] + (weights @ off[1]) * balance[:, 1:]
    return {"macro_f1": f1, "known": weights @ known.astype(np.float64), "bins": bins}
