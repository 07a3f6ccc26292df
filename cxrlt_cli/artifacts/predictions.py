"""Logits of a set of images, as Parquet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts.files import replacing
from cxrlt_cli.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

LOGIT = ".logit"


@dataclass(frozen=True, slots=True)
class Predictions:
    """Logits of N images for C classes, row by row.

    Attributes:
        classes: the C class names.
        image_id: N strings.
        patient_id: N strings.
        logits: (N, C) float32.
    """

    classes: tuple[str, ...]
    image_id: list[str]
    patient_id: list[str]
    logits: npt.NDArray[np.float32]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a Parquet file: image_id, patient_id, then one float32 column ``<class>.logit`` a class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {
        "image_id": pa.array(predictions.image_id, pa.string()),
        "patient_id": pa.array(predictions.patient_id, pa.string()),
    }
    for index, name in enumerate(predictions.classes):
        columns[name + LOGIT] = pa.array(np.ascontiguousarray(predictions.logits[:, index]), pa.float32())
    with replacing(path) as part:
        pq.write_table(pa.table(columns), part)


def read_predictions(path: Path) -> Predictions:
    """Read what ``write_predictions`` wrote.

    Raises:
        RunError: the file is missing, damaged, or has no ``<class>.logit`` columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # read_table would make a column of a folder called x=y
            table = file.read()
    except FileNotFoundError:
        raise RunError(
            "there are no predictions", where=str(path), cure="Make them with `cxrlt predict RUN --split SPLIT`."
        ) from None
    except (OSError, pa.ArrowException) as error:
        raise RunError(
            f"cannot be read: {error}", where=str(path), cure="Make it again with `cxrlt predict`."
        ) from error
    classes = tuple(name.removesuffix(LOGIT) for name in table.column_names if name.endswith(LOGIT))
    if not classes or not {"image_id", "patient_id"} <= set(table.column_names):
        raise RunError("is not a predictions file", where=str(path), cure="Make it again with `cxrlt predict`.")
    logits = np.empty((table.num_rows, len(classes)), np.float32)
    for index, name in enumerate(classes):
        logits[:, index] = table[name + LOGIT].to_numpy()
    return Predictions(classes, table["image_id"].to_pylist(), table["patient_id"].to_pylist(), logits)
