"""Batches of prepared images: one background thread reads ahead into a few reused buffers.

No worker processes exist: the rows of a prepared dataset need no decoding, so that one thread, which lets go of the
interpreter while it reads, keeps ahead of a network.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    import numpy.typing as npt

    IndexLists = Iterable[npt.NDArray[np.int64]]


class Images(Protocol):
    """What is read from, such as ``shards.Reader``."""

    @property
    def size(self) -> int:
        """Side S of the square images, in pixels."""
        ...

    def read(self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]) -> None:
        """Fill ``out`` (n, S, S) with the images at ``rows`` (n,), in that order."""
        ...


def batches(
    reader: Images, index_lists: IndexLists, *, pin: bool = False, depth: int = 3
) -> Generator[Tensor, None, None]:
    """The images of each index list, read ahead by a background thread.

    **A batch is valid until the next one is asked for**, or the iterator ends; then its memory is filled anew. Clone
    what is needed longer. With ``pin``, a copy to the GPU that was queued on the current CUDA stream before the next
    batch is asked for reads the right pixels however late it runs: the buffer waits for that stream.

    The thread starts with the first batch and ends when the iterator is exhausted, closed, or dropped, which waits for
    the read under way. An iterator bound to a name outlives an exception in its loop for as long as the traceback does:
    ``contextlib.closing`` ends it at once.

    Args:
        reader: where images come from; used by the thread alone until the iterator ends.
        index_lists: int64 arrays (n,) of any lengths. Iterated lazily, in the thread, at most ``depth`` lists ahead.
        pin: page-locked buffers, for copies that overlap with work on a CUDA device.
        depth: number of buffers, at least 2: the one in the consumer's hands and ``depth - 1`` read ahead.

    Yields:
        uint8 (n, 1, S, S), a view on a buffer.

    Raises:
        ValueError: ``depth`` is less than 2.
        Exception: whatever ``reader`` or ``index_lists`` raised, with its traceback, after the batches before it.
    """
    if depth < 2:
        raise ValueError(f"depth is {depth}; reading ahead needs at least 2 buffers")
    return _consume(reader, iter(index_lists), [_Buffer.empty(reader.size, pin) for _ in range(depth)])


@dataclass(slots=True)
class _Buffer:
    """Reused memory (capacity, 1, S, S), of which the first ``count`` images are in use."""

    memory: Tensor
    count: int
    released: torch.cuda.Event | None  # where the consumer's CUDA stream stood when it let go; None when not pinned

    @classmethod
    def empty(cls, size: int, pin: bool) -> _Buffer:
        memory = torch.empty((0, 1, size, size), dtype=torch.uint8)
        event = torch.cuda.Event() if pin else None  # type: ignore[no-untyped-call]  # torch does not annotate it
        return cls(memory, 0, event)

    def fill(self, reader: Images, rows: npt.NDArray[np.int64]) -> None:
        if self.released is not None:
            self.released.synchronize()
        self.count = len(rows)
        if self.count > len(self.memory):
            shape = (self.count, *self.memory.shape[1:])
            self.memory = torch.empty(shape, dtype=torch.uint8, pin_memory=self.released is not None)
        reader.read(rows, self.memory[: self.count, 0].numpy())

    def release(self) -> None:
        if self.released is not None:
            self.released.record()


# Only simple queues may be used here: the garbage collector can finalise the generator in the middle of any call.
_Free = SimpleQueue[_Buffer | None]
_Ready = SimpleQueue[_Buffer | BaseException | None]


def _consume(
    reader: Images, index_lists: Iterator[npt.NDArray[np.int64]], buffers: list[_Buffer]
) -> Generator[Tensor, None, None]:
    free, ready, stop = _Free(), _Ready(), threading.Event()
    for buffer in buffers:
        free.put(buffer)
    # The thread does not refer to this generator, so that dropping the generator ends it. It is a daemon because a
    # process that dies with a live iterator shall not wait for it.
    arguments = (reader, index_lists, free, ready, stop)
    thread = threading.Thread(target=_read_ahead, args=arguments, name="cxrlt-batches", daemon=True)
    thread.start()
    item = None
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.memory[: item.count]
            item.release()
            free.put(item)
    finally:
        item = None  # an exception and the frame that raises it would keep each other alive
        stop.set()
        free.put(None)
        if thread is not threading.current_thread():  # the garbage collector may run in the thread itself
            thread.join()


def _read_ahead(
    reader: Images, index_lists: Iterator[npt.NDArray[np.int64]], free: _Free, ready: _Ready, stop: threading.Event
) -> None:
    try:
        while (buffer := free.get()) is not None and not stop.is_set():
            rows = next(index_lists, None)
            if rows is None:
                break
            buffer.fill(reader, np.asarray(rows, dtype=np.int64))
            ready.put(buffer)
        ready.put(None)
    except BaseException as error:
        ready.put(error)


def to_unit(batch: Tensor, device: torch.device | str, size: int | None = None) -> Tensor:
    """Grey levels to intensities: the transfer, the conversion and the resizing all happen on the device.

    Args:
        batch: uint8 (n, 1, S, S); it may be overwritten as soon as this returns, if it came from :func:`batches`.
        device: where the result shall be. The transfer from page-locked memory does not wait.
        size: side of the result in pixels; None keeps S. Resized with an antialiased bilinear filter.

    Returns:
        float32 (n, 1, size, size) in [0, 1], 255 being 1; new memory.
    """
    images = batch.to(device, non_blocking=True).to(torch.float32).div_(255)
    if size is None or size == images.shape[-1]:
        return images
    resized = functional.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return resized.clamp_(0, 1)
