"""Which images have something in common: their view, the patient's sex and age, where they come from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN

#: Lower ends of the age bands, in years.
AGES = (0, 20, 40, 60, 80)
#: A column with more values than this is no way to split images up.
MOST = 12
NOT_STATED = "not stated"

#: What a column splits by -> its usual names, in lower case without anything but letters and digits.
_NAMES = {
    "sex": ("sex", "gender", "patientsex", "patientgender", "sexdicom", "patientsexdicom"),
    "age": ("age", "patientage", "ageyears", "ageatstudy", "patientageyears"),
    "source": ("source", "datasource", "origin", "site", "hospital", "institution", "manufacturer", "dataset"),
}
_SEXES = {**dict.fromkeys(("m", "male", "man"), "M"), **dict.fromkeys(("f", "female", "w", "woman"), "F")}
_AGE = re.compile(r"0*(\d+(?:\.\d+)?)\s*([YMWD]?)", re.IGNORECASE)
_YEARS = {"": 1.0, "y": 1.0, "m": 1 / 12, "w": 1 / 52.18, "d": 1 / 365.25}


@dataclass(frozen=True, slots=True)
class Column:
    """A way to split N images: what it is called, and the value of each image, empty where it is not stated."""

    by: str
    values: Sequence[str]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows (n,) whose column ``by`` has ``value``."""

    by: str
    value: str
    rows: npt.NDArray[np.int64]


def columns_of(table: Mapping[str, Sequence[object]]) -> Iterator[Column]:
    """The columns of a table that split images into subsets, found by their usual names."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("source:")): name for name in table}
    for by, names in _NAMES.items():
        found = next((plain[name] for name in names if name in plain), None)
        if found is not None:
            yield Column(by, [_value(by, cell) for cell in table[found]])


def _value(by: str, cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    text = str(cell).strip()
    if by == "age":
        return age_band(text)
    return _SEXES.get(text.lower(), "") if by == "sex" else text


def age_band(text: str) -> str:
    """The band of an age: a number of years, or DICOM's 063Y, 009M, 002W, 010D; empty for anything else."""
    match = _AGE.fullmatch(text)
    if not match:
        return ""
    years = float(match[1]) * _YEARS[match[2].lower()]
    low = max(edge for edge in AGES if edge <= years)
    following = [edge for edge in AGES if edge > low]
    return f"{low}-{following[0] - 1}" if following else f"{low}+"


def subsets_of(columns: Sequence[Column], labels: npt.NDArray[np.int8]) -> list[Chosen]:
    """The subsets of each column with at least two values; those without any known label are left out."""
    found = []
    for column in columns:
        stated = sorted(set(column.values) - {""}, key=_natural)
        if not 2 <= len(stated) <= MOST:
            continue
        values = np.array(column.values, dtype=object)
        for value in [*stated, *([""] if "" in column.values else [])]:
            rows = np.flatnonzero(values == value)
            if (labels[rows] != UNKNOWN).any():
                found.append(Chosen(column.by, value or NOT_STATED, rows))
    return found


def _natural(value: str) -> tuple[float, str]:
    """Order by the number a value begins with, then by its text."""
    digits = re.match(r"\d+", value)
    return (float(digits[0]) if digits else math.inf, value)
