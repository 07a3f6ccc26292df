"""Shards: rows in any order, interrupted writers, damaged files, threads."""

import os
import subprocess
import sys
import textwrap
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from cxrlt_cli.data import shards
from cxrlt_cli.data.journal import RECORD, append_journal, read_journal
from cxrlt_cli.data.shards import Layout, Reader, ShardWriter, allocate, finish, settle
from cxrlt_cli.errors import DataError

SIZE = 16


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE)).astype(np.uint8)


def packed(folder: Path, pixels: np.ndarray, per_shard: int = 10) -> Layout:
    layout = Layout(folder / "images", SIZE, len(pixels), per_shard)
    allocate(layout)
    with ShardWriter(layout) as writer:
        for index, image in enumerate(pixels):
            writer.write(index, image)
    finish(layout)
    return layout


def reader_of(folder: Path, count: int, per_shard: int = 10) -> Reader:
    places = np.arange(count)
    frame = pd.DataFrame({"shard": places // per_shard, "row": places % per_shard})
    return Reader(SimpleNamespace(path=folder, size=SIZE, frame=frame))  # type: ignore[arg-type]  # what it reads of it


def test_every_order_of_rows_is_read(tmp_path: Path) -> None:
    pixels = images(37)
    packed(tmp_path, pixels)
    reader = reader_of(tmp_path, 37)
    rng = np.random.default_rng(1)
    for rows in (np.arange(37), np.arange(36, -1, -1), rng.permutation(37), rng.integers(0, 37, 90), np.array([5])):
        out = np.zeros((len(rows), SIZE, SIZE), np.uint8)
        reader.read(rows, out)
        np.testing.assert_array_equal(out, pixels[rows])


def test_no_rows_are_read(tmp_path: Path) -> None:
    packed(tmp_path, images(3))
    reader_of(tmp_path, 3).read(np.zeros(0, np.int64), np.zeros((0, SIZE, SIZE), np.uint8))


def test_neighbouring_rows_cost_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(40)
    packed(tmp_path, pixels)
    calls = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or real(*args))
    rows = np.array([13, 3, 11, 2, 12, 30])
    out = np.zeros((6, SIZE, SIZE), np.uint8)
    reader_of(tmp_path, 40).read(rows, out)
    np.testing.assert_array_equal(out, pixels[rows])
    assert [len(buffers) for _, buffers, _ in calls] == [2, 3, 1]


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(10)
    packed(tmp_path, pixels)
    real = os.preadv

    def stingy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        return real(descriptor, [buffers[0][:100]], offset)

    monkeypatch.setattr(os, "preadv", stingy)
    out = np.zeros((10, SIZE, SIZE), np.uint8)
    reader_of(tmp_path, 10).read(np.arange(10), out)
    np.testing.assert_array_equal(out, pixels)


def test_more_rows_than_one_call_takes(tmp_path: Path) -> None:
    pixels = images(1500)
    packed(tmp_path, pixels, per_shard=2000)
    out = np.zeros((1500, SIZE, SIZE), np.uint8)
    reader_of(tmp_path, 1500, 2000).read(np.arange(1500), out)
    np.testing.assert_array_equal(out, pixels)


def test_a_shard_is_a_plain_npy_file(tmp_path: Path) -> None:
    pixels = images(25)
    layout = packed(tmp_path, pixels)
    assert [path.name for path in sorted(layout.folder.iterdir())] == ["00000.npy", "00001.npy", "00002.npy"]
    np.testing.assert_array_equal(np.load(layout.path(2), mmap_mode="r"), pixels[20:])
    assert sum(path.stat().st_size for path in layout.folder.iterdir()) == layout.nbytes


def test_threads_share_a_reader(tmp_path: Path) -> None:
    pixels = images(200)
    packed(tmp_path, pixels)
    reader = reader_of(tmp_path, 200)
    wrong: list[int] = []
    before = len(os.listdir("/dev/fd"))

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        out = np.zeros((20, SIZE, SIZE), np.uint8)
        for _ in range(50):
            rows = rng.integers(0, 200, 20)
            reader.read(rows, out)
            if not np.array_equal(out, pixels[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(os.listdir("/dev/fd")) - before <= 20  # one a shard, not one a thread


def test_a_closed_reader_opens_its_files_again(tmp_path: Path) -> None:
    pixels = images(5)
    packed(tmp_path, pixels)
    reader = reader_of(tmp_path, 5)
    out = np.zeros((5, SIZE, SIZE), np.uint8)
    for _ in range(2):
        reader.read(np.arange(5), out)
        reader.close()
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("shape", [(4, SIZE, SIZE), (5, SIZE, SIZE + 1)])
def test_a_wrong_buffer_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    packed(tmp_path, images(5))
    with pytest.raises(ValueError, match="C-contiguous uint8"):
        reader_of(tmp_path, 5).read(np.arange(5), np.zeros(shape, np.uint8))


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def overwritten(path: Path) -> None:
    path.write_bytes(b"x" * 10_000)


def another_size(path: Path) -> None:
    np.save(path, np.zeros((10, 8, 8), np.uint8))


def another_type(path: Path) -> None:
    np.save(path, np.zeros((10, SIZE, SIZE), np.float32))


@pytest.mark.parametrize("damage", [missing, cut, overwritten, another_size, another_type])
def test_a_damaged_shard_is_one_error(tmp_path: Path, damage: object) -> None:
    layout = packed(tmp_path, images(10))
    damage(layout.path(0))  # type: ignore[operator]  # one of the functions above
    with pytest.raises(DataError) as caught:
        reader_of(tmp_path, 10).read(np.arange(10), np.zeros((10, SIZE, SIZE), np.uint8))
    assert caught.value.where.endswith("00000.npy")
    assert "again" in caught.value.cure


# -- writing -------------------------------------------------------------------------------------------------------


def test_the_checksum_is_that_of_the_row_on_disk(tmp_path: Path) -> None:
    layout = Layout(tmp_path, SIZE, 7, 3)
    allocate(layout)
    with ShardWriter(layout) as writer:
        for index, image in enumerate(images(7)):
            assert writer.write(index, image) == zlib.crc32(image.tobytes()) == writer.checksum(index)


def test_allocating_again_keeps_what_was_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path, SIZE, 25, 10)
    pixels = images(25)
    allocate(layout)
    with ShardWriter(layout) as writer:
        crc = writer.write(13, pixels[13])
    allocate(layout)
    with ShardWriter(layout) as writer:
        assert writer.checksum(13) == crc


def test_finishing_twice_is_harmless(tmp_path: Path) -> None:
    pixels = images(12)
    layout = packed(tmp_path, pixels)
    finish(layout)
    allocate(layout)
    assert not list(layout.folder.glob("*.part"))
    np.testing.assert_array_equal(np.load(layout.path(1)), pixels[10:])


@pytest.mark.parametrize("gone", [[], [0], [29], [3, 4, 5, 28], list(range(25)), list(range(5, 30))])
def test_gaps_are_filled_from_the_end(tmp_path: Path, gone: list[int]) -> None:
    pixels = images(30)
    layout = Layout(tmp_path / "images", SIZE, 30, 10)
    kept = np.setdiff1d(np.arange(30), gone)
    allocate(layout)
    with ShardWriter(layout) as writer:
        for index in kept.tolist():
            writer.write(index, pixels[index])
    final, places = settle(layout, kept)
    finish(final)
    assert sorted(places.tolist()) == list(range(len(kept)))
    stored = np.concatenate([np.load(path) for path in sorted(layout.folder.iterdir())])
    np.testing.assert_array_equal(stored[places], pixels[kept])
    assert sum(path.stat().st_size for path in layout.folder.iterdir()) == final.nbytes


def test_filling_gaps_spares_what_the_journal_refers_to(tmp_path: Path) -> None:
    pixels = images(30)
    layout = Layout(tmp_path, SIZE, 30, 10)
    kept = np.setdiff1d(np.arange(30), [2, 11])
    allocate(layout)
    with ShardWriter(layout) as writer:
        crc = [writer.write(index, pixels[index]) for index in kept.tolist()]
        settle(layout, kept)
        assert [writer.checksum(index) for index in kept.tolist()] == crc


def test_shards_stay_few(tmp_path: Path) -> None:
    large = shards.plan_layout(tmp_path, 1024, 1_000_000)
    assert large.shards <= shards.MAX_SHARDS
    small = shards.plan_layout(tmp_path, 512, 142_928)
    assert small.shards == pytest.approx(142_928 * 512**2 / shards.SHARD_BYTES, abs=1)


# -- the journal ---------------------------------------------------------------------------------------------------


def records(indices: list[int]) -> np.ndarray:
    result = np.zeros(len(indices), RECORD)
    result["index"] = indices
    result["crc32"] = np.arange(len(indices)) + 77
    result["sha256"] = 255
    return result


def test_the_journal_returns_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("ab") as file:
        append_journal(file, records([3, 1]))
        append_journal(file, records([2]))
    found = read_journal(path)
    assert found["index"].tolist() == [3, 1, 2]
    assert found["crc32"].tolist() == [77, 78, 77]
    assert (found["sha256"] == 255).all()


@pytest.mark.parametrize("cut", [1, 50, RECORD.itemsize - 1])
def test_a_torn_record_is_dropped_and_overwritten(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    with path.open("ab") as file:
        append_journal(file, records([0, 1, 2]))
    os.truncate(path, path.stat().st_size - cut)
    assert read_journal(path)["index"].tolist() == [0, 1]
    with path.open("ab") as file:
        append_journal(file, records([9]))
    assert read_journal(path)["index"].tolist() == [0, 1, 9]


def test_a_damaged_record_ends_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("ab") as file:
        append_journal(file, records([0, 1, 2]))
    data = bytearray(path.read_bytes())
    data[RECORD.itemsize + 5] ^= 1
    path.write_bytes(data)
    assert read_journal(path)["index"].tolist() == [0]


def test_an_absent_journal_is_empty(tmp_path: Path) -> None:
    assert len(read_journal(tmp_path / "journal")) == 0


def test_a_killed_writer_loses_only_the_row_in_flight(tmp_path: Path) -> None:
    """A process is killed between writing a row and noting it; all rows noted before are whole."""
    script = f"""
        import os, signal
        from pathlib import Path
        import numpy as np
        from cxrlt_cli.data.journal import RECORD, append_journal
        from cxrlt_cli.data.shards import Layout, ShardWriter, allocate
        layout = Layout(Path({str(tmp_path)!r}) / "images", {SIZE}, 30, 10)
        allocate(layout)
        writer = ShardWriter(layout)
        with open({str(tmp_path / "journal")!r}, "ab") as journal:
            for index in range(30):
                record = np.zeros(1, RECORD)
                record["index"] = index
                record["crc32"] = writer.write(index, np.full(({SIZE}, {SIZE}), index, np.uint8))
                if index == 17:
                    os.kill(os.getpid(), signal.SIGKILL)
                append_journal(journal, record)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert result.returncode == -9
    layout = Layout(tmp_path / "images", SIZE, 30, 10)
    found = read_journal(tmp_path / "journal")
    assert found["index"].tolist() == list(range(17))
    with ShardWriter(layout) as writer:
        assert [writer.checksum(index) for index in range(17)] == found["crc32"].tolist()
    assert not list(layout.folder.glob("*.npy"))
