from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import factories
import numpy as np
import pytest

from cxrlt_cli.data.files import FileImages, ImageFile, find_images
from cxrlt_cli.errors import DataError

PIXELS = factories.make_pixels(5)


@pytest.fixture
def files(tmp_path: Path) -> list[ImageFile]:
    factories.write_images(tmp_path, factories.image_ids(5), PIXELS)
    return find_images([tmp_path])


@pytest.fixture
def images(files: list[ImageFile]) -> Iterator[FileImages]:
    with FileImages(files, factories.SIZE, "pad", jobs=3) as opened:
        yield opened


def read(images: FileImages, *rows: int) -> np.ndarray:
    out = np.full((len(rows), images.size, images.size), 7, np.uint8)
    images.read(np.array(rows, np.int64), out)
    return out


def test_rows_come_in_any_order_and_more_than_once(images: FileImages) -> None:
    np.testing.assert_array_equal(read(images, 3, 0, 3), PIXELS[[3, 0, 3]])
    assert images.unreadable == {}


def test_no_rows_are_fine(images: FileImages) -> None:
    assert read(images).shape == (0, factories.SIZE, factories.SIZE)


def test_an_unreadable_file_is_remembered_by_its_row(images: FileImages, files: list[ImageFile]) -> None:
    files[2].path.write_bytes(b"")
    files[4].path.unlink()
    out = read(images, 1, 2, 4)
    assert images.unreadable == {2: "is empty (zero bytes)", 4: "file not found"}
    np.testing.assert_array_equal(out[0], PIXELS[1])
    assert not out[1:].any()


def test_the_threads_end_with_the_reader(files: list[ImageFile]) -> None:
    with FileImages(files, factories.SIZE, "pad", jobs=2) as opened:
        read(opened, 0, 1, 2, 3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cxrlt-decode")]


def test_a_file_reached_by_two_paths_counts_once(
    files: list[ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_images([Path("image_002.png"), tmp_path / "image_002.png", Path()])
    assert [file.image_id for file in found] == ["image_002.png", *(f"image_00{n}.png" for n in (0, 1, 3, 4))]


def test_three_files_of_one_name_all_get_their_paths(tmp_path: Path) -> None:
    for folder in ("", "a", "a/b"):
        factories.write_images(tmp_path / folder, ["x.png"], PIXELS[:1])
    assert sorted(file.image_id for file in find_images([tmp_path])) == ["a/b/x.png", "a/x.png", "x.png"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="cannot be listed: Permission denied") as caught:
        find_images([tmp_path])
    assert caught.value.where == str(tmp_path)
