"""Splits: disjoint in patients, alike in findings, on odd tables too."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_cli.data.splits import assign, fold_rows, parse_split, split_rows
from cxrlt_cli.errors import DataError, UsageError

SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


def long_tailed(images: int = 6000, findings: int = 12, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Labels whose prevalence falls from 30 % to 0.3 %, clustered by patient; 1 to about 20 images a patient."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.35, images), 20)
    patient = np.repeat(np.arange(images), sizes)[:images]
    prevalence = np.geomspace(0.3, 0.003, findings)
    prone = rng.gamma(0.5, 2.0, (images, findings))[patient]
    labels = (rng.random((images, findings)) < np.minimum(prevalence * prone, 0.9)).astype(np.int8)
    return labels, [f"p{index}" for index in patient]


def deviation(labels: np.ndarray, part: np.ndarray, shares: list[float]) -> float:
    """Mean absolute difference between a finding's share of a part and the part's share."""
    positives = np.array([(labels[part == index] == 1).sum(0) for index in range(len(shares))])
    present = positives.sum(0) > 0
    return float(np.abs(positives / positives.sum(0).clip(1) - np.array(shares)[:, None])[:, present].mean())


def disjoint(patients: list[str], part: np.ndarray) -> bool:
    return len({*zip(patients, part.tolist(), strict=True)}) == len(set(patients))


def group_k_fold(labels: np.ndarray, patients: list[str], folds: int) -> np.ndarray:
    from sklearn.model_selection import GroupKFold

    part = np.zeros(len(labels), int)
    for index, (_, held_out) in enumerate(GroupKFold(folds).split(labels, groups=patients)):
        part[held_out] = index
    return part


def test_splits_share_no_patient_and_keep_the_findings() -> None:
    labels, patients = long_tailed()
    split = split_rows(labels, patients, SHARES, 0)
    assert disjoint(patients, split)
    part = np.select([split == "train", split == "dev"], [0, 1], 2)
    assert deviation(labels, part, [0.8, 0.1, 0.1]) < 0.01
    assert [(split == name).mean() for name in SHARES] == pytest.approx([0.8, 0.1, 0.1], abs=0.005)


def test_small_parts_get_patients_like_the_large_one() -> None:
    """Filling the largest part first would leave the small ones patients with few images and few findings."""
    labels, patients = long_tailed()
    split = split_rows(labels, patients, SHARES, 0)
    ids = np.array(patients)
    images = [(split == name).sum() / len(set(ids[split == name])) for name in SHARES]
    assert max(images) / min(images) < 1.05
    rare = (labels[:, -4:] == 1).any(1)
    findings = [(labels[(split == name) & rare] == 1).sum(1).mean() for name in SHARES]
    assert max(findings) / min(findings) < 1.3


def test_folds_agree_far_better_than_group_k_fold() -> None:
    labels, patients = long_tailed()
    ours = fold_rows(labels, patients, np.ones(len(labels), bool), 5, 0)
    assert disjoint(patients, ours)
    theirs = deviation(labels, group_k_fold(labels, patients, 5), [0.2] * 5)
    assert deviation(labels, ours, [0.2] * 5) < theirs / 5


def test_rows_left_out_have_no_fold() -> None:
    labels, patients = long_tailed(500)
    split = split_rows(labels, patients, SHARES, 0)
    folds = fold_rows(labels, patients, split != "test", 4, 0)
    assert (folds[split == "test"] == -1).all()
    assert set(folds[split != "test"]) == {0, 1, 2, 3}
    assert folds.dtype == np.int8


def test_the_result_depends_on_the_seed_and_nothing_else() -> None:
    labels, patients = long_tailed(800)
    first = split_rows(labels, patients, SHARES, 3)
    np.testing.assert_array_equal(first, split_rows(labels, patients, SHARES, 3))
    assert (first != split_rows(labels, patients, SHARES, 4)).any()


def test_unknown_labels_are_shared_out_too() -> None:
    labels, patients = long_tailed()
    unknown = np.random.default_rng(5).random(len(labels)) < 0.2
    labels[unknown, 3] = -1
    split = split_rows(labels, patients, SHARES, 0)
    share = [(labels[split == name, 3] == -1).mean() for name in SHARES]
    assert max(share) - min(share) < 0.02


def test_a_finding_of_one_patient_goes_to_training() -> None:
    labels, patients = long_tailed(1000)
    labels[:, 0] = 0
    labels[np.array(patients) == patients[500], 0] = 1
    split = split_rows(labels, patients, SHARES, 0)
    assert set(split[labels[:, 0] == 1]) == {"train"}


def test_a_giant_patient_goes_to_training_and_the_rest_is_shared_out() -> None:
    labels, patients = long_tailed(2000)
    patients[:600] = ["giant"] * 600
    split = split_rows(labels, patients, SHARES, 0)
    assert set(split[:600]) == {"train"}
    assert [(split == name).mean() for name in ("dev", "test")] == pytest.approx([0.1, 0.1], abs=0.01)


def test_a_finding_nobody_has_does_no_harm() -> None:
    labels, patients = long_tailed(500)
    labels[:, 4] = 0
    labels[:, 5] = -1
    assert set(split_rows(labels, patients, SHARES, 0)) == set(SHARES)


def test_a_split_of_share_zero_stays_empty() -> None:
    labels, patients = long_tailed(300)
    assert set(split_rows(labels, patients, parse_split("dev=0.2"), 0)) == {"train", "dev"}


def test_three_patients_fill_three_splits() -> None:
    labels = np.zeros((5, 2), np.int8)
    split = split_rows(labels, ["a", "a", "b", "c", "c"], SHARES, 0)
    assert set(split) == set(SHARES)


def test_fewer_patients_than_parts_is_an_error() -> None:
    with pytest.raises(DataError, match="2 in all, cannot be shared out to 3 parts"):
        split_rows(np.zeros((4, 2), np.int8), ["a", "a", "b", "b"], SHARES, 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_table_gives_full_disjoint_parts(data: st.DataObject) -> None:
    images = data.draw(st.integers(3, 60))
    patients = [str(value) for value in data.draw(st.lists(st.integers(0, 30), min_size=images, max_size=images))]
    flat = data.draw(st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=images * 3, max_size=images * 3))
    parts = data.draw(st.integers(2, 4))
    if len(set(patients)) < parts:
        return
    labels = np.array(flat, np.int8).reshape(images, 3)
    part = assign(labels, patients, [1 / parts] * parts, 0, ["x"] * parts)
    assert disjoint(patients, part)
    assert set(part.tolist()) == set(range(parts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dev=0.1,test=0.1", (0.8, 0.1, 0.1)),
        ("dev=0.25", (0.75, 0.25, 0.0)),
        (" test = 0.5 , dev=0", (0.5, 0.0, 0.5)),
    ],
)
def test_shares_are_parsed(text: str, expected: tuple[float, ...]) -> None:
    assert tuple(parse_split(text).values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "knows dev and test"),
        ("val=0.1", "not 'val'"),
        ("dev=0.1,dev=0.2", "given twice"),
        ("dev=ten", "'ten' is not a number"),
        ("dev=10%", "'10%' is not a number"),
        ("dev=-0.1", r"does not lie in \[0, 1\)"),
        ("dev=nan", r"does not lie in \[0, 1\)"),
        ("dev=1", r"does not lie in \[0, 1\)"),
        ("dev=0.5,test=0.5", "no images are left for training"),
    ],
)
def test_wrong_shares_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_split(text)


def nih_table(folder: Path) -> tuple[np.ndarray, list[str]]:
    rows, patients = [], []
    for name in ("train", "val", "test"):
        with gzip.open(folder / f"miccai2023_nih-cxr-lt_labels_{name}.csv.gz", "rt") as file:
            next(file)
            for line in file:
                _, *values, patient = line.rstrip("\n").split(",")
                rows.append(values)
                patients.append(patient)
    return np.array(rows, dtype="U2").astype(np.int8), patients


def test_the_whole_nih_table(shared: Path) -> None:
    folder = shared / "tables" / "nih-cxr-lt"
    if not folder.is_dir():
        pytest.skip("the NIH-CXR-LT tables are not among the shared data")
    labels, patients = nih_table(folder)
    split = split_rows(labels, patients, SHARES, 0)
    part = np.select([split == "train", split == "dev"], [0, 1], 2)
    assert disjoint(patients, part)
    assert deviation(labels, part, [0.8, 0.1, 0.1]) < 0.001
    folds = fold_rows(labels, patients, np.ones(len(labels), bool), 5, 0)
    assert deviation(labels, folds, [0.2] * 5) < 0.001
