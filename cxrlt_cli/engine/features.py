"""The features of a frozen backbone: computed once, kept on disk, mapped into memory by whoever needs them.

One set of features (one split, plain or one augmented view) is one ``.npy`` file in a folder named by a hash over
everything it depends on: the backbone's weights and preprocessing, the content of the dataset, the rows, the view, the
size, the precision and the type. It is written to a ``.part`` and renamed when it is whole. An interrupted computation
continues after the last rows that are known to be on disk.

A set takes N x D x 2 bytes in float16: 293 MB for 143,000 images of 1,024 features. A spatial head needs feature maps,
which take h x w times as much: 143,000 maps of 1,024 x 16 x 16 are 75 GB.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cxrlt_cli.artifacts import flush, read_json, write_json
from cxrlt_cli.contracts import Backbone
from cxrlt_cli.data.augment import augment
from cxrlt_cli.data.batches import Images, batches, to_unit
from cxrlt_cli.engine.infer import Setting, autocast, evaluating
from cxrlt_cli.engine.signals import NONE, StopRequest, leave_if_asked
from cxrlt_cli.errors import DataError, RunError, TrainingError
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Started
from cxrlt_cli.model import Classifier
from cxrlt_cli.recipe.schema import Augment

#: Raised when what is computed changes without anything in the key changing.
FORMAT = 1
#: Seconds between two times at which rows are made safe on disk.
SAVE_SECONDS = 10.0

FILE, PART, DONE, ABOUT = "features.npy", "features.npy.part", "done.json", "about.json"

_AGAIN = "Run the same command again: it continues after the features that were computed."

Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A backbone that does not change any more, the images it looks at, and how it is run.

    Attributes:
        model: the classifier it belongs to; only its backbone is used.
        weights: hash of the backbone, from ``backbone_hash``.
        images: read from.
        dataset: content hash of the prepared dataset.
        setting: device, size, batch size and precision.
        folder: where sets of features are kept.
    """

    model: Classifier
    weights: str
    images: Images
    dataset: str
    setting: Setting
    folder: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """One set of features.

    Attributes:
        name: of the split, for messages.
        rows: (N,) manifest positions, in the order of the result.
        dtype: on disk.
        maps: feature maps (N, D, h, w) instead of pooled features (N, D).
        view: number of the augmented view; None for the plain images.
        augment: how that view is drawn; needed for one.
        seed: of the view.
    """

    name: str
    rows: npt.NDArray[np.int64]
    dtype: Literal["float16", "float32"] = "float16"
    maps: bool = False
    view: int | None = None
    augment: Augment | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        """What the user is shown."""
        return f"features of {self.name}" + ("" if self.view is None else f", view {self.view + 1}")


def backbone_hash(model: Classifier) -> str:
    """SHA-256 over the backbone's tensors, by name, and over what is done to images before it."""
    digest = hashlib.sha256(repr((FORMAT, model.in_chans)).encode())
    tensors = {**model.backbone.state_dict(), "mean": model.mean, "std": model.std}
    for name, tensor in sorted(tensors.items()):
        values = cast("Tensor", tensor).detach().cpu().contiguous()
        digest.update(repr((name, str(values.dtype), tuple(values.shape))).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def key_of(frozen: Frozen, wanted: Wanted) -> dict[str, Any]:
    """Everything a set of features depends on."""
    drawn: dict[str, Any] = {"seed": wanted.seed, "view": wanted.view}
    drawn |= {"augment": wanted.augment.model_dump()} if wanted.augment else {}
    return {
        "format": FORMAT,
        "weights": frozen.weights,
        "dataset": frozen.dataset,
        "rows": hashlib.sha256(np.ascontiguousarray(wanted.rows, np.int64).tobytes()).hexdigest(),
        "size": frozen.setting.size,
        "precision": frozen.setting.precision,
        "dtype": wanted.dtype,
        "maps": wanted.maps,
        "drawn": None if wanted.view is None else drawn,
    }


def place_of(frozen: Frozen, wanted: Wanted) -> Path:
    """The folder of a set of features."""
    text = json.dumps(key_of(frozen, wanted), sort_keys=True)
    return frozen.folder / hashlib.sha256(text.encode()).hexdigest()[:20]


def shape_of(frozen: Frozen, wanted: Wanted) -> tuple[int, ...]:
    """(N, D), or (N, D, h, w) for maps; found by passing one black image."""
    side = frozen.setting.size
    with evaluating(frozen.model):
        black = torch.zeros(1, 1, side, side, device=frozen.setting.device)
        return (len(wanted.rows), *_forward(frozen, wanted, black).shape[1:])


def bytes_of(frozen: Frozen, wanted: Wanted) -> int:
    """Size on disk of a set of features, without the header."""
    return math.prod(shape_of(frozen, wanted)) * np.dtype(wanted.dtype).itemsize


def is_cached(frozen: Frozen, wanted: Wanted) -> bool:
    """Whether a set of features is there, whole."""
    return _opened(place_of(frozen, wanted), shape_of(frozen, wanted), wanted) is not None


def features_of(frozen: Frozen, wanted: Wanted, request: StopRequest, emit: Emit) -> Features:
    """A set of features: the one on disk, or computed now, continuing where an earlier computation stopped.

    The backbone runs in evaluation mode: batch-norm statistics are used and never moved. Where another process computes
    the same set, its result is waited for.

    Args:
        frozen: the backbone and its images.
        wanted: which set.
        request: asked after every batch whether to stop.
        emit: told about progress.

    Returns:
        (N, D) or (N, D, h, w), mapped from the file; writing to it does not reach the file.

    Raises:
        DataError: the disk is too small.
        TrainingError: a feature is not finite.
        Interrupted: somebody asked to stop; what was computed is kept.
    """
    place, shape = place_of(frozen, wanted), shape_of(frozen, wanted)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place, request, emit):
            found = _opened(place, shape, wanted)
            if found is not None:
                emit(Notice(f"{wanted.title}: found in {place}", "detail"))
                return found
            _check_space(place, shape, wanted)
            _compute(frozen, wanted, shape, request, emit)
    except OSError as error:
        raise DataError(
            f"features cannot be kept: {error.strerror or error}",
            where=str(place),
            cure="Make room, or repair the disk.",
        ) from error
    ready = _opened(place, shape, wanted)
    assert ready is not None
    return ready


# -- on disk -------------------------------------------------------------------------------------------------------


def _opened(place: Path, shape: tuple[int, ...], wanted: Wanted) -> Features | None:
    """The finished set in a folder; None when there is none, or one that is damaged."""
    try:
        # "c": torch takes memory that could be written to without complaint, and the file stays as it is
        array: Features = np.load(place / FILE, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return array if array.shape == shape and array.dtype == np.dtype(wanted.dtype) else None


@contextmanager
def _alone(place: Path, request: StopRequest, emit: Emit) -> Iterator[None]:
    """Keep other processes from computing the same set; wait for one that does."""
    descriptor = os.open(place, os.O_RDONLY)
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    emit(Notice(f"another process computes {place}: waiting for it"))
                told = True
                leave_if_asked(request, "stopped while waiting for another process", where=str(place), cure=_AGAIN)
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _check_space(place: Path, shape: tuple[int, ...], wanted: Wanted) -> None:
    needed = math.prod(shape) * np.dtype(wanted.dtype).itemsize
    free = shutil.disk_usage(place).free
    part = place / PART
    if needed > free + (part.stat().st_blocks * 512 if part.exists() else 0):
        raise DataError(
            f"{wanted.title} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where=str(place),
            cure="Make room, or use a head that works on pooled features (such as linear), which take far less.",
        )


def _begun(place: Path, shape: tuple[int, ...], wanted: Wanted) -> tuple[Features, int]:
    """The unfinished file, and how many of its rows are safe; a new one where there is none that can be continued."""
    part, dtype = place / PART, np.dtype(wanted.dtype)
    try:
        size = part.stat().st_size  # opening lengthens a short file
        array = np.lib.format.open_memmap(part, mode="r+")
        done = int(read_json(place / DONE)["done"])
        ends = cast("np.memmap[Any, Any]", array).offset + array.nbytes
        whole = array.shape == shape and array.dtype == dtype and size == ends
        if whole and 0 <= done <= len(array):
            return array, done
    except (OSError, ValueError, KeyError, TypeError, RunError):
        pass  # torn: begin again
    (place / DONE).unlink(missing_ok=True)
    return np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=shape), 0


def _make_safe(place: Path, array: Features, done: int) -> None:
    """The rows first, then the word that they are there."""
    cast("np.memmap[Any, Any]", array).flush()
    write_json(place / DONE, {"done": done})


# -- computing -----------------------------------------------------------------------------------------------------


def _compute(frozen: Frozen, wanted: Wanted, shape: tuple[int, ...], request: StopRequest, emit: Emit) -> None:
    place = place_of(frozen, wanted)
    array, done = _begun(place, shape, wanted)
    write_json(place / ABOUT, {"split": wanted.name, "shape": list(shape), **key_of(frozen, wanted)})
    emit(Started(wanted.title, len(array), done=done))
    saved_at = time.monotonic()
    with evaluating(frozen.model):
        for first, values in _computed(frozen, wanted, done):
            done = first + len(values)
            _store(array, first, values, wanted)
            emit(Advanced(wanted.title, done))
            if request.code != NONE or time.monotonic() - saved_at > SAVE_SECONDS:
                _make_safe(place, array, done)
                saved_at = time.monotonic()
            leave_if_asked(request, f"stopped after {done:,} of {len(array):,} images", where=str(place), cure=_AGAIN)
    _make_safe(place, array, done)
    del array
    flush(place / PART)
    os.replace(place / PART, place / FILE)
    (place / DONE).unlink()
    flush(place)
    emit(Finished(wanted.title))


def _computed(frozen: Frozen, wanted: Wanted, first: int) -> Iterator[tuple[int, Tensor]]:
    """(first position, features) of one batch after the other."""
    setting = frozen.setting
    starts = range(first, len(wanted.rows), setting.batch_size)
    chunks = [wanted.rows[start : start + setting.batch_size] for start in starts]
    with closing(batches(frozen.images, chunks, pin=setting.device.type == "cuda")) as stream:
        for start, batch in zip(starts, stream, strict=True):
            images = to_unit(batch, setting.device, setting.size)
            if wanted.view is not None and wanted.augment is not None:
                places = np.arange(start, start + len(batch), dtype=np.int64)
                images = augment(images, wanted.augment, seed=wanted.seed, epoch=wanted.view, step=0, rows=places)
            yield start, _forward(frozen, wanted, images)


def _forward(frozen: Frozen, wanted: Wanted, images: Tensor) -> Tensor:
    """(B, 1, S, S) intensities -> features (B, ...), float32."""
    model, setting = frozen.model, frozen.setting
    backbone = cast("Backbone", model.backbone)
    with autocast(setting.precision, setting.device):
        seen = model.normalise(images)
        return (backbone.feature_map(seen) if wanted.maps else backbone(seen)).float()


def _store(array: Features, first: int, values: Tensor, wanted: Wanted) -> None:
    """Put a batch in its place.

    Raises:
        TrainingError: a value is not finite, or too large for float16.
    """
    kept = values.to(getattr(torch, wanted.dtype))
    if not bool(kept.isfinite().all()):
        finite = bool(values.isfinite().all())
        what = f"go up to {float(values.abs().max()):.3g}, more than float16 holds" if finite else "are not all finite"
        raise TrainingError(
            f"the {wanted.title} {what}",
            where=f"images {first} to {first + len(values) - 1}",
            cure="Set features.dtype to float32."
            if finite
            else "Try `--device cpu`, which computes in full precision.",
        )
    array[first : first + len(values)] = kept.cpu().numpy()
