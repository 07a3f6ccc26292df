"""The prepared dataset: rows of splits, folds and views; every damage one error with the file and the cure."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrlt_cli.commands import prepare
from cxrlt_cli.data import manifest
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.errors import DataError


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 phantoms of 16 px in three folds."""
    out = tmp_path_factory.mktemp("prepared") / "folded"
    options = {"count": 90}
    prepare.run("phantom", out, size=16, folds=3, split="dev=0.2,test=0.2", options=options, jobs=1)
    return out


@pytest.fixture
def copy(folded: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(folded, tmp_path / "copy"))


# -- rows ----------------------------------------------------------------------------------------------------------


def test_splits_part_the_rows(folded: Path) -> None:
    prepared = load_prepared(folded)
    rows = [prepared.rows(split) for split in ("train", "dev", "test")]
    assert sorted(np.concatenate(rows)) == list(range(90))
    for split, own in zip(("train", "dev", "test"), rows, strict=True):
        assert set(prepared.frame["split"].iloc[own]) == {split}
        assert own.dtype == np.int64
        assert (np.diff(own) > 0).all()


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_a_fold_takes_the_place_of_dev(folded: Path, fold: int) -> None:
    prepared = load_prepared(folded)
    own, other, test = (prepared.rows(split, fold=fold) for split in ("dev", "train", "test"))
    assert (prepared.frame["fold"].to_numpy()[own] == fold).all()
    assert sorted([*own, *other]) == sorted([*prepared.rows("train"), *prepared.rows("dev")])
    np.testing.assert_array_equal(test, prepared.rows("test"))


def test_views_choose_rows(folded: Path) -> None:
    prepared = load_prepared(folded)
    frontal = prepared.rows("train", views=["PA", "AP"])
    lateral = prepared.rows("train", views=["lateral"])
    assert sorted([*frontal, *lateral]) == prepared.rows("train").tolist()
    assert set(prepared.frame["view"].iloc[lateral]) == {"lateral"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "there is no split 'val'"),
        ({"split": "dev", "fold": 3}, "there is no fold 3: the dataset has 3"),
        ({"split": "dev", "fold": -1}, "there is no fold -1"),
        ({"split": "dev", "views": ["PA", "oblique"]}, "no image has the view 'oblique'"),
    ],
)
def test_rows_that_cannot_be_asked_for(folded: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_prepared(folded).rows(**arguments)
    assert caught.value.cure


def test_folds_that_were_not_asked_for(phantom: Path) -> None:
    with pytest.raises(DataError, match="has no folds") as caught:
        load_prepared(phantom).rows("train", fold=0)
    assert "--folds" in caught.value.cure


def test_labels_follow_class_names(folded: Path) -> None:
    prepared = load_prepared(folded)
    assert prepared.labels.shape == (90, 30)
    assert prepared.labels.dtype == np.int8
    for index, name in enumerate(prepared.classes):
        np.testing.assert_array_equal(prepared.labels[:, index], prepared.frame[name])


def test_stats_count_known_labels(folded: Path) -> None:
    prepared = load_prepared(folded)
    prepared.labels[:5, 0] = -1
    rows = np.arange(20)
    stats = prepared.stats(rows)
    assert stats.known[0] == 15
    assert stats.known[1] == 20
    assert stats.positives == tuple((prepared.labels[:20] == 1).sum(0))


def test_hashes_and_file_names_stay_on_disk(folded: Path) -> None:
    prepared = load_prepared(folded)
    assert not {"path", "sha256", "pixel_sha256", "crc32"} & set(prepared.frame.columns)
    assert {"image_id", "patient_id", "study_id", "view", "split", "fold", "sex", "true:Normal"} <= set(
        prepared.frame.columns
    )


def test_a_row_costs_little_memory(folded: Path) -> None:
    frame = load_prepared(folded).frame
    assert frame.memory_usage(deep=True).sum() / len(frame) < 400


def test_the_checksum_of_each_row_is_kept(folded: Path) -> None:
    import zlib

    table = pq.ParquetFile(folded / "manifest.parquet").read()
    pixels = np.load(folded / "images" / "00000.npy")
    for row, crc in zip(table["row"].to_pylist(), table["crc32"].to_pylist(), strict=True):
        assert zlib.crc32(pixels[row].tobytes()) == crc


# -- damage --------------------------------------------------------------------------------------------------------


def edit_info(path: Path, change: Mapping[str, Any]) -> None:
    file = path / "dataset.json"
    info = json.loads(file.read_text())
    for name, value in change.items():
        if value is None:
            del info[name]
        else:
            info[name] = value
    file.write_text(json.dumps(info))


def edit_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    file = path / "manifest.parquet"
    pq.write_table(change(pq.ParquetFile(file).read()), file)


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "gone": (shutil.rmtree, "", "there is no such directory"),
    "a file": (lambda path: (shutil.rmtree(path), path.write_text("x")), "", "is not a directory"),
    "no dataset.json": (lambda path: (path / "dataset.json").unlink(), "", "is not a prepared dataset"),
    "unfinished": (
        lambda path: ((path / "dataset.json").unlink(), (path / "plan.json").write_text("{}")),
        "",
        "the dataset is unfinished",
    ),
    "json torn": (lambda path: os.truncate(path / "dataset.json", 100), "dataset.json", "cannot be read"),
    "json of another": (
        lambda path: (path / "dataset.json").write_text("[]"),
        "dataset.json",
        "is not the dataset.json",
    ),
    "newer": (lambda path: edit_info(path, {"format": 99}), "dataset.json", "has format 99"),
    "field gone": (lambda path: edit_info(path, {"image_size": None}), "dataset.json", "'image_size'"),
    "field changed": (lambda path: edit_info(path, {"images": "many"}), "dataset.json", "'images'"),
    "classes odd": (lambda path: edit_info(path, {"classes": [1]}), "dataset.json", "'classes'"),
    "classes empty": (lambda path: edit_info(path, {"classes": []}), "dataset.json", "'classes'"),
    "class unknown": (
        lambda path: edit_info(path, {"classes": ["Normal", "Gout"]}),
        "manifest.parquet",
        "the class column 'Gout' is missing",
    ),
    "classes swapped": (
        lambda path: edit_info(path, {"classes": ["cardiomegaly", "Normal"]}),
        "manifest.parquet",
        "does not match the hash",
    ),
    "no manifest": (lambda path: (path / "manifest.parquet").unlink(), "manifest.parquet", "the file is missing"),
    "manifest torn": (lambda path: os.truncate(path / "manifest.parquet", 900), "manifest.parquet", "cannot be read"),
    "manifest cut": (lambda path: edit_table(path, lambda table: table[:50]), "manifest.parquet", "has 50 rows"),
    "column gone": (
        lambda path: edit_table(path, lambda table: table.drop_columns(["row"])),
        "manifest.parquet",
        "the column 'row' is missing",
    ),
    "label of 2": (
        lambda path: edit_table(path, replaced("Normal", pa.array([2] * 90, pa.int8()))),
        "manifest.parquet, Normal",
        "row 0 has the label 2",
    ),
    "labels as text": (
        lambda path: edit_table(path, replaced("Normal", pa.array(["1"] * 90))),
        "manifest.parquet",
        "'Normal' is not int8",
    ),
    "labels changed": (
        lambda path: edit_table(path, replaced("Normal", pa.array([1] * 90, pa.int8()))),
        "manifest.parquet",
        "does not match the hash",
    ),
    "split odd": (
        lambda path: edit_table(path, replaced("split", pa.array(["hidden"] * 90))),
        "manifest.parquet",
        "unknown split 'hidden'",
    ),
    "patients changed": (
        lambda path: edit_table(path, replaced("patient_id", pa.array(["x"] * 90))),
        "manifest.parquet",
        "does not match the hash",
    ),
    "shard gone": (lambda path: (path / "images" / "00000.npy").unlink(), "00000.npy", "No such file"),
    "shard torn": (lambda path: os.truncate(path / "images" / "00000.npy", 5000), "00000.npy", "has 5000 bytes"),
    "shard empty": (lambda path: os.truncate(path / "images" / "00000.npy", 0), "00000.npy", "is not a shard"),
    "shard of another": (
        lambda path: np.save(path / "images" / "00000.npy", np.zeros((90, 8, 8), np.uint8)),
        "00000.npy",
        "holds images of 8 x 8 pixels",
    ),
    "rows beyond": (
        lambda path: edit_table(path, replaced("row", pa.array([500] * 90, pa.int32()))),
        "manifest.parquet",
        "an image lies in row 500 of 00000.npy, which has 90",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_error(copy: Path, damage: str) -> None:
    spoil, file, message = DAMAGES[damage]
    spoil(copy)
    with pytest.raises(DataError, match=message) as caught:
        load_prepared(copy)
    assert caught.value.code == 3
    assert caught.value.where.startswith(str(copy))
    assert caught.value.where.endswith(file or copy.name)
    assert caught.value.cure


def test_a_folder_called_like_a_column_changes_nothing(folded: Path, tmp_path: Path) -> None:
    """Parquet readers take folders called name=value for columns."""
    moved = Path(shutil.copytree(folded, tmp_path / "size=16" / "copy"))
    assert load_prepared(moved).content_hash == load_prepared(folded).content_hash


# -- the hash ------------------------------------------------------------------------------------------------------


def test_the_hash_follows_content_and_nothing_else(folded: Path, tmp_path: Path) -> None:
    other = tmp_path / "other name"
    prepare.run("phantom", other, size=16, folds=3, split="dev=0.2,test=0.2", options={"count": 90}, jobs=1)
    assert load_prepared(other).content_hash == load_prepared(folded).content_hash
    prepare.run("phantom", tmp_path / "seed", size=16, folds=3, seed=1, options={"count": 90}, jobs=1)
    assert load_prepared(tmp_path / "seed").content_hash != load_prepared(folded).content_hash


def test_reserved_names_are_the_manifests_columns(folded: Path) -> None:
    prepared = load_prepared(folded)
    columns = set(pq.ParquetFile(folded / "manifest.parquet").schema_arrow.names)
    assert columns >= manifest.RESERVED
    assert not manifest.RESERVED & set(prepared.classes)
