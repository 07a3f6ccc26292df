"""The prepared dataset: what ``dataset.json`` and ``manifest.parquet`` say, checked when it is opened.

A row of the manifest is an image: identifiers, view, split, fold, one int8 column a class (1, 0, -1 = unknown), where
the image came from, and where it lies in the shards. Labels follow class names, never positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import read_json, replacing
from cxrlt_cli.contracts import UNKNOWN, ClassStats
from cxrlt_cli.errors import DataError, RunError

from . import shards

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

#: Version of the prepared dataset; raised when an older reader could not read it.
FORMAT = 1
SPLITS = ("train", "dev", "test")
#: Fold of a row that takes no part in cross-validation.
NO_FOLD = -1

#: Columns every manifest has, with their Parquet types; ``fold`` is there when folds were asked for.
COLUMNS: Mapping[str, str] = {
    "image_id": "string",
    "patient_id": "string",
    "study_id": "string",
    "view": "dictionary",
    "split": "dictionary",
    "path": "string",
    "sha256": "string",
    "pixel_sha256": "string",
    "file_size": "int64",
    "width": "int32",
    "height": "int32",
    "bits": "int16",
    "shard": "int32",
    "row": "int32",
    "crc32": "uint32",
}
#: Names a class cannot have.
RESERVED = frozenset({*COLUMNS, "fold"})
#: Columns that training and evaluation do not need; left on disk.
_ON_DISK = frozenset({"path", "sha256", "pixel_sha256", "file_size", "crc32"})

AGAIN = "Prepare the dataset again into an empty directory."


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A prepared dataset of N images.

    Attributes:
        path: its directory.
        name: what it is called in reports: the name of the directory it was prepared in.
        classes: the C class names, in column order.
        size: side of the images, in pixels.
        fit: how images were made square.
        content_hash: hexadecimal SHA-256 over classes, identifiers, labels, splits, folds and pixels.
        frame: one row an image: image_id, patient_id, study_id, view, split, (fold,) the classes, width, height, bits,
            shard, row, and the source's further columns. The file names and hashes stay on disk.
        labels: (N, C) int8: 1, 0, or -1 where unknown.
        info: the content of dataset.json.
    """

    path: Path
    name: str
    classes: tuple[str, ...]
    size: int
    fit: Literal["pad", "squash"]
    content_hash: str
    frame: pd.DataFrame
    labels: npt.NDArray[np.int8]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, split: str, *, fold: int | None = None, views: Sequence[str] | None = None) -> npt.NDArray[np.int64]:
        """Manifest positions of one split, ascending; empty when the split is.

        Args:
            split: "train", "dev" or "test".
            fold: with a fold, "train" is every row of another fold, "dev" every row of this one; "test" stays.
            views: only these image views.

        Raises:
            DataError: no such split, fold or view in this dataset.
        """
        if split not in SPLITS:
            raise DataError(f"there is no split {split!r}", where=str(self.path), cure=f"Choose from {_names(SPLITS)}.")
        if fold is None or split == "test":
            chosen = self.frame["split"].eq(split).to_numpy(bool)
        else:
            folds = self._folds(fold)
            chosen = (folds == fold) if split == "dev" else (folds != fold) & (folds != NO_FOLD)
        if views is not None:
            self._check_views(views)
            chosen = chosen & self.frame["view"].isin(list(views)).to_numpy(bool)
        return np.flatnonzero(chosen).astype(np.int64)

    def stats(self, rows: npt.NDArray[np.int64]) -> ClassStats:
        """Positives and negatives of each class among ``rows``."""
        labels = self.labels[rows]
        positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
        return ClassStats(self.classes, tuple(positives.tolist()), tuple(negatives.tolist()))

    def _folds(self, fold: int) -> npt.NDArray[np.int8]:
        where, cure = str(self.path), "Prepare it with --folds K."
        if "fold" not in self.frame:
            raise DataError("the dataset has no folds", where=where, cure=cure)
        folds = self.frame["fold"].to_numpy(np.int8)
        count = int(folds.max(initial=NO_FOLD)) + 1
        if not 0 <= fold < count:
            raise DataError(f"there is no fold {fold}: the dataset has {count}, counted from 0", where=where, cure=cure)
        return folds

    def _check_views(self, views: Sequence[str]) -> None:
        present = sorted({str(view) for view in self.frame["view"].unique()} - {""})
        for view in views:
            if view not in present:
                have = f"It has {_names(present)}." if present else "It states no views at all."
                raise DataError(f"no image has the view {view!r}", where=str(self.path), cure=have)


def load_prepared(path: Path, *, images: bool = True) -> Prepared:
    """Open a prepared dataset and check that it is whole.

    Args:
        path: its directory.
        images: whether the images have to be there. Labels and predictions can be compared without them.

    Raises:
        DataError: it is missing, unfinished, damaged, or of a newer format; the message names the file and the cure.
    """
    info = read_info(path)
    classes = tuple(info["classes"])
    table = _read_table(path / "manifest.parquet", classes)
    labels = _labels(table, classes, path / "manifest.parquet")
    _check_table(table, info, path)
    if images:
        _check_shards(table, info, path)
    frame = table.drop_columns([name for name in _ON_DISK if name in table.column_names])
    return Prepared(
        path=path,
        name=info["name"],
        classes=classes,
        size=info["image_size"],
        fit=info["fit"],
        content_hash=info["content_hash"],
        frame=_to_pandas(frame),
        labels=labels,
        info=info,
    )


_FIELDS: Mapping[str, type] = {
    "format": int,
    "name": str,
    "classes": list,
    "image_size": int,
    "fit": str,
    "images": int,
    "content_hash": str,
    "counts": dict,
}


def read_info(path: Path) -> dict[str, Any]:
    """The content of ``dataset.json``, checked field by field.

    Raises:
        DataError: ``path`` is not a finished prepared dataset of a format that can be read.
    """
    file = path / "dataset.json"
    if not file.exists():
        raise _absent(path)
    try:
        info = read_json(file)
    except RunError as error:
        raise DataError(error.what, where=error.where, cure=AGAIN) from error
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        raise DataError("is not the dataset.json of a prepared dataset", where=str(file), cure=AGAIN)
    if info["format"] > FORMAT:
        raise DataError(
            f"has format {info['format']}, this cxrlt reads up to {FORMAT}",
            where=str(file),
            cure="Install a newer cxrlt, or prepare the dataset again.",
        )
    for name, kind in _FIELDS.items():
        if not isinstance(info.get(name), kind):
            raise DataError(f"the field {name!r} is missing or damaged", where=str(file), cure=AGAIN)
    if not info["classes"] or not all(isinstance(name, str) for name in info["classes"]):
        raise DataError("the field 'classes' is not a list of names", where=str(file), cure=AGAIN)
    return info


def _absent(path: Path) -> DataError:
    if not path.exists():
        return DataError("there is no such directory", where=str(path), cure="Make it with `cxrlt prepare SOURCE OUT`.")
    if not path.is_dir():
        return DataError("is not a directory", where=str(path), cure="Give the directory cxrlt prepare wrote.")
    if (path / "plan.json").exists():
        return DataError(
            "the dataset is unfinished", where=str(path), cure="Run the same `cxrlt prepare` again: it continues."
        )
    return DataError(
        "is not a prepared dataset (it has no dataset.json)",
        where=str(path),
        cure="Give the directory cxrlt prepare wrote.",
    )


def _read_table(path: Path, classes: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()  # read_table would make columns of folders called name=value
    except FileNotFoundError:
        raise DataError("the file is missing", where=str(path), cure=AGAIN) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), cure=AGAIN) from error
    for kind, names in (("class", classes), ("", tuple(COLUMNS))):
        lost = [name for name in names if name not in table.column_names]
        if lost:
            raise DataError(f"the {kind} column {lost[0]!r} is missing".replace("  ", " "), where=str(path), cure=AGAIN)
    return table


def _labels(table: pa.Table, classes: Sequence[str], path: Path) -> npt.NDArray[np.int8]:
    labels = np.empty((table.num_rows, len(classes)), np.int8)
    for index, name in enumerate(classes):
        column = table[name]
        if str(column.type) != "int8" or column.null_count:
            raise DataError(f"the class column {name!r} is not int8 throughout", where=str(path), cure=AGAIN)
        labels[:, index] = column.to_numpy()
    if labels.size and (labels.min() < UNKNOWN or labels.max() > 1):
        row, column_index = np.argwhere((labels < UNKNOWN) | (labels > 1))[0]
        raise DataError(
            f"row {row} has the label {labels[row, column_index]}", where=f"{path}, {classes[column_index]}", cure=AGAIN
        )
    return labels


def _check_table(table: pa.Table, info: Mapping[str, Any], path: Path) -> None:
    where = str(path / "manifest.parquet")
    if table.num_rows != info["images"]:
        raise DataError(f"has {table.num_rows} rows, dataset.json says {info['images']}", where=where, cure=AGAIN)
    strange = set(table["split"].unique().to_pylist()) - set(SPLITS)
    if strange:
        raise DataError(f"has the unknown split {strange.pop()!r}", where=where, cure=AGAIN)
    if content_hash(table, info) != info["content_hash"]:
        raise DataError(
            "its content does not match the hash in dataset.json: it was changed after it was prepared",
            where=where,
            cure="Change the source table instead and prepare again into an empty directory.",
        )


def _check_shards(table: pa.Table, info: Mapping[str, Any], path: Path) -> None:
    shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
    for index in np.unique(shard).tolist():
        file = path / "images" / f"{index:05d}.npy"
        try:
            with file.open("rb") as stream:
                length, (rows, height, width) = shards.read_header(stream.read(4096), file)
            size = file.stat().st_size
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=str(file), cure=AGAIN) from error
        if (height, width) != (info["image_size"], info["image_size"]):
            raise DataError(f"holds images of {width} x {height} pixels", where=str(file), cure=AGAIN)
        if size != length + rows * height * width:
            raise DataError(f"has {size} bytes, which does not fit its content", where=str(file), cure=AGAIN)
        furthest = int(np.abs(row[shard == index]).max())
        if furthest >= rows:
            what = f"an image lies in row {furthest} of {file.name}, which has {rows}"
            raise DataError(what, where=str(path / "manifest.parquet"), cure=AGAIN)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table with strings left in Arrow memory, where an identifier costs its own bytes and an offset."""
    import pandas as pd
    import pyarrow as pa

    def kept(kind: Any) -> Any:
        return pd.ArrowDtype(kind) if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None

    frame: pd.DataFrame = table.to_pandas(types_mapper=kept, split_blocks=True)
    return frame


# -- writing -------------------------------------------------------------------------------------------------------


def arrow_table(columns: Mapping[str, Any], classes: Sequence[str], labels: npt.NDArray[np.int8]) -> pa.Table:
    """The manifest as an Arrow table: the ``COLUMNS``, ``fold`` where given, the classes, then further columns."""
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {}
    for name, kind in COLUMNS.items():
        if kind == "dictionary":
            arrays[name] = pa.array(columns[name], pa.string()).dictionary_encode()
        else:
            arrays[name] = pa.array(columns[name], getattr(pa, kind)())
    if "fold" in columns:
        arrays["fold"] = pa.array(columns["fold"], pa.int8())
    for index, name in enumerate(classes):
        arrays[name] = pa.array(np.ascontiguousarray(labels[:, index]), pa.int8())
    for name, values in columns.items():
        if name not in arrays:
            arrays[name] = _extra_array(values)
    return pa.table(arrays)


def _extra_array(values: Sequence[object]) -> pa.Array:
    """Numbers in their smallest type, anything else as text."""
    import pyarrow as pa

    numbers = np.asarray(values)
    if numbers.dtype.kind in "bf":
        return pa.array(numbers)
    if numbers.dtype.kind in "iu":
        low, high = numbers.min(initial=0), numbers.max(initial=0)
        return pa.array(numbers.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))))
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def write_table(path: Path, table: pa.Table) -> None:
    """Write the manifest, whole or not at all."""
    import pyarrow.parquet as pq

    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")


def content_hash(table: pa.Table, info: Mapping[str, Any]) -> str:
    """SHA-256 over what a model can learn from: classes, size and fit, identifiers, labels, splits, folds, pixels."""
    digest = hashlib.sha256()
    digest.update(repr((list(info["classes"]), info["image_size"], info["fit"])).encode())
    for name in ("image_id", "patient_id", "view", "split"):
        digest.update("\n".join(map(str, table[name].to_pylist())).encode())
    for name in ("crc32", *(["fold"] if "fold" in table.column_names else []), *info["classes"]):
        digest.update(np.ascontiguousarray(table[name].to_numpy()).tobytes())
    return digest.hexdigest()


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)
