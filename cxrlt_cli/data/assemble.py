"""The manifest and ``dataset.json`` from what was packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import cxrlt_cli
from cxrlt_cli.contracts import SourceTable

from .audit import further_columns
from .decode import Fit
from .manifest import FORMAT, SPLITS, arrow_table, content_hash
from .shards import Layout
from .splits import Division

if TYPE_CHECKING:
    import pyarrow as pa


def manifest(
    table: SourceTable,
    records: npt.NDArray[np.void],
    *,
    division: Division,
    layout: Layout,
    places: npt.NDArray[np.int64],
    source: str,
) -> pa.Table:
    """The manifest of the packed rows, in the order of the source's table.

    Args:
        table: the source's table.
        records: of the n packed rows (``journal.RECORD``), by rising index.
        division: of the packed rows.
        layout: of the shards.
        places: (n,) where each packed row lies in the layout.
        source: its name, which stands in for the path of drawn images.
    """
    rows = records["index"].tolist()

    def taken(values: Sequence[Any] | None, default: str = "") -> list[Any]:
        return [default] * len(rows) if values is None else [values[row] for row in rows]

    columns: dict[str, Any] = {
        "image_id": taken(table.image_id),
        "patient_id": taken(table.patient_id),
        "study_id": taken(table.study_id),
        "view": taken(table.view),
        "split": division.split.tolist(),
        "path": taken(table.path, f"{source}:"),
        "sha256": _hexadecimal(records["sha256"]),
        "pixel_sha256": _hexadecimal(records["pixel_sha256"]),
        "shard": places // layout.per_shard,
        "row": places % layout.per_shard,
        **{name: records[name] for name in ("file_size", "width", "height", "bits", "crc32")},
        **({"fold": division.fold} if division.fold is not None else {}),
        **{name: taken(values) for name, values in further_columns(table).items()},
    }
    return arrow_table(columns, table.classes, table.labels[records["index"]])


def _hexadecimal(hashes: npt.NDArray[np.uint8]) -> list[str]:
    """Hexadecimal text of (N, 32) hashes, empty where all bytes are zero (there was no file)."""
    return [value.tobytes().hex() if value.any() else "" for value in hashes]


def describe(
    out: Path,
    rows: pa.Table,
    *,
    classes: Sequence[str],
    fit: Fit,
    layout: Layout,
    division: Division,
    further: Mapping[str, object],
) -> dict[str, Any]:
    """The content of dataset.json; ``further`` fields are added as they are."""
    info: dict[str, Any] = {
        "format": FORMAT,
        "name": out.resolve().name,
        "classes": list(classes),
        "image_size": layout.size,
        "fit": fit,
        "images": rows.num_rows,
        "patients": len(rows["patient_id"].unique()),
        "counts": _counts(rows, classes),
        "split": {"by": division.by, "shares": division.shares},
        "bytes": layout.nbytes,
        **further,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cxrlt": cxrlt_cli.__version__,
    }
    return {**info, "content_hash": content_hash(rows, info)}


def _counts(rows: pa.Table, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Images, patients, positives and negatives by class, of every split."""
    split = np.array(rows["split"].to_pylist(), object)
    patients = np.array(rows["patient_id"].to_pylist(), object)
    labels = {name: rows[name].to_numpy() for name in classes}
    counts = {}
    for part in SPLITS:
        chosen = split == part
        counts[part] = {
            "images": int(chosen.sum()),
            "patients": len(set(patients[chosen])),
            "positives": {name: int((values[chosen] == 1).sum()) for name, values in labels.items()},
            "negatives": {name: int((values[chosen] == 0).sum()) for name, values in labels.items()},
        }
    return counts
