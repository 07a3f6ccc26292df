"""Every way a label table can be unusable ends with one message: what, where, and how to go on."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrlt_cli.commands import prepare
from cxrlt_cli.errors import DataError

HEADER = "image_id,patient_id,Mass,Nodule\n"
ROWS = "".join(f"i{index}.png,p{index % 5},{index % 2},0\n" for index in range(12))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 20)).astype(np.uint8)).save(folder / f"i{index}.png")
    return folder


def refused(tmp_path: Path, images: Path | None, text: str | bytes | None, **options: object) -> DataError:
    """The error of preparing a table with this content; nothing was written."""
    name = str(options.pop("name", "labels.csv"))
    labels = tmp_path / name
    if text is not None:
        labels.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        prepare.run("csv", tmp_path / "out", images=images, labels=labels, size=16, jobs=1, options=options)
    assert caught.value.code == 3
    assert caught.value.where
    assert caught.value.cure
    assert not (tmp_path / "out").exists()
    return caught.value


def test_a_missing_table(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, None)
    assert error.what == "there is no such file"
    assert error.where.endswith("labels.csv")


def test_a_directory_for_a_table(tmp_path: Path, images: Path) -> None:
    (tmp_path / "labels.csv").mkdir()
    assert "is a directory" in refused(tmp_path, images, None).what


@pytest.mark.parametrize("text", ["", HEADER, "\n\n"])
def test_an_empty_table(tmp_path: Path, images: Path, text: str) -> None:
    assert refused(tmp_path, images, text).what == "the table has no rows"


def test_a_table_that_is_not_text(tmp_path: Path, images: Path) -> None:
    assert "not UTF-8" in refused(tmp_path, images, b"image_id,x\n\xff\xfe\x80,1\n").what


def test_a_compressed_table_that_is_cut_off(tmp_path: Path, images: Path) -> None:
    data = gzip.compress((HEADER + ROWS * 50).encode())[:-20]
    assert "cannot be read" in refused(tmp_path, images, data, name="labels.csv.gz").what


def test_a_parquet_file_that_is_none(tmp_path: Path, images: Path) -> None:
    assert "cannot be read" in refused(tmp_path, images, HEADER, name="labels.parquet").what


def test_a_line_that_is_cut_off(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER + ROWS + "i12.png,p1")
    assert error.what == "has 2 cells, the header has 4"
    assert error.where.endswith("labels.csv, line 14")


def test_a_line_that_is_too_long(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER + "\n" + ROWS.replace("i3.png,p3,1,0", "i3.png,p3,1,0,0"))
    assert error.what == "has 5 cells, the header has 4"
    assert error.where.endswith("line 6")


def test_a_quote_that_never_ends(tmp_path: Path, images: Path) -> None:
    assert "cannot be read" in refused(tmp_path, images, HEADER + ROWS + '"i12.png,p1,0,0\n').what


def test_a_column_twice(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER.replace("Nodule", "Mass") + ROWS)
    assert error.what == "has two columns called 'Mass'"


def test_a_column_without_a_name(tmp_path: Path, images: Path) -> None:
    assert refused(tmp_path, images, HEADER.replace("Nodule", "") + ROWS).what == "column 4 has no name"


# -- identifiers ---------------------------------------------------------------------------------------------------


def test_no_id_column(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER.replace("image_id", "photo") + ROWS)
    assert "image identifiers" in error.what
    assert "--id" in error.cure
    assert "photo, patient_id, Mass, Nodule" in error.cure


@pytest.mark.parametrize("option", ["id", "group", "view", "study", "split_column", "classes"])
def test_a_column_that_is_not_there(tmp_path: Path, images: Path, option: str) -> None:
    error = refused(tmp_path, images, HEADER + ROWS, **{option: "Noddule"})
    assert error.what == "there is no column 'Noddule'; did you mean 'Nodule'?"
    assert error.where.endswith(f"--{option.replace('_', '-')}")
    assert "image_id, patient_id, Mass, Nodule" in error.cure


def test_no_patient_column_says_how_to_go_on(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER.replace("patient_id", "who") + ROWS)
    assert "images of a patient would be split up" in error.what
    assert "--group image_id" in error.cure


def test_a_repeated_image(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER + ROWS + "i3.png,p9,0,0\n")
    assert error.what == "the image 'i3.png' is also on line 5"
    assert error.where.endswith("line 14, column 'image_id'")


@pytest.mark.parametrize("value", ["", " ", "nan", "NaN"])
@pytest.mark.parametrize("column", ["image_id", "patient_id"])
def test_an_empty_identifier(tmp_path: Path, images: Path, column: str, value: str) -> None:
    old = "i3.png" if column == "image_id" else "i3.png,p3"
    new = value if column == "image_id" else f"i3.png,{value}"
    error = refused(tmp_path, images, HEADER + ROWS.replace(f"{old},", f"{new},"))
    assert "identifier is empty in 1 rows" in error.what
    assert error.where.endswith(f"line 5, column '{column}'")


@pytest.mark.parametrize("value", ["1.90E+38", "1.9e+38", "3E+05", "1.0e+15"])
def test_a_patient_that_became_a_number(tmp_path: Path, images: Path, value: str) -> None:
    error = refused(tmp_path, images, HEADER + ROWS.replace("p3", value))
    assert f"the identifier '{value}' was turned into a number" in error.what
    assert error.where.endswith("line 5, column 'patient_id'")
    assert "as text" in error.cure
    assert "--group" in error.cure


def test_the_cure_names_the_study_in_the_image_name(tmp_path: Path, images: Path) -> None:
    rows = ROWS.replace("i", "study_i").replace("p3", "1.90E+38")
    error = refused(tmp_path, images, HEADER + rows)
    assert "--group image_id --group-pattern '^([^_]+)_'" in error.cure


def test_an_image_that_became_a_number(tmp_path: Path, images: Path) -> None:
    error = refused(tmp_path, images, HEADER + ROWS.replace("i3.png", "1.003E+38"))
    assert "'1.003E+38' was turned into a number" in error.what
    assert error.where.endswith("line 5, column 'image_id'")


def test_hexadecimal_identifiers_are_no_numbers(tmp_path: Path, images: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(HEADER + ROWS.replace("p3", "1e5").replace("p4", "12e45"))
    result = prepare.run("csv", tmp_path / "out", images=images, labels=labels, size=16, jobs=1)
    assert result.data["patients"] == 5


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "is not a regular expression"), ("p.", "has no group"), ("^q(.)", "'p0' does not match")],
)
def test_a_group_pattern_that_fails(tmp_path: Path, images: Path, pattern: str, message: str) -> None:
    assert message in refused(tmp_path, images, HEADER + ROWS, group_pattern=pattern).what


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["2", "yes", "0.5", "-2", "1,0", "x"])
@pytest.mark.parametrize("stated", [True, False])
def test_a_value_that_is_no_label(tmp_path: Path, images: Path, value: str, stated: bool) -> None:
    text = HEADER + ROWS.replace("i3.png,p3,1,", f'i3.png,p3,"{value}",')
    error = refused(tmp_path, images, text, **({"classes": "Mass,Nodule"} if stated else {}))
    assert f"{value!r} is not a label" in error.what
    assert error.where.endswith("line 5, column 'Mass'")
    assert "1, 0, -1 or empty" in error.cure


def test_no_class_columns(tmp_path: Path, images: Path) -> None:
    text = "image_id,patient_id,age\n" + "".join(f"i{index}.png,p{index},{30 + index}\n" for index in range(12))
    error = refused(tmp_path, images, text)
    assert "no column holds labels" in error.what
    assert "--classes" in error.cure


def test_classes_of_nothing_but_unknowns(tmp_path: Path, images: Path) -> None:
    text = "image_id,patient_id,Mass\n" + "".join(f"i{index}.png,p{index},\n" for index in range(12))
    assert "no column holds labels" in refused(tmp_path, images, text).what


def test_a_class_named_twice(tmp_path: Path, images: Path) -> None:
    assert "'Mass' occurs 2 times" in refused(tmp_path, images, HEADER + ROWS, classes="Mass,Mass").what


def test_a_split_nobody_knows(tmp_path: Path, images: Path) -> None:
    text = HEADER.replace("Nodule", "Nodule,part") + ROWS.replace(",0\n", ",0,train\n").replace("train", "hidden", 1)
    error = refused(tmp_path, images, text, split_column="part")
    assert error.what == "'hidden' is not a split"
    assert error.where.endswith("line 2, column 'part'")


# -- images --------------------------------------------------------------------------------------------------------


def test_no_images_folder(tmp_path: Path) -> None:
    assert refused(tmp_path, None, HEADER + ROWS).where == "--images"


def test_an_images_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no such directory" in refused(tmp_path, tmp_path / "nowhere", HEADER + ROWS).what


def test_a_file_for_an_images_folder(tmp_path: Path) -> None:
    assert "is not a directory" in refused(tmp_path, tmp_path / "labels.csv", HEADER + ROWS).what


def test_the_wrong_images_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refused(tmp_path, tmp_path / "empty", HEADER + ROWS)
    assert error.what.startswith("none of the 12 images is there")
    assert "--suffix" in error.cure


def test_two_files_for_one_image(tmp_path: Path, images: Path) -> None:
    for name in ("a/i0.png", "b/i0.png"):
        (tmp_path / "folder" / name).parent.mkdir(parents=True)
        (tmp_path / "folder" / name).write_bytes((images / "i0.png").read_bytes())
    error = refused(tmp_path, tmp_path / "folder", HEADER + ROWS)
    assert error.what == "'i0.png' may be a/i0.png or b/i0.png"


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_command_ends_with_the_message_and_status_3(tmp_path: Path, images: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(HEADER + ROWS.replace("p3", "1.90E+38"))
    command = [sys.executable, "-m", "cxrlt_cli", "prepare", "csv", str(tmp_path / "out")]
    result = subprocess.run(
        [*command, "--images", str(images), "--labels", str(labels)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 3
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {labels}, line 5, column 'patient_id': the identifier '1.90E+38'")
    assert second.startswith("Read the true identifiers as text")
