"""Which test-time augmentation is worth its cost: the rule, and what following it gains on patients it has not seen.

The rule: a strategy is **credible** when its gain in macro AP over the plain images, paired by image, has an interval
above 0 and a p value below 5 % after Holm's correction for the number of strategies tried. Of the credible ones, the
one with the fewest views is chosen over which the best of them has no credible gain itself: a dearer strategy has to
show that it is better. Without a credible one, the plain images are chosen.

The gain of the chosen strategy flatters it, since it was chosen for it. So the rule is followed once for each fold of
the patients, on the other folds, and the images of the fold take the strategy chosen there: the gain of these
cross-fitted outputs is what following the rule is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Difference, Resampled, holm, paired, replicates
from cxrlt_cli.decisions import patient_codes, patient_folds
from cxrlt_cli.metrics import average_precision, mean_defined

Labels = npt.NDArray[np.int8]
Scores = Mapping[str, npt.NDArray[np.float32]]
Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_]

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """One strategy on all images.

    Attributes:
        views: passes an image costs.
        score: macro AP.
        gain: over the plain images; None for these.
        p: Holm's adjusted p value of the gain; 1 for the plain images.
    """

    views: int
    score: float
    gain: Difference | None
    p: float

    @property
    def credible(self) -> bool:
        """Whether it is better than the plain images, as far as chance allows to say."""
        return self.gain is not None and bool(self.gain.low > 0) and self.p < LEVEL


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rule says.

    Attributes:
        name: the chosen strategy.
        trials: every strategy by name.
        gain: of the cross-fitted outputs over the plain images; its interval takes the choices as given.
        by_fold: what was chosen without each fold.
    """

    name: str
    trials: Mapping[str, Trial]
    gain: Difference
    by_fold: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Macro AP of one set of outputs: on all images, and in resamples."""

    point: float
    resampled: Resampled

    def over(self, other: _Measured) -> Difference:
        return paired(self.point, other.point, self.resampled, other.resampled)


def choose(
    labels: Labels,
    logits: Scores,
    views: Mapping[str, int],
    patients: Sequence[str],
    *,
    plain: str = "none",
    folds: int = 5,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Choice:
    """Choose among strategies by their outputs on labelled images.

    Args:
        labels: (N, C): 1, 0, -1 where unknown.
        logits: (N, C) by strategy, the plain images among them.
        views: passes an image costs, by strategy.
        patients: N names; the images of one are resampled, and folded, together.
        plain: the strategy that is the images as they are.
        folds: for the cross-fitted gain; as many as there are patients, where that is fewer.
        resamples: of the patients, for each comparison.
        seed: of resamples and folds.
        progress: told how many measurements of ``measurements(len(logits), folds)`` are done.

    Raises:
        DataError: there is one patient only.
    """
    done = 0

    def measure(outputs: npt.NDArray[np.float32], rows: Rows) -> _Measured:
        nonlocal done
        point = float(mean_defined(average_precision(labels[rows], outputs[rows])))
        made = replicates(labels[rows], outputs[rows], codes[rows], resamples=resamples, seed=seed)
        done += 1
        if progress is not None:
            progress(done)
        return _Measured(point, made.overall["macro_ap"])

    codes, fold = patient_codes(patients), patient_folds(labels, patients, folds, seed)
    everything = np.ones(len(labels), bool)
    measured = {name: measure(outputs, everything) for name, outputs in logits.items()}
    trials = _trials(measured, views, plain)
    by_fold, crossed = [], logits[plain].copy()
    for part in range(int(fold.max()) + 1):
        others = {name: measure(outputs, fold != part) for name, outputs in logits.items()}
        by_fold.append(_follow_rule(others, _trials(others, views, plain), plain))
        crossed[fold == part] = logits[by_fold[-1]][fold == part]
    gain = measure(crossed, everything).over(measured[plain])
    return Choice(_follow_rule(measured, trials, plain), trials, gain, tuple(by_fold))


def measurements(strategies: int, folds: int = 5) -> int:
    """How many bootstraps ``choose`` makes, at most."""
    return strategies * (folds + 1) + 1


def _trials(measured: Mapping[str, _Measured], views: Mapping[str, int], plain: str) -> dict[str, Trial]:
    gains = {name: one.over(measured[plain]) for name, one in measured.items() if name != plain}
    adjusted = dict(zip(gains, holm([gain.p for gain in gains.values()]).tolist(), strict=True))
    return {
        name: Trial(views[name], one.point, gains.get(name), adjusted.get(name, 1.0)) for name, one in measured.items()
    }


def _follow_rule(measured: Mapping[str, _Measured], trials: Mapping[str, Trial], plain: str) -> str:
    credible = [name for name, trial in trials.items() if trial.credible]
    if not credible:
        return plain
    best = max(credible, key=lambda name: (trials[name].score, -trials[name].views))
    as_good = [name for name in credible if name == best or not measured[best].over(measured[name]).low > 0]
    return min(as_good, key=lambda name: (trials[name].views, -trials[name].score))
