"""Invented patients: studies, views, and which findings each study shows.

A finding is present where its hidden variable (a Gaussian with loadings on common causes, shared within a patient)
exceeds a threshold. Thresholds are set on a fixed simulated population so that every class has its frequency.
Random numbers are drawn patient by patient from streams of their own: the first images of a large cohort are those of a
small one, save for the few positives added to guarantee the rarest classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from .report import observed_labels
from .vocabulary import EXCLUSIONS, FINDINGS, LASTING, LOADINGS, frequencies, loading_matrix

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]

MAX_STUDIES = 5
VIEWS = ("PA", "AP", "lateral")
SPLITS = ("train", "dev", "test")

#: Guaranteed positives of the rarest class for every 6,000 images, by split, from ``SMALLEST`` images on.
GUARANTEED = {"train": 6, "dev": 2, "test": 2}
SMALLEST = 600

_CAUSES = tuple(LOADINGS)
_ICU, _AGE = _CAUSES.index("intensive care"), _CAUSES.index("age")
_PORTABLE = NormalDist().inv_cdf(1.0 - 0.2)
_REFERENCE_PATIENTS = 16_000
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a cohort depends on besides the image size."""

    seed: int
    count: int
    dev: float
    test: float
    miss: float
    spurious: float
    floor: float
    lateral: float


@dataclass(frozen=True, slots=True)
class Cohort:
    """N images of K studies. Findings are (K, 29), per study: all pictures of a study share them."""

    patient: Ints  # (K,)
    number: Ints  # (K,) which study of the patient
    split: Ints  # (K,) position in SPLITS
    male: Bools  # (K,)
    age: Ints  # (K,)
    truth: Bools  # (K, 29)
    observed: Bools  # (K, 29)
    severity: Floats  # (K, 29) in [0, 1]
    study: Ints  # (N,)
    view: Ints  # (N,) position in VIEWS


@dataclass(slots=True)
class _Studies:
    """Studies of a population before thresholds, (P * MAX_STUDIES,) rows of which ``real`` exist."""

    real: Bools
    hidden: Floats  # (K, 29)
    spare: Floats  # (K, 3) uniforms: sick without a listed finding, which finding, lateral view
    portable: Bools
    age: Floats
    male: Bools
    severity: Floats


def _population(seed: int, patients: int) -> _Studies:
    """The same first patients whatever ``patients`` is: every stream is consumed row by row."""
    causes, width, lasting = len(_CAUSES), len(FINDINGS), _lasting()
    stream = [np.random.default_rng((seed, 1, number)) for number in range(6)]
    own = stream[0].standard_normal((patients, causes + width), dtype=np.float32)
    now = stream[1].standard_normal((patients, MAX_STUDIES, causes + width + 1), dtype=np.float32)
    who = stream[2].random((patients, 3))
    spare = stream[3].random((patients, MAX_STUDIES, 3))
    grade = stream[4].random((patients, 1, width), dtype=np.float32)
    graded = stream[5].random((patients, MAX_STUDIES, width), dtype=np.float32)
    studies = 1 + (who[:, 0, None] > np.array([0.62, 0.84, 0.93, 0.975])).sum(axis=1)
    half = np.float32(np.sqrt(0.5))
    current = half * (own[:, None, :] + now[:, :, :-1])
    current[:, :, _AGE] = own[:, None, _AGE]
    table = loading_matrix()
    unique = np.sqrt(1.0 - (table**2).sum(axis=1))
    forever = np.einsum("pk,ck->pc", own[:, :causes], table) + unique * own[:, causes:]
    passing = np.einsum("psk,ck->psc", current[:, :, :causes], table) + unique * current[:, :, causes:]
    hidden = np.where(lasting, forever[:, None, :], passing)
    portable = 0.6 * current[:, :, _ICU] + 0.8 * now[:, :, -1] > _PORTABLE
    age = np.clip(57.0 + 15.0 * own[:, _AGE] + 6.0 * (who[:, 1] - 0.5), 18.0, 97.0)
    each = (patients * MAX_STUDIES,)
    return _Studies(
        real=(np.arange(MAX_STUDIES) < studies[:, None]).reshape(each),
        hidden=hidden.reshape(*each, width),
        spare=spare.reshape(*each, 3),
        portable=portable.reshape(each),
        age=(age[:, None] + 1.5 * np.arange(MAX_STUDIES)).reshape(each),
        male=np.repeat(who[:, 2] < 0.5, MAX_STUDIES),
        severity=np.where(lasting, 0.85 * grade + 0.15 * graded, graded).reshape(*each, width),
    )


def _lasting() -> Bools:
    return np.array([name in LASTING for name in FINDINGS])


@dataclass(frozen=True, slots=True)
class _Thresholds:
    level: Floats  # (29,) of the hidden variables
    filled: float  # share of finding-free studies that receive one after all
    chance: Floats  # (29,) which one, cumulative


def _findings(studies: _Studies, thresholds: _Thresholds) -> Bools:
    truth = studies.hidden > thresholds.level
    clean = ~truth.any(axis=1) & (studies.spare[:, 0] < thresholds.filled)
    chosen = np.searchsorted(thresholds.chance, studies.spare[clean, 1])
    truth[np.flatnonzero(clean), np.minimum(chosen, len(FINDINGS) - 1)] = True
    _exclude(truth)
    return truth


def _exclude(truth: Bools) -> None:
    for kept, dropped in EXCLUSIONS:
        truth[:, FINDINGS.index(dropped)] &= ~truth[:, FINDINGS.index(kept)]


def _images(studies: _Studies, lateral: float) -> Ints:
    """Pictures of each study: one, or two where an upright patient is also seen from the side."""
    return np.where(studies.real, 1 + (~studies.portable & (studies.spare[:, 2] < lateral)), 0)


@lru_cache(maxsize=8)
def _thresholds(floor: float, lateral: float) -> _Thresholds:
    """Thresholds that give every class its share of images, found on a reference population of fixed seed.

    Patients without a listed finding are more numerous in the model than in the data (where reports that name nothing
    of the list are not ``Normal``), so some of them receive one passing finding each.
    """
    target, normal = frequencies(floor)
    studies = _population(20_260, _REFERENCE_PATIENTS)
    weight = _images(studies, lateral).astype(np.float64)
    total = weight.sum()
    share = np.where(_lasting(), 0.0, target)
    chance, quantile, filled = np.cumsum(share / share.sum()), target.copy(), 0.25
    result = None
    for _ in range(8):
        level = np.array([NormalDist().inv_cdf(1.0 - q) for q in quantile], dtype=np.float32)
        result = _Thresholds(level, filled, chance)
        truth = _findings(studies, result)
        found = np.where(truth, weight[:, None], 0.0).sum(axis=0) / total
        clean = weight[~truth.any(axis=1)].sum() / total
        quantile = np.clip(quantile * (target + 0.004) / (found + 0.004), 1e-6, 0.5)
        filled = float(np.clip(1.0 - (1.0 - filled) * normal / clean, 0.0, 0.95))
    assert result is not None
    return result


@lru_cache(maxsize=2)
def cohort(settings: Settings) -> Cohort:
    """The cohort of ``settings``, pure in them."""
    patients = settings.count * 4 // 5 + 64  # at least 1.6 images a patient on average
    studies = _population(settings.seed, patients)
    each = _images(studies, settings.lateral)
    last = int(np.searchsorted(np.cumsum(each), settings.count)) + 1
    keep = np.flatnonzero(studies.real[:last])
    patient, number = keep // MAX_STUDIES, keep % MAX_STUDIES
    study = np.repeat(np.arange(len(keep)), each[keep])[: settings.count]
    second = np.concatenate([[False], study[1:] == study[:-1]])
    view = np.where(second, 2, studies.portable[keep][study].astype(np.int64))
    split = _split(patient, settings)
    truth = _findings(studies, _thresholds(settings.floor, settings.lateral))[keep]
    pictures = np.bincount(study, minlength=len(keep))
    needed = guaranteed(settings)
    _top_up(truth, hidden=studies.hidden[keep], patient=patient, split=split, pictures=pictures, needed=needed)
    severity = studies.severity[keep]
    observed = observed_labels(
        truth,
        np.random.default_rng((settings.seed, 2)),
        severity=severity,
        noisy=split == 0,
        pictures=pictures,
        frequency=frequencies(settings.floor)[0],
        miss=settings.miss,
        spurious=settings.spurious,
        needed=needed["train"],
    )
    age = np.floor(studies.age[keep]).astype(np.int64)
    return Cohort(patient, number, split, studies.male[keep], age, truth, observed, severity, study, view)


def _split(patient: Ints, settings: Settings) -> Ints:
    """Evenly spread over the patients (a golden-ratio sequence), so that shares are exact for any number of them."""
    start = np.random.default_rng((settings.seed, 3)).random()
    place = (start + _GOLDEN * patient) % 1.0
    return np.where(place < settings.dev, 1, np.where(place < settings.dev + settings.test, 2, 0))


def guaranteed(settings: Settings) -> dict[str, int]:
    """Positive images each class is sure to have, by split; zero in cohorts too small for it, or when floor is 0."""
    if settings.count < SMALLEST or settings.floor == 0.0:
        return dict.fromkeys(SPLITS, 0)
    shares = {"train": 1.0, "dev": settings.dev, "test": settings.test}
    return {name: -(-GUARANTEED[name] * settings.count // 6000) if shares[name] > 0 else 0 for name in SPLITS}


def _top_up(
    truth: Bools, *, hidden: Floats, patient: Ints, split: Ints, pictures: Ints, needed: dict[str, int]
) -> None:
    """Where a split has too few images of a class, lower the threshold there: the likeliest studies get the finding."""
    lasting = _lasting()
    for position, name in enumerate(SPLITS):
        member = split == position
        for column in range(len(FINDINGS)):
            ranked = np.argsort(-np.where(member & (pictures > 0), hidden[:, column], -np.inf), kind="stable")
            for row in ranked[: int((member & (pictures > 0)).sum())]:
                if pictures[member & truth[:, column]].sum() >= needed[name]:
                    break
                rows = patient == patient[row] if lasting[column] else np.arange(len(patient)) == row
                truth[rows, column] = True
                for kept, dropped in EXCLUSIONS:
                    if FINDINGS[column] in (kept, dropped):
                        other = dropped if FINDINGS[column] == kept else kept
                        truth[rows, FINDINGS.index(other)] = False
