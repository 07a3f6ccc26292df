"""Every figure in every resample."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.metrics import NEED_POSITIVES, PER_CLASS, Absent, macro, members, rank

from .draws import Clusters, Weights, clusters, weights
from .inference import Resampled, averaged, of_classes
from .intervals import folded_bias
from .ranking import Thresholds, ap_jackknife, ranking_replicates, thresholds
from .sums import Judged, sum_replicates

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

#: Bytes of resampling weights that exist at a time.
_BYTES = 192 << 20
#: Calibration errors, and the differences whose absolute values they add up.
_ERRORS = {"ece": "bins", "flat_ece": "flat_bins"}
#: Who decides about a figure, where it is not who decides about the class: names of ``_patients``.
_DECIDED_BY = {"precision": "called", "brier": "errors", "ece": "errors"}


@dataclass(frozen=True, slots=True)
class Replicates:
    """Figures in R resamples of the patients; names are those of ``metrics.Evaluation``.

    Attributes:
        per_class: figure -> resamples (R, C), nan where one leaves a class without a value.
        overall: figure -> resamples (R,). The macro average of each is that of the classes that have a value in it.
        groups: head, medium, tail, rare -> figure -> resamples (R,). Which classes are in a group is the same in all.
            Empty when no prevalence was given.
        patients: how many were drawn from, and drawn, each time.
        seed: of the draws.
    """

    per_class: Mapping[str, Resampled]
    overall: Mapping[str, Resampled]
    groups: Mapping[str, Mapping[str, Resampled]]
    patients: int
    seed: int

    @property
    def resamples(self) -> int:
        """R."""
        return len(self.overall["chance_ap"].values)

    def undefined(self, name: str) -> Array:
        """(C,) share of the resamples in which a figure of a class has no value."""
        return np.asarray(np.isnan(self.per_class[name].values).mean(axis=0))


def replicates(
    labels: Labels,
    scores: npt.NDArray[np.floating] | None,
    patients: Sequence[str] | npt.NDArray[np.generic],
    *,
    posteriors: Array | None = None,
    decisions: npt.NDArray[np.bool_] | None = None,
    prevalence: npt.ArrayLike | None = None,
    absent: Absent = "skip",
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Replicates:
    """Every figure in resamples of the patients, drawn with replacement (Efron, 1979; clusters: Field and Welsh, 2007).

    The same patients and seed give the same resamples in every call, whatever the labels, scores and order of the rows,
    so replicates of two sets of predictions may be subtracted. Resample r does not depend on how many there are. AP,
    AUROC, figures of decisions and the Brier score are exactly those of the repeated rows. The bins of the calibration
    errors are those of all images. Slope and intercept are one Newton step away from those of all images.

    Args:
        labels: (N, C): 1, 0, -1 where unknown.
        scores: (N, C) for ranking, none of them nan; without them there are no AP and AUROC.
        patients: N names or codes; images of one are drawn together.
        posteriors: (N, C) in [0, 1]; without them there are no figures of calibration.
        decisions: (N, C); default: posterior >= 0.5.
        prevalence: (C,) in training; sets the groups.
        absent: "zero" counts AP, F1, precision and recall of a class that has no positive in a resample as 0.
        resamples: R.
        seed: of the draws, 0 or more.
        progress: told now and then how many resamples the work done amounts to.

    Raises:
        ValueError: there are no images, no resamples, or neither scores, posteriors nor decisions.

    Returns:
        The figures. Time grows with N C R: about a minute for 143,000 x 30 x 1,000 on two busy cores.
    """
    judged = _judged(labels, posteriors, decisions)
    _check(judged, scores, resamples)
    drawn = clusters(patients)
    ranked = [] if scores is None else [thresholds(rank(*columns)) for columns in zip(labels.T, scores.T, strict=True)]
    found = _found(judged, ranked, lambda first, last: weights(drawn, seed, first, last), resamples, progress)
    bias = {name: folded_bias(found[bins]) for name, bins in _ERRORS.items() if bins in found}
    bias["ap"], variance = ap_jackknife(ranked, drawn)
    counted = _patients(judged, drawn)
    per_class = {name: _of_class(name, own, counted, bias) for name, own in _values(found, absent).items()}
    groups = {} if prevalence is None else members(prevalence, (labels == 1).sum(axis=0))
    everything = np.ones(labels.shape[1], bool)
    return Replicates(
        per_class,
        _averages(per_class, found["chance"], everything, bias, variance) | _of_all_entries(found, counted, bias),
        {name: _averages(per_class, found["chance"], chosen, bias, variance) for name, chosen in groups.items()},
        patients=drawn.count,
        seed=seed,
    )


def _judged(labels: Labels, posteriors: Array | None, decisions: npt.NDArray[np.bool_] | None) -> Judged:
    if posteriors is None:
        return Judged(labels, None, decisions)
    posteriors = np.asarray(posteriors, np.float64)
    return Judged(labels, posteriors, posteriors >= 0.5 if decisions is None else decisions)


def _check(judged: Judged, scores: npt.NDArray[np.floating] | None, resamples: int) -> None:
    if resamples < 1 or not judged.labels.size:
        raise ValueError(f"{resamples} resamples of labels of the shape {judged.labels.shape}")
    if scores is None and judged.decisions is None:
        raise ValueError("there is nothing to compare the labels with")


def _values(found: Mapping[str, Array], absent: Absent) -> dict[str, Array]:
    """The figures of classes (R, C) among what was found."""
    values = {name: found[name] for name in PER_CLASS if name in found}
    if absent == "zero":
        values |= {name: np.nan_to_num(values[name], nan=0.0) for name in NEED_POSITIVES if name in values}
    return values


def _found(
    judged: Judged,
    ranked: Sequence[Thresholds],
    draw: Callable[[int, int], Weights],
    resamples: int,
    progress: Callable[[int], None] | None,
) -> dict[str, Array]:
    """Figures of classes and of all entries, and what calibration errors add up, in all resamples."""
    chunk = max(1, _BYTES // len(judged.labels))
    parts = []
    for first in range(0, resamples, chunk):
        last = min(first + chunk, resamples)
        tick = _ticks(progress, first, last, judged.labels.shape[1] + len(ranked))
        parts.append(_chunk(judged, ranked, draw(first, last), tick))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found | {name: np.abs(found[bins]).sum(axis=-1) for name, bins in _ERRORS.items() if bins in found}


def _ticks(progress: Callable[[int], None] | None, first: int, last: int, steps: int) -> Callable[[], None]:
    """Turns steps of the work on resamples ``first`` to ``last - 1`` into a number of resamples."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(first + (last - first) * done // steps)

    return tick


def _chunk(
    judged: Judged, ranked: Sequence[Thresholds], weights: Weights, tick: Callable[[], None]
) -> dict[str, Array]:
    found = sum_replicates(judged, weights, tick)
    aps, areas = [], []
    with ThreadPoolExecutor(_threads()) as pool:
        for ap, auroc in pool.map(lambda at: ranking_replicates(at, weights), ranked):
            aps.append(ap)
            areas.append(auroc)
            tick()
    return found | ({"ap": np.stack(aps, axis=1), "auroc": np.stack(areas, axis=1)} if ranked else {})


def _threads() -> int:
    """Cores this process may use; ``OMP_NUM_THREADS`` lowers it, as it does for the products of matrices."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0))
    return min(cores, int(stated)) if stated.isdecimal() and int(stated) else cores


def _patients(judged: Judged, drawn: Clusters) -> dict[str, npt.NDArray[np.int64]]:
    """How many patients decide about each class (C,): those with the finding or those without, whichever are fewer.

    About the Brier score and the calibration errors ("errors"), all of them where they are of one kind; about precision
    ("called"), those in whom it is called; about the figures of all entries ("any"), those with any finding. Further
    those with the finding ("positive").
    """
    positive, negative = (drawn.having(judged.labels == label) for label in (1, 0))
    made = {"": np.minimum(positive, negative)}
    made["errors"] = np.where(made[""] > 0, made[""], positive + negative)
    made["positive"] = positive
    made["any"] = drawn.having((judged.labels == 1).any(axis=1, keepdims=True))[0]
    if judged.decisions is not None:
        made["called"] = drawn.having(judged.decisions & (judged.labels != UNKNOWN))
    return made


def _of_class(
    name: str, values: Array, counted: Mapping[str, npt.NDArray[np.int64]], bias: Mapping[str, Array]
) -> Resampled:
    # AP's own bias is noise beside the spread of one class: only averages are moved by it
    own = bias[name] if name == "ece" else 0.0
    # a finding that is there but never called has a precision of 0 by convention, which tells nothing of its own
    silent = (counted["called"] == 0) & (counted["positive"] > 0) if name == "precision" else False
    return of_classes(name, values, counted[_DECIDED_BY.get(name, "")], own, silent)


def _averages(
    per_class: Mapping[str, Resampled],
    chance: Array,
    chosen: npt.NDArray[np.bool_],
    bias: Mapping[str, Array],
    variance_of_ap: Array,
) -> dict[str, Resampled]:
    """Macro averages over the chosen classes."""
    averages = macro({name: one.values for name, one in per_class.items()}, chance, chosen)
    made = {"chance_ap": Resampled("chance_ap", averages["chance_ap"])}
    for name, one in per_class.items():
        moved = bias[name][chosen] if name in bias else 0.0
        variance = variance_of_ap[chosen] if name == "ap" else 0.0
        made[f"macro_{name}"] = averaged(averages[f"macro_{name}"], one[chosen], moved, variance)
    return made


def _of_all_entries(
    found: Mapping[str, Array], counted: Mapping[str, npt.NDArray[np.int64]], bias: Mapping[str, Array]
) -> dict[str, Resampled]:
    pooled = {"micro_f1": "micro_f1", "micro_f1_at_half": "micro_f1_at_half", "ece": "flat_ece"}
    return {
        name: Resampled(name, found[kept], float(counted["any"]) - 1, bias=bias.get(kept, 0.0))
        for name, kept in pooled.items()
        if kept in found
    }
