"""``prepare``: the whole command, on tables and images made here and on real ones."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cxrlt_cli.commands import prepare
from cxrlt_cli.data import packing
from cxrlt_cli.data.decode import decode
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.data.shards import Reader
from cxrlt_cli.errors import CxrltError, DataError, Interrupted, PluginError, UsageError
from cxrlt_cli.events import Event, Notice, Result, Started

CLASSES = ("Cardiomegaly", "Effusion", "Nodule")


def make_images(folder: Path, names: Sequence[str], seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        low, kind = rng.random((12, 10)) * (4095 if index % 3 == 0 else 255), np.uint16 if index % 3 == 0 else np.uint8
        large = np.asarray(Image.fromarray(low.astype(np.float32)).resize((50, 60), Image.Resampling.BICUBIC))
        Image.fromarray(np.clip(large, 0, 4095 if kind is np.uint16 else 255).astype(kind)).save(folder / name)


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Path]:
    """120 images of 50 patients: a table and a folder, as arguments of ``run``."""
    rng = np.random.default_rng(1)
    names = [f"img{index:03d}.png" for index in range(120)]
    make_images(tmp_path / "images", names)
    labels = rng.random((120, 3)) < (0.4, 0.15, 0.05)
    rows = [
        (name, f"p{index % 50}", *labels[index].astype(int), ("PA", "AP", "L")[index % 3], 30 + index)
        for index, name in enumerate(names)
    ]
    header = ("image_id", "patient_id", *CLASSES, "view", "age")
    return {"images": tmp_path / "images", "labels": write_table(tmp_path / "labels.csv", header, rows)}


def run(out: Path, source: dict[str, Path], **settings: object) -> Result:
    return prepare.run("csv", out, **{"size": 32, "jobs": 1, **source, **settings})


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


# -- what it makes -------------------------------------------------------------------------------------------------


def test_the_directory_holds_what_the_design_says(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source)
    assert sorted(files_of(tmp_path / "out")) == [
        "dataset.json",
        "duplicates.csv",
        "images/00000.npy",
        "manifest.parquet",
        "quarantine.csv",
        "report.html",
    ]


def test_every_image_label_and_identifier_arrives(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source)
    prepared = load_prepared(tmp_path / "out")
    with source["labels"].open() as file:
        table = {row["image_id"]: row for row in csv.DictReader(file)}
    assert prepared.classes == CLASSES
    pixels = np.zeros((len(prepared), 32, 32), np.uint8)
    Reader(prepared).read(np.arange(len(prepared)), pixels)
    for position, row in enumerate(prepared.frame.to_dict("records")):
        expected = table.pop(row["image_id"])
        assert row["patient_id"] == expected["patient_id"]
        assert row["view"] == {"PA": "PA", "AP": "AP", "L": "lateral"}[expected["view"]]
        assert row["age"] == expected["age"]
        assert [str(label) for label in prepared.labels[position]] == [expected[name] for name in CLASSES]
        original = decode(source["images"] / row["image_id"], 32, "pad")
        np.testing.assert_array_equal(pixels[position], original.pixels)
        assert (row["width"], row["height"], row["bits"]) == (original.width, original.height, original.bits)
    assert not table


def test_splits_are_disjoint_and_have_their_share(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source, split="dev=0.2,test=0.1")
    frame = load_prepared(tmp_path / "out").frame
    assert frame.groupby("patient_id", observed=True)["split"].nunique().max() == 1
    assert frame["split"].value_counts(normalize=True).to_dict() == pytest.approx(
        {"train": 0.7, "dev": 0.2, "test": 0.1}, abs=0.03
    )


def test_folds_leave_the_test_split_alone(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source, split="dev=0.1,test=0.2", folds=4)
    prepared = load_prepared(tmp_path / "out")
    assert (prepared.frame["fold"].to_numpy()[prepared.rows("test")] == -1).all()
    held_out = np.concatenate([prepared.rows("dev", fold=fold) for fold in range(4)])
    assert sorted(held_out) == sorted([*prepared.rows("train"), *prepared.rows("dev")])


def test_folds_alone_set_no_test_split_aside(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source, folds=3)
    assert len(load_prepared(tmp_path / "out").rows("test")) == 0


def test_the_result_counts(tmp_path: Path, source: dict[str, Path]) -> None:
    result = run(tmp_path / "out", source)
    prepared = load_prepared(tmp_path / "out")
    table = result.blocks[0]
    assert [row[0] for row in table.rows] == ["Cardiomegaly", "Effusion", "Nodule"]
    for name, *counts in (row[:4] for row in table.rows):
        column = prepared.classes.index(name)
        found = [(prepared.labels[prepared.rows(split), column] == 1).sum() for split in ("train", "dev", "test")]
        assert [int(count) for count in counts] == found
    assert result.blocks[-1].startswith("120 images of 50 patients, 0 quarantined")
    assert json.dumps(result.data)


def test_it_is_repeatable_whatever_the_number_of_processes(
    tmp_path: Path, source: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FEW", 10)
    run(tmp_path / "one", source, jobs=1)
    run(tmp_path / "two", source, jobs=2)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one["manifest.parquet"] == two["manifest.parquet"]
    assert one["images/00000.npy"] == two["images/00000.npy"]


def test_what_was_found_is_said_before_work_starts(tmp_path: Path, source: dict[str, Path]) -> None:
    events: list[Event] = []
    run(tmp_path / "out", source, emit=events.append)
    said = [event.text if isinstance(event, Notice) else event for event in events]
    text = "3 class columns found by their values (choose others with --classes): Cardiomegaly, Effusion, Nodule"
    first_work = next(place for place, event in enumerate(events) if isinstance(event, Started))
    assert said.index(text) < first_work


def test_a_source_that_states_splits_keeps_them(tmp_path: Path, source: dict[str, Path]) -> None:
    rows = [(f"img{i:03d}", f"p{i}", i % 2, "valid" if i < 10 else "train") for i in range(60)]
    labels = write_table(tmp_path / "stated.csv", ("id", "patient", "Mass", "split"), rows)
    run(tmp_path / "out", {**source, "labels": labels})
    prepared = load_prepared(tmp_path / "out")
    assert prepared.rows("dev").tolist() == list(range(10))
    run(tmp_path / "other", {**source, "labels": labels}, split="dev=0.5")
    assert len(load_prepared(tmp_path / "other").rows("dev")) == 30


def test_stated_splits_that_share_patients_are_refused(tmp_path: Path, source: dict[str, Path]) -> None:
    rows = [(f"img{i:03d}", f"p{i % 20}", i % 2, "dev" if i < 10 else "train") for i in range(60)]
    labels = write_table(tmp_path / "stated.csv", ("id", "patient", "Mass", "split"), rows)
    with pytest.raises(DataError, match=r"10 patients are in more than one of .*\(p0 is in train and dev"):
        run(tmp_path / "out", {**source, "labels": labels})


def test_class_names_of_the_manifest_are_refused(tmp_path: Path, source: dict[str, Path]) -> None:
    labels = write_table(tmp_path / "t.csv", ("id", "patient", "width"), [(f"img{i:03d}", i, i % 2) for i in range(9)])
    with pytest.raises(DataError, match="a class cannot be called 'width'"):
        run(tmp_path / "out", {**source, "labels": labels})


def test_drawn_images_are_packed(phantom: Path) -> None:
    prepared = load_prepared(phantom)
    pixels = np.zeros((3, 32, 32), np.uint8)
    Reader(prepared).read(np.array([5, 6, len(prepared) - 1]), pixels)
    assert (pixels.std(axis=(1, 2)) > 10).all()
    assert prepared.info["split"]["by"] == "source"


# -- interruption --------------------------------------------------------------------------------------------------


def started(events: Sequence[Event]) -> Started:
    return next(event for event in events if isinstance(event, Started) and event.stage == "pack")


def test_run_again_it_does_nothing(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    events: list[Event] = []
    result = run(tmp_path / "out", source, emit=events.append)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert any(isinstance(event, Notice) and "nothing to do" in event.text for event in events)
    assert result.blocks[-1].startswith("120 images")


def interrupt_after(outcomes: int) -> Callable[[Event], None]:
    """An ``emit`` that sends this process a SIGINT after some progress."""
    seen = []

    def emit(event: Event) -> None:
        if type(event).__name__ == "Advanced":
            seen.append(event)
            if len(seen) == outcomes:
                os.kill(os.getpid(), signal.SIGINT)

    return emit


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "whole", source)
    with pytest.raises(Interrupted, match=r"of 120 images are packed") as caught:
        run(tmp_path / "out", source, emit=interrupt_after(5))
    assert caught.value.code == 130
    with pytest.raises(DataError, match="unfinished"):
        load_prepared(tmp_path / "out")
    events: list[Event] = []
    run(tmp_path / "out", source, emit=events.append)
    assert 0 < started(events).done < 120
    whole, out = files_of(tmp_path / "whole"), files_of(tmp_path / "out")
    assert whole["manifest.parquet"] == out["manifest.parquet"]
    assert whole["images/00000.npy"] == out["images/00000.npy"]
    assert sorted(whole) == sorted(out)


def test_rows_damaged_after_they_were_noted_are_packed_again(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "whole", source)
    with pytest.raises(Interrupted):
        run(tmp_path / "out", source, emit=interrupt_after(5))
    with next((tmp_path / "out" / "images").glob("*.part")).open("r+b") as file:
        file.seek(128 + 3 * 32 * 32)
        file.write(bytes(2000))
    run(tmp_path / "out", source)
    assert files_of(tmp_path / "out")["images/00000.npy"] == files_of(tmp_path / "whole")["images/00000.npy"]


def test_a_file_replaced_meanwhile_is_read_again(tmp_path: Path, source: dict[str, Path]) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path / "out", source, emit=interrupt_after(5))
    make_images(source["images"], ["img001.png"], seed=99)
    run(tmp_path / "out", source)
    pixels = np.zeros((1, 32, 32), np.uint8)
    Reader(load_prepared(tmp_path / "out")).read(np.array([1]), pixels)
    np.testing.assert_array_equal(pixels[0], decode(source["images"] / "img001.png", 32, "pad").pixels)


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_killed_at_work_it_continues_and_leaves_no_process(tmp_path: Path) -> None:
    out, count = tmp_path / "out", 200
    command = [sys.executable, "-m", "cxrlt_cli", "prepare", "phantom", str(out), "--count", str(count), "--size", "96"]
    process = subprocess.Popen([*command, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = out / "journal"
    wait_until(lambda: process.poll() is not None or (journal.exists() and journal.stat().st_size > 1500))
    workers = children(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    events: list[Event] = []
    prepare.run("phantom", out, size=96, options={"count": count}, jobs=1, emit=events.append)
    assert started(events).done > 10
    prepare.run("phantom", tmp_path / "whole", size=96, options={"count": count}, jobs=1)
    assert load_prepared(out).content_hash == load_prepared(tmp_path / "whole").content_hash
    assert not (out / "plan.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 48}, r"size 32 \(now 48\)"),
        ({"fit": "squash"}, r'fit "pad" \(now "squash"\)'),
        ({"split": "dev=0.3"}, r'split none \(now "dev=0.3"\)'),
        ({"folds": 3}, r"folds none \(now 3\)"),
        ({"seed": 7}, r"seed 0 \(now 7\)"),
        ({"options": {"group": "image_id"}}, "options"),
    ],
)
def test_other_settings_over_a_dataset_are_refused(
    tmp_path: Path, source: dict[str, Path], change: dict[str, object], message: str
) -> None:
    run(tmp_path / "out", source)
    before = files_of(tmp_path / "out")
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path / "out", source, **change)
    assert "another output directory" in caught.value.cure
    assert files_of(tmp_path / "out") == before


def test_a_changed_table_over_a_dataset_is_refused(tmp_path: Path, source: dict[str, Path]) -> None:
    run(tmp_path / "out", source)
    text = source["labels"].read_text()
    source["labels"].write_text(text.replace("img007.png,p7,0", "img007.png,p7,1").replace("p7,1", "p7,0"))
    with pytest.raises(DataError, match="another state of its source"):
        run(tmp_path / "out", source)


def test_other_settings_over_unfinished_work_are_refused(tmp_path: Path, source: dict[str, Path]) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path / "out", source, emit=interrupt_after(3))
    with pytest.raises(DataError, match="unfinished dataset"):
        run(tmp_path / "out", source, size=48)


def test_an_attempt_that_packed_nothing_binds_nobody(tmp_path: Path, source: dict[str, Path]) -> None:
    shutil.move(source["images"] / "img000.png", tmp_path / "away")
    shutil.move(source["images"] / "img001.png", tmp_path / "away2")
    with pytest.raises(DataError, match="2 of 120 image files are missing"):
        run(tmp_path / "out", source)
    run(tmp_path / "out", source, size=48, allow_quarantine=True)
    assert load_prepared(tmp_path / "out").size == 48


# -- quarantine ----------------------------------------------------------------------------------------------------


def spoil(folder: Path, count: int) -> None:
    for index in range(count):
        (folder / f"img{10 + index:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def test_one_unreadable_file_is_named_and_left_out(tmp_path: Path, source: dict[str, Path]) -> None:
    spoil(source["images"], 1)
    result = run(tmp_path / "out", source)
    prepared = load_prepared(tmp_path / "out")
    assert "1 quarantined" in result.blocks[-1]
    assert len(prepared) == 119
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["image_id"], row["patient_id"]) == ("img010.png", "p10")
    assert row["path"].endswith("img010.png")
    assert row["reason"]
    pixels = np.zeros((119, 32, 32), np.uint8)
    Reader(prepared).read(np.arange(119), pixels)
    for position, name in enumerate(prepared.frame["image_id"]):
        np.testing.assert_array_equal(pixels[position], decode(source["images"] / name, 32, "pad").pixels)


def test_more_than_one_per_cent_stops_and_the_flag_goes_on_without_decoding_again(
    tmp_path: Path, source: dict[str, Path]
) -> None:
    spoil(source["images"], 6)
    with pytest.raises(DataError, match=r"6 of 120 images \(5.0%\) cannot be used") as caught:
        run(tmp_path / "out", source)
    assert "--allow-quarantine" in caught.value.cure
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    events: list[Event] = []
    result = run(tmp_path / "out", source, allow_quarantine=True, emit=events.append)
    assert started(events).done == 114
    assert "114 images" in result.blocks[-1]
    assert "6 quarantined" in result.blocks[-1]


def test_repaired_files_are_taken_in(tmp_path: Path, source: dict[str, Path]) -> None:
    spoil(source["images"], 6)
    with pytest.raises(DataError):
        run(tmp_path / "out", source)
    make_images(source["images"], [f"img{10 + index:03d}.png" for index in range(6)], seed=5)
    assert "120 images of 50 patients, 0 quarantined" in run(tmp_path / "out", source).blocks[-1]


def test_nothing_readable_is_an_error_even_with_the_flag(tmp_path: Path, source: dict[str, Path]) -> None:
    for path in source["images"].iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 120 images can be used"):
        run(tmp_path / "out", source, allow_quarantine=True)


# -- duplicates ----------------------------------------------------------------------------------------------------


def test_patients_who_share_an_image_stay_together(tmp_path: Path, source: dict[str, Path]) -> None:
    for index in range(10):
        original = Image.open(source["images"] / f"img{index:03d}.png")
        original.save(source["images"] / f"img{index + 20:03d}.png", compress_level=1)
    events: list[Event] = []
    run(tmp_path / "out", source, split="dev=0.4,test=0.2", emit=events.append)
    split = dict(load_prepared(tmp_path / "out").frame[["patient_id", "split"]].itertuples(index=False))
    assert all(split[f"p{index}"] == split[f"p{index + 20}"] for index in range(10))
    warnings = [event.text for event in events if isinstance(event, Notice) and event.level == "warning"]
    assert any(
        "20 images in 10 groups of equal pixels carry different patient identifiers" in text for text in warnings
    )
    with (tmp_path / "out" / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert {row["leak"] for row in rows} == {"True"}
    assert "p20" in (tmp_path / "out" / "report.html").read_text()


def test_a_leak_between_stated_splits_is_named(tmp_path: Path, source: dict[str, Path]) -> None:
    shutil.copy(source["images"] / "img003.png", source["images"] / "img033.png")
    rows = [(f"img{i:03d}", f"p{i}", i % 2, "dev" if i < 10 else "train") for i in range(60)]
    labels = write_table(tmp_path / "stated.csv", ("id", "patient", "Mass", "split"), rows)
    events: list[Event] = []
    run(tmp_path / "out", {**source, "labels": labels}, emit=events.append)
    assert any(isinstance(event, Notice) and event.text.startswith("LEAK: 2 images in 1 group") for event in events)
    assert "LEAK: 2 images in 1 group" in (tmp_path / "out" / "report.html").read_text()
    assert load_prepared(tmp_path / "out").info["duplicates"] == {"groups": 1, "leaks": 1}


# -- settings and directories --------------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tmp_path: Path, source: dict[str, Path]) -> None:
    (source["images"] / "img000.png").unlink()
    result = run(tmp_path / "out", source, dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "120 images would be prepared" in result.blocks[0]
    assert "1 files are missing" in result.blocks[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 8}, "--size 8"),
        ({"fit": "crop"}, "--fit crop"),
        ({"split": "dev=2"}, "--split dev=2"),
        ({"folds": 1}, "--folds 1"),
        ({"seed": -1}, "--seed -1"),
        ({"jobs": 0}, "--jobs 0"),
    ],
)
def test_settings_out_of_range_are_usage_errors(
    tmp_path: Path, source: dict[str, Path], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "out", source, **settings)
    assert message in str(caught.value)
    assert caught.value.code == 2


def test_a_file_in_place_of_the_directory(tmp_path: Path, source: dict[str, Path]) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(DataError, match="is a file, not a directory"):
        run(tmp_path / "out", source)


def test_a_directory_of_other_things_is_left_alone(tmp_path: Path, source: dict[str, Path]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty and holds no prepared dataset"):
        run(tmp_path / "out", source)
    assert files_of(tmp_path / "out") == {"thesis.txt": b"x"}


def test_a_directory_that_cannot_be_written(tmp_path: Path, source: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written") as caught:
        run(tmp_path / "file" / "out", source)
    assert caught.value.cure


def test_a_full_disk_is_known_before_work(
    tmp_path: Path, source: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"GB are needed, 0\.0 GB are free"):
        run(tmp_path / "out", source)


def test_two_at_once_are_kept_apart(tmp_path: Path, source: dict[str, Path]) -> None:
    def emit(event: Event) -> None:
        if isinstance(event, Started) and event.stage == "pack":
            with pytest.raises(DataError, match="another cxrlt prepare is at work"):
                run(tmp_path / "out", source)

    run(tmp_path / "out", source, emit=emit)
    assert len(load_prepared(tmp_path / "out")) == 120


# -- sources of others ---------------------------------------------------------------------------------------------

ODD_SOURCE = """
import os
import signal

import numpy as np

from cxrlt_cli.contracts import SourceTable


class Odd:
    def __init__(self, size, how):
        names = [str(index) for index in range(100)]
        labels = np.arange(100).reshape(100, 1).astype(np.int8) % 2
        self.table = SourceTable(("Mass",), names, names, labels)
        self.size, self.how = size, how
        self.ballast = (lambda: None) if how == "unpicklable" else None

    def draw(self, index):
        if index == 50 and self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 50 and self.how == "raises":
            raise RuntimeError("out of paint")
        side = self.size - 1 if index == 50 and self.how == "wrong shape" else self.size
        return np.random.default_rng(index).integers(0, 256, (side, side)).astype(np.uint8)


def build(request, *, how: str = "well"):
    return Odd(request.size, how)
"""


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("dies", DataError, "a process that packs images died (exit code -9) at images from number"),
        ("raises", PluginError, "source 'odd', image 50: draw() failed: RuntimeError: out of paint"),
        ("wrong shape", PluginError, "source 'odd', image 50: draw() returned uint8 (31, 31), not uint8 (32, 32)"),
        ("unpicklable", PluginError, "the source 'odd' cannot be sent to another process"),
    ],
)
def test_a_faulty_source_is_one_error(
    tmp_path: Path, install: Callable[..., Path], how: str, kind: type[CxrltError], message: str
) -> None:
    install("odd-source", "[cxrlt.datasets]\nodd = odd_source:build\n", {"odd_source": ODD_SOURCE})
    with pytest.raises(kind) as caught:
        prepare.run("odd", tmp_path / "out", size=32, jobs=2, options={"how": how})
    assert message in str(caught.value)
    assert caught.value.cure


def test_a_sound_source_of_others_is_drawn_in_processes(tmp_path: Path, install: Callable[..., Path]) -> None:
    install("odd-source", "[cxrlt.datasets]\nodd = odd_source:build\n", {"odd_source": ODD_SOURCE})
    prepare.run("odd", tmp_path / "out", size=32, jobs=2)
    pixels = np.zeros((1, 32, 32), np.uint8)
    Reader(load_prepared(tmp_path / "out")).read(np.array([77]), pixels)
    np.testing.assert_array_equal(pixels[0], np.random.default_rng(77).integers(0, 256, (32, 32)).astype(np.uint8))


# -- real data -----------------------------------------------------------------------------------------------------


def test_a_thousand_radiographs(tmp_path: Path, shared: Path) -> None:
    folder = shared / "data" / "nih-cxr-lt-1k"
    if not folder.is_dir():
        pytest.skip("the NIH subset is not among the shared data")
    result = prepare.run(
        "csv", tmp_path / "out", images=folder / "images", labels=folder / "labels.csv", size=64, folds=5
    )
    prepared = load_prepared(tmp_path / "out")
    assert (len(prepared), len(prepared.classes)) == (1000, 20)
    assert prepared.frame.groupby("patient_id", observed=True)["fold"].nunique().max() == 1
    assert result.data["duplicates"] == {"groups": 1, "leaks": 0}
    stats = prepared.stats(np.arange(1000))
    assert dict(zip(stats.names, stats.positives, strict=True))["pneumonia"] == 500


def test_sixteen_bit_and_colour_radiographs(tmp_path: Path, shared: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for folder in ("png16", "nih-png-1024"):
        for path in sorted((shared / "data" / folder).glob("*.png"))[:8]:
            (images / path.name).symlink_to(path)
    names = sorted(path.stem for path in images.iterdir())
    if len(names) < 3:
        pytest.skip("no PNG radiographs among the shared data")
    labels = write_table(tmp_path / "t.csv", ("id", "Mass"), [(name, index % 2) for index, name in enumerate(names)])
    prepare.run("csv", tmp_path / "out", images=images, labels=labels, size=128, options={"group": "image_id"}, jobs=1)
    prepared = load_prepared(tmp_path / "out")
    assert set(prepared.frame["bits"]) == {8, 16}
    assert prepared.frame["image_id"].tolist() == names
