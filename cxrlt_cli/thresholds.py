"""Thresholds: from which posterior on a finding is called present, class by class.

Rules, as users write them:

==========================  ==========================================================================================
``0.5`` or another number   the same threshold for all classes
``expected-f1``             the optimum of F1 under the posteriors themselves; needs no labels
``searched-f1``             the optimum of F1 on the labels; only from ``ENOUGH_TO_SEARCH`` positives
``prevalence``              as many positive decisions as there are positives
``target-recall=R``         recall R or more
``target-precision=P``      precision P or more
==========================  ==========================================================================================

**Expected F1.** With calibrated posteriors p, the k images of the largest posteriors hold ``S_k = p_1 + ... + p_k``
positives on average, and F1 is about ``2 S_k / (k + S_N)``. At its largest value F*, an image is worth calling
positive exactly when p >= F*/2 (Lipton, Elkan and Narayanaswamy, arXiv 1402.1892), so that is the threshold. A search
over labels chases the few positives there are: with five of them it promises three times what it keeps on new images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.errors import UsageError
from cxrlt_cli.logistic import Array

Labels = npt.NDArray[np.int8]

#: Positives from which a search over labels keeps what it promises; a class with fewer gets expected-f1.
ENOUGH_TO_SEARCH = 150
#: Positives from which labels have a say in target-precision.
ENOUGH_FOR_PRECISION = 20

PLAIN = ("expected-f1", "searched-f1", "prevalence")
TARGETS = ("target-recall", "target-precision")


@dataclass(frozen=True, slots=True)
class Rule:
    """How thresholds are set.

    Attributes:
        name: "fixed", or one of ``PLAIN`` and ``TARGETS``.
        value: the fixed threshold, or the target; nan for the others.
    """

    name: str
    value: float = float("nan")

    def __str__(self) -> str:
        """As users write it."""
        if self.name in PLAIN:
            return self.name
        return f"{self.value:g}" if self.name == "fixed" else f"{self.name}={self.value:g}"


def parse_rule(text: str | float) -> Rule:
    """The rule in ``0.3``, ``expected-f1``, ``target-recall=0.9`` and so on.

    Raises:
        UsageError: there is no such rule, or its number is not between 0 and 1.
    """
    name, equals, number = str(text).strip().partition("=")
    if not equals and name in PLAIN:
        return Rule(name)
    if equals and name in TARGETS:
        return Rule(name, _share(number, str(text)))
    if equals or not name[:1].replace(".", "0").isdigit():
        raise UsageError(
            f"there is no threshold rule {str(text)!r}",
            where="--threshold",
            cure=f"There are {', '.join(PLAIN)}, target-recall=0.9, target-precision=0.5, and numbers such as 0.5.",
        )
    return Rule("fixed", _share(name, str(text)))


def _share(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise UsageError(
            f"{text!r} is not a number between 0 and 1", where=f"--threshold {whole}", cure="Write it as 0.5."
        )
    return value


def fit_thresholds(labels: Labels, posteriors: Array, rule: Rule) -> tuple[Array, tuple[str, ...]]:
    """Set the thresholds of C classes.

    Args:
        labels: (N, C): 1, 0, or -1 where unknown; unknown entries are left out, except by a class that has no others.
        posteriors: (N, C) in [0, 1], calibrated.
        rule: how.

    Returns:
        Thresholds (C,), for ``posterior >= threshold``; and what set each of them: the rule, or what took its place
        ("expected-f1" where labels are too few to search, "posteriors" where a target was met by posteriors alone,
        "unreachable" where nothing meets it: the threshold is then 1).
    """
    fitted = [_one(labels[:, c], posteriors[:, c], rule) for c in range(labels.shape[1])]
    return np.array([value for value, _ in fitted], dtype=np.float64), tuple(how for _, how in fitted)


def _one(labels: Labels, posteriors: Array, rule: Rule) -> tuple[float, str]:
    if rule.name == "fixed":
        return rule.value, str(rule)
    known = labels != UNKNOWN
    chosen = known if known.any() else np.ones(len(labels), bool)
    positive, p = labels[chosen] == 1, posteriors[chosen]
    if not len(p):
        return 0.5, "0.5"
    if rule.name in _BY_LABELS:
        return _BY_LABELS[rule.name](positive, p, rule)
    if rule.name == "searched-f1" and positive.sum() >= ENOUGH_TO_SEARCH:
        return searched_f1(positive, p), rule.name
    return expected_f1(p), "expected-f1"


# -- F1 ------------------------------------------------------------------------------------------------------------


def expected_f1(posteriors: Array, weights: Array | None = None) -> float:
    """The threshold F*/2 that maximises ``2 S_k / (k + S_N)``, see the module; images may have weights.

    Args:
        posteriors: (N,) in [0, 1], N >= 1.
        weights: (N,) >= 0, how many images each stands for; default 1.

    Returns:
        In (0, 0.5]; 0.5 where every posterior is 0.
    """
    order = np.argsort(-posteriors, kind="stable")
    weight = np.ones(len(posteriors)) if weights is None else weights[order]
    found = np.cumsum(weight * posteriors[order])
    called = np.cumsum(weight)
    if found[-1] <= 0:
        return 0.5
    return float((found / (called + found[-1])).max())


def searched_f1(positive: npt.NDArray[np.bool_], posteriors: Array) -> float:
    """The threshold of the largest F1 on labels, over every distinct posterior; of equals the highest.

    Args:
        positive: (N,) labels, at least one true.
        posteriors: (N,)

    Returns:
        The middle between the lowest posterior that is called positive and the next one below it.
    """
    levels, called, found = _levels(positive, posteriors)
    best = int((2 * found / (called + found[-1])).argmax())
    return _between(levels, best)


def _levels(
    positive: npt.NDArray[np.bool_], posteriors: Array
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct posteriors, falling; images at or above each; positives among them."""
    order = np.argsort(-posteriors, kind="stable")
    falling = posteriors[order]
    ends = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    return falling[ends], ends + 1, np.cumsum(positive[order], dtype=np.int64)[ends]


def _between(levels: Array, place: int) -> float:
    """A threshold that calls the levels down to ``place`` positive and the next one not."""
    if place + 1 == len(levels):
        return float(levels[place])
    middle = (levels[place] + levels[place + 1]) / 2
    return float(middle if middle > levels[place + 1] else levels[place])


# -- prevalence, recall, precision ---------------------------------------------------------------------------------


def _prevalence(positive: npt.NDArray[np.bool_], posteriors: Array, rule: Rule) -> tuple[float, str]:
    """As many decisions as positives, as nearly as ties allow; without positives, as many as the posteriors expect."""
    count = int(positive.sum())
    wanted, how = (count, rule.name) if count else (float(posteriors.sum()), "posteriors")
    levels, called, _ = _levels(positive, posteriors)
    place = int(np.abs(np.append(0, called) - wanted).argmin())
    return (_between(levels, place - 1) if place else _above(levels[0])), how


def _above(level: float) -> float:
    """A threshold that the largest posterior does not reach, with room for images a little surer than it."""
    return float((1 + level) / 2 if level < 1 else 1.0)


def _recall(positive: npt.NDArray[np.bool_], posteriors: Array, rule: Rule) -> tuple[float, str]:
    """The r-th lowest posterior of n positives, r = floor((1 - R)(n + 1)).

    A new positive of the same kind then lies at or above it with probability R at least (split conformal prediction,
    Vovk et al. 2005). Where n is too small for that (r = 0), the posteriors decide: the highest threshold above which
    they expect a share R of all positives.
    """
    found = np.sort(posteriors[positive])
    place = int(np.floor((1 - rule.value) * (len(found) + 1) + 1e-9))
    if place:
        return float(found[place - 1]), str(rule)
    return recall_by_posteriors(posteriors, rule.value), "posteriors"


def _precision(positive: npt.NDArray[np.bool_], posteriors: Array, rule: Rule) -> tuple[float, str]:
    """The lowest threshold at which the mean posterior of the images above it is P, and so is the precision on labels.

    On labels one false positive is added, TP / (TP + FP + 1), since the threshold is picked where they look best. They
    are asked from ``ENOUGH_FOR_PRECISION`` positives on; below, the posteriors decide alone.
    """
    levels, called, found = _levels(positive, posteriors)
    counts = np.diff(called, prepend=0)
    good = np.cumsum(levels * counts) / called >= rule.value
    asked = found[-1] >= ENOUGH_FOR_PRECISION
    if asked:
        good &= found / (called + 1) >= rule.value
    places = np.flatnonzero(good)
    if not len(places):
        return 1.0, "unreachable"
    return _between(levels, int(places[-1])), str(rule) if asked else "posteriors"


_BY_LABELS = {"prevalence": _prevalence, "target-recall": _recall, "target-precision": _precision}


# -- from posteriors alone -----------------------------------------------------------------------------------------


def recall_by_posteriors(posteriors: Array, target: float, weights: Array | None = None) -> float:
    """The highest threshold above which the posteriors (N,) expect a share ``target`` of all positives."""
    order = np.argsort(-posteriors, kind="stable")
    weight = np.ones(len(posteriors)) if weights is None else weights[order]
    found = np.cumsum(weight * posteriors[order])
    return float(posteriors[order][min(int(np.searchsorted(found, target * found[-1] - 1e-12)), len(order) - 1)])


def precision_by_posteriors(posteriors: Array, target: float, weights: Array | None = None) -> float:
    """The lowest threshold above which the mean posterior is ``target``; 1 where none is."""
    order = np.argsort(-posteriors, kind="stable")
    weight = np.ones(len(posteriors)) if weights is None else weights[order]
    means = np.cumsum(weight * posteriors[order]) / np.maximum(np.cumsum(weight), 1e-300)
    places = np.flatnonzero(means >= target)
    return float(posteriors[order][places[-1]]) if len(places) else 1.0


def prevalence_by_posteriors(posteriors: Array, share: float, weights: Array | None = None) -> float:
    """The threshold that the given share of images reaches, as nearly as their posteriors allow."""
    order = np.argsort(-posteriors, kind="stable")
    weight = np.ones(len(posteriors)) if weights is None else weights[order]
    called = np.cumsum(weight) / weight.sum()
    place = int(np.abs(np.append(0, called) - share).argmin())
    return float(posteriors[order][place - 1]) if place else _above(float(posteriors[order][0]))
