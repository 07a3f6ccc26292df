"""Patients as numbers, and dealt to folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cxrlt_cli.errors import DataError

Labels = npt.NDArray[np.int8]


def patient_codes(patients: Sequence[str]) -> npt.NDArray[np.int64]:
    """(N,) a number for each patient; images without an identifier are patients of their own."""
    named = [name or f"\0{row}" for row, name in enumerate(patients)]
    return np.unique(np.array(named, dtype=str), return_inverse=True)[1].astype(np.int64)


def patient_folds(labels: Labels, patients: Sequence[str], folds: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """Deal whole patients to folds so that the positives of every finding are spread evenly. Pure in its arguments.

    Patients come in the order of their rarity (the sum over findings of their share of all positives), equal ones at
    random; each goes to the fold that has least of what the patient has, rare findings counting more, then to the
    smallest.

    Args:
        labels: (N, C) of 1, 0 and -1.
        patients: N identifiers.
        folds: at least 2; fewer are made where there are fewer patients.
        seed: decides between patients of equal rarity.

    Returns:
        (N,) the fold of every image, from 0.

    Raises:
        DataError: there is one patient only.
    """
    code = patient_codes(patients)
    count = int(code.max(initial=-1)) + 1
    if count < 2:
        raise DataError(
            "decisions cannot be cross-fitted on images of one patient", cure="Give labelled images of more patients."
        )
    have = np.zeros((count, labels.shape[1]))
    np.add.at(have, code, labels == 1)
    have /= np.maximum(have.sum(axis=0), 1)
    images = np.bincount(code) / len(code)
    shuffled = np.random.default_rng(seed).permutation(count)
    order = shuffled[np.lexsort((-images[shuffled], -have[shuffled].sum(axis=1).round(12)))]
    fold, load, size = np.zeros(count, np.int64), np.zeros((min(folds, count), labels.shape[1])), np.zeros(folds)
    size = size[: len(load)]
    for patient in order.tolist():
        crowd = (load @ have[patient]).round(12)
        best = int(np.lexsort((size, crowd))[0])
        fold[patient] = best
        load[best] += have[patient]
        size[best] += images[patient]
    return fold[code]
