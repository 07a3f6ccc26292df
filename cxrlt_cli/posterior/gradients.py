"""Deriving the posterior link of a loss from the gradients of the loss itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import PluginError
from cxrlt_cli.posterior.link import Array, Link

if TYPE_CHECKING:
    from cxrlt_cli.contracts import Loss

Mask = npt.NDArray[np.bool_]

#: Largest error of the tabulated log-odds that refinement leaves between two knots.
TOLERANCE = 5e-5
#: Log-odds up to which a ratio of gradients is believed, by the precision the loss computes in. A gradient written as
#: ``sigmoid(z) - y`` is off by one rounding unit, which is exp(limit) times as much of the smaller gradient.
LIMITS = {"float64": 24.0, "float32": 9.0}
#: Where the search for the interesting logits begins: 0, and both signs of 1e-3 to 1e3.
START = np.concatenate([-np.geomspace(1e3, 1e-3, 200), [0.0], np.geomspace(1e-3, 1e3, 200)])
#: Intervals narrower than this, relative to 1 + |logit|, are not cut again: the ratio has a jump there.
NARROWEST = 1e-9
#: A ratio that needs more knots than this is no function of the logit.
MOST_KNOTS = 20_000


def derive(loss: Loss, w_pos: npt.ArrayLike, w_neg: npt.ArrayLike) -> Link | None:
    """Derive the posterior link of a loss from its own gradient.

    Between the outermost logits where both gradients can be told from rounding (log-odds of about +-24 for a loss that
    keeps float64) the table errs by less than 1e-4 in log-odds. Beyond, it continues with the slope of the last tenth
    of that range. Where one gradient is exactly 0, as below the clip of the asymmetric loss, the true posterior is 0
    or 1; the table then lies beyond log-odds of +-24 and keeps rising gently, so that ranks survive.

    Args:
        loss: a loss over C classes; it is copied, never changed.
        w_pos: (C,) weights on positives, above 0, as re-weighting sets them at the end of training.
        w_neg: (C,) weights on negatives, above 0.

    Returns:
        The link, or None when the loss is not pointwise: by its own word, or because an entry's gradient moved with
        other entries of the batch.

    Raises:
        PluginError: the loss fails when called, or its gradients belong to no posterior: one has the wrong sign, or
            their ratio falls as the logit rises.
    """
    if not getattr(loss, "pointwise", True):
        return None
    shift = np.log(np.asarray(w_neg, dtype=np.float64)) - np.log(np.asarray(w_pos, dtype=np.float64))
    probe = _Probe.of(loss, len(shift))
    if not probe.is_pointwise():
        return None
    table = _refined(probe)
    log_odds = np.stack([_completed(probe, table, klass) for klass in range(probe.classes)])
    knots = _worth_keeping(table.trusted)
    return Link(table.logit[knots], np.ascontiguousarray(log_odds[:, knots] + shift[:, None]))


@dataclass(frozen=True, slots=True)
class _Probe:
    """A private copy of a loss, and how to read its gradients."""

    loss: Loss
    classes: int
    precision: str

    @staticmethod
    def of(loss: Loss, classes: int) -> _Probe:
        import torch

        twin = copy.deepcopy(loss)
        if isinstance(twin, torch.nn.Module):
            twin = twin.cpu()
        probe = _Probe(twin, classes, "float64")
        gradient = probe.gradient(*probe.random_batch(0))
        in_float32 = np.array_equal(gradient, gradient.astype(np.float32))
        return _Probe(twin, classes, "float32") if in_float32 else probe

    @property
    def name(self) -> str:
        return f"loss {type(self.loss).__name__}"

    @property
    def limit(self) -> float:
        return LIMITS[self.precision]

    @property
    def rounding(self) -> float:
        """Relative rounding error to expect of a gradient, with a margin for the loss's own arithmetic."""
        return float(4 * np.finfo(self.precision).eps)

    def gradient(self, logits: Array, targets: Array) -> Array:
        """(B, C) derivative of the loss at float64 logits, every entry weighing 1; 0 where it is not finite.

        Raises:
            PluginError: the loss fails, or has no gradient.
        """
        import torch

        try:
            with torch.inference_mode(False), torch.enable_grad():
                z = torch.tensor(logits, requires_grad=True)
                value = self.loss(z, torch.tensor(targets), torch.ones_like(z))
                (gradient,) = torch.autograd.grad(value, z)
        except Exception as error:  # a plugin may raise anything
            raise PluginError(
                f"gives no gradient for {logits.shape[0]} rows of float64 logits: {type(error).__name__}: {error}",
                where=self.name,
                cure="A loss takes logits, targets and weight (B, C), also in float64; its result is differentiable.",
            ) from error
        return np.nan_to_num(np.asarray(gradient, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)

    def slopes(self, logits: Array) -> tuple[Array, Array]:
        """(G,) logits -> how hard a positive is pushed up and a negative down there: two arrays (G, C), >= 0.

        Raises:
            PluginError: a positive is pushed down or a negative up.
        """
        rows = np.repeat(logits[:, None], self.classes, axis=1)
        batch = np.concatenate([rows, rows])
        targets = np.concatenate([np.ones_like(rows), np.zeros_like(rows)])
        # times the count of entries: the derivative of each entry's own loss
        gradient = self.gradient(batch, targets) * batch.size
        up, down = -gradient[: len(rows)], gradient[len(rows) :]
        slack = np.sqrt(self.rounding) * np.maximum(np.abs(up), np.abs(down))
        for slope, push in ((up, "positive down"), (down, "negative up")):
            for row, klass in np.argwhere(slope < -slack)[:1]:
                raise self.fault(f"at logit {logits[row]:.3g} of class number {klass} its gradient pushes a {push}")
        return np.maximum(up, 0), np.maximum(down, 0)

    def is_pointwise(self) -> bool:
        """Whether the gradient of half the entries of a random batch stays while the other half changes."""
        logits, targets = self.random_batch(0)
        other_logits, other_targets = self.random_batch(1)
        kept = np.random.default_rng(2).random(logits.shape) < 0.5
        before = self.gradient(logits, targets)[kept]
        after = self.gradient(np.where(kept, logits, other_logits), np.where(kept, targets, other_targets))[kept]
        close = np.sqrt(self.rounding)
        return bool(np.allclose(before, after, rtol=close, atol=close * np.abs(before).max(initial=0)))

    def random_batch(self, seed: int) -> tuple[Array, Array]:
        """Logits and targets (32, C); the logits range from 1e-2 to 10 in size, to be felt by a loss of any scale."""
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(32, self.classes)) * 10 ** rng.uniform(-2, 1, (32, self.classes))
        return logits, rng.integers(0, 2, logits.shape).astype(np.float64)

    def fault(self, finding: str) -> PluginError:
        return PluginError(
            f"its gradients make no posterior: {finding}",
            where=self.name,
            cure="Where the label is 1 the loss must fall as the logit rises, where it is 0 it must rise, and the "
            "ratio of the two slopes must rise too. A loss meant to be otherwise sets `pointwise = False`.",
        )


@dataclass(frozen=True, slots=True)
class _Table:
    """Ratios of gradients on a grid.

    Attributes:
        logit: (G,), ascending.
        ratio: (G, C) log of down over up, the log-odds for equal weights; +-inf where one is 0, nan where both are.
        noise: (G, C) error of the ratio that rounding explains.
        trusted: (G, C) the ratio can be told from rounding.
        one_sided: (G, C) one gradient is lost in rounding, the other is not.
        unsettled: (G,) nobody checked yet that the interval above this knot can be interpolated in.
    """

    logit: Array
    ratio: Array
    noise: Array
    trusted: Mask
    one_sided: Mask
    unsettled: Mask

    def rows(self, chosen: npt.NDArray[np.int64] | Mask) -> _Table:
        return _Table(**{column.name: getattr(self, column.name)[chosen] for column in fields(self)})

    def merged(self, other: _Table) -> _Table:
        order = np.argsort(np.concatenate([self.logit, other.logit]))
        both = {column.name: (getattr(self, column.name), getattr(other, column.name)) for column in fields(self)}
        return _Table(**{name: np.concatenate(pair)[order] for name, pair in both.items()})


def _reference(probe: _Probe) -> Array:
    """What counts as a large gradient (C,): the largest where both are felt. Rounding errors are a share of it.

    Raises:
        PluginError: no logit of a class has a gradient for both.
    """
    up, down = probe.slopes(START)
    felt = np.minimum(up, down) > np.exp(-probe.limit) * np.maximum(up, down)
    for klass in np.flatnonzero(~felt.any(axis=0))[:1]:
        raise probe.fault(f"no logit moves both positives and negatives of class number {klass}")
    return np.asarray(np.where(felt, np.maximum(up, down), 0).max(axis=0))


def _evaluated(probe: _Probe, logit: Array, reference: Array) -> _Table:
    """The table at these logits, its noise judged by the ``reference`` (C,)."""
    up, down = probe.slopes(logit)
    smaller, larger = np.minimum(up, down), np.maximum(up, down)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.log(down) - np.log(up)
        noise = probe.rounding * np.maximum(larger, reference) / smaller
    trusted = noise <= probe.rounding * np.exp(probe.limit)
    one_sided = (np.abs(ratio) > probe.limit) & (larger > np.exp(-probe.limit) * reference)
    return _Table(logit, ratio, noise, trusted, one_sided, np.ones(len(logit), dtype=bool))


def _refined(probe: _Probe) -> _Table:
    """A table fine enough to interpolate in: intervals that fail are cut in three until none does."""
    reference = _reference(probe)
    table = _evaluated(probe, START, reference)
    while (below := np.flatnonzero(table.unsettled[:-1])).size:
        if len(table.logit) > MOST_KNOTS:
            raise probe.fault("their ratio is no smooth function of the logit")
        low, high = table.rows(below), table.rows(below + 1)
        width = (high.logit - low.logit) / 3
        cuts = [_evaluated(probe, low.logit + share * width, reference) for share in (1, 2)]
        failed = _bends(low, high, cuts) | _jumps(probe, low, high)
        failed &= width > NARROWEST * (1 + np.abs(low.logit))
        table.unsettled[below] = failed
        table = table.merged(cuts[0].rows(failed)).merged(cuts[1].rows(failed))
    return table


def _bends(low: _Table, high: _Table, cuts: list[_Table]) -> Mask:
    """Which intervals (K,) are too long for a straight line, judged at one and two thirds of their length."""
    bends = np.zeros_like(low.ratio, dtype=bool)
    with np.errstate(invalid="ignore"):
        for share, cut in zip((1 / 3, 2 / 3), cuts, strict=True):
            error = np.abs(cut.ratio - low.ratio - share * (high.ratio - low.ratio))
            bends |= ~(error <= TOLERANCE + cut.noise)
    return np.asarray((bends & low.trusted & high.trusted).any(axis=1))


def _jumps(probe: _Probe, low: _Table, high: _Table) -> Mask:
    """Which intervals (K,) hold the place where one gradient becomes 0 all at once, which must be found exactly."""
    jumps = np.zeros_like(low.ratio, dtype=bool)
    for inside, outside in ((low, high), (high, low)):
        far_from_limit = np.abs(inside.ratio) < probe.limit - 1
        jumps |= inside.trusted & far_from_limit & outside.one_sided
    return np.asarray(jumps.any(axis=1))


def _worth_keeping(trusted: Mask) -> npt.NDArray[np.int64]:
    """Knots where some class is trusted, one more on each side for a jump, and the two ends for the slopes beyond."""
    inside = np.flatnonzero(trusted.any(axis=1))
    last = len(trusted) - 1
    return np.unique([0, *range(max(inside[0] - 1, 0), min(inside[-1] + 1, last) + 1), last])


def _completed(probe: _Probe, table: _Table, klass: int) -> Array:
    """One class's log-odds at every knot (G,): the trusted ratios, made to rise, and tails that continue them.

    Raises:
        PluginError: the ratio falls, or does not depend on the logit.
    """
    z = table.logit
    known = np.flatnonzero(table.trusted[:, klass])
    first, last = known[0], known[-1]
    rising = _rising(probe, table.rows(known), klass)
    log_odds = np.interp(z, z[known], rising)
    top = _tail_start(probe, table, klass, last, 1)
    log_odds[last + 1 :] = top + _end_slope(z[known], rising) * (z[last + 1 :] - z[last])
    bottom = _tail_start(probe, table, klass, first, -1)
    log_odds[:first] = bottom + _end_slope(-z[known][::-1], -rising[::-1]) * (z[:first] - z[first])
    return np.maximum.accumulate(log_odds)


def _rising(probe: _Probe, known: _Table, klass: int) -> Array:
    """The class's trusted ratios (K,), freed from falls that rounding explains."""
    ratio = known.ratio[:, klass]
    rising = np.maximum.accumulate(ratio)
    falls = rising - ratio > 1e-6 + 2 * known.noise[:, klass]
    if falls.any():
        where = known.logit[falls][0]
        raise probe.fault(f"the posterior of class number {klass} falls as the logit rises to {where:.3g}")
    if not np.ptp(rising) > 1e-6:
        raise probe.fault(f"the posterior of class number {klass} does not depend on the logit")
    return rising


def _tail_start(probe: _Probe, table: _Table, klass: int, edge: int, side: int) -> float:
    """Log-odds where the tail beyond a trusted knot starts: the knot's own, or past the limit where one gradient ends.

    ``side`` is 1 above and -1 below.
    """
    here, beyond = float(table.ratio[edge, klass]), edge + side
    if not 0 <= beyond < len(table.logit) or not table.one_sided[beyond, klass] or abs(here) >= probe.limit - 1:
        return here
    if table.ratio[beyond, klass] * side < 0:
        where = table.logit[max(edge, beyond)]
        raise probe.fault(f"the posterior of class number {klass} falls as the logit rises to {where:.3g}")
    return side * probe.limit


def _end_slope(logit: Array, log_odds: Array) -> float:
    """Slope over the upper tenth of the range; 0 where the log-odds have levelled off for good."""
    start = logit[-1] - 0.1 * (logit[-1] - logit[0])
    slope = (log_odds[-1] - np.interp(start, logit, log_odds)) / (logit[-1] - start)
    average = (log_odds[-1] - log_odds[0]) / (logit[-1] - logit[0])
    return float(slope) if slope > 1e-3 * average else 0.0
