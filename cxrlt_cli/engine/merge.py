"""Logits of several views to one logit an image and class. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import TestTimeAugmentation, View
from cxrlt_cli.posterior import Link

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def merge(
    logits: npt.NDArray[np.float32],
    tta: TestTimeAugmentation,
    classes: Sequence[str],
    projections: Sequence[str],
    link: Link | None,
) -> npt.NDArray[np.float32]:
    """Merge the views of every image as the strategy declares, leaving out those that are not valid.

    An entry for which only the identity is valid keeps its logit exactly, unless the images are ranked. An entry for
    which a valid view gives NaN or an infinite number is NaN.

    Args:
        logits: (V, N, C), the identity first.
        tta: the strategy; :class:`TestTimeAugmentation` defines the merges.
        classes: C names.
        projections: N image views (PA, AP, lateral); empty where unknown, which every view accepts.
        link: logits to posteriors; None takes them for plain log-odds.

    Returns:
        (N, C) logits; merged posteriors come back through the link.
    """
    if len(logits) == 1:
        return np.asarray(logits[0])
    valid = validity(tta.views, classes, projections)
    finite = np.isfinite(logits)
    broken = (valid & ~finite).any(axis=0)  # a median or a mean of posteriors would hide an infinite logit
    values = np.where(valid & finite, logits, 0).astype(np.float64)
    if tta.merge == "rank":
        return np.asarray(np.where(broken, np.nan, _ranked(values, valid)), np.float32)
    if tta.merge == "max":
        merged = np.where(valid, values, -np.inf).max(axis=0)  # the link never falls: the largest posterior as well
    elif tta.space == "logit":
        merged = _mean(values, valid) if tta.merge == "mean" else _middle(values, valid).mean(axis=0)
    else:
        merged = _to_logits(_merged_posterior(_to_log_odds(values, link), valid, tta.merge), link)
    merged = np.where(valid[1:].any(axis=0), merged, values[0])
    return np.asarray(np.where(broken, np.nan, merged), np.float32)


def validity(views: Sequence[View], classes: Sequence[str], projections: Sequence[str]) -> Mask:
    """(V, N, C): which view counts for which image and class; the first one always does."""
    valid = np.ones((len(views), len(projections), len(classes)), bool)
    for index, view in enumerate(views):
        if view.classes is not None:
            valid[index] &= np.array([name in view.classes for name in classes], bool)[None, :]
        if view.projections is not None:
            valid[index] &= np.array([not name or name in view.projections for name in projections], bool)[:, None]
    valid[0] = True
    return valid


def _mean(values: Floats, valid: Mask) -> Floats:
    return np.asarray(np.where(valid, values, 0.0).sum(axis=0) / valid.sum(axis=0))


def _middle(values: Floats, valid: Mask) -> Floats:
    """(2, N, C): the two values in the middle, the same one twice of an odd number."""
    ordered, count = np.sort(np.where(valid, values, np.inf), axis=0), valid.sum(axis=0)
    return np.take_along_axis(ordered, np.stack([(count - 1) // 2, count // 2]), axis=0)


# -- posteriors ----------------------------------------------------------------------------------------------------


def _merged_posterior(log_odds: Floats, valid: Mask, how: str) -> Floats:
    """Log-odds of the merged posterior (N, C), of log-odds (V, N, C)."""
    if how == "geometric":
        return _mean(log_odds, valid)
    if how == "median":
        middle = _middle(log_odds, valid)
        return _mean_posterior(middle, np.ones(middle.shape, bool))
    return _mean_posterior(log_odds, valid)


def _mean_posterior(log_odds: Floats, valid: Mask) -> Floats:
    """Log-odds of the mean posterior.

    As log(sum of p) - log(sum of 1 - p), in logarithms throughout: a posterior rounded to 0 or 1 on the way would tie
    images that the network tells apart.
    """
    return _log_sum(-np.logaddexp(0, -log_odds), valid) - _log_sum(-np.logaddexp(0, log_odds), valid)


def _log_sum(logs: Floats, valid: Mask) -> Floats:
    return np.asarray(np.logaddexp.reduce(np.where(valid, logs, -np.inf), axis=0))


def _to_log_odds(values: Floats, link: Link | None) -> Floats:
    return values if link is None else np.stack([link.log_odds_of(view) for view in values])


def _to_logits(log_odds: Floats, link: Link | None) -> Floats:
    return log_odds if link is None else link.inverse(log_odds)


# -- ranks ---------------------------------------------------------------------------------------------------------


def _ranked(values: Floats, valid: Mask) -> Floats:
    """The identity's logits, dealt out class by class in the order of the mean place."""
    merged = np.empty(values.shape[1:])
    for index in range(values.shape[2]):
        merged[:, index] = _dealt(_mean_place(values[..., index], valid[..., index]), values[0, :, index])
    return merged


def _mean_place(values: Floats, valid: Mask) -> Floats:
    """(V, N) -> (N,) the mean over views of an image's place among all images.

    A view that is valid for some images only orders those, among the places the identity gives them.
    """
    every = np.arange(values.shape[1], dtype=np.float64)
    own = _dealt(values[0], every)
    total = own.copy()
    for view, chosen in zip(values[1:], valid[1:], strict=True):
        total[chosen] += _dealt(view[chosen], every if chosen.all() else own[chosen])
    return np.asarray(total / valid.sum(axis=0))


def _dealt(by: Floats, values: Floats) -> Floats:
    """Give the n-th in the order of ``by`` the n-th smallest of ``values``; ties share the mean of theirs."""
    _, group, counts = np.unique(by, return_inverse=True, return_counts=True)
    totals = np.add.reduceat(np.sort(values), np.cumsum(counts) - counts) if len(by) else values
    return np.asarray((totals / counts)[group])
