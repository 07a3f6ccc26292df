"""The run directory: where everything lies, and how it is written so that nothing is ever half there.

Files are written beside their target, flushed to disk and renamed. Reading needs numpy, safetensors and pyarrow at
most; torch is never imported here, so that evaluation works without it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.errors import DataError, RunError

if TYPE_CHECKING:
    import pyarrow as pa

#: Version of the run directory and of model.safetensors; raised when an older reader could not read it.
FORMAT = 1

LOGIT = ".logit"

_UMASK = os.umask(0o022)
os.umask(_UMASK)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``: it takes the place of ``path`` on success and is removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.chmod(0o666 & ~_UMASK)  # safetensors makes its files private
        flush(part)
        os.replace(part, path)
        flush(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Force a file, or the names in a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("the file is missing", where=str(path), cure="Is this the right directory?") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), cure="The file is damaged.") from error


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; an absent file is an empty list.

    Raises:
        RunError: a line is not JSON.
    """
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot be read: {error}", where=str(path), cure="The file is damaged.") from error


# -- run directories ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunDir:
    """The paths of a run directory (DESIGN section 6)."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe: exactly what ran."""
        return self.path / "recipe.resolved.yaml"

    @property
    def run_json(self) -> Path:
        """Versions, dataset, seed, device, status, timings."""
        return self.path / "run.json"

    @property
    def model(self) -> Path:
        """Best weights, posterior link and model card."""
        return self.path / "model.safetensors"

    @property
    def ensemble(self) -> Path:
        """What an ensemble has in place of a model: members, how they are combined, and a card."""
        return self.path / "ensemble.safetensors"

    @property
    def weights(self) -> Path:
        """The file that predicts and carries the card: the ensemble where there is one, the model elsewhere."""
        return self.ensemble if self.ensemble.exists() else self.model

    @property
    def last(self) -> Path:
        """Directory of the state an interrupted run continues from."""
        return self.path / "last"

    @property
    def snapshots(self) -> Path:
        """Directory of the epochs that may be averaged at the end; only while training."""
        return self.path / "snapshots"

    def snapshot(self, epoch: int) -> Path:
        """Weights of one epoch, counted from 1."""
        return self.snapshots / f"{epoch:04d}.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def decisions(self) -> Path:
        """Calibration and thresholds."""
        return self.path / "decisions.safetensors"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    def predictions(self, split: str, tta: str | None = None) -> Path:
        """Logits of one split; with ``tta``, those made with a test-time augmentation that is not the run's default."""
        views = f".tta-{quote(tta, safe='')}" if tta else ""
        return self.path / "predictions" / f"{split}{views}.parquet"

    def epoch_logits(self, epoch: int) -> Path:
        """Logits (M, C) of dev after one epoch, counted from 1: what the choice of the best epoch was made from."""
        return self.path / "predictions" / "dev-epochs" / f"{epoch:04d}.npy"

    @property
    def tta(self) -> Path:
        """The test-time augmentation that was chosen on dev, and what it was chosen from."""
        return self.path / "tta.json"

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    def in_use(self) -> bool:
        """Whether a process is training in this directory now: it holds a lock on it."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def info(self) -> dict[str, Any]:
        """The content of run.json.

        Raises:
            RunError: run.json is missing, damaged, or of a newer format.
        """
        info = read_json(self.run_json)
        if not isinstance(info, dict) or not isinstance(info.get("format"), int):
            raise RunError("is not the run.json of a run", where=str(self.run_json), cure="The file is damaged.")
        if info["format"] > FORMAT:
            raise RunError(
                f"has format {info['format']}, this cxrlt reads up to {FORMAT}",
                where=str(self.run_json),
                cure="Install a newer cxrlt.",
            )
        return info


def list_runs(root: Path) -> list[RunDir]:
    """Every run directory directly in ``root``, newest first by the time its run.json was written."""
    found = [RunDir(path.parent) for path in root.glob("*/run.json")] if root.is_dir() else []
    return sorted(found, key=lambda run: (-run.run_json.stat().st_mtime_ns, run.path.name))


def find_run(path: Path | None, root: Path = Path("runs"), *, trained: bool = False) -> RunDir:
    """The run at ``path``, or, when ``path`` is None, the newest one in ``root``; with ``trained``, that can predict.

    Raises:
        RunError: there is none, or ``path`` is not a run directory.
    """
    if path is None:
        runs = [run for run in list_runs(root) if run.weights.exists() or not trained]
        if not runs:
            raise RunError(
                "there is no run with weights" if trained else "there is no run",
                where=str(root),
                cure="Train one with `cxrlt train RECIPE`, or name a run directory.",
            )
        return runs[0]
    if not (path / "run.json").is_file():
        what = "is not a run directory (it has no run.json)" if path.is_dir() else "there is no such run directory"
        raise RunError(what, where=str(path), cure="`cxrlt runs list` shows the runs here.")
    return RunDir(path)


# -- the model card ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model file says about itself, stored as JSON in the metadata of ``model.safetensors``.

    That of an ensemble is stored in ``ensemble.safetensors``: its backbone, head and loss are called "ensemble", its
    image size is the largest of its members', its epoch is 0, and its score is judged out of fold.

    Attributes:
        classes: class names, in the order of the outputs.
        positives: images labelled 1 in the training split, per class.
        negatives: images labelled 0 in the training split, per class.
        image_size: side of the images the network saw, in pixels.
        in_chans: input channels of the backbone.
        fit: how images were made square, "pad" or "squash".
        backbone: name and options of the backbone plugin.
        head: name and options of the head plugin.
        loss: name and options of the loss plugin.
        augment: transforms training saw ("flip", "rotate", ...).
        views: image views it was trained on; None means all.
        dataset: content hash of the prepared dataset.
        tta: name and options of the default test-time augmentation.
        linked: whether the file holds a posterior link.
        epoch: epoch the weights are from, counted from 1.
        score: dev macro AP of that epoch, None where undefined.
        format: version of the file.
    """

    classes: tuple[str, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    image_size: int
    in_chans: int
    fit: str
    backbone: dict[str, Any]
    head: dict[str, Any]
    loss: dict[str, Any]
    augment: tuple[str, ...] = ()
    views: tuple[str, ...] | None = None
    dataset: str = ""
    tta: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    linked: bool = True
    epoch: int = 0
    score: float | None = None
    format: int = FORMAT

    @property
    def stats(self) -> ClassStats:
        """Label counts of the training split."""
        return ClassStats(self.classes, self.positives, self.negatives)

    def metadata(self) -> dict[str, str]:
        """The metadata to store in the safetensors file: one entry, since their order in the file is random."""
        return {"card": json.dumps(asdict(self), ensure_ascii=False, sort_keys=True)}


_TUPLES = ("classes", "positives", "negatives", "augment", "views")


def read_card(path: Path) -> ModelCard:
    """The model card in a ``model.safetensors`` or ``ensemble.safetensors``; reads the header only.

    Raises:
        RunError: the file is missing, damaged, or not a cxrlt model.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise RunError(
            "the file is missing", where=str(path), cure="The run has no finished epoch yet: continue its training."
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(
            f"is not a readable safetensors file: {error}", where=str(path), cure="The file is damaged; train again."
        ) from error
    return _parse_card(metadata.get("card"), path)


def _parse_card(text: str | None, path: Path) -> ModelCard:
    cure = "Give a model.safetensors written by cxrlt train."
    if text is None:
        raise RunError("is a safetensors file of another program (it has no model card)", where=str(path), cure=cure)
    try:
        raw = json.loads(text)
        known = {f.name for f in fields(ModelCard)}
        values: dict[str, Any] = {key: value for key, value in raw.items() if key in known}
        values |= {key: tuple(values[key]) for key in _TUPLES if values.get(key) is not None}
        card = ModelCard(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"has a damaged model card: {error}", where=str(path), cure=cure) from error
    if card.format > FORMAT:
        raise RunError(
            f"has format {card.format}, this cxrlt reads up to {FORMAT}", where=str(path), cure="Install a newer cxrlt."
        )
    return card


# -- predictions -------------------------------------------------------------------------------------------------


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


def writable_directory(path: Path) -> None:
    """Make ``path`` and prove that files can be written there.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}-{time.monotonic_ns()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot be written: {reason}", where=str(path), cure="Choose another output directory."
        ) from error
