"""The dataset source ``phantom``: chest radiographs the project draws itself.

Drawings, not patients: no image and no label comes from clinical data, and nothing learned or measured on them says
anything about medicine. They are a test bed for long-tailed methods whose truth is known, and material for demos and
tests. ``docs/phantoms.md`` describes them.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cxrlt_cli.contracts import PluginFault, PrepareRequest, SourceTable

from .phantom_art.cohort import SMALLEST, SPLITS, VIEWS, Cohort, Settings, cohort, guaranteed
from .phantom_art.render import Case, render
from .phantom_art.vocabulary import CLASSES, FINDINGS

if TYPE_CHECKING:
    import numpy.typing as npt


class PhantomSource:
    """A cohort of drawn radiographs. Pickled as its settings only: every image is redrawn from (seed, index)."""

    def __init__(self, size: int, settings: Settings) -> None:
        self.size, self.settings = size, settings

    def __reduce__(self) -> tuple[type[PhantomSource], tuple[int, Settings]]:
        return PhantomSource, (self.size, self.settings)

    @cached_property
    def table(self) -> SourceTable:
        """The label table: noisy labels in train, exact ones in dev and test, the truth in ``true:<class>``."""
        return _table(cohort(self.settings), self.settings)

    def case(self, index: int) -> Case:
        """What image ``index`` shows."""
        if not 0 <= index < self.settings.count:
            raise IndexError(f"image {index} of {self.settings.count}")
        plan = cohort(self.settings)
        study = int(plan.study[index])
        present = np.flatnonzero(plan.truth[study])
        return Case(
            seed=self.settings.seed,
            index=index,
            patient=int(plan.patient[study]),
            study=int(plan.number[study]),
            view=VIEWS[plan.view[index]],
            sex="M" if plan.male[study] else "F",
            age=float(plan.age[study]),
            findings={FINDINGS[k]: float(plan.severity[study, k]) for k in present},
        )

    def draw(self, index: int) -> npt.NDArray[np.uint8]:
        """Image ``index``, uint8 (size, size), pure in (seed, index)."""
        return render(self.case(index), self.size)


def build(
    request: PrepareRequest,
    *,
    count: int = 6000,
    dev: float = 0.1,
    test: float = 0.1,
    miss: float = 0.1,
    spurious: float = 0.05,
    floor: float = 0.0018,
    lateral: float = 0.45,
) -> PhantomSource:
    """Drawn chest radiographs with the 30 classes of CXR-LT 2026. No clinical data.

    Args:
        request: its ``images`` and ``labels`` must be None; ``size`` and ``seed`` are used.
        count: how many images.
        dev: share of the patients in the dev split.
        test: share of the patients in the test split.
        miss: share of true findings a train label misses, faint ones first; at most 0.5.
        spurious: false positives in train labels for each true positive of the class.
        floor: about the smallest share of images a finding may have; 0 keeps the published frequencies.
        lateral: share of upright studies that also have a lateral image.
    """
    if request.images is not None or request.labels is not None:
        raise PluginFault(
            "the source 'phantom' draws its images and labels itself",
            where="--images" if request.images is not None else "--labels",
            cure="Leave --images and --labels out, or use the source 'csv' for images of your own.",
        )
    if not 16 <= request.size <= 2048:
        raise PluginFault(f"phantoms of {request.size} px cannot be drawn", where="size", cure="Give 16 to 2048.")
    settings = Settings(request.seed, count, dev, test, miss, spurious, floor, lateral)
    _check(settings)
    return PhantomSource(request.size, settings)


build.default_size = 128  # what `cxrlt prepare phantom` draws without --size
build.example = {"count": 200}  # quick for the conformance kit


_LIMITS = {"dev": 0.5, "test": 0.5, "miss": 0.5, "spurious": 1.0, "floor": 0.02, "lateral": 1.0}


def _check(settings: Settings) -> None:
    if settings.count < 1:
        raise PluginFault(f"count is {settings.count}", where="count", cure="Give at least 1.")
    if settings.seed < 0:
        raise PluginFault(f"seed is {settings.seed}", where="seed", cure="Give 0 or more.")
    for name, most in _LIMITS.items():
        value = getattr(settings, name)
        if not 0.0 <= value <= most:
            raise PluginFault(f"{name} is {value}", where=name, cure=f"Give a number from 0 to {most}.")


def _table(plan: Cohort, settings: Settings) -> SourceTable:
    study = plan.study
    owner, number, view = plan.patient[study], plan.number[study], [VIEWS[k] for k in plan.view]
    patients = [f"phantom-{k:06d}" for k in owner]
    studies = [f"{name}-s{k + 1}" for name, k in zip(patients, number, strict=True)]
    truth, observed = _with_normal(plan.truth[study]), _with_normal(plan.observed[study])
    extra: dict[str, list[object]] = {
        "sex": ["M" if male else "F" for male in plan.male[study]],
        "age": plan.age[study].tolist(),
    }
    extra.update({f"true:{name}": truth[:, k].tolist() for k, name in enumerate(CLASSES)})
    return SourceTable(
        classes=CLASSES,
        image_id=[f"{name}-{seen}" for name, seen in zip(studies, view, strict=True)],
        patient_id=patients,
        labels=observed,
        study_id=studies,
        view=view,
        split=[SPLITS[k] for k in plan.split[study]],
        extra=extra,
        notes=_notes(settings, truth, observed),
    )


def _with_normal(findings: npt.NDArray[np.bool_]) -> npt.NDArray[np.int8]:
    """(N, 29) -> (N, 30): ``Normal``, the absence of all findings, comes first."""
    return np.concatenate([~findings.any(axis=1, keepdims=True), findings], axis=1).astype(np.int8)


def _notes(settings: Settings, truth: npt.NDArray[np.int8], observed: npt.NDArray[np.int8]) -> tuple[str, ...]:
    lines = ["phantoms are drawings, not clinical data: scores on them say nothing about patients"]
    lines.append(
        f"train labels carry report noise (miss {settings.miss:g}, spurious {settings.spurious:g}): "
        f"{int((truth != observed).any(axis=1).sum())} of {len(truth)} images differ from the truth, "
        "which is kept in the columns 'true:<class>'; dev and test labels are exact"
    )
    sure = guaranteed(settings)
    if settings.count < SMALLEST:
        lines.append(f"fewer than {SMALLEST} images: rare classes may have no positives in some splits")
    elif any(sure.values()):
        share = ", ".join(f"{sure[name]} in {name}" for name in SPLITS if sure[name])
        lines.append(f"every class has at least this many true and labelled positive images: {share}")
    return tuple(lines)
