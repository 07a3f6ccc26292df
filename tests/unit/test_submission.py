from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cxrlt_cli.errors import DataError
from cxrlt_cli.submission import CLASSES, check_classes, validate_submission, write_submission

IDS = ["100_a.png", "100_b.png", "2_c.png"]


def posteriors(classes: int = 30, rows: int = 3) -> npt.NDArray[np.float64]:
    values = np.random.default_rng(0).random((rows, classes))
    values[0, 0], values[-1, -1] = 0.0, 1.0
    return values


@pytest.fixture
def form(tmp_path: Path) -> Path:
    path = tmp_path / "form.csv"
    write_submission(path, IDS, CLASSES, posteriors())
    return path


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_there_are_thirty_different_classes() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 30


def test_classes_are_those_of_the_challenge_in_their_order(shared: Path) -> None:
    text = (shared / "tables" / "cxrlt2026" / "Train_CLASS.txt").read_text()
    assert [line.strip() for line in text.splitlines()] == list(CLASSES)


def test_the_form_is_exact(form: Path) -> None:
    header, *rows = lines(form)
    assert header == ["ImageID", *CLASSES]
    assert form.read_text().startswith("ImageID,Normal,aortic elongation,")
    assert [row[0] for row in rows] == IDS
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], np.float64), posteriors())


def test_columns_go_by_name_and_further_classes_are_left_out(tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(32)
    names = [*CLASSES, "goiter", "Bulla"]
    values = posteriors(32)
    write_submission(tmp_path / "form.csv", IDS, [names[i] for i in order], values[:, order])
    found = np.array([row[1:] for row in lines(tmp_path / "form.csv")[1:]], np.float64)
    np.testing.assert_array_equal(found, values[:, :30])


def test_missing_classes_are_all_named() -> None:
    with pytest.raises(DataError) as caught:
        check_classes([name for name in CLASSES if name not in {"Mass", "Nodule"}], "runs/x")
    assert caught.value.what == "the model lacks 2 of the 30 classes of CXR-LT 2026: Nodule, Mass"
    assert caught.value.where == "runs/x"


def test_an_identifier_with_a_comma_survives(tmp_path: Path) -> None:
    write_submission(tmp_path / "form.csv", ["a,b.png"], CLASSES, posteriors(rows=1))
    assert lines(tmp_path / "form.csv")[1][0] == "a,b.png"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.0000001, -1e-9])
def test_what_is_no_probability_is_never_written(tmp_path: Path, value: float) -> None:
    values = posteriors()
    values[1, 2] = value
    with pytest.raises(DataError, match=r"cardiomegaly: .* is not a probability") as caught:
        write_submission(tmp_path / "form.csv", IDS, CLASSES, values)
    assert caught.value.where == f"{tmp_path / 'form.csv'}:3"
    assert list(tmp_path.iterdir()) == []


def edited(edit: Callable[[list[list[str]]], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rows = lines(path)
        edit(rows)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    return change


DAMAGE = {
    "the header is in another order": (lambda rows: rows[0].reverse(), "its header is not ImageID"),
    "a column is missing": (lambda rows: [row.pop() for row in rows], "its header is not ImageID"),
    "there is no header": (lambda rows: rows.clear(), "its header is not ImageID"),
    "a row is short": (lambda rows: rows[1].pop(), "has 30 columns, not 31"),
    "a row is empty": (lambda rows: rows.insert(1, []), "has 0 columns"),
    "a row is missing": (lambda rows: rows.pop(2), "2 images where 3 were asked for .*100_b.png"),
    "a row is too many": (lambda rows: rows.append(["9.png", *rows[1][1:]]), "4 images where 3 .*9.png"),
    "an image is another one": (lambda rows: rows[3].__setitem__(0, "9.png"), "3 images where 3 .*2_c.png"),
    "an image stands twice": (lambda rows: rows.append(rows[1]), "more than once, such as '100_a.png'"),
    "a value is empty": (lambda rows: rows[1].__setitem__(4, ""), "pleural effusion: '' is not a probability"),
    "a value is nan": (lambda rows: rows[1].__setitem__(4, "nan"), "'nan' is not a probability"),
    "a value is a word": (lambda rows: rows[1].__setitem__(4, "yes"), "'yes' is not a probability"),
    "a value is 2": (lambda rows: rows[1].__setitem__(4, "2"), "'2' is not a probability"),
}


def test_a_good_form_is_valid(form: Path) -> None:
    validate_submission(form, IDS)


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_form_is_refused(form: Path, name: str) -> None:
    change, message = DAMAGE[name]
    edited(change)(form)
    with pytest.raises(DataError, match=f"the submission is not valid: .*{message}"):
        validate_submission(form, IDS)
