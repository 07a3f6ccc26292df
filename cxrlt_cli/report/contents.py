"""What the report of an evaluation is made from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Difference, Replicates
from cxrlt_cli.gap import Gap
from cxrlt_cli.metrics import Evaluation

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """The images with one value of one column, and what predictions are worth on them."""

    by: str
    value: str
    images: int
    patients: int
    result: Evaluation
    replicates: Replicates | None


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Predictions for N images and C classes beside their labels, and what they are worth.

    Attributes:
        name: short name of the run or file.
        title: what was evaluated on what.
        classes: C names.
        image_id: N strings.
        labels: (N, C): 1, 0, -1 where unknown.
        scores: (N, C), what ranks the images.
        posteriors: (N, C) in [0, 1].
        decisions: (N, C).
        uncalibrated: (N, C) posteriors before calibration; None where nothing was calibrated.
        thresholds: (C,) posterior from which on a finding is called; None where that is not known.
        frequency: (C,) positives in training.
        order: classes from the most to the least frequent in training.
        result: the figures.
        before: the figures before calibration.
        replicates: the figures in resamples of the patients; None without resamples.
        before_replicates: those before calibration in the same resamples.
        subsets: figures of some of the images.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    image_id: Sequence[str]
    labels: npt.NDArray[np.int8]
    scores: npt.NDArray[np.floating]
    posteriors: Array
    decisions: npt.NDArray[np.bool_]
    uncalibrated: Array | None
    thresholds: Array | None
    frequency: Array
    order: Sequence[int]
    result: Evaluation
    before: Evaluation | None = None
    replicates: Replicates | None = None
    before_replicates: Replicates | None = None
    subsets: Sequence[Subset] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Contrast:
    """Predictions minus other predictions for the same images.

    Attributes:
        name: of the one subtracted from.
        minus: name of the one subtracted.
        overall: figure -> difference; empty where the two have different classes.
        groups: head, medium, tail, rare -> figure -> difference; empty likewise.
        classes: names of the K classes both have.
        ap: differences (K,) of average precision.
        adjusted: (K,) p values of ``ap``, adjusted over the classes.
    """

    name: str
    minus: str
    overall: Mapping[str, Difference]
    groups: Mapping[str, Mapping[str, Difference]]
    classes: tuple[str, ...]
    ap: Difference
    adjusted: Array


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """What the scores on one split are worth on another.

    Attributes:
        split: where the scores were made.
        target: what they shall hold for.
        gap: the way from the ones to the others.
        headings: figure -> its heading, for every figure of ``gap``.
        titles: component -> how it is called.
        observed: figure -> what the target really shows; empty without its labels or predictions.
        notes: why components are not estimated, and where inputs are from: a sentence each.
    """

    split: str
    target: str
    gap: Gap
    headings: Mapping[str, str]
    titles: Mapping[str, str]
    observed: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """What ran, for the foot of the report.

    Attributes:
        facts: label and value.
        recipe: its text; empty for none.
        remarks: sentences a reader should know.
        warnings: sentences without which the figures mislead.
    """

    facts: Sequence[tuple[str, str]]
    recipe: str = ""
    remarks: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Small pictures of the images a report shows.

    Attributes:
        side: their side, in pixels.
        plain: row of the image -> JPEG.
        heated: row of the image and class -> JPEG with what speaks for the class marked; empty without heat maps.
        places: how many places a heat map has, from top to bottom and from left to right.
        silent: rows and classes of heat maps where no place speaks for the class.
    """

    side: int
    plain: Mapping[int, bytes] = field(default_factory=dict)
    heated: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    places: tuple[int, int] = (0, 0)
    silent: Collection[tuple[int, int]] = ()
