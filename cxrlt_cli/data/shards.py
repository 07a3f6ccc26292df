"""Prepared images on disk: uint8 ``.npy`` shards, written row by row and read by row.

While it is written a shard is called ``00000.npy.part`` and has its final size from the start. Each row lands at its
own place, then a record of it (with a checksum of its bytes) goes to a journal; a killed writer loses the rows in
flight and nothing else. When all rows are there the shards are flushed and renamed.

Reading is ``os.preadv`` straight into the caller's buffer: no copy, no page held, any order of rows.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import DataError

if TYPE_CHECKING:
    from .manifest import Prepared

#: Shards have about this many bytes, more where there would be more than ``MAX_SHARDS``.
SHARD_BYTES = 256 << 20
#: Every shard costs a reader one open file.
MAX_SHARDS = 256
#: Buffers one ``preadv`` call takes (IOV_MAX on Linux is 1024).
MAX_BUFFERS = 512


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each row lies.

    Attributes:
        folder: directory of the shards.
        size: side of the images, in pixels.
        total: rows.
        per_shard: rows of every shard but the last.
    """

    folder: Path
    size: int
    total: int
    per_shard: int

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.total // self.per_shard)

    @property
    def nbytes(self) -> int:
        """Bytes on disk of all shards."""
        return sum(self.file_bytes(shard) for shard in range(self.shards))

    def rows_in(self, shard: int) -> int:
        """Rows of one shard."""
        return min(self.per_shard, self.total - shard * self.per_shard)

    def file_bytes(self, shard: int) -> int:
        """Bytes of one shard's file."""
        return len(self.header(shard)) + self.rows_in(shard) * self.size**2

    def header(self, shard: int) -> bytes:
        """The ``.npy`` header of one shard."""
        return _npy_header((self.rows_in(shard), self.size, self.size))

    def path(self, shard: int) -> Path:
        """The finished file of one shard."""
        return self.folder / f"{shard:05d}.npy"

    def part(self, shard: int) -> Path:
        """The file of one shard while it is written."""
        return self.folder / f"{shard:05d}.npy.part"

    def holds(self, index: int) -> bool:
        """Whether the file of a row is there, finished or not."""
        shard = index // self.per_shard
        return self.part(shard).exists() or self.path(shard).exists()


def plan_layout(folder: Path, size: int, total: int) -> Layout:
    """The layout of ``total`` images of ``size`` x ``size`` pixels."""
    per_shard = max(1, SHARD_BYTES // size**2, -(-total // MAX_SHARDS))
    return Layout(folder, size, total, per_shard)


def allocate(layout: Layout) -> None:
    """Create the shards that are not there yet, at full size; those there from an interrupted run stay as they are."""
    layout.folder.mkdir(parents=True, exist_ok=True)
    for shard in range(layout.shards):
        part, size = layout.part(shard), layout.file_bytes(shard)
        if layout.path(shard).exists() or (part.exists() and part.stat().st_size == size):
            continue
        with part.open("wb") as file:
            file.write(layout.header(shard))
            file.truncate(size)


def settle(layout: Layout, indices: npt.NDArray[np.int64]) -> tuple[Layout, npt.NDArray[np.int64]]:
    """Close the gaps that unreadable images left: rows from the end move there.

    Nothing a journal refers to is overwritten, so that it can be interrupted.

    Args:
        layout: as it was allocated.
        indices: (n,) the rows that are there, ascending.

    Returns:
        The layout of n rows, and where each of ``indices`` lies in it, (n,).
    """
    count = len(indices)
    places = indices.copy()
    gaps = np.setdiff1d(np.arange(count), indices)
    movers = np.flatnonzero(indices >= count)
    with ShardWriter(layout) as writer:
        for gap, mover in zip(gaps.tolist(), movers.tolist(), strict=True):
            writer.copy(int(indices[mover]), gap)
            places[mover] = gap
    return replace(layout, total=count), places


def finish(layout: Layout) -> None:
    """Give every shard its final size and name, flushed to disk; shards beyond the layout are removed."""
    for shard in range(layout.shards):
        part = layout.part(shard)
        path = part if part.exists() else layout.path(shard)
        header = layout.header(shard)
        with path.open("r+b") as file:
            if file.read(len(header)) != header:
                file.seek(0)
                file.write(header)
            file.truncate(layout.file_bytes(shard))
            file.flush()
            os.fsync(file.fileno())
        os.replace(path, layout.path(shard))
    for path in layout.folder.glob("*.npy*"):
        if int(path.name[:5]) >= layout.shards:
            path.unlink()


class _Files:
    """File descriptors by shard, opened at first use and shared between threads."""

    def __init__(self, flags: int) -> None:
        self._flags = flags | getattr(os, "O_CLOEXEC", 0)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def get(self, shard: int, *paths: Path) -> int:
        """The descriptor of ``shard``; the first of ``paths`` that exists is opened."""
        descriptor = self._open.get(shard)
        if descriptor is not None:
            return descriptor
        with self._lock:
            if shard not in self._open:
                path = next((path for path in paths if path.exists()), paths[-1])
                self._open[shard] = os.open(path, self._flags)
            return self._open[shard]

    def close(self) -> None:
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()


class ShardWriter:
    """Writes rows of a layout that ``allocate`` made. Processes may write different rows at the same time."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._files = _Files(os.O_RDWR)

    def write(self, index: int, pixels: npt.NDArray[np.uint8]) -> int:
        """Write one row, (size, size) uint8, and return the CRC-32 of its bytes."""
        data = np.ascontiguousarray(pixels).reshape(-1).data
        descriptor, offset = self._place(index)
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], offset + written)
        return zlib.crc32(data)

    def checksum(self, index: int) -> int:
        """The CRC-32 of a row as it lies on disk."""
        return zlib.crc32(self._read(index))

    def copy(self, index: int, to: int) -> None:
        """Write row ``index`` at the place of row ``to`` as well."""
        self.write(to, np.frombuffer(self._read(index), np.uint8))

    def _read(self, index: int) -> bytes:
        descriptor, offset = self._place(index)
        return os.pread(descriptor, self._layout.size**2, offset)

    def _place(self, index: int) -> tuple[int, int]:
        layout = self._layout
        shard, row = divmod(index, layout.per_shard)
        offset = len(layout.header(shard)) + row * layout.size**2
        return self._files.get(shard, layout.path(shard), layout.part(shard)), offset

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# -- reading -------------------------------------------------------------------------------------------------------


class Reader:
    """Reads images of a prepared dataset into the caller's buffer. Threads may share one reader."""

    def __init__(self, prepared: Prepared) -> None:
        self._folder = prepared.path / "images"
        self._size = prepared.size
        self._shard = prepared.frame["shard"].to_numpy(np.int64)
        self._row = prepared.frame["row"].to_numpy(np.int64)
        self._files = _Files(os.O_RDONLY)
        self._open: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._row)

    @property
    def size(self) -> int:
        """Side of the images, in pixels."""
        return self._size

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` with images.

        Args:
            rows: (n,) positions in the manifest, in any order, repeated or not.
            out: (n, size, size) uint8, C-contiguous; row i becomes image ``rows[i]``.

        Raises:
            DataError: a shard is missing or shorter than its manifest says.
        """
        shard, row = self._shard[rows], self._row[rows]
        if out.shape != (len(row), self._size, self._size) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"out must be C-contiguous uint8 of shape {(len(row), self._size, self._size)}")
        order = np.lexsort((row, shard))
        shards, places, targets = shard[order].tolist(), row[order].tolist(), order.tolist()
        images = memoryview(out.data).cast("B") if len(row) else memoryview(b"")
        area = self._size**2
        start = 0
        for end in range(1, len(targets) + 1):
            if end < len(targets) and shards[end] == shards[start] and places[end] == places[start] + end - start:
                continue
            buffers = [images[at * area : (at + 1) * area] for at in targets[start:end]]
            self._read_run(shards[start], places[start], buffers)
            start = end

    def _read_run(self, shard: int, row: int, buffers: list[memoryview]) -> None:
        """Fill buffers with neighbouring rows of one shard."""
        try:
            descriptor, offset = self._open.get(shard) or self._opened(shard)
            offset += row * self._size**2
            for first in range(0, len(buffers), MAX_BUFFERS):
                offset += _fill(descriptor, buffers[first : first + MAX_BUFFERS], offset)
        except OSError as error:
            raise _damaged(self._path(shard), os.strerror(error.errno) if error.errno else str(error)) from error
        except EOFError:
            raise _damaged(self._path(shard), "it ends too early") from None

    def _opened(self, shard: int) -> tuple[int, int]:
        """Descriptor of a shard, and where its first row begins."""
        path = self._path(shard)
        descriptor = self._files.get(shard, path)
        length, (_, height, width) = read_header(os.pread(descriptor, 4096, 0), path)
        if (height, width) != (self._size, self._size):
            raise _damaged(path, f"its images are {width} x {height}, not {self._size} x {self._size}")
        self._open[shard] = descriptor, length
        return descriptor, length

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.npy"

    def close(self) -> None:
        """Close the files; reading opens them again. No read may be under way."""
        self._open.clear()
        self._files.close()


def read_header(data: bytes, path: Path) -> tuple[int, tuple[int, int, int]]:
    """Length in bytes and (rows, height, width) of the ``.npy`` header at the start of ``data``.

    Raises:
        DataError: it is not the header of a uint8 array of three dimensions in C order.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise _damaged(path, f"it is not a shard ({error})") from error
    if fortran or dtype != np.uint8 or len(shape) != 3:
        raise _damaged(path, f"it holds {dtype} of shape {shape}")
    return stream.tell(), (shape[0], shape[1], shape[2])


def _fill(descriptor: int, buffers: list[memoryview], offset: int) -> int:
    """Read into all of ``buffers``, whatever the kernel delivers at a time; returns the bytes read."""
    wanted = len(buffers) * len(buffers[0])
    done = os.preadv(descriptor, buffers, offset)
    while done < wanted:
        whole, part = divmod(done, len(buffers[0]))
        more = os.preadv(descriptor, [buffers[whole][part:], *buffers[whole + 1 :]], offset + done)
        if more == 0:
            raise EOFError
        done += more
    return done


def _damaged(path: Path, what: str) -> DataError:
    return DataError(
        f"the shard cannot be read: {what}", where=str(path), cure="Prepare the dataset again into an empty directory."
    )


def _npy_header(shape: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()
