"""Tables of other programs, read as text so that identifiers stay what they are."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.errors import DataError
from cxrlt_cli.wording import did_you_mean

Array = npt.NDArray[np.float64]

# Usual names, in lower case without anything but letters and digits; the first that is there is taken.
_IMAGE = ("imageid", "imageindex", "dicomid", "imagename", "image", "filename", "file", "imagepath", "path", "id")
_PATIENT = ("patientid", "subjectid", "patient", "subject", "pid")
#: Columns of 0 and 1 that are no findings.
_NO_FINDINGS = frozenset({"split", "fold", "sex", "gender", "age", "index", "row", "followup", "view"})
_LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
_LABELS |= dict.fromkeys(("", "-1", "-1.0", "nan", "na", "none", "null"), UNKNOWN)
#: A column is taken for labels with mistakes in it when at least this share of its filled cells are labels.
_ALMOST = 0.8
#: What a spreadsheet makes of a long number: 1.90E+38.
_SCIENTIFIC = re.compile(r"[+-]?\d(\.\d*)?[eE]\+\d+")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text: its file, the cells of each column, and which column names the images."""

    path: Path
    columns: dict[str, list[str]]
    id_column: str

    def __len__(self) -> int:
        return len(self.columns[self.id_column])

    @staticmethod
    def plain(name: str) -> str:
        """A name in lower case without anything but letters and digits."""
        return re.sub(r"[^a-z0-9]", "", name.lower())


def read_sheet(path: Path) -> Sheet:
    """Read CSV, TSV (also .gz) or Parquet.

    Raises:
        DataError: it cannot be read, has no rows, a column twice, lines of unequal length, or no identifiers.
    """
    try:
        header, rows = _parquet(path) if path.suffix.lower() in {".parquet", ".pq"} else _text(path)
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), cure="Look at the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not in UTF-8: {error}", where=str(path), cure="Save it again in UTF-8.") from error
    except (OSError, EOFError, csv.Error, zlib.error, ValueError) as error:
        cure = "Give a table in CSV or Parquet."
        raise DataError(f"cannot be read: {error}", where=str(path), cure=cure) from error
    repeated = [name for name, times in Counter(header).items() if name and times > 1]
    if repeated:
        raise DataError(f"has two columns called {repeated[0]!r}", where=str(path), cure="Rename one of them.")
    if not rows or not rows[0]:
        raise DataError("the table has no rows", where=str(path), cure="Give a header and a row an image.")
    columns = {name: cells for name, cells in zip(header, rows, strict=True) if name}
    return Sheet(path, columns, _id_column(columns, path))


def _text(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and the cells of each column."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        reader = csv.reader(file, delimiter=max(",\t;", key=first.count), strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise DataError(
                    f"has {len(row)} cells, the header has {len(header)}",
                    where=f"{path}, line {reader.line_num}",
                    cure="Correct the line. If it is the last one, the file may have been cut off.",
                )
            rows += [row] if row else []
    return header, [[cell.strip() for cell in column] for column in zip(*rows, strict=True)]


def _parquet(path: Path) -> tuple[list[str], list[list[str]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:  # an ArrowException is a ValueError or an OSError
        table = file.read()
    cells = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    # pandas writes row numbers under this name; in CSV they have none
    return ["" if name.startswith("__index_level_") else name for name in table.column_names], cells


def _id_column(columns: dict[str, list[str]], path: Path) -> str:
    spelled = {Sheet.plain(name): name for name in reversed(columns)}
    name = next((spelled[usual] for usual in _IMAGE if usual in spelled), "")
    if not name:
        raise DataError(
            "no column has a usual name of image identifiers",
            where=str(path),
            cure=f"Call it image_id or ImageID. The columns are: {', '.join(list(columns)[:10])}.",
        )
    return name


def identifiers(sheet: Sheet) -> list[str]:
    """The image identifiers, each once.

    Raises:
        DataError: one is empty or occurs twice.
    """
    cells = sheet.columns[sheet.id_column]
    times = Counter(cells)
    if "" in times:
        where = f"{sheet.path}, column {sheet.id_column!r}"
        raise DataError(f"{times['']} image identifiers are empty", where=where, cure="Fill them in.")
    repeated = [name for name, count in times.items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} images occur more than once, such as {repeated[0]!r}",
            where=str(sheet.path),
            cure="Keep one row an image.",
        )
    return cells


def patients_of(sheet: Sheet) -> tuple[list[str] | None, str]:
    """The patient of each image, or None and the reason why they are not known."""
    spelled = {Sheet.plain(name): name for name in reversed(sheet.columns)}
    name = next((spelled[usual] for usual in _PATIENT if usual in spelled), "")
    if not name:
        return None, "no column of patients"
    cells = sheet.columns[name]
    if any(_SCIENTIFIC.fullmatch(cell) for cell in cells):
        return None, f"the identifiers in {name!r} were turned into numbers and lost their digits"
    return cells, ""


def labels_of(sheet: Sheet) -> dict[str, npt.NDArray[np.int8]]:
    """Class -> labels (N,) of every column of labels: 1, 0, -1 or empty for unknown.

    Raises:
        DataError: a column is one of labels but for a few cells.
    """
    usual = {*_IMAGE, *_PATIENT, *_NO_FINDINGS}
    found = {}
    for name, cells in sheet.columns.items():
        if sheet.plain(name) in usual:
            continue
        values = [_LABELS.get(cell.lower()) for cell in cells]
        wrong = [row for row, value in enumerate(values) if value is None]
        if not wrong and any(cells):
            found[name] = np.array(values, np.int8)
        elif wrong and len(wrong) <= (1 - _ALMOST) * sum(1 for cell in cells if cell):
            raise DataError(
                f"{cells[wrong[0]]!r} is not a label",
                where=f"{sheet.path}, image {sheet.columns[sheet.id_column][wrong[0]]}, column {name!r}",
                cure="Labels are 1, 0, and -1 or empty for unknown.",
            )
    return found


def numbers(sheet: Sheet, name: str) -> Array:
    """A column of numbers (N,).

    Raises:
        DataError: it is not there, or a cell is empty or no number.
    """
    if name not in sheet.columns:
        cure = did_you_mean(name, sheet.columns).strip()
        raise DataError(f"has no column {name!r}", where=str(sheet.path), cure=cure)
    cells = sheet.columns[name]
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        row = next(row for row, cell in enumerate(cells) if not _is_number(cell))
        raise DataError(
            f"{cells[row]!r} is not a number",
            where=f"{sheet.path}, image {sheet.columns[sheet.id_column][row]}, column {name!r}",
            cure="Fill in a probability from 0 to 1; take the column out if it is not a class.",
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
