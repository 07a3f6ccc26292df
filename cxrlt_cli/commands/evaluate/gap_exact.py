"""Labels better than the dataset's: columns of the dataset, or a table of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.evaluate.sheets import Sheet, identifiers, labels_of, read_sheet
from cxrlt_cli.commands.opening import OpenRun, column
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import DataError

Labels = npt.NDArray[np.int8]

#: Columns of a dataset that hold better labels than those of the class after the colon.
EXACT = "true:"


def exact_labels(
    run: OpenRun, prepared: Prepared, rows: npt.NDArray[np.int64], table: Path | None
) -> tuple[Labels | None, str]:
    """(N, C) labels better than the dataset's, -1 where there is none, and where they are from: a table, if there is.

    Raises:
        DataError: the table cannot be used.
    """
    classes = run.card.classes
    if table is not None:
        return _from_table(table, column(prepared.frame, "image_id", rows), classes), str(table)
    there = [name for name in classes if EXACT + name in prepared.frame]
    if not there:
        return None, ""
    made = np.full((len(rows), len(classes)), UNKNOWN, np.int8)
    for name in there:
        values = prepared.frame[EXACT + name].iloc[rows].to_numpy()
        made[:, classes.index(name)] = np.where(np.isin(values, (0, 1)), values, UNKNOWN)
    return made, f"the dataset's columns {EXACT}CLASS"


def _from_table(path: Path, image_id: Sequence[str], classes: Sequence[str]) -> Labels:
    sheet = read_sheet(path)
    known, place = labels_of(sheet), {name: row for row, name in enumerate(identifiers(sheet))}
    _check(sheet, set(classes) - set(known))
    if not set(known) & set(classes):
        raise DataError(
            "holds no column of labels for a class of the run",
            where=str(path),
            cure=f"Name its columns as the classes are named: {', '.join(classes[:5])}, ...",
        )
    made = np.full((len(image_id), len(classes)), UNKNOWN, np.int8)
    at = np.array([place.get(name, -1) for name in image_id])
    for c, name in enumerate(classes):
        if name in known:
            made[at >= 0, c] = known[name][at[at >= 0]]
    return made


def _check(sheet: Sheet, classes: set[str]) -> None:
    """Make sure that columns of classes whose labels were not found are empty."""
    for name in sorted(classes & set(sheet.columns)):
        cell = next(filter(None, sheet.columns[name]), "")
        if cell:
            raise DataError(
                f"the column of the class {name!r} does not hold labels, but {cell!r}, for instance",
                where=str(sheet.path),
                cure="Labels are 1, 0, and -1 or empty for unknown.",
            )
