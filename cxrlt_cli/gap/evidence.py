"""What is known about the images a score was made on, and about those it shall hold for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    def best_labels(self) -> Labels:
        """(N, C) exact labels where there are any, the others elsewhere."""
        return self.labels if self.exact is None else np.where(self.exact != UNKNOWN, self.exact, self.labels)

    @property
    def codes(self) -> npt.NDArray[np.int64]:
        """(N,) a number for each patient."""
        return np.unique(np.array(self.patients, dtype=str), return_inverse=True)[1].astype(np.int64)

    def counted(self, target: Target) -> npt.NDArray[np.bool_]:
        """(N,) the images that are left when patients training has seen, and views the target lacks, have gone."""
        rows = np.ones(len(self.labels), bool)
        if self.unseen is not None and self.unseen.any():
            rows &= self.unseen
        if target.views is not None:
            rows &= np.isin(
                np.array(self.views, dtype=str), [view for view, share in target.views.items() if share > 0]
            )
        return rows

    def holders(self, labels: Labels, target: Target) -> npt.NDArray[np.int64]:
        """(C,) patients that have a finding, on the images that are left."""
        codes, rows = self.codes, self.counted(target)
        return np.array([len(np.unique(codes[rows & (column == 1)])) for column in labels.T], np.int64)


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
    enough = dev.holders(dev.labels, target) >= FEWEST
    if dev.exact is not None:
        enough &= dev.holders(dev.best_labels, target) >= FEWEST
        rows = dev.counted(target)[:, None] & (dev.exact != UNKNOWN) & (dev.labels != UNKNOWN)
        enough &= (rows & (dev.exact == 1)).any(axis=0) & (rows & (dev.labels == 1)).any(axis=0)
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


def stages(dev: Dev, target: Target) -> dict[str, tuple[Judged, Judged]]:
    """What is scored before and after each correction, in their order; corrections that cannot be made are left out."""
    everyone = np.ones(len(dev.labels), bool)
    now = Judged(dev.labels, dev.scores, *dev.fitted)
    made: dict[str, tuple[Judged, Judged]] = {}

    def step(name: str, after: Judged) -> Judged:
        made[name] = (now, after)
        return after

    now = step("decisions", replace(now, posteriors=dev.honest.posteriors, decisions=dev.honest.decisions))
    if dev.unseen is not None and dev.unseen.any() and not dev.unseen.all():
        now = step("patients", replace(now, weights=dev.unseen.astype(np.float64)))
    if dev.exact is not None:
        both = (dev.exact != UNKNOWN) & (dev.labels != UNKNOWN)
        before, after = (np.where(both, each, UNKNOWN).astype(np.int8) for each in (dev.labels, dev.exact))
        made["labels"] = (replace(now, labels=before), replace(now, labels=after))
        now = replace(now, labels=dev.best_labels.astype(np.int8))
    if target.views is not None:
        counted = everyone if now.weights is None else now.weights > 0
        now = step("views", replace(now, weights=view_weights(dev.views, counted, target.views)))
    if target.prevalence is not None:
        now = step("prevalence", replace(now, prevalence=target.prevalence))
    made["size"] = (now, now)
    return made
