"""Which column is what: identifiers, classes, views, splits; found by usual names or by content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN, PluginFault

from .sheet import Sheet, shown

# Usual names, in lower case without anything but letters and digits; the first that is there is taken.
IMAGE = ("imageid", "imageindex", "dicomid", "imagename", "image", "filename", "file", "imagepath", "path", "id")
PATIENT = ("patientid", "subjectid", "subjid", "patient", "subject", "pid")
STUDY = ("studyid", "study", "studyinstanceuid", "accessionnumber")
VIEW = ("view", "viewposition", "projection")
SPLIT = ("split",)

#: Columns of 0 and 1 that are no findings, in the same spelling.
_NO_FINDINGS = frozenset({"fold", "sex", "gender", "age", "index", "row", "followup"})

_VALUES = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
_UNKNOWN = frozenset({"", "-1", "-1.0", "nan", "na", "n/a", "none", "null"})
#: A column is taken for a class with mistakes in it when at least this share of its filled cells are labels.
_ALMOST = 0.8

_VIEW_NAMES = {
    "pa": "PA",
    **dict.fromkeys(("ap", "aphorizontal", "apsupine", "aperect", "portable"), "AP"),
    **dict.fromkeys(("lateral", "lat", "l", "ll", "rl", "leftlateral", "rightlateral"), "lateral"),
}
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "development", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}

#: What a spreadsheet or a float makes of a long number: 1.90E+38.
_SCIENTIFIC = re.compile(r"[+-]?\d(\.\d*)?[eE]\+\d+")


def plain(name: str) -> str:
    """A name in lower case without anything but letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def usual(sheet: Sheet, names: Sequence[str], taken: Collection[str] = ()) -> str:
    """The column with the first of the usual names that occurs, or an empty string."""
    spelled: dict[str, str] = {}
    for column in sheet.columns:
        if column not in taken:
            spelled.setdefault(plain(column), column)
    return next((spelled[name] for name in names if name in spelled), "")


def refuse_scientific(sheet: Sheet, column: str, cure: str) -> None:
    """Refuse identifiers that were turned into floating-point numbers and back: most of their digits are gone."""
    cells = sheet.columns[column]
    found = [row for row, value in enumerate(cells) if _SCIENTIFIC.fullmatch(value)]
    if found:
        raise PluginFault(
            f"the identifier {cells[found[0]]!r} was turned into a number and lost its digits; so were {len(found)} of "
            f"{len(cells)}, with {len({cells[row] for row in found})} distinct values left",
            where=sheet.at(found[0], column),
            cure=cure,
        )


def is_scientific(cells: Sequence[str]) -> bool:
    """Whether any identifier has the form 1.90E+38."""
    return any(_SCIENTIFIC.fullmatch(value) for value in cells)


def refuse_empty(sheet: Sheet, column: str, what: str, cure: str) -> None:
    """Refuse a column of identifiers with empty cells."""
    empty = [row for row, value in enumerate(sheet.columns[column]) if value.lower() in _UNKNOWN - {"-1"}]
    if empty:
        raise PluginFault(f"{what} is empty in {len(empty)} rows", where=sheet.at(empty[0], column), cure=cure)


def refuse_repeated(sheet: Sheet, column: str) -> None:
    """Refuse an image that is listed twice."""
    first: dict[str, int] = {}
    for row, value in enumerate(sheet.columns[column]):
        if value in first:
            raise PluginFault(
                f"the image {value!r} is also on {sheet.unit} {sheet.lines[first[value]]}",
                where=sheet.at(row, column),
                cure="Keep one row an image, or name the column that tells images apart with --id.",
            )
        first[value] = row


# -- classes -------------------------------------------------------------------------------------------------------


def stated_classes(sheet: Sheet, text: str) -> list[str]:
    """The columns named in ``text``: separated by commas, or one a line in a file of that name."""
    names = text.split(",")
    if len(names) == 1 and text not in sheet.columns and Path(text).is_file():
        try:
            names = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PluginFault(f"cannot be read: {error}", where=f"--classes {text}", cure="Give UTF-8 text.") from error
    return [sheet.named(name.strip(), "--classes") for name in names if name.strip()]


def found_classes(sheet: Sheet, taken: Collection[str]) -> list[str]:
    """Every further column of labels.

    Raises:
        PluginFault: there is none, or a column of labels holds a few values that are none.
    """
    names = []
    for name, cells in sheet.columns.items():
        if name in taken or plain(name) in _NO_FINDINGS:
            continue
        counts = Counter(value.lower() for value in cells)
        labels = sum(counts[value] for value in (*_VALUES, "-1", "-1.0"))
        filled = len(cells) - sum(counts[value] for value in _UNKNOWN - {"-1", "-1.0"})
        if labels == filled and any(counts[value] for value in _VALUES):
            names.append(name)
        elif labels < filled and labels >= _ALMOST * filled:
            raise _almost_a_class(sheet, name)
    if not names:
        raise PluginFault(
            "no column holds labels (0, 1, -1 or empty)",
            where=str(sheet.path),
            cure=f"Name the class columns with --classes. The columns are: {shown(sheet.columns)}.",
        )
    return names


def _almost_a_class(sheet: Sheet, name: str) -> PluginFault:
    row = next(row for row, value in enumerate(sheet.columns[name]) if not _is_label(value))
    return PluginFault(
        f"{sheet.columns[name][row]!r} is not a label, though the column looks like a class",
        where=sheet.at(row, name),
        cure="Labels are 1, 0, -1 or empty (unknown). Correct the cell, or name the class columns with --classes.",
    )


def _is_label(value: str) -> bool:
    return value.lower() in _VALUES or value.lower() in _UNKNOWN


def labels_of(sheet: Sheet, classes: Sequence[str]) -> npt.NDArray[np.int8]:
    """The labels (N, C): 1, 0, or -1 for -1 and for empty cells.

    Raises:
        PluginFault: a cell holds anything else.
    """
    table = {**_VALUES, **dict.fromkeys(_UNKNOWN, UNKNOWN)}
    labels = np.empty((len(sheet.lines), len(classes)), np.int8)
    for index, name in enumerate(classes):
        for row, value in enumerate(sheet.columns[name]):
            label = table.get(value)
            label = table.get(value.lower()) if label is None else label
            if label is None:
                raise PluginFault(
                    f"{value!r} is not a label",
                    where=sheet.at(row, name),
                    cure="Labels are 1, 0, -1 or empty (unknown). Correct the cell, or do not name the column a class.",
                )
            labels[row, index] = label
    return labels


def empty_cells(sheet: Sheet, classes: Sequence[str]) -> dict[str, int]:
    """How many cells of each class are empty (or NaN); classes without any are left out."""
    empty = _UNKNOWN - {"-1", "-1.0"}
    counts = {name: sum(value.lower() in empty for value in sheet.columns[name]) for name in classes}
    return {name: count for name, count in counts.items() if count}


# -- views and splits ----------------------------------------------------------------------------------------------


def views_of(cells: Sequence[str]) -> tuple[list[str], dict[str, int]]:
    """ "PA", "AP", "lateral" or empty for each cell; and how often each view without a name here occurs."""
    strange = Counter(cell for cell in cells if cell and plain(cell) not in _VIEW_NAMES)
    return [_VIEW_NAMES.get(plain(cell), "") for cell in cells], dict(strange.most_common())


def are_splits(cells: Sequence[str]) -> bool:
    """Whether every cell names a split."""
    return {cell.lower() for cell in cells} <= _SPLIT_NAMES.keys()


def splits_of(sheet: Sheet, column: str) -> list[str]:
    """ "train", "dev" or "test" for each row.

    Raises:
        PluginFault: a cell says something else.
    """
    for row, cell in enumerate(sheet.columns[column]):
        if cell.lower() not in _SPLIT_NAMES:
            raise PluginFault(
                f"{cell!r} is not a split",
                where=sheet.at(row, column),
                cure="Splits are train, dev (or val) and test. Or let cxrlt split: --split dev=0.1,test=0.1.",
            )
    return [_SPLIT_NAMES[cell.lower()] for cell in sheet.columns[column]]
