"""The figures of a sweep's rows: means over repetitions, intervals over patients, and differences from a reference.

A repetition is a seed or a fold. The interval of a row is that of the mean over its repetitions: in each resample of
the patients the figure is taken of every repetition and averaged. With seeds all repetitions are scored on the same
resample, so the interval covers the sampling of images and patients; what differs between trainings is the standard
deviation over repetitions, which stands beside it. Folds hold different patients and are resampled independently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Difference, Replicates, Resampled, holm, paired, pooled, replicates
from cxrlt_cli.commands.evaluate.of_run import Asked, predicted
from cxrlt_cli.commands.evaluate.scored import Predicted
from cxrlt_cli.commands.opening import open_run
from cxrlt_cli.commands.sweep.plan import Entry, Plan
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Started
from cxrlt_cli.metrics import Evaluation, evaluate

Array = npt.NDArray[np.float64]

#: Figure of the table -> group of classes (empty for all) and name of the figure.
FIGURES: Mapping[str, tuple[str, str]] = {
    "macro_ap": ("", "macro_ap"),
    "macro_auroc": ("", "macro_auroc"),
    "macro_f1": ("", "macro_f1"),
    "ece": ("", "ece"),
    "head_ap": ("head", "macro_ap"),
    "medium_ap": ("medium", "macro_ap"),
    "tail_ap": ("tail", "macro_ap"),
}
#: The figure whose differences are adjusted for the number of rows.
PRIMARY = "macro_ap"


@dataclass(frozen=True, slots=True)
class Value:
    """One figure of one row.

    Attributes:
        mean: over repetitions.
        low: lower end of the 95 % interval of the mean, over patients.
        high: upper end.
        sd: standard deviation over repetitions; nan with one.
        each: the figure of every repetition.
        bias: by how much the mean is too large, as estimated; the interval allows for it, the mean does not.
    """

    mean: float
    low: float
    high: float
    sd: float
    each: tuple[float, ...]
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """One row: its figures, and how they differ from those of the reference.

    Attributes:
        entry: the row.
        images: scored in each repetition.
        values: by the names of ``FIGURES``.
        differences: row minus reference, by the same names; None for the reference and where the images differ.
        difference_sd: standard deviation over repetitions of the difference in the primary figure.
        adjusted: p of the primary figure, adjusted by Holm for the number of rows.
    """

    entry: Entry
    images: tuple[int, ...]
    values: Mapping[str, Value]
    differences: Mapping[str, Difference] | None
    difference_sd: float
    adjusted: float


@dataclass(frozen=True, slots=True)
class TableOfRows:
    """The end of a sweep."""

    name: str
    about: str
    split: str
    reference: str
    repetitions: int
    folds: bool
    resamples: int
    rows: tuple[Scored, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "name": self.name,
            "about": self.about,
            "split": self.split,
            "reference": self.reference,
            "repetitions": self.repetitions,
            "over": "folds" if self.folds else "seeds",
            "resamples": self.resamples,
            "rows": [_row_json(row) for row in self.rows],
        }


def _row_json(row: Scored) -> dict[str, Any]:
    differences = None
    if row.differences is not None:
        differences = {name: {k: float(v) for k, v in asdict(d).items()} for name, d in row.differences.items()}
        differences[PRIMARY] |= {"p_holm": row.adjusted, "sd": row.difference_sd}
    return {
        "name": row.entry.name,
        "about": row.entry.about,
        "tta": row.entry.tta,
        "runs": [str(run.path) for run in row.entry.runs],
        "images": list(row.images),
        "figures": {name: asdict(value) for name, value in row.values.items()},
        "difference": differences,
    }


@dataclass(frozen=True, slots=True)
class _Measured:
    """A row before it is compared: per figure the points (K,), and its resamples averaged over K repetitions."""

    entry: Entry
    image_ids: tuple[tuple[str, ...], ...]
    points: Mapping[str, Array]
    reps: Mapping[str, Resampled]


def score_rows(plan: Plan, entries: Sequence[Entry], emit: Emit) -> TableOfRows:
    """Score rows from their predictions; without torch.

    Args:
        plan: the sweep.
        entries: the rows that are finished.
        emit: told about progress.

    Raises:
        RunError, DataError: predictions or the dataset are damaged.
    """
    emit(Started("score", len(entries), "rows"))
    seen: dict[Any, tuple[tuple[str, ...], Evaluation, Replicates]] = {}
    measured = []
    for number, entry in enumerate(entries):
        measured.append(_measure(plan, entry, seen, emit))
        emit(Advanced("score", number + 1))
    emit(Finished("score"))
    sweep = plan.sweep
    return TableOfRows(
        name=sweep.name,
        about=sweep.about,
        split=plan.split,
        reference=plan.reference,
        repetitions=len(entries[0].runs),
        folds=sweep.folds is not None,
        resamples=sweep.resamples,
        rows=_compared(measured, plan.reference, emit),
    )


def _measure(plan: Plan, entry: Entry, seen: dict[Any, Any], emit: Emit) -> _Measured:
    images: list[tuple[str, ...]] = []
    points, reps = [], []
    for run in entry.runs:
        key = (run.path, entry.tta)
        if key not in seen:
            found = predicted(open_run(run.path), Asked(plan.split, tta=entry.tta), emit)
            ids = tuple(found.image_id)
            # repetitions on the same images share their resamples; other images have draws of their own
            known = list(dict.fromkeys([*images, ids]))
            seen[key] = (ids, _evaluated(found), _resampled(plan, found, known.index(ids)))
        ids, result, resampled = seen[key]
        images.append(ids)
        points.append({name: _point(result, *where) for name, where in FIGURES.items()})
        reps.append({name: _reps(resampled, *where) for name, where in FIGURES.items()})
    apart = len(set(images)) == len(images)
    return _Measured(
        entry,
        tuple(images),
        {name: np.array([each[name] for each in points]) for name in FIGURES},
        {name: pooled([each[name] for each in reps], independent=apart) for name in FIGURES},
    )


def _evaluated(found: Predicted) -> Evaluation:
    return evaluate(
        found.labels, found.scores, found.posteriors, found.classes, found.prevalence, decisions=found.decisions
    )


def _resampled(plan: Plan, found: Predicted, seed: int) -> Replicates:
    return replicates(
        found.labels,
        found.scores,
        found.owners,
        posteriors=found.posteriors,
        decisions=found.decisions,
        prevalence=found.prevalence,
        resamples=plan.sweep.resamples,
        seed=seed,
    )


def _point(result: Evaluation, group: str, name: str) -> float:
    return float((result.groups[group] if group else result.overall).get(name, math.nan))


def _reps(resampled: Replicates, group: str, name: str) -> Resampled:
    source = resampled.groups.get(group, {}) if group else resampled.overall
    return source.get(name, Resampled(name, np.full(resampled.resamples, np.nan)))


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is defined; nan where nothing is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0).sum(axis=-1)
    return np.asarray(np.where(defined.any(axis=-1), total / np.maximum(defined.sum(axis=-1), 1), np.nan))


def _sd(values: Array) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.std(ddof=1)) if len(defined) > 1 else math.nan


def _compared(measured: Sequence[_Measured], reference: str, emit: Emit) -> tuple[Scored, ...]:
    against = next((one for one in measured if one.entry.name == reference), None)
    if against is None:
        emit(Notice(f"the reference '{reference}' is not finished: no differences are given", "warning"))
    elif any(one.image_ids != against.image_ids for one in measured):
        emit(Notice("rows on other images than the reference's are not compared with it", "warning"))
    differences = [_differences(one, against) for one in measured]
    adjusted = holm([math.nan if each is None else each[PRIMARY].p for each in differences])
    return tuple(
        Scored(
            entry=one.entry,
            images=tuple(map(len, one.image_ids)),
            values={name: _value(one, name) for name in FIGURES},
            differences=each,
            difference_sd=_sd(one.points[PRIMARY] - against.points[PRIMARY]) if each and against else math.nan,
            adjusted=float(p),
        )
        for one, each, p in zip(measured, differences, adjusted, strict=True)
    )


def _differences(one: _Measured, against: _Measured | None) -> dict[str, Difference] | None:
    if against is None or one is against or one.image_ids != against.image_ids:
        return None
    return {
        name: paired(_mean(one.points[name]), _mean(against.points[name]), one.reps[name], against.reps[name])
        for name in FIGURES
    }


def _value(one: _Measured, name: str) -> Value:
    points = one.points[name]
    low, high = one.reps[name].interval(_mean(points))
    bias = float(one.reps[name].bias)
    return Value(float(_mean(points)), float(low), float(high), _sd(points), tuple(points.tolist()), bias)
