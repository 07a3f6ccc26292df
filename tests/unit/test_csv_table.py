"""The csv source: tables as they come, columns and images found."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrlt_cli import registry
from cxrlt_cli.contracts import PluginFault, PrepareRequest, SourceTable
from cxrlt_plugins.datasets.csv_table import build
from cxrlt_plugins.datasets.tabular.images import find_images

TEXT = "image_id,patient_id,Mass,Nodule\ni0.png,p0,0,1\ni1.png,p0,1,-1\ni2.png,p1,,1.0\n"
LABELS = [[0, 1], [1, -1], [-1, 1]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        (folder / f"i{index}.png").write_bytes(b"not looked into")
    return folder


def table_of(path: Path, images: Path, **options: str) -> SourceTable:
    request = PrepareRequest(images=images, labels=path, size=64, seed=0)
    return registry.build("datasets", {"name": "csv", **options}, request).table


def written(tmp_path: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- tables --------------------------------------------------------------------------------------------------------


DRESSES = {
    "plain": ("labels.csv", TEXT.encode()),
    "byte-order-mark": ("labels.csv", b"\xef\xbb\xbf" + TEXT.encode()),
    "windows-lines": ("labels.csv", TEXT.replace("\n", "\r\n").encode()),
    "semicolons": ("labels.csv", TEXT.replace(",", ";").encode()),
    "spaces": ("labels.csv", TEXT.replace(",", " , ").encode()),
    "empty-lines": ("labels.csv", TEXT.replace("\n", "\n\n").encode()),
    "quotes": ("labels.csv", b'"image_id","patient_id","Mass","Nodule"\n' + TEXT.encode().split(b"\n", 1)[1]),
    "tabs": ("labels.tsv", TEXT.replace(",", "\t").encode()),
    "gzip": ("labels.csv.gz", gzip.compress(TEXT.encode())),
    "bzip2": ("labels.csv.bz2", bz2.compress(TEXT.encode())),
    "xz": ("labels.csv.xz", lzma.compress(TEXT.encode())),
}


@pytest.mark.parametrize(("name", "data"), DRESSES.values(), ids=DRESSES)
def test_the_same_table_in_every_dress(tmp_path: Path, images: Path, name: str, data: bytes) -> None:
    table = table_of(written(tmp_path, data, name), images)
    assert table.classes == ("Mass", "Nodule")
    assert list(table.image_id) == ["i0.png", "i1.png", "i2.png"]
    assert list(table.patient_id) == ["p0", "p0", "p1"]
    assert table.labels.tolist() == LABELS
    assert table.labels.dtype == np.int8


def test_parquet_with_numbers_and_truth_values(tmp_path: Path, images: Path) -> None:
    columns = {
        "image_id": ["i0.png", "i1.png", "i2.png"],
        "patient_id": [1001, 1001, 1002],
        "Mass": [0.0, 1.0, None],
        "Nodule": pa.array([1, -1, 1], pa.int8()),
        "Edema": [True, False, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    table = table_of(tmp_path / "labels.parquet", images)
    assert list(table.patient_id) == ["1001", "1001", "1002"]
    assert table.labels.tolist() == [[0, 1, 1], [1, -1, 0], [-1, 1, -1]]


def test_identifiers_stay_text(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("p0", "000123").replace("p1", "100303250289824462365601716073337204998")
    assert list(table_of(written(tmp_path, text), images).patient_id) == [
        "000123",
        "000123",
        "100303250289824462365601716073337204998",
    ]


@pytest.mark.parametrize(
    ("image", "patient"),
    [
        ("ImageID", "PatientID"),
        ("Image Index", "Patient ID"),
        ("id", "subj_id"),
        ("dicom_id", "subject_id"),
        ("Path", "patient"),
    ],
)
def test_usual_names_are_found(tmp_path: Path, images: Path, image: str, patient: str) -> None:
    text = TEXT.replace("image_id", image).replace("patient_id", patient)
    assert list(table_of(written(tmp_path, text), images).patient_id) == ["p0", "p0", "p1"]


def test_columns_are_chosen(tmp_path: Path, images: Path) -> None:
    text = "a,b,c,d,e,f\ni0,x,1,0,L,val\ni1,y,0,1,AP,train\ni2,z,0,1,PA,test\n"
    options = {"id": "a", "group": "b", "classes": "d", "view": "e", "split_column": "f", "suffix": ".png"}
    table = table_of(written(tmp_path, text), images, **options)
    assert table.classes == ("d",)
    assert list(table.view or ()) == ["lateral", "AP", "PA"]
    assert list(table.split or ()) == ["dev", "train", "test"]
    assert table.extra == {"c": ["1", "0", "0"]}


def test_classes_from_a_file(tmp_path: Path, images: Path) -> None:
    names = written(tmp_path, "Nodule\t\nMass\t\n", "classes.txt")
    assert table_of(written(tmp_path, TEXT), images, classes=str(names)).classes == ("Nodule", "Mass")


def test_many_class_names_are_no_file_name(tmp_path: Path, images: Path) -> None:
    names = [f"a finding with a rather long name {index}" for index in range(30)]
    header = ",".join(["image_id", "patient_id", *names])
    rows = "".join(f"i{row}.png,p{row}," + ",".join("01"[(row + k) % 2] for k in range(30)) + "\n" for row in range(3))
    table = table_of(written(tmp_path, header + "\n" + rows), images, classes=", ".join(names))
    assert table.classes == tuple(names)


def test_every_image_a_patient(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("image_id", "ImageID").replace("patient_id", "x")
    table = table_of(written(tmp_path, text), images, group="image_id")
    assert list(table.patient_id) == list(table.image_id)
    assert "every image is a patient of its own" in table.notes[0]


def test_patients_from_a_part_of_a_column(tmp_path: Path, images: Path) -> None:
    table = table_of(written(tmp_path, TEXT), images, group="image_id", group_pattern=r"i(\d)")
    assert list(table.patient_id) == ["0", "1", "2"]


def test_a_row_number_column_is_ignored(tmp_path: Path, images: Path) -> None:
    lines = TEXT.splitlines()
    text = "\n".join([f",{lines[0]}", *(f"{index},{line}" for index, line in enumerate(lines[1:]))])
    assert table_of(written(tmp_path, text), images).classes == ("Mass", "Nodule")


def test_columns_that_are_no_findings_are_kept_aside(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("Nodule", "Nodule,sex,age,fold,empty")
    text = text.replace(",1\n", ",1,0,1,0,\n").replace(",-1\n", ",-1,1,0,1,\n").replace(",1.0\n", ",1.0,1,0,1,\n")
    table = table_of(written(tmp_path, text), images)
    assert table.classes == ("Mass", "Nodule")
    assert set(table.extra) == {"sex", "age", "fold"}
    assert "empty columns left out: empty" in table.notes


def test_empty_labels_are_counted(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("p1,,", "p1,NaN,").replace("i0.png,p0,0", "i0.png,p0,nan")
    table = table_of(written(tmp_path, text), images)
    assert table.labels[:, 0].tolist() == [-1, 1, -1]
    assert "2 empty labels are taken as unknown (-1), not as negative: Mass 2" in table.notes
    assert "1 labels of -1 are unknown: they are left out of loss and metrics" in table.notes


def test_strange_views_are_counted(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("Nodule", "Nodule,view").replace(",1\n", ",1,COSTAL\n").replace(",-1\n", ",-1,AP_horizontal\n")
    table = table_of(written(tmp_path, text.replace("1.0\n", "1.0,\n")), images)
    assert list(table.view or ()) == ["", "AP", ""]
    assert "views other than PA, AP and lateral are taken as unknown: 'COSTAL' 1" in table.notes


def test_a_split_column_of_other_things_is_not_used(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("Nodule", "Nodule,split").replace(",1\n", ",1,A\n").replace(",-1\n", ",-1,B\n")
    table = table_of(written(tmp_path, text.replace("1.0\n", "1.0,train\n")), images)
    assert table.split is None
    assert any("'split' is not used" in note for note in table.notes)


def test_a_study_that_became_a_number_is_left_out(tmp_path: Path, images: Path) -> None:
    text = TEXT.replace("Nodule", "Nodule,study_id").replace(",1\n", ",1,1.5E+11\n").replace(",-1\n", ",-1,1.5E+11\n")
    path = written(tmp_path, text.replace("1.0\n", "1.0,1.5E+11\n"))
    assert table_of(path, images).study_id is None
    with pytest.raises(PluginFault, match="turned into a number"):
        build(PrepareRequest(images=images, labels=path, size=64, seed=0), study="study_id")


# -- images --------------------------------------------------------------------------------------------------------


def found(folder: Path, names: list[str], suffix: str = "") -> list[str]:
    return [os.path.relpath(path, folder) for path in find_images(folder, names, suffix).paths]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.png", "sub/b.jpeg", "sub/deep/1.2.840.png", "sub/c.png", "c.txt", ".hidden/d.png", "e.jpg"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "tree"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.png", "a.png"),
        ("a", "a.png"),
        ("b.jpeg", "sub/b.jpeg"),
        ("b", "sub/b.jpeg"),
        ("sub/b.jpeg", "sub/b.jpeg"),
        ("sub/b", "sub/b.jpeg"),
        ("./sub//b.jpeg", "sub/b.jpeg"),
        ("1.2.840", "sub/deep/1.2.840.png"),
        ("c", "sub/c.png"),
        ("e.png", "e.jpg"),
    ],
)
def test_files_are_found(tree: Path, name: str, file: str) -> None:
    assert found(tree, [name]) == [file]


def test_another_ending_is_counted(tree: Path) -> None:
    assert find_images(tree, ["e.png", "a.png"], "").other_ending == 1


def test_a_suffix_is_added_once(tree: Path) -> None:
    assert found(tree, ["a", "c.png"], ".png") == ["a.png", "sub/c.png"]


def test_what_is_missing_keeps_its_expected_place(tree: Path) -> None:
    result = find_images(tree, ["a.png", "d.png", "zzz"], "")
    assert result.missing == 2
    assert result.paths[1:] == [str(tree / "d.png"), str(tree / "zzz")]


def test_absolute_names_are_taken(tree: Path) -> None:
    assert find_images(tree, [str(tree / "sub" / "c.png")], "").paths == [str(tree / "sub" / "c.png")]


def test_links_to_folders_are_followed_and_loops_end(tree: Path, tmp_path: Path) -> None:
    (tree / "sub" / "loop").symlink_to(tree)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(b"x")
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    assert found(tree, ["far", "a.png"]) == ["link/far.png", "a.png"]


def test_the_real_table(shared: Path) -> None:
    folder = shared / "data" / "nih-cxr-lt-1k"
    if not folder.is_dir():
        pytest.skip("the NIH subset is not among the shared data")
    table = table_of(folder / "labels.csv", folder / "images")
    assert len(table.classes) == 20
    assert "follow_up" in table.extra
    assert table.split is None
    assert all(Path(path).is_file() for path in table.path or ())


def test_the_challenge_table_is_refused_with_a_cure(shared: Path, images: Path) -> None:
    path = shared / "tables" / "cxrlt2026" / "CXRLT_2026_TEST_ALL_TASK1.csv"
    if not path.is_file():
        pytest.skip("the CXR-LT 2026 tables are not among the shared data")
    with pytest.raises(PluginFault, match=r"1\.90E\+38") as caught:
        build(PrepareRequest(images=images, labels=path, size=64, seed=0))
    assert "--group ImageID --group-pattern" in caught.value.cure
