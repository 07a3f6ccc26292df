"""From the dev score to the score to expect on test, one correction after the other.

Each correction changes the estimate that the ones before it left, so start and changes add up to the end exactly, and
none counts twice. Their order:

==============  ======================================================================================================
``classes``     classes too rare to be judged on dev, or absent from the target, leave the average
``checkpoint``  the best epoch was chosen on dev (``choice``)
``decisions``   calibration and thresholds were fitted on dev: in-sample against cross-fitted
``patients``    patients that training has seen leave
``labels``      exact labels take the place of report labels, for the images that have both
``views``       images are weighted to the target's shares of views
``prevalence``  positives and negatives of each class are weighted to the target's prevalence; thresholds stay
``size``        AP is higher the fewer positives there are, ECE the fewer images: from as many as in dev to the target's
==============  ======================================================================================================

**Intervals.** All corrections are made anew in each of the resamples of the dev patients. The spread of a class's
figure is widened by ``sqrt(P / (P - 1))`` for its P patients with the finding, as resamples of few spread too little.
The confidence interval is for the average over many test sets of the target's size; the prediction interval, which adds
the chance in one such set, is for the score that one will show: its noise is that of dev when all corrections are made,
scaled by ``sqrt(P_dev / P_test)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import interval, on_logit_scale, replicates
from cxrlt_cli.bootstrap.draws import Clusters, clusters, weights
from cxrlt_cli.gap.choice import Choice, optimism
from cxrlt_cli.gap.evidence import Dev, Target, judged_classes, stages
from cxrlt_cli.gap.figures import DECIDED, FIGURES, RANKING, Judged, point, resampled
from cxrlt_cli.gap.size import effective, more_positives, of_size
from cxrlt_cli.metrics import average_precision, mean_defined

Array = npt.NDArray[np.float64]

#: The corrections, in the order they are made.
COMPONENTS = ("classes", "checkpoint", "decisions", "patients", "labels", "views", "prevalence", "size")
#: Reasons that begin so stand beside a change of 0.
BUILT_IN = "0 by construction"
_BY_RANK = f"{BUILT_IN}: ranking needs no calibration and no threshold"


@dataclass(frozen=True, slots=True)
class Step:
    """One correction.

    Attributes:
        name: one of ``COMPONENTS``.
        change: of the estimate; None where it is not estimated.
        low: lower end of the interval of the change.
        high: its upper end.
        after: the estimate with this correction and all before it.
        why: why it is not estimated, or is 0 by construction; empty otherwise.
    """

    name: str
    change: float | None
    low: float | None
    high: float | None
    after: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Waterfall:
    """One figure from dev to test.

    Attributes:
        figure: its name.
        start: the dev score, as a user would report it.
        steps: all ``COMPONENTS`` in order.
        expected: the score to expect on the target; start and changes add up to it.
        confidence: 95 % interval of that expectation.
        prediction: 95 % interval of the score one test set of the target's size will show; None without its size.
    """

    figure: str
    start: float
    steps: tuple[Step, ...]
    expected: float
    confidence: tuple[float, float]
    prediction: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Gap:
    """All figures from dev to test.

    Attributes:
        waterfalls: figure -> waterfall.
        classes: the classes that are judged.
        left_out: those that are not.
        chosen: (E,) share of the resamples in which each epoch is the best one; None where epochs are not known.
        resamples: of the patients.
    """

    waterfalls: Mapping[str, Waterfall]
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    chosen: Array | None
    resamples: int


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of each class's figures, and of the macro figure in resamples: figure -> (C,) and (R, C)."""

    of: Mapping[str, Array]
    reps: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class _Estimated:
    """All that is known of the components: ``why`` says why some are not."""

    classes: Mapping[str, tuple[float, Array]]
    changes: Mapping[str, _Change]
    choice: Choice | None
    why: Mapping[str, str]

    def compared(self, part: str, name: str) -> tuple[float, Array]:
        """A change of the macro figure, and in resamples (R,)."""
        if part == "classes":
            return self.classes[name]
        change = self.changes[part]
        return float(mean_defined(change.of[name])), mean_defined(change.reps[name])


def gap(dev: Dev, target: Target, *, resamples: int = 1000, seed: int = 0) -> Gap:
    """Estimate every correction.

    Args:
        dev: where the score was made.
        target: what it shall hold for.
        resamples: of the dev patients.
        seed: of the resamples.

    Raises:
        ValueError: no class has enough patients with the finding to be judged.
    """
    chosen = judged_classes(dev, target)
    if not chosen.any():
        raise ValueError("no class has enough patients with the finding to be judged")
    drawn = clusters(dev.patients)
    times = weights(drawn, seed, 0, resamples)
    some, aim = dev.select(chosen), target.select(chosen)
    start = {name: float(mean_defined(values)) for name, values in point(_as_fitted(dev)).items()}
    changes, choice = _changes(some, aim, drawn, times), _choice(dev, chosen, times, seed)
    estimated = _Estimated(_leaving(dev, some, times), changes, choice, target.why)
    noise = _noise(some, aim, times, changes)
    made = {}
    for name in FIGURES:
        errors = _errors(name, some, aim, noise, choice)
        made[name] = _summed(name, start[name], _steps(name, start[name], estimated), errors)
    names = np.array(dev.classes, dtype=object)
    shares = None if choice is None else choice.chosen
    return Gap(made, tuple(names[chosen].tolist()), tuple(names[~chosen].tolist()), shares, resamples)


def _as_fitted(dev: Dev) -> Judged:
    """Dev as a user would score it, with decisions that were fitted on it."""
    return Judged(dev.labels, dev.scores, *dev.fitted)


# -- corrections ---------------------------------------------------------------------------------------------------


def _leaving(dev: Dev, some: Dev, times: npt.NDArray[np.uint8]) -> dict[str, tuple[float, Array]]:
    """What the macro figures gain when the classes that cannot be judged leave: of all images, and (R,)."""
    if len(dev.classes) == len(some.classes):
        return dict.fromkeys(FIGURES, (0.0, np.zeros(len(times))))
    (few, few_reps), (whole, whole_reps) = (
        (point(judged), resampled(judged, times)) for judged in (_as_fitted(some), _as_fitted(dev))
    )
    return {
        name: (
            float(mean_defined(few[name]) - mean_defined(whole[name])),
            mean_defined(few_reps[name]) - mean_defined(whole_reps[name]),
        )
        for name in FIGURES
    }


def _changes(dev: Dev, target: Target, drawn: Clusters, times: npt.NDArray[np.uint8]) -> dict[str, _Change]:
    """The corrections that compare two ways of scoring."""
    made, known = {}, {}

    def figures(judged: Judged) -> tuple[dict[str, Array], dict[str, Array]]:
        if id(judged) not in known:
            known[id(judged)] = point(judged), resampled(judged, times)
        return known[id(judged)]

    pairs = stages(dev, target)  # kept alive, so that their identities stay theirs
    for name, (before, after) in pairs.items():
        if name == "size":
            made[name] = None if target.images is None else _Change(*of_size(after, target, drawn, times))
            continue
        (old, old_reps), (new, new_reps) = figures(before), figures(after)
        made[name] = _Change(
            {figure: new[figure] - old[figure] for figure in FIGURES},
            {figure: new_reps[figure] - old_reps[figure] for figure in FIGURES},
        )
    return {name: change for name, change in made.items() if change is not None}


def _choice(dev: Dev, chosen: npt.NDArray[np.bool_], times: npt.NDArray[np.uint8], seed: int) -> Choice | None:
    """How far the choice of the epoch flatters; every class had a say in it, the judged ones are reported."""
    if dev.epochs is None:
        return None
    resamples = len(times)
    reps = [replicates(dev.labels, each, dev.patients, resamples=resamples, seed=seed).per_class for each in dev.epochs]
    scores = [float(mean_defined(average_precision(dev.labels, each))) for each in dev.epochs]
    drawn = {name: np.stack([one[name].values for one in reps]) for name in ("ap", "auroc")}
    figures = {f"macro_{name}": mean_defined(values[..., chosen]) for name, values in drawn.items()}
    by = mean_defined(drawn["ap"])
    choice = optimism(scores, by, figures, dev.kept)
    if dev.decide is None:
        return choice
    decided = optimism(scores, by, _decided(dev, choice, chosen, times), dev.kept)
    return replace(choice, optimism={**choice.optimism, **decided.optimism}, gains={**choice.gains, **decided.gains})


def _decided(dev: Dev, choice: Choice, chosen: npt.NDArray[np.bool_], times: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """F1 and calibration error of every epoch that is ever the best one, (E, R) each; of the others 0: no one asks."""
    assert dev.decide is not None
    assert dev.epochs is not None
    made = {name: np.zeros((len(choice.chosen), len(times))) for name in DECIDED}
    labels = dev.labels[:, chosen]
    for epoch in np.union1d(np.flatnonzero(choice.chosen), [dev.kept]).tolist():
        own = dev.decide(epoch)
        judged = Judged(labels, dev.epochs[epoch][:, chosen], own.posteriors[:, chosen], own.decisions[:, chosen])
        found = resampled(judged, times)
        for name in DECIDED:
            made[name][epoch] = mean_defined(found[name])
    return made


# -- adding up -----------------------------------------------------------------------------------------------------


def _noise(
    dev: Dev, target: Target, times: npt.NDArray[np.uint8], changes: Mapping[str, _Change]
) -> dict[str, tuple[Array, Array]]:
    """Resamples (R, C) of the corrected figures, all but the choice of the epoch, and of dev as it is corrected."""
    start, once = resampled(_as_fitted(dev), times), resampled(_last(dev, target), times)
    total = {name: start[name] + sum(change.reps[name] for change in changes.values()) for name in FIGURES}
    return {name: (total[name], once[name]) for name in FIGURES}


def _errors(
    name: str, dev: Dev, target: Target, noise: Mapping[str, tuple[Array, Array]], choice: Choice | None
) -> list[Array]:
    """Errors (R,) of the estimate, and of one test set around it; no second entry without its size.

    Args:
        name: the figure.
        dev: the classes that are judged.
        target: the same of the target.
        noise: figure -> (R, C) of the corrected figures, and of one set as dev is when all corrections are made.
        choice: of the epoch.
    """
    wider = _widened(dev.holders(dev.best_labels, target)) if name != "ece" else np.ones(1)
    mine, once = (_centred(each) * wider for each in noise[name])
    error = mean_defined(mine)
    if choice is not None and name in choice.gains:
        error = error + choice.gains[name] - choice.optimism[name]
    if target.images is None:
        return [error]
    last = _last(dev, target)
    if name == "ece":
        more = np.array([target.images / effective(last, np.ones(len(last.labels), bool))])
    else:
        more = more_positives(last, target)
    # another resample: the test set's chance is its own
    return [error, np.roll(mean_defined(once / np.sqrt(more)), len(error) // 2)]


def _last(dev: Dev, target: Target) -> Judged:
    """Dev when all corrections are made but that of its size."""
    return stages(dev, target)["size"][0]


def _centred(reps: Array) -> Array:
    return np.asarray(reps - mean_defined(reps.T))


def _widened(holders: Array) -> Array:
    return np.asarray(np.sqrt(holders / np.maximum(holders - 1, 1)))


def _steps(name: str, start: float, estimated: _Estimated) -> list[Step]:
    """Every component of one figure, in order."""
    steps, now = [], start
    for part in COMPONENTS:
        change, ends, why = _step(part, name, estimated)
        now += change or 0.0
        low, high = ends if ends is not None else (None, None)
        steps.append(Step(part, change, low, high, now, why))
    return steps


def _step(part: str, name: str, estimated: _Estimated) -> tuple[float | None, tuple[float, float] | None, str]:
    """Change, its interval, and the reason where there is none or it is 0 by construction."""
    changes, choice, why = estimated.changes, estimated.choice, estimated.why.get(part, "")
    if part == "decisions" and (why or name in RANKING):
        why = why or _BY_RANK
    elif part == "checkpoint" and choice is not None:
        return _of_choice(choice, name)
    elif part == "size" and part in changes and name in _NO_SIZE:
        why = _NO_SIZE[name]
    elif part == "classes" or part in changes:
        change, reps = estimated.compared(part, name)
        return change, None if part == "size" else _around(change, reps), ""
    return (0.0, (0.0, 0.0), why) if why.startswith(BUILT_IN) else (None, None, why)


def _of_choice(choice: Choice, name: str) -> tuple[float | None, tuple[float, float] | None, str]:
    if name not in choice.gains:
        return None, None, "the epochs' decisions are not known"
    low, high = interval(-choice.gains[name])
    return -choice.optimism[name], (float(low), float(high)), ""


_NO_SIZE = {
    "macro_auroc": f"{BUILT_IN}: AUROC does not depend on the number of positives",
    "macro_f1": "the effect of few positives on F1 has no sign that can be told",
}


def _around(change: float, reps: Array) -> tuple[float, float]:
    """The percentile interval, its middle moved to the change: resamples have a bias of their own."""
    if np.isnan(reps).all():
        return math.nan, math.nan
    low, high = interval(reps - np.nanmean(reps) + change)
    return float(low), float(high)


def _summed(name: str, start: float, steps: Sequence[Step], errors: Sequence[Array]) -> Waterfall:
    expected = steps[-1].after
    confidence = _interval(name, expected, errors[0])
    prediction = _interval(name, expected, errors[0] + errors[1]) if len(errors) > 1 else None
    return Waterfall(name, start, tuple(steps), expected, confidence, prediction)


def _interval(name: str, value: float, errors: Array) -> tuple[float, float]:
    reach = NormalDist().inv_cdf(0.975) * float(np.nanstd(errors, ddof=1))
    if name == "ece":
        return max(value - reach, 0.0), min(value + reach, 1.0)
    low, high = on_logit_scale(value, reach)
    return float(low), float(high)
