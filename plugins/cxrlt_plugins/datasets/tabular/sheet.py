"""A label table as text: no value is guessed to be a number, and no short line is filled up."""

from __future__ import annotations

import bz2
import csv
import difflib
import gzip
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cxrlt_cli.contracts import PluginFault

_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DELIMITERS = ",\t;|"


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of text.

    Attributes:
        path: its file.
        columns: the cells of each named column, stripped of blanks around them.
        lines: the line of the file each row ends on, counted from 1; for Parquet the row, counted from 1.
        unit: "line" or "row".
    """

    path: Path
    columns: dict[str, list[str]]
    lines: Sequence[int]
    unit: str = "line"

    def at(self, row: int, column: str = "") -> str:
        """Where a cell is, for a message."""
        place = f"{self.path}, {self.unit} {self.lines[row]}"
        return f"{place}, column {column!r}" if column else place

    def named(self, wanted: str, option: str) -> str:
        """``wanted``, which the user gave with ``option``, if it is a column.

        Raises:
            PluginFault: it is not one; with a suggestion and the list.
        """
        if wanted in self.columns:
            return wanted
        near = difflib.get_close_matches(wanted, self.columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PluginFault(
            f"there is no column {wanted!r}{hint}",
            where=f"{self.path}, {option}",
            cure=f"Its columns are: {', '.join(self.columns)}.",
        )


def read_sheet(path: Path) -> Sheet:
    """Read a table: CSV, TSV (also ``;`` and ``|``; also .gz, .bz2, .xz) or Parquet.

    Raises:
        PluginFault: it cannot be read, is empty, has a column twice, or a line of another length than the header.
    """
    if path.is_dir():
        raise PluginFault("is a directory, not a table", where=str(path), cure="Give the label table with --labels.")
    if not path.exists():
        raise PluginFault("there is no such file", where=str(path), cure="Give the label table with --labels.")
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        header, rows, lines = _read_text(path)
    except UnicodeDecodeError as error:
        raise PluginFault(
            f"is not UTF-8 text (byte {error.start})", where=str(path), cure="Save it again as UTF-8 CSV."
        ) from error
    except (OSError, EOFError, csv.Error, lzma.LZMAError, zlib.error) as error:
        raise PluginFault(f"cannot be read: {error}", where=str(path), cure="The file is damaged.") from error
    return _sheet(path, header, rows, lines)


def _read_text(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    opener = _OPENERS.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(_DELIMITERS, key=first.count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        rows, lines = [], []
        for row in reader:
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                raise PluginFault(
                    f"has {len(row)} cells, the header has {len(header)}",
                    where=f"{path}, line {reader.line_num}",
                    cure="Correct the line. If it is the last one, the file may have been cut off.",
                )
            rows.append(row)
            lines.append(reader.line_num)
    return header, rows, lines


def _sheet(path: Path, header: list[str], rows: list[list[str]], lines: list[int]) -> Sheet:
    if not rows:
        raise PluginFault(
            "the table has no rows", where=str(path), cure="Give a table with a header and a row an image."
        )
    columns: dict[str, list[str]] = {}
    for index, name in enumerate(header):
        cells = [row[index].strip() for row in rows]
        if name in columns:
            raise PluginFault(f"has two columns called {name!r}", where=str(path), cure="Rename one of them.")
        if name:
            columns[name] = cells
        elif any(cells) and index > 0:  # an unnamed first column is the row number pandas writes
            raise PluginFault(f"column {index + 1} has no name", where=str(path), cure="Name it in the first line.")
    return Sheet(path, columns, lines)


def _read_parquet(path: Path) -> Sheet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise PluginFault(f"cannot be read: {error}", where=str(path), cure="The file is damaged.") from error
    if table.num_rows == 0:
        raise PluginFault("the table has no rows", where=str(path), cure="Give a table with a row an image.")
    columns = {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}
    return Sheet(path, columns, range(1, table.num_rows + 1), "row")


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    return str(value).strip()


def shown(names: Iterable[str], most: int = 40) -> str:
    """Names for a message, cut where there are too many."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f", ... ({len(listed)} in all)" if len(listed) > most else "")
