"""What combining gains, out of fold, and how much the members differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.bootstrap import Replicates, paired, replicates
from cxrlt_cli.combine import CrossCombined, diversity
from cxrlt_cli.commands.ensemble.members import Ready
from cxrlt_cli.events import Advanced, Emit, Finished, Started
from cxrlt_cli.metrics import auroc, average_precision, mean_defined

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int8]

#: Figures that are compared.
FIGURES = {"macro_ap": average_precision, "macro_auroc": auroc}
#: What the ensemble is compared with: key -> what it is called.
RIVALS = {"single": "best single member", "mean": "plain mean"}
_STAGE = "bootstrap"


@dataclass(frozen=True, slots=True)
class Resampling:
    """How many resamples of the patients are drawn, 0 for none, and their seed."""

    resamples: int = 1000
    seed: int = 0


def macro_figures(labels: Labels, scores: Array) -> dict[str, float | None]:
    """Macro AP and AUROC; None where undefined."""
    return {name: _number(_macro(name, labels, scores)) for name in FIGURES}


def _macro(name: str, labels: Labels, scores: Array) -> float:
    return float(mean_defined(FIGURES[name](labels, scores)))


def compare(
    members: Ready, made: CrossCombined, method: str, how: Resampling, emit: Emit
) -> dict[str, dict[str, dict[str, float | None]]]:
    """The ensemble minus each rival, all of them out of fold, in the same resamples of the patients.

    The best single member is the one that was best on the other folds, chosen for each fold anew.

    Returns:
        rival -> figure -> "ensemble", "rival", "difference", and with resamples "low", "high", "p", "detectable";
        None where undefined. The plain mean is no rival of itself.
    """
    scores = {"ensemble": made.judged, "single": made.single} | ({} if method == "mean" else {"mean": made.mean})
    drawn = _drawn(members, scores, how, emit)
    return {
        rival: {name: _difference(members.labels, scores, drawn, rival, name) for name in FIGURES}
        for rival in scores
        if rival != "ensemble"
    }


def _drawn(members: Ready, scores: dict[str, Array], how: Resampling, emit: Emit) -> dict[str, Replicates]:
    if not how.resamples:
        return {}
    owners = [name or f"\0{image}" for name, image in zip(members.patients, members.image_id, strict=True)]
    emit(Started(_STAGE, how.resamples * len(scores), unit="resamples"))
    drawn = {}
    for place, (name, own) in enumerate(scores.items()):

        def tell(done: int, before: int = place * how.resamples) -> None:
            emit(Advanced(_STAGE, before + done))

        drawn[name] = replicates(members.labels, own, owners, resamples=how.resamples, seed=how.seed, progress=tell)
    emit(Finished(_STAGE))
    return drawn


def _difference(
    labels: Labels, scores: dict[str, Array], drawn: dict[str, Replicates], rival: str, name: str
) -> dict[str, float | None]:
    ours, theirs = (_macro(name, labels, scores[which]) for which in ("ensemble", rival))
    found = {"ensemble": ours, "rival": theirs, "difference": ours - theirs}
    if drawn:
        tested = paired(ours, theirs, drawn["ensemble"].overall[name], drawn[rival].overall[name])
        found |= {key: float(getattr(tested, key)) for key in ("low", "high", "p", "detectable")}
    return {key: _number(value) for key, value in found.items()}


def differences(members: Ready) -> list[dict[str, Any]]:
    """How much every pair of members differs, as JSON."""
    return [
        {
            "first": members.names[pair.first],
            "second": members.names[pair.second],
            "correlation": _number(pair.correlation),
            "disagreement": _number(pair.disagreement),
            "called_by_one": _number(pair.called_by_one),
        }
        for pair in diversity(members.log_odds, members.called)
    ]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
