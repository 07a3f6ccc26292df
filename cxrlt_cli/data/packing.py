"""Images into shards, in parallel processes.

Workers read, decode and write rows themselves; only a record of each row travels back. They are started with ``spawn``
and hold one end of a pipe each, so that none outlives a parent that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import DrawingSource
from cxrlt_cli.errors import CxrltError, DataError, PluginError

from .decode import Fit, Unreadable, decode, pixel_hash
from .journal import RECORD
from .shards import Layout, ShardWriter

#: Fewer images are packed in this process: starting others would take longer.
FEW = 64
#: Images handed to a worker at a time; each holds two such chunks, so that it never waits for the next.
CHUNK = 8
#: Seconds between two looks at whether to stop.
PATIENCE = 0.2


@dataclass(frozen=True, slots=True)
class Packing:
    """What a worker has to know.

    Attributes:
        layout: where rows go.
        fit: how images are made square.
        paths: file of every row, or None when the source draws.
        source: the source that draws, or None.
        name: its name, for messages.
    """

    layout: Layout
    fit: Fit
    paths: Sequence[str] | None
    source: DrawingSource | None
    name: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Some packed rows (``journal.RECORD``), and the rows that could not be, with the reason."""

    records: npt.NDArray[np.void]
    refused: tuple[tuple[int, str], ...]


def pack(packing: Packing, rows: Sequence[int], jobs: int, stop: Callable[[], bool]) -> Generator[Outcome, None, None]:
    """Pack ``rows``, with up to ``jobs`` processes, until all are done or ``stop()`` is true.

    Yields outcomes in the order in which they are ready. Closing the generator ends the processes.

    Raises:
        DataError: the disk is full or a worker died (out of memory, usually).
        PluginError: the source failed to draw, or cannot be sent to a process.
    """
    chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    jobs = min(jobs, len(chunks))
    if jobs <= 1 or len(rows) < FEW:
        yield from _pack_here(packing, chunks, stop)
    else:
        yield from _pack_in_processes(packing, chunks, jobs, stop)


def usable_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _pack_here(packing: Packing, chunks: Sequence[Sequence[int]], stop: Callable[[], bool]) -> Iterator[Outcome]:
    with ShardWriter(packing.layout) as writer:
        for chunk in chunks:
            if stop():
                return
            yield _pack_chunk(packing, writer, _with_paths(packing, chunk))


def _with_paths(packing: Packing, chunk: Sequence[int]) -> list[tuple[int, str]]:
    return [(index, packing.paths[index] if packing.paths is not None else "") for index in chunk]


def _pack_chunk(packing: Packing, writer: ShardWriter, chunk: Sequence[tuple[int, str]]) -> Outcome:
    records, refused = [], []
    for index, path in chunk:
        try:
            records.append(_pack_row(packing, writer, index, path))
        except Unreadable as finding:
            refused.append((index, finding.reason))
        except MemoryError:
            raise DataError(
                "there is not enough memory to decode it", where=path, cure="Use fewer processes: --jobs 1."
            ) from None
        except OSError as error:  # reading errors are Unreadable; this one came from writing
            raise DataError(
                f"cannot be written: {error.strerror or error}",
                where=str(packing.layout.folder),
                cure="Make room on the disk and run the same command again: it continues.",
            ) from error
    return Outcome(np.array(records, RECORD), tuple(refused))


def _pack_row(packing: Packing, writer: ShardWriter, index: int, path: str) -> npt.NDArray[np.void]:
    record = np.zeros((), RECORD)
    record["index"] = index
    if packing.source is not None:
        pixels = _drawn(packing, index)
        record["height"], record["width"] = pixels.shape
        record["bits"] = 8
        record["pixel_sha256"] = _bytes(pixel_hash(pixels))
    else:
        result = decode(path, packing.layout.size, packing.fit)
        pixels = result.pixels
        record["width"], record["height"], record["bits"] = result.width, result.height, result.bits
        record["file_size"] = result.file_size
        record["sha256"], record["pixel_sha256"] = _bytes(result.sha256), _bytes(result.pixel_sha256)
    record["crc32"] = writer.write(index, pixels)
    return record


def _bytes(hexadecimal: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(hexadecimal), np.uint8)


def _drawn(packing: Packing, index: int) -> npt.NDArray[np.uint8]:
    """The image the source draws, checked against the contract."""
    size = packing.layout.size
    cure = "This is a fault of the source plugin; report it to its author."
    where = f"source {packing.name!r}, image {index}"
    try:
        assert packing.source is not None
        pixels = packing.source.draw(index)
    except Exception as error:  # a stranger's code may raise anything
        raise PluginError(f"draw() failed: {type(error).__name__}: {error}", where=where, cure=cure) from error
    if not isinstance(pixels, np.ndarray) or pixels.shape != (size, size) or pixels.dtype != np.uint8:
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise PluginError(f"draw() returned {got}, not uint8 {(size, size)}", where=where, cure=cure)
    return pixels


# -- processes -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection[Any, Any]
    busy: deque[Sequence[int]] = field(default_factory=deque)


def _pack_in_processes(
    packing: Packing, chunks: Sequence[Sequence[int]], jobs: int, stop: Callable[[], bool]
) -> Iterator[Outcome]:
    waiting = deque(chunks)
    workers: list[_Worker] = []
    try:
        workers.extend(_start(packing) for _ in range(jobs))
        for worker in [*workers, *workers]:
            _feed(worker, packing, waiting)
        while any(worker.busy for worker in workers):
            ready = wait([worker.pipe for worker in workers if worker.busy], PATIENCE)
            for worker in workers:
                if worker.pipe in ready:
                    yield _receive(worker, packing)
                    if not stop():
                        _feed(worker, packing, waiting)
    finally:
        _end(workers)


def _start(packing: Packing) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    lean = Packing(packing.layout, packing.fit, None, packing.source, packing.name)
    process = context.Process(target=_work, args=(lean, theirs), daemon=True)
    try:
        process.start()
    except Exception as error:  # pickling a stranger's object may raise anything
        raise PluginError(
            f"the source {packing.name!r} cannot be sent to another process: {error}",
            cure="Use --jobs 1, and report it to the plugin's author.",
        ) from error
    theirs.close()
    return _Worker(process, ours)


def _feed(worker: _Worker, packing: Packing, waiting: deque[Sequence[int]]) -> None:
    if not waiting:
        return
    chunk = waiting.popleft()
    worker.busy.append(chunk)
    try:
        worker.pipe.send(_with_paths(packing, chunk))
    except OSError:
        raise _died(worker, packing) from None


def _receive(worker: _Worker, packing: Packing) -> Outcome:
    try:
        answer = worker.pipe.recv()
    except (EOFError, OSError):
        raise _died(worker, packing) from None
    worker.busy.popleft()
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, Outcome)
    return answer


def _died(worker: _Worker, packing: Packing) -> DataError:
    worker.process.join(5)
    rows = _with_paths(packing, worker.busy[0])
    at = f"one of {rows[0][1]} to {rows[-1][1]}" if packing.paths is not None else f"images from number {rows[0][0]}"
    return DataError(
        f"a process that packs images died (exit code {worker.process.exitcode}) at {at}",
        cure="Memory may have run out: use fewer processes with --jobs. Run the same command again: it continues.",
    )


def _end(workers: Sequence[_Worker]) -> None:
    """Close the pipes, which ends the workers after the image in their hands."""
    for worker in workers:
        worker.pipe.close()
    for worker in workers:
        worker.process.join(10)
        if worker.process.is_alive():
            worker.process.terminate()
            worker.process.join()


def _work(packing: Packing, pipe: Connection[Any, Any]) -> None:
    """The life of a worker: chunks in, outcomes out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with ShardWriter(packing.layout) as writer:
        while True:
            try:
                chunk = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(_answer(packing, writer, chunk))
            except OSError:  # the parent stopped listening
                return


def _answer(packing: Packing, writer: ShardWriter, chunk: Sequence[tuple[int, str]]) -> Outcome | Exception:
    try:
        return _pack_chunk(packing, writer, chunk)
    except CxrltError as error:
        return error
    except Exception:  # a bug: its traceback has to cross the process border
        return RuntimeError(f"a process that packs images failed:\n{traceback.format_exc()}")
