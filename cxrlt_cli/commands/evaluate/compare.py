"""Differences between sets of predictions on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Difference, Resampled, holm, paired
from cxrlt_cli.commands.evaluate.scored import Array, Scored

#: Figures whose differences are tested, for all classes and for each of them.
OVERALL = ("macro_ap", "macro_auroc", "macro_f1", "macro_f1_at_half", "micro_f1", "macro_brier", "ece", "macro_ece")
OF_CLASSES = ("ap", "auroc", "f1")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One set of predictions minus another.

    Attributes:
        first: the one subtracted from.
        second: the one subtracted.
        overall: macro and pooled figure -> difference; empty where the two do not have the same classes.
        groups: head, medium, tail, rare -> ``macro_ap`` and so on -> difference; empty likewise.
        classes: names of the K classes both have, in the order of the second.
        per_class: figure -> differences (K,).
        adjusted: figure -> p values (K,) adjusted over the classes (Holm).
    """

    first: Scored
    second: Scored
    overall: Mapping[str, Difference]
    groups: Mapping[str, Mapping[str, Difference]]
    classes: tuple[str, ...]
    per_class: Mapping[str, Difference]
    adjusted: Mapping[str, Array]


def same_images(scored: Sequence[Scored]) -> bool:
    """Whether all were evaluated on the same images of the same patients."""
    keys = [set(zip(one.of.owners, one.of.image_id, strict=True)) for one in scored]
    return all(key == keys[0] for key in keys)


def comparisons(scored: Sequence[Scored]) -> list[Comparison]:
    """Each further set of predictions minus the first; none without resamples or on different images."""
    if len(scored) < 2 or scored[0].replicates is None or not same_images(scored):
        return []
    return [_compared(one, scored[0]) for one in scored[1:]]


def _compared(first: Scored, second: Scored) -> Comparison:
    shared = [name for name in second.of.classes if name in first.of.classes]
    same = set(first.of.classes) == set(second.of.classes)
    groups = {name: _group(first, second, name) for name in second.result.groups} if same else {}
    per_class = {name: _of_classes(first, second, name, shared) for name in OF_CLASSES}
    return Comparison(
        first=first,
        second=second,
        overall={name: _overall(first, second, name) for name in OVERALL} if same else {},
        groups=groups,
        classes=tuple(shared),
        per_class=per_class,
        adjusted={name: holm(difference.p) for name, difference in per_class.items()},
    )


def _overall(first: Scored, second: Scored, name: str) -> Difference:
    assert first.replicates is not None
    assert second.replicates is not None
    reps = first.replicates.overall[name], second.replicates.overall[name]
    return _paired(first.result.overall[name], second.result.overall[name], *reps)


def _group(first: Scored, second: Scored, group: str) -> dict[str, Difference]:
    assert first.replicates is not None
    assert second.replicates is not None
    mine, theirs = first.result.groups[group], second.result.groups[group]
    reps = first.replicates.groups[group], second.replicates.groups[group]
    names = [name for name in OVERALL if name in mine]
    return {name: _paired(mine[name], theirs[name], reps[0][name], reps[1][name]) for name in names}


def _of_classes(first: Scored, second: Scored, name: str, classes: Sequence[str]) -> Difference:
    values, reps = [], []
    for one in (first, second):
        assert one.replicates is not None
        order = [one.of.classes.index(wanted) for wanted in classes]
        values.append(np.asarray(one.result.per_class[name])[order])
        reps.append(one.replicates.per_class[name][order])
    return _paired(values[0], values[1], reps[0], reps[1])


def _paired(first: npt.ArrayLike, second: npt.ArrayLike, reps: Resampled, others: Resampled) -> Difference:
    """The difference; all figures compared lie between 0 and 1, so its interval is cut at -1 and 1."""
    found = paired(first, second, reps, others)
    return replace(found, low=np.maximum(found.low, -1)[()], high=np.minimum(found.high, 1)[()])
