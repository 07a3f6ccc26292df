"""Image files as they lie in folders: found, named, and decoded while the network works."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import DataError

from .decode import Fit, Unreadable, decode
from .packing import usable_cpus

#: Endings of the files in folders that are taken for images; a file that is named itself may end in anything.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jp2", ".j2k", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".pnm"}
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file and what it is called in tables."""

    path: Path
    image_id: str


def find_images(inputs: Sequence[Path]) -> list[ImageFile]:
    """The files of ``inputs``, and of every folder among them all images below it.

    Folders are walked in the order of names, through symbolic links; hidden files and folders are left out. A file that
    is reached twice counts once.

    An image is called by its file's name with its ending, as in the label tables of CXR-LT, PadChest and NIH. Files
    that share a name are called by their paths, relative to the folder all files lie in.

    Raises:
        DataError: something does not exist or cannot be listed, or there is no image.
    """
    paths: dict[str, Path] = {}
    for given in inputs:
        for path in _walk(given) if given.is_dir() else _one(given):
            paths.setdefault(os.path.abspath(path), path)
    if not paths:
        raise DataError(
            "there is no image file",
            where=", ".join(map(str, inputs)),
            cure=f"Images in folders are files that end in {', '.join(sorted(SUFFIXES))}.",
        )
    return [ImageFile(path, name) for path, name in zip(paths.values(), _names(list(paths)), strict=True)]


def _one(path: Path) -> Iterator[Path]:
    if not os.path.lexists(path):
        raise DataError(
            "there is no such file or folder",
            where=str(path),
            cure="If a run was meant: `cxrlt runs list` shows the runs here.",
        )
    yield path


def _walk(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_not_listed):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(root, name)


def _not_listed(error: OSError) -> None:
    raise DataError(f"the folder cannot be listed: {error.strerror}", where=str(error.filename)) from error


def _names(paths: list[str]) -> list[str]:
    counts = Counter(os.path.basename(path) for path in paths)
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    chosen = (
        os.path.relpath(path, shared) if counts[os.path.basename(path)] > 1 else os.path.basename(path)
        for path in paths
    )
    # A name need not be UTF-8 on disk, and a table must be.
    return [os.fsencode(name).decode("utf-8", "backslashreplace") for name in chosen]


class FileImages:
    """Decodes image files where a prepared dataset would be read; the ``Images`` of ``data.batches``.

    Threads decode, because Pillow and numpy let go of the interpreter while they work: as fast as processes, without
    their start.

    Args:
        files: the images, by row.
        size: side of the squares they become, in pixels.
        fit: how they are made square.
        jobs: threads; default: one a CPU this process may use.

    Attributes:
        unreadable: why an image could not be read, by row. Its pixels are zeros, for the caller to throw away.
    """

    def __init__(self, files: Sequence[ImageFile], size: int, fit: Fit, jobs: int | None = None) -> None:
        self._files, self._size, self._fit = files, size, fit
        self._pool = ThreadPoolExecutor(jobs or usable_cpus(), "cxrlt-decode")
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self._size

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Decode the files at ``rows`` (n,) into ``out`` (n, size, size)."""
        for _ in self._pool.map(self._decode, rows.tolist(), out):
            pass

    def _decode(self, row: int, out: npt.NDArray[np.uint8]) -> None:
        try:
            out[:] = decode(self._files[row].path, self._size, self._fit).pixels
        except Unreadable as error:
            out[:] = 0
            self.unreadable[row] = error.reason

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
