"""The submission form of CXR-LT 2026, task 1: written, then read back and checked."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import replacing
from cxrlt_cli.errors import DataError

#: The classes of task 1, in the column order of the challenge's label table.
CLASSES: tuple[str, ...] = (
    "Normal",
    "aortic elongation",
    "cardiomegaly",
    "pleural effusion",
    "Nodule",
    "atelectasis",
    "pleural thickening",
    "aortic atheromatosis",
    "Support Devices",
    "alveolar pattern",
    "fracture",
    "Hernia",
    "Emphysema",
    "azygos lobe",
    "Hydropneumothorax",
    "Kyphosis",
    "Mass",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "pneumoperitoneo",
    "vascular hilar enlargement",
    "vertebral degenerative changes",
    "hyperinflated lung",
    "interstitial pattern",
    "central venous catheter",
    "hypoexpansion",
    "bronchiectasis",
    "hemidiaphragm elevation",
    "sternotomy",
    "calcified densities",
)
HEADER: tuple[str, ...] = ("ImageID", *CLASSES)


def check_classes(classes: Sequence[str], where: str) -> None:
    """Make sure that a model with these classes can fill the form.

    Raises:
        DataError: some of the 30 classes are missing; all of them are named.
    """
    missing = [name for name in CLASSES if name not in classes]
    if missing:
        raise DataError(
            f"the model lacks {len(missing)} of the {len(CLASSES)} classes of CXR-LT 2026: {', '.join(missing)}",
            where=where,
            cure="Submit with a model trained on the challenge's label table; write an ordinary table without "
            "--submission.",
        )


def write_submission(
    path: Path, image_id: Sequence[str], classes: Sequence[str], posteriors: npt.NDArray[np.float64]
) -> None:
    """Write the form, read it back and check it; ``path`` appears only when it passed.

    Args:
        path: the CSV file.
        image_id: N unique identifiers, in the order of the rows.
        classes: C names of the columns of ``posteriors``; those that are not in the form are left out.
        posteriors: (N, C) in [0, 1].

    Raises:
        DataError: a class is missing, or the form is not valid.
    """
    check_classes(classes, str(path))
    columns = posteriors[:, [list(classes).index(name) for name in CLASSES]]
    with replacing(path) as part:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows([name, *row] for name, row in zip(image_id, columns.tolist(), strict=True))
        validate_submission(part, image_id, name=str(path))


def validate_submission(path: Path, image_id: Sequence[str], name: str = "") -> None:
    """Check a form: its header, a row for each image and no other, and probabilities.

    Args:
        path: the file to read.
        image_id: the identifiers asked for.
        name: what the file is called in errors; default: ``path``.

    Raises:
        DataError: the first thing that is wrong.
    """
    where = name or str(path)
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header, rows = next(lines, []), list(lines)
    if tuple(header) != HEADER:
        raise _invalid(
            f"its header is not ImageID and the 30 classes in their order: {','.join(header)[:200]!r}", where
        )
    for number, row in enumerate(rows, 2):
        _check_row(row, f"{where}:{number}")
    _check_identifiers([row[0] for row in rows], image_id, where)


def _check_identifiers(found: Sequence[str], wanted: Sequence[str], where: str) -> None:
    repeated = [name for name, count in Counter(found).items() if count > 1]
    if repeated:
        raise _invalid(f"{len(repeated)} identifiers occur more than once, such as {repeated[0]!r}", where)
    missing, extra = set(wanted) - set(found), set(found) - set(wanted)
    if missing or extra or len(found) != len(wanted):
        named = ", ".join(repr(name) for name in sorted(missing | extra)[:3])
        raise _invalid(f"it has {len(found)} images where {len(wanted)} were asked for (look at {named})", where)


def _check_row(row: Sequence[str], where: str) -> None:
    if len(row) != len(HEADER):
        raise _invalid(f"the row has {len(row)} columns, not {len(HEADER)}", where)
    for column, text in zip(CLASSES, row[1:], strict=True):
        if not _is_probability(text):
            raise _invalid(f"{row[0]}, {column}: {text!r} is not a probability", where)


def _is_probability(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and 0 <= value <= 1


def _invalid(what: str, where: str) -> DataError:
    return DataError(f"the submission is not valid: {what}", where=where)
