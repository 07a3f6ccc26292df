"""The audit: tables that break the contract, patients in two splits, images of equal pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cxrlt_cli.contracts import SourceTable, frequency_group
from cxrlt_cli.data import audit
from cxrlt_cli.errors import DataError

GOOD = SourceTable(
    classes=("Mass", "Nodule"),
    image_id=["a", "b", "c"],
    patient_id=["1", "1", "2"],
    labels=np.array([[0, 1], [-1, 0], [1, 1]], np.int8),
    path=["a.png", "b.png", "c.png"],
    view=["PA", "", "lateral"],
    split=["train", "train", "test"],
    extra={"age": [1, 2, 3]},
)


def test_a_good_table_passes() -> None:
    audit.check_table(GOOD, "here")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ()}, "there are no classes"),
        ({"classes": ("Mass", "Mass")}, "the class 'Mass' occurs 2 times"),
        ({"classes": ("Mass", "split")}, "a class cannot be called 'split'"),
        ({"classes": ("Mass", " ")}, "' ' cannot be the name of a class"),
        ({"classes": ("Mass", "a\nb")}, "cannot be the name of a class"),
        ({"image_id": []}, "the table has no images"),
        ({"image_id": ["a", "b", "a"]}, "the image_id 'a' occurs more than once"),
        ({"image_id": ["a", "", "c"]}, "the image_id of row 1 is ''"),
        ({"patient_id": ["1", 2, "3"]}, "the patient_id of row 1 is 2"),
        ({"patient_id": ["1", "2"]}, "'patient_id' has 2 entries for 3 images"),
        ({"path": ["a.png"]}, "'path' has 1 entries for 3 images"),
        ({"extra": {"age": [1]}}, "'age' has 1 entries for 3 images"),
        ({"labels": np.zeros((3, 3), np.int8)}, r"labels have shape \(3, 3\), not \(3, 2\)"),
        ({"labels": np.full((3, 2), 2, np.int8)}, "labels must be int8 of 1, 0 and -1"),
        ({"labels": np.zeros((3, 2))}, "labels must be int8"),
        ({"split": ["train", "val", "test"]}, "'val' is not a split"),
    ],
)
def test_a_table_that_breaks_the_contract(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        audit.check_table(replace(GOOD, **change), "theirs")
    assert caught.value.where == "source 'theirs'"
    assert caught.value.cure


def test_further_columns_give_way_to_the_manifests_own() -> None:
    table = replace(GOOD, extra={"age": [1, 2, 3], "width": [4, 5, 6], "Mass": [0, 0, 0]})
    assert set(audit.further_columns(table)) == {"age", "source:width", "source:Mass"}


def test_patients_in_two_splits_are_named() -> None:
    audit.check_patients(["1", "1", "2"], ["dev", "dev", "train"], "here")
    with pytest.raises(
        DataError, match=r"2 patients are in more than one .*1 is in dev and test; 3 is in train and dev"
    ):
        audit.check_patients(list("112233"), ["dev", "test", "train", "train", "dev", "train"], "here")


@pytest.mark.parametrize(
    ("prevalence", "group"), [(0.5, "head"), (0.1, "medium"), (0.0101, "medium"), (0.01, "medium"), (0.0099, "tail")]
)
def test_groups_by_prevalence(prevalence: float, group: str) -> None:
    assert frequency_group(prevalence) == group


# -- duplicates ----------------------------------------------------------------------------------------------------


def hashes(text: str) -> np.ndarray:
    return np.array([[ord(letter)] * 32 for letter in text], np.uint8)


def test_equal_rows_are_grouped_in_order() -> None:
    assert [group.tolist() for group in audit.equal_groups(hashes("xaybaxzx"))] == [[0, 5, 7], [1, 4]]
    assert audit.equal_groups(hashes("abc")) == []
    assert audit.equal_groups(np.zeros((0, 32), np.uint8)) == []


def test_hashes_that_end_in_zeros_are_told_apart() -> None:
    rows = np.zeros((2, 32), np.uint8)
    rows[:, 0] = 1
    rows[1, 20] = 0
    rows[0, 31] = 1
    assert audit.equal_groups(rows) == []


def described(**change: Any) -> audit.Duplicates:
    values: dict[str, Any] = {
        "files": ["f", "f"],
        "patients": ["1", "1"],
        "splits": ["train", "train"],
        "labels": np.zeros((2, 1), np.int8),
    }
    return audit.describe_duplicates([np.array([0, 1])], **{**values, **change})[0]


def test_what_is_a_leak() -> None:
    assert not described().leak
    assert described(patients=["1", "2"]).leak
    assert described(splits=["train", "test"]).splits == ("train", "test")
    assert described(splits=["train", "test"]).leak


def test_files_and_labels_are_compared() -> None:
    assert described().same_file
    assert not described(files=["f", "g"]).same_file
    assert not described(files=["", ""]).same_file  # drawn images have no files
    assert not described(labels=np.array([[0], [1]], np.int8)).same_labels


def test_what_the_user_is_told() -> None:
    found = [
        described(splits=["train", "test"]),
        described(patients=["1", "2"]),
        described(labels=np.array([[0], [1]], np.int8)),
    ]
    notes = audit.duplicate_notes(found)
    assert [level for _, level in notes] == ["warning", "warning", "info", "warning"]
    assert notes[0][0] == "LEAK: 2 images in 1 group of equal pixels are in more than one split"
    assert audit.duplicate_notes([]) == []


def test_patients_are_joined_through_others() -> None:
    patients = ["a", "b", "b", "c", "d", "e"]
    joined = audit.join_patients(patients, [np.array([0, 1]), np.array([2, 3]), np.array([4, 4])])
    assert joined == ["a", "a", "a", "a", "d", "e"]


def test_joining_does_not_depend_on_the_order_of_groups() -> None:
    patients = list("abcdef")
    groups = [np.array([2, 3]), np.array([0, 1]), np.array([1, 3]), np.array([4, 5])]
    for order in (groups, groups[::-1]):
        joined = audit.join_patients(patients, order)
        assert len({joined[index] for index in range(4)}) == 1
        assert joined[4] == joined[5] != joined[0]
