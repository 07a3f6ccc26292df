"""Predictions beside their labels, and what they are worth: figures, replicates, subsets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Replicates, replicates
from cxrlt_cli.commands.evaluate.subsets import Column, subsets_of
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.events import Advanced, Emit, Finished, Started
from cxrlt_cli.metrics import Absent, Evaluation, evaluate
from cxrlt_cli.report.contents import Subset

Array = npt.NDArray[np.float64]

_STAGE = "bootstrap"


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Where N images are: the rows (N,) of a prepared dataset."""

    prepared: Prepared
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Predictions for N images and C classes beside their labels; everything a report needs.

    Attributes:
        name: a short name of the run or file.
        path: its path, as the user gave it.
        title: what was evaluated on what, for people.
        about: the same for programs: path, weights, dataset, how decisions were made.
        classes: C names.
        image_id: N strings.
        patient_id: N strings, empty where unknown.
        view: N image views, empty where unknown.
        labels: (N, C): 1, 0, -1 where unknown.
        scores: (N, C) what ranks the images: logits, where there are any.
        posteriors: (N, C) in [0, 1], calibrated where the run has a calibration.
        decisions: (N, C), the default decisions.
        uncalibrated: (N, C) the posteriors before calibration; None where that is not known.
        prevalence: (C,) share of positives in training.
        frequency: (C,) positives in training, or what stands for them; classes are shown in its order.
        columns: further columns that split the images into subsets.
        thresholds: (C,) posterior from which on the default decisions call a finding; None where that is not known.
        images: where the images themselves are; None where they are not at hand.
    """

    name: str
    path: str
    title: str
    about: Mapping[str, object]
    classes: tuple[str, ...]
    image_id: list[str]
    patient_id: list[str]
    view: list[str]
    labels: npt.NDArray[np.int8]
    scores: npt.NDArray[np.floating]
    posteriors: Array
    decisions: npt.NDArray[np.bool_]
    uncalibrated: Array | None
    prevalence: Array
    frequency: Array
    columns: Sequence[Column] = ()
    thresholds: Array | None = None
    images: Images | None = None

    @property
    def owners(self) -> list[str]:
        """The patient of each image; an image without one is a patient of its own."""
        return [patient or f"\0{image}" for patient, image in zip(self.patient_id, self.image_id, strict=True)]

    @property
    def by_frequency(self) -> list[int]:
        """Classes from the most to the least frequent in training."""
        return sorted(range(len(self.classes)), key=lambda c: -float(self.frequency[c]))


@dataclass(frozen=True, slots=True)
class Settings:
    """How figures are made: policy for absent classes, resamples (0 for no intervals), seed of the resamples."""

    absent: Absent = "skip"
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Predictions and what they are worth.

    Attributes:
        of: the predictions.
        result: the figures.
        replicates: the same in resamples of the patients; None without resamples.
        before: the figures before calibration; None where nothing was calibrated.
        before_replicates: the same in the resamples.
        subsets: the figures of some of the images.
    """

    of: Predicted
    result: Evaluation
    replicates: Replicates | None
    before: Evaluation | None
    before_replicates: Replicates | None
    subsets: tuple[Subset, ...] = field(default=())


def score(all_of: Sequence[Predicted], settings: Settings, emit: Emit) -> list[Scored]:
    """Figures, intervals and subsets of each set of predictions. Progress counts resamples."""
    chosen = [(one, subsets_of(one.columns, one.labels)) for one in all_of]
    sets = sum(1 + (one.uncalibrated is not None) + len(subsets) for one, subsets in chosen)
    stages = sets * settings.resamples
    if stages:
        emit(Started(_STAGE, stages, unit="resamples"))
    done, scored = 0, []
    for one, subsets in chosen:
        figures, reps, done = _figures(one, slice(None), settings, emit, done)
        parts = []
        for subset in subsets:
            result, mine, done = _figures(one, subset.rows, settings, emit, done)
            patients = len({one.owners[row] for row in subset.rows})
            parts.append(Subset(subset.by, subset.value, len(subset.rows), patients, result, mine))
        before, drawn, done = _before(one, settings, emit, done)
        scored.append(Scored(one, figures, reps, before, drawn, tuple(parts)))
    if stages:
        emit(Finished(_STAGE))
    return scored


def _figures(
    one: Predicted,
    rows: slice | npt.NDArray[np.int64],
    settings: Settings,
    emit: Emit,
    done: int,
    *,
    ranking: bool = True,
) -> tuple[Evaluation, Replicates | None, int]:
    """Figures and replicates of some rows, those of AP and AUROC with ``ranking``, and how many resamples are done."""
    labels, scores, posteriors = one.labels[rows], one.scores[rows], one.posteriors[rows]
    decisions, absent = one.decisions[rows], settings.absent
    result = evaluate(labels, scores, posteriors, one.classes, one.prevalence, decisions=decisions, absent=absent)
    if not settings.resamples:
        return result, None, done
    made = replicates(
        labels,
        scores if ranking else None,
        np.array(one.owners, dtype=object)[rows].astype(str),
        posteriors=posteriors,
        decisions=decisions,
        prevalence=one.prevalence,
        absent=absent,
        resamples=settings.resamples,
        seed=settings.seed,
        progress=_progress(emit, done),
    )
    return result, made, done + settings.resamples


def _progress(emit: Emit, before: int) -> Callable[[int], None]:
    return lambda done: emit(Advanced(_STAGE, before + done))


def _before(
    one: Predicted, settings: Settings, emit: Emit, done: int
) -> tuple[Evaluation | None, Replicates | None, int]:
    """``_figures`` of the posteriors before calibration, which rank alike, with findings called from 0.5 on."""
    if one.uncalibrated is None:
        return None, None, done
    plain = replace(one, posteriors=one.uncalibrated, decisions=one.uncalibrated >= 0.5)
    return _figures(plain, slice(None), settings, emit, done, ranking=False)
