"""The table of logits, posteriors and decisions that ``cxrlt predict`` hands to people and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import LOGIT, replacing
from cxrlt_cli.events import Table

if TYPE_CHECKING:
    import pyarrow as pa

POSTERIOR, DECISION = ".posterior", ".decision"
#: Images listed on the screen, and findings of each.
SHOWN, FINDINGS = 20, 6


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """What a model says about N images and C classes.

    Attributes:
        image_id: N strings.
        classes: C names.
        logits: (N, C) float32.
        posteriors: (N, C) float64 in [0, 1].
        thresholds: (C,) posteriors from which a finding is called present.
    """

    image_id: list[str]
    classes: tuple[str, ...]
    logits: npt.NDArray[np.float32]
    posteriors: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]

    @property
    def decisions(self) -> npt.NDArray[np.int8]:
        """(N, C): 1 where the posterior reaches the threshold of the class."""
        return (self.posteriors >= self.thresholds).astype(np.int8)

    def data(self) -> dict[str, Any]:
        """Everything, for ``--json``."""
        return {
            "classes": self.classes,
            "image_id": self.image_id,
            "logit": self.logits,
            "posterior": self.posteriors,
            "threshold": self.thresholds,
            "decision": self.decisions,
        }


def write_table(path: Path, table: PredictionTable) -> None:
    """Write ``image_id``, then logit, posterior and decision of each class, as CSV or Parquet by the name's ending.

    In CSV, numbers have as many digits as it takes to read back the same float32 logit and float64 posterior.
    """
    with replacing(path) as part:
        if path.suffix.lower() == ".csv":
            _write_csv(part, _arrow(table))
        else:
            _write_parquet(part, _arrow(table))


def _arrow(table: PredictionTable) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, pa.Array] = {"image_id": pa.array(table.image_id, pa.string())}
    decisions = table.decisions
    for index, name in enumerate(table.classes):
        for ending, values in ((LOGIT, table.logits), (POSTERIOR, table.posteriors), (DECISION, decisions)):
            columns[name + ending] = pa.array(np.ascontiguousarray(values[:, index]))
    return pa.table(columns)


def _write_parquet(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path)


def _write_csv(path: Path, table: pa.Table) -> None:
    from pyarrow import csv as arrow_csv

    # Arrow quotes every text or none; names of images and classes need quotes only where they hold a separator.
    special = any(mark in name for name in table["image_id"].to_pylist() for mark in '",\r\n')
    options = arrow_csv.WriteOptions(include_header=False, quoting_style="needed" if special else "none")
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(table.column_names)
    with path.open("wb") as file:
        file.write(header.getvalue().encode())
        arrow_csv.write_csv(table, file, options)


def overview(table: PredictionTable) -> Table:
    """What was found in the first images, and what comes next in likelihood."""
    rows = []
    called = table.decisions[:SHOWN].astype(bool)
    for name, posteriors, here in zip(table.image_id[:SHOWN], table.posteriors[:SHOWN], called, strict=True):
        order = np.argsort(-posteriors, kind="stable")
        found, following = order[here[order]], order[~here[order]][:2]
        present, likely = (_listed(table.classes, posteriors, chosen[:FINDINGS]) for chosen in (found, following))
        more = f" and {len(found) - FINDINGS} more" if len(found) > FINDINGS else ""
        rows.append((name, present + more or "-", likely))
    rest = len(table.image_id) - len(rows)
    note = f"and {rest:,} more; " if rest else ""
    return Table(
        ("image", f"findings (posterior >= {_threshold(table)})", "next"),
        tuple(rows),
        note=f"{note}`-o FILE.csv` writes every logit, posterior and decision",
    )


def _threshold(table: PredictionTable) -> str:
    same = len(np.unique(table.thresholds)) == 1
    return f"{table.thresholds[0]:g}" if same else "threshold of the class"


def _listed(classes: Sequence[str], posteriors: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64]) -> str:
    return ", ".join(f"{classes[index]} {_rounded(posteriors[index])}" for index in chosen)


def _rounded(posterior: float) -> str:
    """Two digits, more where that would be 0.00."""
    return f"{posterior:.2f}" if posterior >= 0.005 or posterior == 0 else f"{posterior:.1g}"
