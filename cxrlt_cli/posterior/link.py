"""The table from logits to log-odds, and its place in the model file. Needs neither torch nor the loss's plugin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import RunError
from cxrlt_cli.logistic import sigmoid

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Link:
    """A table from logit to log-odds of the posterior, linear between its knots and beyond them.

    Attributes:
        logit: (G,) knots, ascending, the same for every class.
        log_odds: (C, G) log-odds of the posterior at the knots, never falling.
    """

    logit: Array
    log_odds: Array

    def log_odds_of(self, logits: npt.ArrayLike) -> Array:
        """Logits (N, C) -> log-odds of the posterior (N, C), float64."""
        z = np.asarray(logits, dtype=np.float64)
        slopes = np.diff(self.log_odds) / np.diff(self.logit)
        knot = np.clip(np.searchsorted(self.logit, z, side="right") - 1, 0, len(self.logit) - 2)
        classes = np.arange(len(self.log_odds))
        return np.asarray(self.log_odds[classes, knot] + slopes[classes, knot] * (z - self.logit[knot]))

    def posterior(self, logits: npt.ArrayLike) -> Array:
        """Logits (N, C) -> P(finding | image) (N, C), float64 in [0, 1]."""
        return sigmoid(self.log_odds_of(logits))

    def inverse(self, log_odds: npt.ArrayLike) -> Array:
        """Log-odds (C,) or (N, C) -> the logits that mean them, of the same shape.

        Where the posteriors of a loss level off before reaching them, the logit within 0.01 log-odds of that level.
        """
        targets = np.asarray(log_odds, dtype=np.float64)
        columns = [self._invert(row, targets[..., c]) for c, row in enumerate(self.log_odds)]
        return np.stack(columns, axis=-1)

    def _invert(self, row: Array, targets: Array) -> Array:
        bottom, top = np.diff(row)[[0, -1]] / np.diff(self.logit)[[0, -1]]
        low, high = (row[0] if bottom else row[0] + 0.01), (row[-1] if top else row[-1] - 0.01)
        inside = np.interp(np.clip(targets, low, high), row, self.logit)
        below = np.minimum(targets - low, 0) / bottom if bottom else 0.0
        above = np.maximum(targets - high, 0) / top if top else 0.0
        return np.asarray(inside + below + above)


def posterior_of(link: Link | None, logits: npt.ArrayLike) -> Array:
    """Posteriors (N, C) of logits (N, C); without a link the logits are taken for log-odds, uncalibrated."""
    return link.posterior(logits) if link is not None else sigmoid(logits)


def link_tensors(link: Link) -> dict[str, Array]:
    """The tensors that carry a link in ``model.safetensors``, in row order (safetensors would scramble any other)."""
    return {"link.logit": np.ascontiguousarray(link.logit), "link.log_odds": np.ascontiguousarray(link.log_odds)}


def read_link(model_path: Path) -> Link | None:
    """The link stored in a ``model.safetensors``, or None when its loss has none. Loads no weights and no torch.

    Raises:
        RunError: the file is missing or damaged.
    """
    import safetensors

    try:
        with safetensors.safe_open(model_path, framework="numpy") as file:
            if not {"link.logit", "link.log_odds"} <= set(file.keys()):
                return None
            return Link(file.get_tensor("link.logit"), file.get_tensor("link.log_odds"))
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"is not a readable safetensors file: {error}",
            where=str(model_path),
            cure="The file is missing or damaged; train again.",
        ) from error
