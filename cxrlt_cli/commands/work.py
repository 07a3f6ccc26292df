"""The images a prediction is for: those of a split, or files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.opening import OpenRun, column, open_dataset, split_rows
from cxrlt_cli.errors import DataError
from cxrlt_cli.events import Emit, Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cxrlt_cli.data.batches import Images
    from cxrlt_cli.data.files import FileImages, ImageFile
    from cxrlt_cli.data.manifest import Prepared


@dataclass(frozen=True, slots=True)
class Work:
    """The N images to predict.

    Attributes:
        images: where they are read from.
        rows: (N,) which of them.
        image_id: N strings.
        patient_id: N strings, empty for files.
        projections: N image views (PA, AP, lateral), empty where unknown.
        unreadable: why an image could not be read, by its position; filled while they are read.
        prepared: the dataset of a split, None for files.
        split: its name, empty for files.
        files: the files, none for a split.
    """

    images: Images
    rows: npt.NDArray[np.int64]
    image_id: list[str]
    patient_id: list[str]
    projections: list[str]
    unreadable: dict[int, str] = field(default_factory=dict)
    prepared: Prepared | None = None
    split: str = ""
    files: Sequence[ImageFile] = ()


def from_split(run: OpenRun, split: str, data: Path | None, emit: Emit) -> Work:
    """The images of a split as the run's recipe sees it.

    Raises:
        DataError: it is not there, or its images are smaller than those the run was trained on.
    """
    from cxrlt_cli.data.shards import Reader

    prepared = open_dataset(run, data, emit)
    _check_size(run, prepared, emit)
    rows = split_rows(run, prepared, split, emit)
    return Work(
        images=Reader(prepared),
        rows=rows,
        image_id=column(prepared.frame, "image_id", rows),
        patient_id=column(prepared.frame, "patient_id", rows),
        projections=column(prepared.frame, "view", rows),
        prepared=prepared,
        split=split,
    )


def _check_size(run: OpenRun, prepared: Prepared, emit: Emit) -> None:
    card = run.card
    if prepared.size < card.image_size:
        raise DataError(
            f"has images of {prepared.size} px, and the network was trained on {card.image_size} px",
            where=str(prepared.path),
            cure=f"Prepare the data with `--size {card.image_size}`.",
        )
    if prepared.fit != card.fit:
        text = f"{prepared.path} was prepared with --fit {prepared.fit}, the training data with --fit {card.fit}"
        emit(Notice(text, "warning"))


def from_files(run: OpenRun, inputs: Sequence[Path], stack: ExitStack) -> Work:
    """Image files and those in folders; what reads them is closed with ``stack``."""
    from cxrlt_cli.data.files import find_images

    files = find_images(inputs)
    images = stack.enter_context(_decoder(run, files))
    return Work(
        images=images,
        rows=np.arange(len(files), dtype=np.int64),
        image_id=[file.image_id for file in files],
        patient_id=[""] * len(files),
        projections=[""] * len(files),
        unreadable=images.unreadable,
        files=files,
    )


@contextmanager
def seen_by(run: OpenRun, work: Work, emit: Emit) -> Iterator[Work]:
    """The same images as another run takes them: files are decoded to its size, and made square in its way."""
    if work.prepared is not None:
        _check_size(run, work.prepared, emit)
        yield work
        return
    with _decoder(run, work.files) as images:
        yield replace(work, images=images, unreadable=images.unreadable)


def _decoder(run: OpenRun, files: Sequence[ImageFile]) -> FileImages:
    from cxrlt_cli.data.files import FileImages

    return FileImages(files, run.card.image_size, cast("Literal['pad', 'squash']", run.card.fit))


def none_readable(work: Work) -> DataError:
    """The error where no image could be read."""
    first = min(work.unreadable)
    others = f" and so on for {len(work.unreadable) - 1} more" if len(work.unreadable) > 1 else ""
    return DataError(
        f"{work.unreadable[first]}{others}",
        where=work.image_id[first],
        cure="No image could be read; nothing was written.",
    )
