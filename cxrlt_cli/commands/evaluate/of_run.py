"""The predictions of a run for a split, beside the labels. Loads no torch where the predictions are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, read_predictions
from cxrlt_cli.commands.evaluate.scored import Array, Images, Predicted
from cxrlt_cli.commands.evaluate.subsets import Column, columns_of
from cxrlt_cli.commands.learned_from import seen
from cxrlt_cli.commands.opening import (
    OpenRun,
    column,
    open_dataset,
    open_link,
    read_stamp,
    split_rows,
    without_link,
)
from cxrlt_cli.commands.run_decisions import decisions_of, judged
from cxrlt_cli.commands.strategies import check_named
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.decisions import CrossFitted, Decisions
from cxrlt_cli.errors import DataError, RunError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.posterior import posterior_of
from cxrlt_cli.wording import count


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be evaluated: a split, a dataset other than the run's, a test-time augmentation other than its own."""

    split: str = "dev"
    data: Path | None = None
    tta: str | None = None


def predicted(run: OpenRun, asked: Asked, emit: Emit) -> Predicted:
    """Labels, logits, posteriors and decisions of a split.

    Raises:
        UsageError: the test-time augmentation is ``auto``.
        DataError: no label is known, or the dataset cannot be used.
        RunError: the predictions are not those of the split.
    """
    which = f"`cxrlt predict {run.dir.path} --split {asked.split} --tta auto` tells which one it takes: name that here."
    check_named(asked.tta, which)
    prepared = open_dataset(run, asked.data, emit, images=False)
    rows = split_rows(run, prepared, asked.split, emit)
    labels = _labels(run, prepared, rows, asked.split)
    link = open_link(run)
    if link is None:
        emit(without_link(run))
    kept, tta = _predictions(run, prepared, asked, emit)
    image_id, patient_id, view = (column(prepared.frame, name, rows) for name in ("image_id", "patient_id", "view"))
    logits = aligned(run, kept, image_id, run.predictions(prepared, asked.split, asked.tta))
    log_odds = logits.astype(np.float64) if link is None else link.log_odds_of(logits)
    decisions = decisions_of(run, tta=asked.tta, data=asked.data, emit=emit)
    entries: Entries = {"labels": labels, "log_odds": log_odds, "patients": patient_id}
    own, how = _judged(run, decisions, (prepared, asked.split), entries, emit)
    return Predicted(
        name=run.dir.name,
        path=str(run.dir.path),
        title=_title(run, prepared, asked.split, len(rows), tta),
        about=_about(run, prepared, tta, how, decisions),
        classes=run.card.classes,
        image_id=image_id,
        patient_id=patient_id,
        view=view,
        labels=labels,
        scores=logits,
        posteriors=own.posteriors,
        decisions=own.decisions,
        uncalibrated=posterior_of(link, logits) if decisions is not None else None,
        prevalence=np.array(run.card.stats.share),
        frequency=np.array(run.card.positives, np.float64),
        columns=_columns(run, prepared, rows, view),
        thresholds=np.full(len(run.card.classes), 0.5) if decisions is None or how == "none" else decisions.thresholds,
        images=Images(prepared, rows),
    )


def _labels(run: OpenRun, prepared: Prepared, rows: npt.NDArray[np.int64], split: str) -> npt.NDArray[np.int8]:
    """(N, C) labels in the order of the run's classes."""
    order = [prepared.classes.index(name) for name in run.card.classes]
    labels = prepared.labels[rows][:, order]
    if (labels == UNKNOWN).all():
        raise DataError(
            f"no label is known in the split {split!r}, so there is nothing to compare with",
            where=str(prepared.path),
            cure=f"It can be predicted, with `cxrlt predict {run.dir.path} --split {split}`, but not evaluated.",
        )
    return labels


# -- predictions ---------------------------------------------------------------------------------------------------


def _predictions(run: OpenRun, prepared: Prepared, asked: Asked, emit: Emit) -> tuple[Predictions, str]:
    """The run's predictions of a split, made now where there are none of its present weights."""
    path = run.predictions(prepared, asked.split, asked.tta)
    reason = why_again(run, path)
    if reason:
        from cxrlt_cli.commands import predict

        views = f" with test-time augmentation {asked.tta!r}" if asked.tta else ""
        emit(Notice(f"{run.dir.path} {reason} of the split {asked.split!r}{views}: making them"))
        predict.run(run.dir.path, [], split=asked.split, tta=asked.tta, data=asked.data, emit=emit)
    return read_predictions(path), str(read_stamp(path).get("tta", "none"))


def why_again(run: OpenRun, path: Path) -> str:
    """Why predictions have to be made, as the end of a sentence about the run; empty where they need not."""
    if not path.exists():
        return "has no predictions"
    read_predictions(path)
    made = read_stamp(path)
    if made and (made.get("epoch"), made.get("score")) != (run.card.epoch, run.card.score):
        return "was trained on since its predictions"
    return ""


def aligned(run: OpenRun, predictions: Predictions, image_id: list[str], path: Path) -> npt.NDArray[np.float32]:
    """(N, C) logits, rows in the order of ``image_id``, columns in the order of the run's classes."""
    again = "Make them again with `cxrlt predict RUN --split SPLIT`."
    if set(predictions.classes) != set(run.card.classes):
        odd = sorted(set(predictions.classes) ^ set(run.card.classes))
        raise RunError(f"the classes are not those of the model: look at {_some(odd)}", where=str(path), cure=again)
    place = {name: row for row, name in enumerate(predictions.image_id)}
    missing = [name for name in image_id if name not in place]
    extra = sorted(set(place) - set(image_id))
    if missing or extra or len(place) != len(predictions.image_id):
        parts = [f"{len(missing)} are missing ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} are not in the dataset ({_some(extra)})"] if extra else []
        parts += [] if parts else ["some occur more than once"]
        raise RunError(f"the images are not those of the split: {'; '.join(parts)}", where=str(path), cure=again)
    columns = [predictions.classes.index(name) for name in run.card.classes]
    return predictions.logits[[place[name] for name in image_id]][:, columns]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# -- decisions -----------------------------------------------------------------------------------------------------


class Entries(TypedDict):
    """What is judged: labels (N, C), log-odds after the link (N, C), N patients."""

    labels: npt.NDArray[np.int8]
    log_odds: Array
    patients: Sequence[str]


def _judged(
    run: OpenRun,
    decisions: Decisions | None,
    where: tuple[Prepared, str],
    entries: Entries,
    emit: Emit,
) -> tuple[CrossFitted, str]:
    """Posteriors and decisions that may be scored, and how they came about."""
    prepared, split = where
    if decisions is None:
        return judged(run, None, where, **entries), "none"
    about = decisions.provenance
    if (about.get("dataset"), about.get("split")) != (prepared.content_hash, split):
        return judged(run, decisions, where, **entries), f"fitted on {about.get('split')}"
    try:
        return judged(run, decisions, where, **entries), "cross-fitted"
    except DataError as error:  # one patient only
        text = "posteriors are uncalibrated, and findings are called from 0.5 on"
        emit(Notice(f"{run.dir.path}: {error.what}: {text}", "warning"))
        return judged(run, None, where, **entries), "none"


# -- what else is known --------------------------------------------------------------------------------------------


def _columns(run: OpenRun, prepared: Prepared, rows: npt.NDArray[np.int64], view: list[str]) -> list[Column]:
    """What splits the images into subsets: views, the source's columns, patients seen in training."""
    frame = prepared.frame
    further = {
        str(name): frame[name].iloc[rows].tolist() for name in frame.columns if str(name) not in run.card.classes
    }
    found = [Column("view", view), *columns_of(further)]
    known = seen(run, prepared, *(column(frame, name, rows) for name in ("image_id", "patient_id")))
    if known is not None:
        found.append(Column("patient", ["seen in training" if one else "unseen" for one in known.tolist()]))
    return found


def _title(run: OpenRun, prepared: Prepared, split: str, images: int, tta: str) -> str:
    views = "" if tta == "none" else f", test-time augmentation {tta!r}"
    folds = split != "test" and run.recipe.data.fold is not None and "fold" in prepared.frame
    part = f"{split} (fold {run.recipe.data.fold})" if folds else split
    return f"{run.dir.path}, {run.made}, on {part} of {prepared.name}: {count(images, 'image')}{views}"


def _about(run: OpenRun, prepared: Prepared, tta: str, how: str, decisions: Decisions | None) -> dict[str, object]:
    made: dict[str, object] = {"how": how}
    if decisions is not None:
        made |= {"calibration": decisions.calibration.method, "threshold": decisions.rule}
    return {
        "run": str(run.dir.path),
        "name": run.dir.name,
        "epoch": run.card.epoch,
        "linked": run.card.linked,
        "tta": tta,
        "decisions": made,
        "dataset": {"name": prepared.name, "path": str(prepared.path), "hash": prepared.content_hash},
    }
