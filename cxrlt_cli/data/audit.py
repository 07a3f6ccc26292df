"""What is wrong with a label table or its images, found before a model can learn from it.

A source may be anybody's plugin: its table is checked against the contract. Splits a source states must not share
patients. Images with equal pixels are found whatever their file format, and patients who share one are kept together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN, SourceTable
from cxrlt_cli.errors import DataError

from .manifest import RESERVED, SPLITS

#: Prefix of a further column of the source whose name the manifest uses itself.
SOURCE_PREFIX = "source:"


# -- the table -----------------------------------------------------------------------------------------------------


def check_table(table: SourceTable, source: str) -> None:
    """Check a source's table against the contract (``contracts.SourceTable``).

    Raises:
        DataError: the first thing that is wrong, with the row or the name concerned.
    """
    where = f"source {source!r}"
    _check_classes(table, where)
    count = len(table.image_id)
    if count == 0:
        raise DataError("the table has no images", where=where, cure="Check the label table and the images folder.")
    _check_lengths(table, count, where)
    for name in ("image_id", "patient_id"):
        _check_text(getattr(table, name), name, where)
    repeated = [name for name, times in Counter(table.image_id).items() if times > 1]
    if repeated:
        raise DataError(f"the image_id {repeated[0]!r} occurs more than once", where=where, cure=_AUTHOR)
    if table.labels.dtype != np.int8 or table.labels.min() < UNKNOWN or table.labels.max() > 1:
        raise DataError("labels must be int8 of 1, 0 and -1", where=where, cure=_AUTHOR)
    if table.split is not None:
        strange = sorted(set(table.split) - set(SPLITS))
        if strange:
            raise DataError(f"{strange[0]!r} is not a split", where=where, cure=f"Splits are {', '.join(SPLITS)}.")


_AUTHOR = "This is a fault of the source plugin; report it to its author."


def _check_classes(table: SourceTable, where: str) -> None:
    if not table.classes:
        raise DataError("there are no classes", where=where, cure="Check the label table.")
    for name, times in Counter(table.classes).items():
        if times > 1:
            raise DataError(f"the class {name!r} occurs {times} times", where=where, cure="Rename one of the columns.")
        if name in RESERVED:
            raise DataError(
                f"a class cannot be called {name!r}: the manifest has a column of that name",
                where=where,
                cure="Rename the column in the label table, or leave it out of the classes.",
            )
        if not name.strip() or not name.isprintable():
            raise DataError(f"{name!r} cannot be the name of a class", where=where, cure="Rename the column.")


def _check_lengths(table: SourceTable, count: int, where: str) -> None:
    columns: dict[str, Sequence[object] | None] = {
        "patient_id": table.patient_id,
        "path": table.path,
        "study_id": table.study_id,
        "view": table.view,
        "split": table.split,
        **table.extra,
    }
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise DataError(
                f"the column {name!r} has {len(values)} entries for {count} images", where=where, cure=_AUTHOR
            )
    if table.labels.shape != (count, len(table.classes)):
        raise DataError(
            f"labels have shape {table.labels.shape}, not {(count, len(table.classes))}", where=where, cure=_AUTHOR
        )


def _check_text(values: Sequence[str], name: str, where: str) -> None:
    for row, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise DataError(f"the {name} of row {row} is {value!r}, not a text", where=where, cure=_AUTHOR)


def further_columns(table: SourceTable) -> dict[str, Sequence[object]]:
    """The source's further columns under names the manifest does not use itself."""
    taken = RESERVED | set(table.classes)
    return {(SOURCE_PREFIX + name if name in taken else name): values for name, values in table.extra.items()}


def check_patients(patients: Sequence[str], split: Sequence[str], source: str) -> None:
    """Check that splits a source states share no patient.

    Raises:
        DataError: they do; three patients are named.
    """
    splits: dict[str, set[str]] = {}
    for patient, name in zip(patients, split, strict=True):
        splits.setdefault(patient, set()).add(name)
    shared = [patient for patient, names in splits.items() if len(names) > 1]
    if shared:
        examples = "; ".join(
            f"{patient} is in {' and '.join(name for name in SPLITS if name in splits[patient])}"
            for patient in shared[:3]
        )
        raise DataError(
            f"{len(shared)} patients are in more than one of the splits it states ({examples})",
            where=f"source {source!r}",
            cure="Split by patient with --split dev=0.1,test=0.1, or correct the table.",
        )


# -- duplicates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Images of equal pixels.

    Attributes:
        rows: their positions, ascending, at least two.
        same_file: whether the files are equal byte for byte too.
        same_patient: whether all are of one patient.
        same_labels: whether their labels agree.
        splits: the splits they are in.
    """

    rows: tuple[int, ...]
    same_file: bool
    same_patient: bool
    same_labels: bool
    splits: tuple[str, ...]

    @property
    def leak(self) -> bool:
        """Whether a model is tested on an image it was trained on, or patients are not what they are called."""
        return len(self.splits) > 1 or not self.same_patient


def equal_groups(hashes: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int64]]:
    """Positions of equal rows of (N, 32) uint8, a group each, in the order of their first member."""
    keys = np.ascontiguousarray(hashes).view(f"V{hashes.shape[1]}").ravel()
    _, group = np.unique(keys, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    groups = [found for found in np.split(order, starts[1:]) if len(found) > 1]
    return sorted(groups, key=lambda found: int(found[0]))


def describe_duplicates(
    groups: Iterable[npt.NDArray[np.int64]],
    files: Sequence[str],
    patients: Sequence[str],
    splits: Sequence[str],
    labels: npt.NDArray[np.int8],
) -> list[Duplicates]:
    """What is to be known of each group of equal images."""

    def one(values: Iterable[object]) -> bool:
        return len(set(values)) == 1

    return [
        Duplicates(
            rows=tuple(rows.tolist()),
            same_file=one(files[row] for row in rows.tolist()) and files[int(rows[0])] != "",
            same_patient=one(patients[row] for row in rows.tolist()),
            same_labels=one(labels[row].tobytes() for row in rows),
            splits=tuple(name for name in SPLITS if name in {splits[row] for row in rows.tolist()}),
        )
        for rows in groups
    ]


def join_patients(patients: Sequence[str], groups: Iterable[npt.NDArray[np.int64]]) -> list[str]:
    """Patients with a common name for those who share an image, so that a split keeps them together."""
    leader: dict[str, str] = {}

    def find(patient: str) -> str:
        while patient in leader:
            patient = leader[patient]
        return patient

    for rows in groups:
        first = find(patients[int(rows[0])])
        for row in rows[1:].tolist():
            other = find(patients[row])
            if other != first:
                leader[other] = first
    return [find(patient) for patient in patients]


def duplicate_notes(found: Sequence[Duplicates]) -> list[tuple[str, Literal["info", "warning"]]]:
    """What to tell the user about images of equal pixels, leaks first."""

    def count(groups: Sequence[Duplicates]) -> str:
        plural = "" if len(groups) == 1 else "s"
        return f"{sum(len(group.rows) for group in groups):,} images in {len(groups):,} group{plural}"

    over_splits = [group for group in found if len(group.splits) > 1]
    over_patients = [group for group in found if not group.same_patient and len(group.splits) == 1]
    rest = [group for group in found if not group.leak]
    disagreeing = [group for group in found if not group.same_labels]
    notes: list[tuple[str, Literal["info", "warning"]]] = []
    if over_splits:
        notes.append((f"LEAK: {count(over_splits)} of equal pixels are in more than one split", "warning"))
    if over_patients:
        text = f"{count(over_patients)} of equal pixels carry different patient identifiers; each group is in one split"
        notes.append((text, "warning"))
    if rest:
        notes.append((f"{count(rest)} have equal pixels within a patient", "info"))
    if disagreeing:
        notes.append((f"{count(disagreeing)} of equal pixels have different labels", "warning"))
    return notes
