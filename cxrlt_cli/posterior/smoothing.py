"""The link of a loss that was trained on smoothed labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cxrlt_cli.posterior.link import Array, Link

#: Log-odds up to which the table follows the formula, and what it rises by per logit beyond, so that ranks survive.
LIMIT, GENTLE = 14.0, 0.1
#: Knots a class. Between them the log-odds err by less than 0.003.
KNOTS = 225


def unsmoothed(link: Link, smoothing: float, level: npt.ArrayLike) -> Link:
    """The posterior of the true label, from the link of the loss itself.

    Training on ``(1 - e) y + e q`` makes the loss's own link answer ``s = (1 - e) eta + e q``, so that
    ``eta = (s - e q) / (1 - e)``. Where s leaves [e q, 1 - e + e q], which no label explains, eta is below 1e-6 or
    above 1 - 1e-6.

    Args:
        link: derived from the loss, without smoothing.
        smoothing: e, in [0, 1); at 0 the link comes back as it is.
        level: q, (C,) or one number, in [0, 1].
    """
    if smoothing == 0:
        return link
    asked = np.tanh(np.linspace(-LIMIT, LIMIT, KNOTS) / 2) / 2 + 0.5  # eta
    floor = smoothing * np.broadcast_to(np.asarray(level, dtype=np.float64), len(link.log_odds))
    smooth = (1 - smoothing) * asked + floor[:, None]  # (C, K)
    logits = link.inverse((np.log(smooth) - np.log1p(-smooth)).T).T
    knots = np.unique(np.concatenate([link.logit, logits.ravel()]))
    knots = knots[np.concatenate([[True], np.diff(knots) > 1e-12 * (1 + np.abs(knots[1:]))])]
    return Link(knots, np.stack([_table(knots, row) for row in logits]))


def _table(knots: Array, logits: Array) -> Array:
    """(G,) log-odds at the knots: linear between this class's own logits (K,), and gently rising outside them."""
    own, first = np.unique(logits, return_index=True)
    inside = np.interp(knots, own, np.linspace(-LIMIT, LIMIT, KNOTS)[first])
    beyond = np.minimum(knots - own[0], 0) + np.maximum(knots - own[-1], 0)
    return np.asarray(inside + GENTLE * beyond)
