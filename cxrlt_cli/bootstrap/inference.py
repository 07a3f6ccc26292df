"""A figure in resamples: its standard error, its interval, and whether it differs from another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .intervals import ROUNDING, at_the_end, deviation, leaning, moments, of_an_error, on_logit_scale, student

Array = npt.NDArray[np.float64]

#: Figures between 0 and 1 that may reach both ends.
SHARES = frozenset({"ap", "auroc", "f1", "precision", "recall", "f1_at_half", "brier", "chance_ap"})
#: From here on the bias of mAP is worth a word.
_NOTABLE = 0.005
#: With fewer degrees of freedom the interval of an average can be nearly [0, 1].
_FEW = 4
_WITH_F1 = frozenset({"f1", "f1_at_half"})
_OF_DECISIONS = _WITH_F1 | {"precision", "recall"}


@dataclass(frozen=True, slots=True)
class Resampled:
    """A figure in R resamples, or that of each of C classes, and how much less its spread tells when patients are few.

    Attributes:
        name: of the figure, as in ``metrics.Evaluation``.
        values: (R,) or (R, C), nan where undefined.
        freedom: degrees of freedom of Student's t, a number or (C,): the patients that decide about a class, less one.
        widening: factor on the standard deviation of ``values``, at least 1.
        floor: standard error that the resamples cannot show, added in squares.
        bias: by how much the figure is too large on average, as estimated.
        unknown: whether the figure of a class is a 0 that stands for nothing known; of an average, the share of such
            classes, by which its upper end rises.
        parts: (2, K) of an average: figures and standard errors of the K classes that vary in the resamples.
    """

    name: str
    values: Array
    freedom: Array | float = np.inf
    widening: Array | float = 1.0
    floor: Array | float = 0.0
    bias: Array | float = 0.0
    unknown: Array | float = 0.0
    parts: Array = field(default_factory=lambda: np.empty((2, 0)))

    def __getitem__(self, classes: Any) -> Resampled:
        """That of one class, or of several in the order given."""
        of = {name: np.broadcast_to(getattr(self, name), self.values.shape[1:])[classes] for name in _OF_CLASS}
        return replace(self, values=self.values[:, classes], **of)

    @property
    def error(self) -> Array:
        """Standard error, a number or (C,)."""
        return np.asarray(np.hypot(deviation(self.values) * self.widening, self.floor))

    def reach(self, level: float = 0.95) -> Array:
        """Half the width of an interval: Student's t times the standard error, a number or (C,).

        nan where all resamples say the same, as with one patient: the figure has an error, but they cannot show it.
        """
        return np.where(self.error > 0, student((1 + level) / 2, self.certainty) * self.error, np.nan)

    @property
    def certainty(self) -> Array:
        """Degrees of freedom of ``error``, a number or (C,).

        Few patients and few resamples make it uncertain. A variance estimated with f degrees of freedom has a relative
        variance of 2 / f, and those of the two add up: ``1 / (1 / freedom + 1 / (R - 1))``.
        """
        resamples = max(len(self.values) - 1, 1)
        return np.asarray(1 / (1 / np.maximum(self.freedom, 1) + 1 / resamples))

    def interval(self, point: npt.ArrayLike, level: float = 0.95) -> tuple[Any, Any]:
        """The interval of the figure, of all images a number or (C,), by the kind of figure.

        - AP, AUROC, F1, precision, recall, Brier score, and the averages of AP, AUROC and Brier score:
          ``on_logit_scale``; where they are 0 or 1, ``at_the_end``.
        - averages of F1, precision and recall: ``_of_decisions``. In groups of rare classes they are near 0 with a
          large error, which the logit scale would stretch to 1.
        - calibration errors: ``of_an_error``.
        - slope and intercept: the figure -+ ``reach``.

        Returns:
            Lower and upper end, as ``point``; nan where fewer than two resamples have a value, or where all have the
            same and it is neither 0 nor 1.
        """
        value, reach = np.asarray(point, np.float64), self.reach(level)
        kind = self.name.removeprefix("macro_").removeprefix("micro_")
        if kind == "ece":
            return of_an_error(value, reach, np.asarray(self.bias), student((1 + level) / 2, self.certainty))
        if self.name.startswith("macro_") and kind in _OF_DECISIONS:
            return self._of_decisions(value, level)
        if kind not in SHARES:
            return (value - reach)[()], (value + reach)[()]
        inside = on_logit_scale(value, reach, self.bias)
        patients = np.where(np.isnan(self.error), 0, np.asarray(self.freedom) + 1)
        ends = at_the_end(value, patients, level, f1=kind in _WITH_F1)
        low, high = (np.where((value == 0) | (value == 1), b, a) for a, b in zip(inside, ends, strict=True))
        return low[()], high[()]

    def _of_decisions(self, value: Array, level: float) -> tuple[Any, Any]:
        """As far below and above the average as the intervals of its classes reach together, cut at 0 and 1.

        Their distances to either end are added in squares (Zou and Donner, 2008), and scaled to the spread of the
        average, as classes are not independent.
        """
        quantile = student((1 + level) / 2, self.certainty)
        figures, errors = self.parts
        shown = quantile * deviation(self.values) * self.widening
        hidden = np.where(self.error > 0, quantile * self.floor, np.nan)
        below, above = (np.hypot(shown * side, hidden) for side in leaning(figures, quantile * errors))
        return np.maximum(value - below, 0)[()], np.minimum(value + above + self.unknown, 1)[()]


_OF_CLASS = ("freedom", "widening", "floor", "bias", "unknown")


def of_classes(
    name: str,
    values: Array,
    patients: npt.ArrayLike,
    bias: Array | float = 0.0,
    unknown: npt.NDArray[np.bool_] | bool = False,
) -> Resampled:
    """The figure of each class.

    A bootstrap divides by n where a sample variance divides by n - 1, and its normal quantile takes the variance for
    known. With seven positive patients that makes a 95 % interval hold 86 % of the time; ``n / (n - 1)`` and Student's
    t with n - 1 degrees of freedom mend it.

    Args:
        name: of the figure.
        values: (R, C).
        patients: (C,) how many patients decide about each class: n.
        bias: (C,) of the figures.
        unknown: (C,) whether the figure is a 0 that stands for nothing known.
    """
    count = np.broadcast_to(np.asarray(patients, np.float64), values.shape[1:])
    enough = np.maximum(count, 2)
    return Resampled(
        name, values, count - 1, np.sqrt(enough / (enough - 1)), bias=bias, unknown=np.asarray(unknown, float)
    )


def averaged(values: Array, classes: Resampled, bias: Array | float = 0.0, variance: Array | float = 0.0) -> Resampled:
    """The macro average of classes.

    The degrees of freedom are those of Welch and Satterthwaite (1946) for a mean of C estimates with variances v and
    freedoms f: ``(sum v)^2 / sum(v^2 / f)``. A class whose figure is the same in every resample, mostly 0 or 1, shows
    no spread though it has some; it adds the variance of a share of which 0 of n were seen, under Jeffreys' prior.
    Where no class varies, as with one patient, that holds for figures of 0 and 1 only: others leave no interval.

    Args:
        values: (R,) the averages.
        classes: (R, C) what was averaged.
        bias: (C,) of each class.
        variance: (C,) of each class, estimated in another way. The standard error is widened for whichever sum of
            variances is larger.
    """
    count = np.asarray(classes.freedom) + 1
    shown = deviation(classes.values) ** 2
    hidden = (shown == 0) & (count > 0) & (classes.name in SHARES)
    own = np.where(hidden, _jeffreys(count), shown * np.asarray(classes.widening) ** 2)
    used = ~np.isnan(own)
    parts = np.stack([moments(classes.values)[0], np.sqrt(own)])[:, used & (shown > 0)]
    own, shown, freedom = own[used], shown[used], np.maximum(count[used] - 1, 1)
    if not own.sum() or not (shown.any() or _at_an_end(classes.values[:, used])):
        return Resampled(f"macro_{classes.name}", values, float((count[used] - 1).min(initial=np.inf)))
    other = np.broadcast_to(np.asarray(variance, np.float64), used.shape)[used].sum()
    seen = max(own[~hidden[used]].sum(), other) / shown.sum() if shown.any() else 1.0
    return Resampled(
        f"macro_{classes.name}",
        values,
        freedom=float(own.sum() ** 2 / (own**2 / freedom).sum()),
        widening=float(np.sqrt(seen)),
        floor=float(np.sqrt(own[hidden[used]].sum()) / len(own)),
        bias=_mean(np.broadcast_to(np.asarray(bias, np.float64), used.shape)[used]),
        unknown=_mean(np.broadcast_to(np.asarray(classes.unknown, np.float64), used.shape)[used]),
        parts=parts,
    )


def pooled(several: Sequence[Resampled], *, independent: bool) -> Resampled:
    """The mean of one figure over the repetitions that have it: a fold may lack a group.

    Args:
        several: K figures (R,).
        independent: whether they are of different patients, as folds are. Their degrees of freedom then add up, by the
            formula of ``averaged``; seeds, scored on the same patients, have no more than one of them.
    """
    having = [one for one in several if not np.isnan(one.values).all()] or several
    freedom, floor, own = (np.array(each, np.float64) for each in zip(*map(_uncertainty, having), strict=True))
    together = freedom.min()
    if independent and own.sum() > 0:
        together = own.sum() ** 2 / (own**2 / np.maximum(freedom, 1)).sum()
    return Resampled(
        several[0].name,
        np.array([_mean(row) for row in np.stack([one.values for one in having], axis=1)]),
        freedom=float(together),
        widening=float(np.mean([one.widening for one in having])),
        floor=float(np.sqrt((floor**2).sum()) / len(having) if independent else floor.mean()),
        bias=float(np.mean([one.bias for one in having])),
        unknown=float(np.mean([one.unknown for one in having])),
        parts=np.concatenate([one.parts for one in having], axis=1),
    )


def _uncertainty(one: Resampled) -> tuple[float, float, float]:
    """Degrees of freedom, floor and variance of one figure."""
    return float(np.asarray(one.freedom)), float(np.asarray(one.floor)), float(np.nan_to_num(one.error)) ** 2


def bias_note(biases: Iterable[float]) -> str:
    """Why mAPs with these biases stand near the upper end of their interval, or above it; empty where all are small."""
    most = max(biases, default=0.0)
    if most < _NOTABLE:
        return ""
    return f"With few positives mAP comes out too high, here by up to {most:.3f}; its intervals allow for that."


def note_of(averages: Iterable[Resampled]) -> str:
    """What a reader of these mAPs has to know: ``bias_note``, and what very wide intervals mean; empty if nothing."""
    shown = list(averages)
    notes = [bias_note(float(np.asarray(one.bias)) for one in shown)]
    if any(one.certainty < _FEW for one in shown if np.any(one.error > 0)):
        notes.append("Where an interval is nearly [0, 1], too few patients have the findings to tell anything.")
    return "\n".join(filter(None, notes))


def p_text(p: float | None) -> str:
    """A p value for people: ``0.012``, ``< 0.001``; "-" for none."""
    if p is None or np.isnan(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _at_an_end(values: Array) -> bool:
    """Whether every defined value is 0 or 1, so that its never changing leaves room on one side only."""
    return bool(np.isin(values[~np.isnan(values)], (0, 1)).all())


def _jeffreys(count: Array) -> Array:
    """The variance of a share of which 0 of ``count`` were seen: that of Beta(1/2, count + 1/2)."""
    return 0.5 * (count + 0.5) / ((count + 1) ** 2 * (count + 2))


def _mean(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


# -- comparisons ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """A minus B, measured on the same images.

    Each is a number, or an array (C,) for figures of classes.

    Attributes:
        value: the difference.
        low: lower end of its interval.
        high: upper end.
        p: two-sided p value; below 0.05 exactly where 0 is outside the 95 % interval.
        detectable: the smallest true difference that would be found with 80 % power by a two-sided test at 5 %.
    """

    value: Any
    low: Any
    high: Any
    p: Any
    detectable: Any


def paired(
    point_a: npt.ArrayLike, point_b: npt.ArrayLike, a: Resampled, b: Resampled, level: float = 0.95
) -> Difference:
    """Compare two sets of predictions by their replicates in the same resamples.

    The difference over its standard error, which is that of the differences of the replicates, is referred to Student's
    t (the bootstrap's way to a paired t test). Freedom and widening are those of the figure that is less certain.
    Equal predictions have p = 1. Where they differ by the same in every resample, as with a single positive, nothing
    can be told: p, interval and what could be detected are nan.

    Args:
        point_a: figure of A on all images, a number or (C,).
        point_b: the same of B.
        a: the figure in resamples of the same patients with the same seed as ``b``.
        b: the same of B.
        level: nominal coverage of the interval.
    """
    from scipy.special import stdtr

    value = np.asarray(point_a, dtype=np.float64) - np.asarray(point_b, dtype=np.float64)
    value = np.where(np.abs(value) < ROUNDING, 0.0, value)
    both = Resampled(a.name, a.values - b.values, np.minimum(a.freedom, b.freedom), np.maximum(a.widening, b.widening))
    error, freedom = both.error, both.certainty
    error = np.where((error > 0) | (value == 0), error, np.nan)
    reach = student((1 + level) / 2, freedom) * error
    same = (value == 0) & ~np.isnan(error)
    p = np.where(same, 1.0, 2 * stdtr(freedom, -np.abs(value) / np.where(error > 0, error, np.nan)))
    needed = (student(0.975, freedom) + student(0.8, freedom)) * error
    return Difference(value[()], (value - reach)[()], (value + reach)[()], p[()], needed[()])


def holm(p: npt.ArrayLike) -> Array:
    """Holm's adjusted p values (1979): rejecting those below a level errs at most that often in the whole family.

    Args:
        p: (C,); nan takes no part.

    Returns:
        (C,) in [0, 1], nan where ``p`` is.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted
