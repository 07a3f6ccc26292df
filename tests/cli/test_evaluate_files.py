"""Predictions of any program against a label table: what is accepted, what is refused, and the figures."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as reference

Cxrlt = Callable[..., Any]
CLASSES = ("Normal", "Mass", "Hernia")
COUNT = 60


@pytest.fixture
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Labels with some unknown, and posteriors that know something of them."""
    rng = np.random.default_rng(0)
    labels = (rng.random((COUNT, 3)) < [0.5, 0.2, 0.1]).astype(int)
    posteriors = 1 / (1 + np.exp(1.5 - 2 * labels - rng.normal(size=labels.shape)))
    labels[:4, 1] = -1
    return labels, posteriors


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def ids() -> list[str]:
    return [f"{k:03d}.png" for k in range(COUNT)]


def write_labels(path: Path, labels: np.ndarray, *, patients: bool = True, blank: str = "") -> Path:
    rows = [
        [name, *([f"p{k // 2}"] if patients else []), *(blank if cell < 0 else cell for cell in labels[k])]
        for k, name in enumerate(ids())
    ]
    return write(path, ["ImageID", *(["PatientID"] if patients else []), *CLASSES], rows)


def write_posteriors(path: Path, posteriors: np.ndarray, order: Sequence[int] = range(COUNT)) -> Path:
    rows = [[ids()[k], *posteriors[k, ::-1].tolist()] for k in order]
    return write(path, ["image_id", *CLASSES[::-1]], rows)


@pytest.fixture
def files(tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]) -> list[Any]:
    """Arguments; rows and columns of the two tables are in different orders."""
    order = np.random.default_rng(1).permutation(COUNT).tolist()
    posteriors = write_posteriors(tmp_path / "made.csv", truth[1], order)
    labels = write_labels(tmp_path / "truth.csv", truth[0])
    return ["evaluate", "--predictions", posteriors, "--labels", labels, "--resamples", 30]


def test_the_figures_are_scikit_learns(cxrlt: Cxrlt, files: list[Any], truth: tuple[np.ndarray, np.ndarray]) -> None:
    one = cxrlt(*files, "--json").json["runs"][0]
    labels, posteriors = truth
    assert [row["name"] for row in one["classes"]] == list(CLASSES)
    for c, row in enumerate(one["classes"]):
        known = labels[:, c] >= 0
        label, posterior = labels[known, c], posteriors[known, c]
        assert row["ap"] == pytest.approx(reference.average_precision_score(label, posterior), abs=1e-12)
        assert row["f1"] == row["f1_at_half"] == pytest.approx(reference.f1_score(label, posterior >= 0.5), abs=1e-12)
        assert row["intervals"]["ap"][0] < row["ap"]
    assert one["patients"] == COUNT // 2
    assert one["images"] == COUNT


def test_it_reads_well(cxrlt: Cxrlt, files: list[Any]) -> None:
    done = cxrlt(*files)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{files[2]}, against {files[4]}: 60 images, 3 classes\n")
    assert "head, medium and tail go by the labels evaluated" in done.err


def test_groups_follow_the_training_table(cxrlt: Cxrlt, files: list[Any], tmp_path: Path) -> None:
    rows = [[f"t{k}", int(k < 500), int(k < 50), int(k < 5)] for k in range(1000)]
    train = write(tmp_path / "train.csv", ["ImageID", *CLASSES], rows)
    one = cxrlt(*files, "--train-labels", train, "--json").json["runs"][0]
    assert [row["group"] for row in one["classes"]] == ["head", "medium", "tail"]
    assert one["groups_from"] == str(train)
    short = write(tmp_path / "short.csv", ["ImageID", "Normal"], [["t", 1]])
    refused = cxrlt(*files, "--train-labels", short)
    assert refused.code == 3
    assert "2 classes have no column of labels (Mass, Hernia)" in refused.err


def test_without_patients_every_image_is_its_own(
    cxrlt: Cxrlt, files: list[Any], tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    files[4] = write_labels(tmp_path / "bare.csv", truth[0], patients=False, blank="-1")
    done = cxrlt(*files, "--json")
    assert "every image counts as a patient of its own" in done.err
    assert done.json["runs"][0]["patients"] == COUNT
    assert done.json["runs"][0]["patients_known"] is False


def test_patients_that_lost_their_digits_are_not_used(cxrlt: Cxrlt, files: list[Any]) -> None:
    text = files[4].read_text().replace(",p1,", ",1.90E+38,")
    files[4].write_text(text)
    done = cxrlt(*files, "--json")
    assert "were turned into numbers and lost their digits" in done.err
    assert done.json["runs"][0]["patients"] == COUNT


def test_images_whose_patient_is_not_stated_are_told(cxrlt: Cxrlt, files: list[Any]) -> None:
    files[4].write_text(files[4].read_text().replace(",p1,", ",,"))
    done = cxrlt(*files, "--json")
    assert "2 images without a patient: each counts as one of its own" in done.err
    assert done.json["runs"][0]["patients"] == COUNT // 2 + 1


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_in_another_encoding_is_told_so(cxrlt: Cxrlt, files: list[Any], encoding: str) -> None:
    files[4].write_text(files[4].read_text().replace("000.png", "\xfc.png"), encoding=encoding)
    done = cxrlt(*files)
    assert done.code == 3
    assert "is not in UTF-8" in done.err
    assert "Save it again in UTF-8." in done.err


@pytest.mark.parametrize("form", ["parquet", "frame", "tsv", "gz"])
def test_other_forms_give_the_same(cxrlt: Cxrlt, files: list[Any], tmp_path: Path, form: str) -> None:
    expected = cxrlt(*files, "--json").json["runs"][0]["overall"]
    header, *rows = csv.reader(files[2].read_text().splitlines())
    path = tmp_path / f"other.{({'gz': 'csv.gz', 'frame': 'parquet'}).get(form, form)}"
    if form == "parquet":
        columns = {name: [row[c] if c == 0 else float(row[c]) for row in rows] for c, name in enumerate(header)}
        pq.write_table(pa.table(columns), path)
    elif form == "frame":  # with the row numbers that pandas keeps of a table that was sorted or filtered
        pd.read_csv(files[2]).sort_values("image_id").to_parquet(path)
        assert "__index_level_0__" in pq.read_schema(path).names
    elif form == "tsv":
        path.write_text("\n".join("\t".join(row) for row in [header, *rows]))
    else:
        path.write_bytes(gzip.compress(files[2].read_bytes()))
    files[2] = path
    assert cxrlt(*files, "--json").json["runs"][0]["overall"] == expected


def test_a_table_of_predict_ranks_by_its_logits_and_brings_decisions(
    cxrlt: Cxrlt, files: list[Any], tmp_path: Path, truth: tuple[np.ndarray, np.ndarray]
) -> None:
    labels, posteriors = truth
    header = ["image_id", *(f"{name}.{part}" for name in CLASSES for part in ("logit", "posterior", "decision"))]
    rows = [
        [name, *(x for p in posteriors[k] for x in (np.log(p / (1 - p)), round(p, 1), int(p > 0.3)))]
        for k, name in enumerate(ids())
    ]
    files[2] = write(tmp_path / "predict.csv", header, rows)
    one = cxrlt(*files, "--json").json["runs"][0]
    row = one["classes"][0]
    assert row["ap"] == pytest.approx(reference.average_precision_score(labels[:, 0], posteriors[:, 0]), abs=1e-12)
    assert row["f1"] == pytest.approx(reference.f1_score(labels[:, 0], posteriors[:, 0] > 0.3), abs=1e-12)
    assert one["decisions"] == {"how": "from the table"}


def test_the_form_of_the_challenge_is_accepted(cxrlt: Cxrlt, tmp_path: Path) -> None:
    from cxrlt_cli.submission import CLASSES as THIRTY
    from cxrlt_cli.submission import write_submission

    rng = np.random.default_rng(2)
    labels = (rng.random((COUNT, 30)) < 0.3).astype(int)
    write_submission(tmp_path / "submission.csv", ids(), THIRTY, rng.random((COUNT, 30)))
    rows = [[name, "20090102", f"{k}", *labels[k]] for k, name in enumerate(ids())]
    table = write(tmp_path / "truth.csv", ["ImageID", "StudyDate_DICOM", "PatientID", *THIRTY], rows)
    done = cxrlt(
        "evaluate", "--predictions", tmp_path / "submission.csv", "--labels", table, "--resamples", 5, "--json"
    )
    assert done.code == 0, done.err
    assert len(done.json["runs"][0]["classes"]) == 30


def test_subsets_come_from_the_label_table(cxrlt: Cxrlt, files: list[Any]) -> None:
    lines = files[4].read_text().splitlines()
    more = [",age,Sex", *(f",{'' if k == 3 else 30 + 20 * (k % 3)},{'MF'[k % 2]}" for k in range(COUNT))]
    files[4].write_text("\n".join(line + extra for line, extra in zip(lines, more, strict=True)))
    subsets = cxrlt(*files, "--json").json["runs"][0]["subsets"]
    assert [(part["by"], part["value"], part["images"]) for part in subsets] == [
        ("sex", "F", 30), ("sex", "M", 30),
        ("age", "20-39", 19), ("age", "40-59", 20), ("age", "60-79", 20), ("age", "not stated", 1),
    ]  # fmt: skip


# -- what is refused -----------------------------------------------------------------------------------------------


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        (2, ("\n003.png", "\nx03.png"), "1 of 60 images are missing (003.png); 1 are not in the label table (x03.png)"),
        (2, ("\n003.png", "\n004.png"), "1 images occur more than once, such as '004.png'"),
        (
            2,
            ("Hernia", "hernia"),
            "1 classes with labels are not predicted (Hernia); 1 predicted classes have no labels",
        ),
        (2, ("image_id", "Picture"), "no column has a usual name of image identifiers"),
        (4, ("Mass,", "Hernia,"), "has two columns called 'Hernia'"),
        (4, ("\n010.png,p5,", "\n010.png,p5,maybe"), "is not a label"),
        (4, ("\n010.png,p5,", "\n010.png,p5,0,"), "has 6 cells, the header has 5"),
        (4, ("\n010.png,", "\n,"), "1 image identifiers are empty"),
    ],
)
def test_tables_that_do_not_fit(
    cxrlt: Cxrlt, files: list[Any], which: int, change: tuple[str, str], message: str
) -> None:
    edited(files[which], *change)
    done = cxrlt(*files)
    assert done.code == 3
    assert message in " ".join(done.err.split())
    assert str(files[which]) in done.err


@pytest.mark.parametrize(
    ("value", "message"),
    [("1.5", "1.5 is not a probability"), ("-0.1", "is not a probability"), ("nan", "is not a probability"),
     ("", "'' is not a number"), ("high", "'high' is not a number")],
)  # fmt: skip
def test_values_that_are_no_probabilities(
    cxrlt: Cxrlt, files: list[Any], truth: tuple[np.ndarray, np.ndarray], value: str, message: str
) -> None:
    edited(files[2], f"{truth[1][7, 0]}", value)
    done = cxrlt(*files)
    assert done.code == 3
    assert message in done.err
    assert "007.png" in done.err
    assert "Normal" in done.err


def test_files_that_are_not_there(cxrlt: Cxrlt, files: list[Any], tmp_path: Path) -> None:
    files[2] = tmp_path / "none.csv"
    done = cxrlt(*files)
    assert done.code == 3
    assert "there is no such file" in done.err
    (tmp_path / "empty.parquet").write_bytes(b"PAR1")
    files[2] = tmp_path / "empty.parquet"
    assert cxrlt(*files).code == 3


def test_labels_that_are_all_unknown(cxrlt: Cxrlt, files: list[Any], truth: tuple[np.ndarray, np.ndarray]) -> None:
    write_labels(files[4], np.full_like(truth[0], -1), blank="-1")
    done = cxrlt(*files)
    assert done.code == 3
    assert "no label is known, so there is nothing to compare with\nLabels are 1 and 0" in done.err


@pytest.mark.parametrize("drop", [1, 3])
def test_both_tables_are_needed(cxrlt: Cxrlt, files: list[Any], drop: int) -> None:
    done = cxrlt(*files[:drop], *files[drop + 2 :])
    assert done.code == 2
    assert f"{files[drop]} is missing" in done.err


def test_runs_and_tables_do_not_mix(cxrlt: Cxrlt, files: list[Any], tmp_path: Path) -> None:
    done = cxrlt(*files, tmp_path)
    assert done.code == 2
    assert "takes the place of runs" in done.err


@pytest.mark.parametrize("option", ["--split=dev", "--tta=flip", "--data=made"])
def test_options_of_runs_are_refused(cxrlt: Cxrlt, files: list[Any], option: str) -> None:
    done = cxrlt(*files, option)
    assert done.code == 2
    assert f"{option.partition('=')[0]} goes with a run only" in done.err


def test_no_heavy_library_is_loaded(files: list[Any], tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from cxrlt_cli.cli import main; "
        "atexit.register(lambda: sys.stderr.write(' '.join({n.split('.')[0] for n in sys.modules}))); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files), "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    loaded = set(done.stderr.split())
    assert "numpy" in loaded
    assert loaded & {"torch", "torchvision", "timm", "PIL", "sklearn", "cxrlt_plugins"} == set()
