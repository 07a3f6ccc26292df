"""Posteriors of any program beside a label table: files matched by image identifier and class name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.evaluate.scored import Array, Predicted
from cxrlt_cli.commands.evaluate.sheets import Sheet, identifiers, labels_of, numbers, patients_of, read_sheet
from cxrlt_cli.commands.evaluate.subsets import Column, columns_of
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.errors import DataError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.wording import count

#: Where groups are from when no training table is given.
LABELS_EVALUATED = "the labels evaluated"
#: What ``cxrlt predict`` adds to the name of a class.
_LOGIT, _POSTERIOR, _DECISION = ".logit", ".posterior", ".decision"
#: Columns of a prediction table that are no classes.
_NO_CLASSES = frozenset({"patientid", "studyid", "studydatedicom", "split", "fold", "view"})


@dataclass(frozen=True, slots=True)
class Files:
    """Tables in CSV (also .gz), TSV or Parquet.

    Attributes:
        predictions: image identifiers and one column of posteriors a class; a table of ``cxrlt predict`` and the form
            of CXR-LT are such tables.
        labels: image identifiers and one column of labels a class: 1, 0, and -1 or empty for unknown; also the
            patients, where they are known.
        train: the label table of the training images, which sets head, medium and tail; None for ``labels`` itself.
    """

    predictions: Path
    labels: Path
    train: Path | None = None


def read_files(files: Files, emit: Emit) -> Predicted:
    """Read and match the tables.

    Raises:
        DataError: a table cannot be read; images or classes of one are missing in the other; a label is none of 1, 0,
            -1 and empty; a posterior is not in [0, 1].
    """
    predictions, labels = read_sheet(files.predictions), read_sheet(files.labels)
    image_id, rows = _matched_images(predictions, labels)
    made = _of_classes(predictions)
    known = labels_of(labels)
    classes = _matched_classes(tuple(made), tuple(known), files)
    truth = np.stack([known[name] for name in classes], axis=1)
    if (truth == UNKNOWN).all():
        raise DataError(
            "no label is known, so there is nothing to compare with",
            where=str(files.labels),
            cure="Labels are 1 and 0; -1 and empty cells are unknown.",
        )
    posteriors = _matrix(predictions, [made[name].posterior for name in classes])[rows]
    _check_probabilities(posteriors, classes, image_id, files.predictions)
    patients, owned = _patients(labels, image_id, emit)
    prevalence, frequency, groups = _frequency(files.train, truth, classes, emit)
    return Predicted(
        name=files.predictions.name,
        path=str(files.predictions),
        title=f"{files.predictions}, against {files.labels}: {count(len(image_id), 'image')}, "
        f"{count(len(classes), 'class', 'classes')}",
        about={
            "predictions": str(files.predictions),
            "labels": str(files.labels),
            "groups_from": groups,
            "patients_known": owned,
            "decisions": {"how": "from the table" if _decided(made, classes) else "posterior >= 0.5"},
        },
        classes=classes,
        image_id=image_id,
        patient_id=patients,
        view=_views(labels),
        labels=truth,
        scores=_scores(predictions, made, classes, posteriors, rows),
        posteriors=posteriors,
        decisions=_decisions(predictions, made, classes, posteriors, rows),
        uncalibrated=None,
        prevalence=prevalence,
        frequency=frequency,
        columns=_columns(labels, known),
        thresholds=None if _decided(made, classes) else np.full(len(classes), 0.5),
    )


# -- rows ----------------------------------------------------------------------------------------------------------


def _matched_images(predictions: Sheet, labels: Sheet) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The identifiers in the order of the labels, and the row of each in the predictions."""
    wanted, found = identifiers(labels), identifiers(predictions)
    place = {name: row for row, name in enumerate(found)}
    missing = [name for name in wanted if name not in place]
    extra = sorted(set(place) - set(wanted))
    if missing or extra:
        parts = [f"{len(missing)} of {len(wanted)} images are missing ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} are not in the label table ({_some(extra)})"] if extra else []
        raise DataError(
            f"the images are not those of {labels.path}: {'; '.join(parts)}",
            where=str(predictions.path),
            cure="Identifiers must be spelled alike in both tables, file ending included. Predict the missing images, "
            "and take out rows that have no labels.",
        )
    return wanted, np.array([place[name] for name in wanted], np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _patients(labels: Sheet, image_id: list[str], emit: Emit) -> tuple[list[str], bool]:
    found, reason = patients_of(labels)
    if found is None:
        emit(
            Notice(
                f"{labels.path}: {reason}: every image counts as a patient of its own, and intervals are too narrow "
                "where patients have several images",
                "warning",
            )
        )
        return [""] * len(image_id), False
    if "" in found:
        without = count(found.count(""), "image")
        emit(Notice(f"{labels.path}: {without} without a patient: each counts as one of its own", "warning"))
    return found, True


# -- columns -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of one class."""

    posterior: str
    logit: str = ""
    decision: str = ""


def _of_classes(sheet: Sheet) -> dict[str, _Columns]:
    """Class -> its columns."""
    names = [name for name in sheet.columns if name != sheet.id_column]
    own = [name.removesuffix(_POSTERIOR) for name in names if name.endswith(_POSTERIOR)]
    if own:
        return {
            name: _Columns(
                name + _POSTERIOR,
                name + _LOGIT if name + _LOGIT in sheet.columns else "",
                name + _DECISION if name + _DECISION in sheet.columns else "",
            )
            for name in own
        }
    if any(name.endswith(_LOGIT) for name in names):
        raise DataError(
            "holds logits and no posteriors",
            where=str(sheet.path),
            cure="Give the table that `cxrlt predict -o FILE` writes, or evaluate the run: `cxrlt evaluate RUN`.",
        )
    return {name: _Columns(name) for name in names if sheet.plain(name) not in _NO_CLASSES}


def _matched_classes(predicted: tuple[str, ...], labelled: tuple[str, ...], files: Files) -> tuple[str, ...]:
    missing = [name for name in labelled if name not in predicted]
    extra = [name for name in predicted if name not in labelled]
    if missing or extra or not labelled:
        parts = [f"{len(missing)} classes with labels are not predicted ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} predicted classes have no labels ({_some(extra)})"] if extra else []
        parts += [] if labelled else ["the label table has no column of labels"]
        raise DataError(
            f"the classes are not those of {files.labels}: {'; '.join(parts)}",
            where=str(files.predictions),
            cure="Classes must be spelled alike in both tables. Take out columns that are not to be scored.",
        )
    return labelled


def _matrix(sheet: Sheet, names: Sequence[str]) -> Array:
    return np.stack([numbers(sheet, name) for name in names], axis=1)


def _check_probabilities(posteriors: Array, classes: Sequence[str], image_id: Sequence[str], path: Path) -> None:
    wrong = ~((posteriors >= 0) & (posteriors <= 1))
    for row, c in np.argwhere(wrong)[:1]:
        raise DataError(
            f"{float(posteriors[row, c])!r} is not a probability ({int(wrong.sum()):,} such values)",
            where=f"{path}, image {image_id[row]}, class {classes[c]}",
            cure="Give probabilities from 0 to 1, such as the sigmoid of logits.",
        )


def _scores(
    sheet: Sheet, made: dict[str, _Columns], classes: Sequence[str], posteriors: Array, rows: npt.NDArray[np.int64]
) -> Array:
    """Logits where the table has them, as posteriors may tie where logits do not."""
    if any(not made[name].logit for name in classes):
        return posteriors
    return _matrix(sheet, [made[name].logit for name in classes])[rows]


def _decided(made: dict[str, _Columns], classes: Sequence[str]) -> bool:
    return all(made[name].decision for name in classes)


def _decisions(
    sheet: Sheet, made: dict[str, _Columns], classes: Sequence[str], posteriors: Array, rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    if not _decided(made, classes):
        return np.asarray(posteriors >= 0.5)
    return np.asarray(_matrix(sheet, [made[name].decision for name in classes])[rows] >= 0.5)


# -- what else is known --------------------------------------------------------------------------------------------


def _frequency(
    train: Path | None, truth: npt.NDArray[np.int8], classes: Sequence[str], emit: Emit
) -> tuple[Array, Array, str]:
    """Prevalence (C,), positives (C,) and where both are from."""
    counted, source = truth, LABELS_EVALUATED
    if train is not None:
        known = labels_of(read_sheet(train))
        missing = [name for name in classes if name not in known]
        if missing:
            raise DataError(
                f"{len(missing)} classes have no column of labels ({_some(missing)})",
                where=str(train),
                cure="Give the label table of the training images, with the same class names.",
            )
        counted, source = np.stack([known[name] for name in classes], axis=1), str(train)
    else:
        emit(Notice("head, medium and tail go by the labels evaluated; give the training table with --train-labels"))
    positives, negatives = (counted == 1).sum(axis=0), (counted == 0).sum(axis=0)
    return positives / np.maximum(positives + negatives, 1), positives.astype(np.float64), source


def _views(labels: Sheet) -> list[str]:
    name = next((name for name in labels.columns if labels.plain(name) in {"view", "viewposition", "projection"}), "")
    return labels.columns[name] if name else [""] * len(labels)


def _columns(labels: Sheet, known: dict[str, npt.NDArray[np.int8]]) -> list[Column]:
    further = {name: cells for name, cells in labels.columns.items() if name not in known}
    return [Column("view", _views(labels)), *columns_of(further)]
