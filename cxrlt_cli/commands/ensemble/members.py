"""The members of an ensemble: opened, their predictions aligned by image and class, their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, read_predictions
from cxrlt_cli.combine import Scale
from cxrlt_cli.commands.forward import log_odds_of, weights_hash
from cxrlt_cli.commands.opening import (
    OpenRun,
    column,
    open_dataset,
    open_link,
    open_run,
    read_stamp,
    same_classes,
    split_rows,
    without_link,
)
from cxrlt_cli.commands.run_decisions import decisions_of, fresh_stamp, plain
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import DataError, RunError, UsageError
from cxrlt_cli.events import Emit, Notice

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

#: Images and patients named in a message.
NAMED = 5


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """M members on N images and C classes, in the order of the first member's classes.

    Attributes:
        names: of the members; their paths where two share a name.
        image_id: N strings.
        patients: N identifiers.
        labels: (N, C).
        log_odds: (M, N, C), after each member's link.
        scales: how they are made comparable.
        called: (M, N, C) their decisions.
        tta: the test-time augmentation of each member's predictions.
    """

    names: tuple[str, ...]
    image_id: list[str]
    patients: list[str]
    labels: npt.NDArray[np.int8]
    log_odds: Array
    scales: tuple[Scale, ...]
    called: npt.NDArray[np.bool_]
    tta: tuple[str, ...]


def opened_members(paths: Sequence[Path]) -> dict[str, OpenRun]:
    """The runs by the SHA-256 of their weights, in the given order.

    Raises:
        UsageError: there are fewer than two, or one stands twice (its weights under another name count).
        RunError: one of them is being trained, or cannot be opened.
    """
    if len(paths) < 2:
        raise UsageError("an ensemble takes at least two runs", cure="Name them: `cxrlt ensemble RUN RUN`.")
    runs: dict[str, OpenRun] = {}
    for path in paths:
        one = open_run(path)
        if one.dir.in_use():
            raise RunError("is being trained", where=str(path), cure="Wait until it is finished.")
        weights = weights_hash(one)
        if weights in runs:
            other = runs[weights].dir.path
            what = "is named twice" if other.resolve() == path.resolve() else f"is a copy of {other}"
            raise UsageError(f"{what}: a member counts once", where=str(path), cure="Leave one of them out.")
        runs[weights] = one
    return runs


def where_to_combine(
    runs: Sequence[OpenRun], split: str, data: Path | None, emit: Emit
) -> tuple[Prepared, npt.NDArray[np.int64]]:
    """The dataset, and the manifest positions of the split as the first member's recipe sees it.

    Without ``data`` it is that of the member with the largest images, the first such one: they can be made smaller.

    Raises:
        DataError: the dataset is not there, lacks a class, or states no label in the split.
    """
    widest = max(runs, key=lambda one: one.card.image_size)
    prepared = open_dataset(widest, data, emit, images=False)
    for one in runs:
        same_classes(one, prepared)
    rows = split_rows(runs[0], prepared, split, emit)
    if (prepared.labels[rows] == UNKNOWN).all():
        raise DataError(
            f"no label is known in the split {split!r}, so there is nothing to combine on",
            where=str(prepared.path),
            cure="Choose another --split, or prepare the data with labels for it.",
        )
    return prepared, rows


def ready(runs: Sequence[OpenRun], prepared: Prepared, rows: Rows, split: str, emit: Emit) -> Ready:
    """The members' predictions, made now where there are none of their present weights.

    Raises:
        RunError: predictions are not those of the split; missing and extra images are named.
    """
    classes = runs[0].card.classes
    image_id = column(prepared.frame, "image_id", rows)
    made, scales, called, views = [], [], [], []
    for one in runs:
        kept, tta = kept_predictions(one, prepared, split, emit)
        _tell_other_views(one, tta, split, emit)
        _check_images(one, kept, image_id, split)
        if open_link(one) is None:
            emit(without_link(one))
        log_odds = log_odds_of(one, kept, classes, image_id)
        scale, decided = _scale(one, (prepared, split), classes, log_odds, emit)
        made.append(log_odds)
        scales.append(scale)
        called.append(decided)
        views.append(tta)
    return Ready(
        names=_names(runs),
        image_id=image_id,
        patients=column(prepared.frame, "patient_id", rows),
        labels=prepared.labels[rows][:, [prepared.classes.index(name) for name in classes]],
        log_odds=np.stack(made),
        scales=tuple(scales),
        called=np.stack(called),
        tta=tuple(views),
    )


def _names(runs: Sequence[OpenRun]) -> tuple[str, ...]:
    names = [one.dir.name for one in runs]
    return tuple(names) if len(set(names)) == len(names) else tuple(str(one.dir.path) for one in runs)


# -- predictions ---------------------------------------------------------------------------------------------------


def kept_predictions(run: OpenRun, prepared: Prepared, split: str, emit: Emit) -> tuple[Predictions, str]:
    """The run's predictions of a split with its own test-time augmentation, and which that is."""
    path = run.predictions(prepared, split)
    if why_again(run, path):
        from cxrlt_cli.commands import predict

        emit(Notice(f"{run.dir.path} {why_again(run, path)} of the split {split!r}: making them"))
        predict.run(run.dir.path, [], split=split, data=prepared.path, emit=emit)
    return read_predictions(path), fresh_stamp(run, path)


def _tell_other_views(run: OpenRun, tta: str, split: str, emit: Emit) -> None:
    """Say that a member is combined without the test-time augmentation of its recipe, as training predicts dev."""
    own = str(run.card.tta["name"])
    if tta != own:
        text = f"{run.dir.path}: its predictions of {split} were made without {own!r}, and so it is combined"
        emit(Notice(f"{text}. `cxrlt predict {run.dir.path} --split {split}` makes those with it."))


def why_again(run: OpenRun, path: Path) -> str:
    """Why predictions have to be made; empty where they need not be."""
    if not path.is_file():
        return "has no predictions"
    try:
        read_stamp(path)
    except RunError:
        return "has unreadable predictions"
    try:
        fresh_stamp(run, path)
    except RunError:
        return "was trained on since its predictions"
    return ""


def _check_images(run: OpenRun, kept: Predictions, image_id: Sequence[str], split: str) -> None:
    """Rows are matched by identifier, so each image has to be there once, and no other one."""
    where, cure = str(run.dir.path), "Combine runs of the same dataset, data.fold and data.views, or predict again."
    lacking = sorted(set(image_id) - set(kept.image_id))
    extra = sorted(set(kept.image_id) - set(image_id))
    if lacking or extra:
        parts = [f"{len(lacking)} are missing ({_some(lacking)})"] if lacking else []
        parts += [f"{len(extra)} are not in the split ({_some(extra)})"] if extra else []
        raise RunError(f"its images are not those of the split {split!r}: {'; '.join(parts)}", where=where, cure=cure)
    if len(kept.image_id) != len(image_id):
        twice = sorted({name for name in kept.image_id if kept.image_id.count(name) > 1})
        raise RunError(f"images stand twice in its predictions: {_some(twice)}", where=where, cure="Predict again.")
    if set(kept.classes) != set(run.card.classes):
        odd = sorted(set(kept.classes) ^ set(run.card.classes))
        raise RunError(f"its predictions have other classes than its model: {_some(odd)}", where=where, cure=cure)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


# -- scales --------------------------------------------------------------------------------------------------------


def _scale(
    run: OpenRun, where: tuple[Prepared, str], classes: Sequence[str], log_odds: Array, emit: Emit
) -> tuple[Scale, npt.NDArray[np.bool_]]:
    """How a member's log-odds are calibrated, and what it decides; both in the order of ``classes``.

    A calibration that was fitted on these very images is fitted anew, within folds too; another one is taken as it is.
    """
    prepared, split = where
    order = [run.card.classes.index(name) for name in classes]
    prevalence = np.array(run.card.stats.prevalence)[order]
    found = decisions_of(run, data=prepared.path, emit=emit)
    own = (found or plain(run)).select(classes)
    called = own.decide(own.calibrated(log_odds))
    if found is None:
        return Scale("none", prevalence), called
    here = (found.provenance.get("dataset"), found.provenance.get("split")) == (prepared.content_hash, split)
    return Scale(own.calibration.method, prevalence, None if here else own.calibration), called
