"""What is known about the images a score was made on, and about those it shall hold for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.gap.figures import Judged

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

#: Patients with a finding from which a class is judged: below, the spread of its figures cannot be told.
FEWEST = 5


class Decided(NamedTuple):
    """Posteriors (N, C) and decisions (N, C)."""

    posteriors: Array
    decisions: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Dev:
    """N images a score was made on, and all that may have flattered it.

    Attributes:
        classes: the C names.
        labels: (N, C): 1, 0, -1 where unknown.
        scores: (N, C) for ranking.
        patients: N names; no two patients share one.
        fitted: posteriors and decisions learned from these very images.
        honest: those that other patients' images taught (cross-fitted).
        epochs: (E, N, C) scores after every epoch, of which the best was kept; None where not known.
        decide: epoch -> the honest posteriors and decisions it would have had; None where not known.
        kept: which of them.
        unseen: (N,) whether the patient took no part in training; None where not known.
        exact: (N, C) labels better than ``labels``, -1 where there is none; None where there are none at all.
        views: N image views, empty where unknown.
    """

    classes: tuple[str, ...]
    labels: Labels
    scores: npt.NDArray[np.floating]
    patients: Sequence[str]
    fitted: Decided
    honest: Decided
    epochs: npt.NDArray[np.floating] | None = None
    decide: Callable[[int], Decided] | None = None
    kept: int = 0
    unseen: npt.NDArray[np.bool_] | None = None
    exact: Labels | None = None
    views: Sequence[str] = ()

    def select(self, chosen: npt.NDArray[np.bool_]) -> Dev:
        """The same for some classes (C,), without ``decide``."""
        pick = np.flatnonzero(chosen)
        return replace(
            self,
            classes=tuple(np.array(self.classes, dtype=object)[pick].tolist()),
            labels=self.labels[:, pick],
            scores=self.scores[:, pick],
            fitted=Decided(self.fitted.posteriors[:, pick], self.fitted.decisions[:, pick]),
            honest=Decided(self.honest.posteriors[:, pick], self.honest.decisions[:, pick]),
            epochs=None if self.epochs is None else self.epochs[:, :, pick],
            decide=None,
            exact=None if self.exact is None else self.exact[:, pick],
        )

    @property
    def compared(self) -> npt.NDArray[np.bool_]:
        """(N, C) entries with both labels."""
        exact = np.full(self.labels.shape, UNKNOWN, np.int8) if self.exact is None else self.exact
        return np.asarray((exact != UNKNOWN) & (self.labels != UNKNOWN))

    @property
    def best_labels(self) -> Labels:
        """(N, C) exact labels where there are any, the others elsewhere."""
        return self.labels if self.exact is None else np.where(self.exact != UNKNOWN, self.exact, self.labels)

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """(N,) a number for each patient."""
        return np.unique(np.array(self.patients, dtype=str), return_inverse=True)[1].astype(np.int64)

    def counted(self, target: Target) -> Array:
        """(N,) what images count when patients training has seen have gone, and views have the target's shares."""
        rows = np.ones(len(self.labels), bool)
        if self.unseen is not None and self.unseen.any():
            rows &= self.unseen
        return rows.astype(np.float64) if target.views is None else view_weights(self.views, rows, target.views)

    def holders(self, labels: Labels, target: Target) -> Array:
        """(C,) patients that have a finding: as many as say as much, equally weighted, as those that are left."""
        codes, weights = self.codes, self.counted(target)
        each = np.zeros((int(codes.max(initial=-1)) + 1, labels.shape[1]))
        np.maximum.at(each, codes, weights[:, None] * (labels == 1))
        return np.asarray(each.sum(axis=0) ** 2 / np.maximum((each**2).sum(axis=0), 1e-300))


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The images the score shall hold for, as far as they are known.

    Attributes:
        images: how many; None where not known.
        prevalence: (C,) share of positives, nan where not known; None where nothing is known.
        views: share of each view; None where not known.
        why: component of ``waterfall.COMPONENTS`` -> why it cannot be estimated, or is 0 by construction.
    """

    images: int | None = None
    prevalence: Array | None = None
    views: Mapping[str, float] | None = None
    why: Mapping[str, str] = field(default_factory=dict)

    def select(self, chosen: npt.NDArray[np.bool_]) -> Target:
        """The same for some classes (C,)."""
        return self if self.prevalence is None else replace(self, prevalence=self.prevalence[chosen])


def judged_classes(dev: Dev, target: Target) -> npt.NDArray[np.bool_]:
    """(C,) the classes that can be judged: enough patients with the finding on dev, and positives in the target."""
    enough = dev.holders(dev.labels, target).round() >= FEWEST
    if dev.exact is not None:
        enough &= dev.holders(dev.best_labels, target).round() >= FEWEST
        rows = (dev.counted(target) > 0)[:, None] & dev.compared
        for labels in (dev.labels, dev.exact):
            enough &= (rows & (labels == 1)).any(axis=0) & (rows & (labels == 0)).any(axis=0)
    if target.prevalence is not None:
        enough &= ~(target.prevalence <= 0)
    return np.asarray(enough)


def view_weights(views: Sequence[str], counted: npt.NDArray[np.bool_], wanted: Mapping[str, float]) -> Array:
    """(N,) what images weigh so that each view has the share that is wanted; views that are not wanted weigh 0.

    Args:
        views: N.
        counted: (N,) the images that count.
        wanted: view -> share; those that no image has are left out.
    """
    names = np.array(views, dtype=object)
    shares = {name: float((names[counted] == name).mean()) for name in set(views)}
    there = sum(share for name, share in wanted.items() if shares.get(name, 0) > 0)
    factor = {name: wanted.get(name, 0.0) / there / share for name, share in shares.items() if share > 0 and there > 0}
    return np.where(counted, [factor.get(name, 0.0) for name in names.tolist()], 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Partly:
    """Prevalences where exact labels are there for some images only, which may have been picked by their report.

    Attributes:
        positive: (N, C) 1.0 where the report says so.
        negative: (N, C) 1.0 where the report says no.
        compared: (N, C) 1.0 where there is an exact label, too.
        found: (N, C) 1.0 where that says so.
    """

    positive: Array
    negative: Array
    compared: Array
    found: Array

    @staticmethod
    def of(dev: Dev) -> _Partly | None:
        """None where exact labels are there for no image, or for every one that has a label."""
        if dev.exact is None or (dev.compared == (dev.labels != UNKNOWN)).all():
            return None
        sides = (dev.labels == 1, dev.labels == 0, dev.compared, dev.exact == 1)
        return _Partly(*(side.astype(np.float64) for side in sides))

    def reported(self, weights: Array) -> Array:
        """Of reports, with weights (B, N) for the images: (B, C)."""
        positive, negative = weights @ self.positive, weights @ self.negative
        with np.errstate(divide="ignore", invalid="ignore"):
            return _share(positive / (positive + negative))

    def exact(self, weights: Array) -> Array:
        """Of exact labels, had all images one (B, C): their share among each kind of report, as often as it is made."""
        reported = self.reported(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            of_positive, of_negative = (
                (weights @ (side * self.compared * self.found)) / (weights @ (side * self.compared))
                for side in (self.positive, self.negative)
            )
        return _share(reported * of_positive + (1 - reported) * of_negative)


def _share(values: Array) -> Array:
    """Prevalences; nan where one is not between 0 and 1."""
    return np.where((values > 0) & (values < 1), values, np.nan)


def _where_wanted(wanted: Array, exact: Callable[[Array], Array], weights: Array) -> Array:
    """Prevalences (B, C) of the classes for which another one is wanted; nan for the others."""
    return np.where(np.isnan(wanted), np.nan, exact(weights))


def stages(dev: Dev, target: Target) -> dict[str, tuple[Judged, Judged]]:
    """What is scored before and after each correction, in their order; corrections that cannot be made are left out."""
    everyone = np.ones(len(dev.labels), bool)
    partly = _Partly.of(dev)
    now = Judged(dev.labels, dev.scores, *dev.fitted)
    made: dict[str, tuple[Judged, Judged]] = {}

    def step(name: str, after: Judged) -> Judged:
        made[name] = (now, after)
        return after

    now = step("decisions", replace(now, posteriors=dev.honest.posteriors, decisions=dev.honest.decisions))
    if dev.unseen is not None and dev.unseen.any() and not dev.unseen.all():
        now = step("patients", replace(now, weights=dev.unseen.astype(np.float64)))
    if dev.exact is not None:
        report, exact = (np.where(dev.compared, each, UNKNOWN).astype(np.int8) for each in (dev.labels, dev.exact))
        made["labels"] = (
            replace(now, labels=report, prevalence=None if partly is None else partly.reported),
            replace(now, labels=exact, prevalence=None if partly is None else partly.exact),
        )
        now = replace(now, labels=dev.best_labels.astype(np.int8))
    if target.views is not None:
        counted = everyone if now.weights is None else now.weights > 0
        now = step("views", replace(now, weights=view_weights(dev.views, counted, target.views)))
    if target.prevalence is not None:
        after = replace(now, prevalence=target.prevalence)
        if partly is not None:
            now = replace(now, prevalence=partial(_where_wanted, target.prevalence, partly.exact))
        now = step("prevalence", after)
    made["size"] = (now, now)
    return made
