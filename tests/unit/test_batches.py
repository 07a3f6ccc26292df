"""The reader thread: what it yields, when it reads, and that it always ends."""

from __future__ import annotations

import gc
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from cxrlt_cli.data.batches import batches, to_unit

Rows = npt.NDArray[np.int64]


class Fake:
    """Image ``r`` is filled with ``r % 251``; remembers what was read, where, and on which thread."""

    size = 4

    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.addresses: set[int] = set()
        self.threads: set[int] = set()

    def read(self, rows: Rows, out: npt.NDArray[np.uint8]) -> None:
        assert out.shape == (len(rows), self.size, self.size)
        assert out.dtype == np.uint8
        out[:] = (rows % 251).astype(np.uint8)[:, None, None]
        self.reads.append(rows.tolist())
        self.addresses.add(out.ctypes.data)
        self.threads.add(threading.get_ident())


def lists(*lengths: int) -> list[Rows]:
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition holds within five seconds."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


def test_yields_the_images_of_every_list_in_order() -> None:
    wanted = [np.array([5, 1, 250]), np.array([7]), np.array([3, 3, 3, 9]), np.array([2, 8])]
    got = [(tuple(batch.shape), batch[:, 0, 0, 0].tolist()) for batch in batches(Fake(), wanted)]
    assert got == [((len(rows), 1, 4, 4), rows.tolist()) for rows in wanted]


def test_every_pixel_belongs_to_its_row() -> None:
    for batch, rows in zip(batches(Fake(), lists(3, 2)), lists(3, 2), strict=True):
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous()
        assert (batch.flatten(1) == torch.from_numpy(rows)[:, None]).all()


def test_no_lists_give_no_batches() -> None:
    assert list(batches(Fake(), [])) == []


def test_an_empty_list_gives_an_empty_batch() -> None:
    assert [tuple(batch.shape) for batch in batches(Fake(), lists(0, 2))] == [(0, 1, 4, 4), (2, 1, 4, 4)]


def test_lists_of_other_integers_are_read_as_int64() -> None:
    fake = Fake()
    assert len(list(batches(fake, [np.array([1, 2], dtype=np.int32)]))) == 1
    assert fake.reads == [[1, 2]]


def test_reading_happens_in_another_thread() -> None:
    fake = Fake()
    assert len(list(batches(fake, lists(1, 1, 1)))) == 3
    assert len(fake.threads) == 1
    assert threading.get_ident() not in fake.threads


def test_a_batch_stays_valid_until_the_next_is_asked_for() -> None:
    fake = Fake()
    for number, batch in enumerate(batches(fake, lists(*[2] * 8))):
        ahead = min(number + 3, 8)
        assert eventually(lambda ahead=ahead: len(fake.reads) >= ahead)
        assert batch[:, 0, 0, 0].tolist() == [2 * number, 2 * number + 1]


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_slow_consumer_does_not_grow_memory(depth: int) -> None:
    fake, pulled = Fake(), []

    def endless() -> Iterator[Rows]:
        for first in range(10**9):
            pulled.append(first)
            yield np.arange(first, first + 2)

    with closing(batches(fake, endless(), depth=depth)) as stream:
        for taken in range(1, 6):
            next(stream)
            assert eventually(lambda taken=taken: len(fake.reads) == taken + depth - 1)
            time.sleep(0.01)
            assert len(fake.reads) == len(pulled) == taken + depth - 1
    assert len(fake.addresses) == depth


def test_buffers_grow_only_for_longer_lists() -> None:
    fake = Fake()
    assert sum(len(batch) for batch in batches(fake, lists(8, *[1, 5, 8, 2] * 5), depth=2)) == 88
    assert len(fake.addresses) <= 4  # each buffer once short, once of full length


def test_a_depth_without_reading_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 1"):
        batches(Fake(), [], depth=1)


def test_nothing_starts_before_the_first_batch() -> None:
    before = threading.active_count()
    stream = batches(Fake(), lists(1))
    assert threading.active_count() == before
    stream.close()


class Broken(Fake):
    def read(self, rows: Rows, out: npt.NDArray[np.uint8]) -> None:
        if 6 in rows:
            raise OSError("shard 3 is truncated")
        super().read(rows, out)


def test_an_exception_of_the_reader_surfaces_after_the_batches_before_it() -> None:
    stream = batches(Broken(), lists(*[2] * 9))
    assert [next(stream)[:, 0, 0, 0].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(OSError, match="shard 3 is truncated") as caught:
        next(stream)
    assert 'raise OSError("shard 3 is truncated")' in "".join(traceback.format_exception(caught.value))


def test_an_exception_of_the_index_lists_surfaces() -> None:
    def faulty() -> Iterator[Rows]:
        yield np.arange(2)
        raise KeyError("no such fold")

    stream = batches(Fake(), faulty())
    assert len(next(stream)) == 2
    with pytest.raises(KeyError, match="no such fold"):
        next(stream)
    assert list(stream) == []


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    stream = batches(Fake(), lists(*[2] * 100))
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_leaving_the_loop_ends_the_thread() -> None:
    before = threading.active_count()
    for batch in batches(Fake(), lists(*[2] * 100)):
        assert len(batch) == 2
        break
    assert threading.active_count() == before


def test_an_exception_in_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for _ in batches(Fake(), lists(*[2] * 100)):
            raise RuntimeError("out of memory")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        consume()
    assert threading.active_count() == before


def test_an_iterator_lost_in_a_cycle_ends_with_the_garbage() -> None:
    before = threading.active_count()
    stream = batches(Fake(), lists(*[2] * 100))
    next(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    assert eventually(lambda: threading.active_count() == before)


class Collecting(Fake):
    """Runs the garbage collector inside the reader thread once told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def read(self, rows: Rows, out: npt.NDArray[np.uint8]) -> None:
        super().read(rows, out)
        if rows[0] >= 2:
            self.go.wait(5)
            gc.collect()


def test_garbage_collected_in_the_reader_thread_itself_does_not_hang() -> None:
    before, fake = threading.active_count(), Collecting()
    stream = batches(fake, lists(*[2] * 100))
    next(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    gc.disable()
    try:
        del stream, cycle
        fake.go.set()
        assert eventually(lambda: threading.active_count() == before)
    finally:
        gc.enable()


class Slow(Fake):
    def read(self, rows: Rows, out: npt.NDArray[np.uint8]) -> None:
        time.sleep(0.05)
        super().read(rows, out)


def test_closing_does_not_read_on() -> None:
    fake = Slow()
    stream = batches(fake, lists(*[1] * 100), depth=100)
    next(stream)
    stream.close()
    assert len(fake.reads) < 50


def test_a_pinned_buffer_waits_for_the_stream_before_it_is_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Noting(Fake):
        def read(self, rows: Rows, out: npt.NDArray[np.uint8]) -> None:
            super().read(rows, out)
            log.append(f"read {rows[0]}")

    class Event:
        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory=False: empty(shape, dtype=dtype))
    stream = batches(Noting(), lists(*[1] * 4), pin=True, depth=2)
    next(stream)
    assert eventually(lambda: len(log) == 4)
    assert log == ["wait", "read 0", "wait", "read 1"]
    next(stream)
    assert eventually(lambda: len(log) == 7)
    assert log[4:] == ["record", "wait", "read 2"]
    stream.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_late_copy_reads_the_right_pixels() -> None:
    class Big(Fake):
        size = 512

    device, copies = torch.device("cuda"), []
    weight = torch.randn(4096, 4096, device=device)
    for batch in batches(Big(), lists(*[16] * 30), pin=True):
        for _ in range(3):
            weight = functional.normalize(weight @ weight)  # keeps the stream behind the host
        copies.append(to_unit(batch, device))
    got = [copy[:, 0, 0, 0].mul(255).round().long().cpu() for copy in copies]
    assert torch.equal(torch.cat(got), torch.arange(480) % 251)
    assert all((copy == copy[:, :1, :1, :1]).all() for copy in copies)


# --- to_unit


def test_to_unit_maps_0_to_0_and_255_to_1() -> None:
    batch = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unit = to_unit(batch, "cpu")
    assert unit.dtype == torch.float32
    assert torch.equal(unit.flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize("size", [None, 16])
def test_to_unit_gives_new_memory(size: int | None) -> None:
    batch = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
    unit = to_unit(batch, torch.device("cpu"), size)
    batch.zero_()
    assert (unit == 1).all()


def test_to_unit_halves_by_an_antialiased_filter() -> None:
    """A triangle filter two pixels of the result wide: 1/8, 3/8, 3/8, 1/8 away from the border."""
    batch = torch.randint(0, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    taps = torch.tensor([1, 3, 3, 1]) / 8
    expected = functional.conv2d(batch / 255, (taps[:, None] * taps).view(1, 1, 4, 4), stride=2, padding=1)
    got = to_unit(batch, "cpu", 16)
    assert got.shape == (3, 1, 16, 16)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


def test_to_unit_keeps_white_white_and_stays_in_range() -> None:
    batch = torch.full((1, 1, 50, 50), 255, dtype=torch.uint8)
    batch[..., ::7, :] = 0
    for size in (13, 37, 80):
        unit = to_unit(batch, "cpu", size)
        assert unit.shape == (1, 1, size, size)
        assert unit.min() >= 0
        assert unit.max() <= 1
    assert torch.allclose(to_unit(torch.full_like(batch, 255), "cpu", 37), torch.ones(()))
