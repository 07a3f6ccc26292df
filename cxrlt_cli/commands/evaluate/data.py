"""What an evaluation says to programs: every figure with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxrlt_cli.bootstrap import Difference, Replicates, Resampled
from cxrlt_cli.commands.evaluate.compare import Comparison
from cxrlt_cli.commands.evaluate.scored import Scored
from cxrlt_cli.metrics import Evaluation
from cxrlt_cli.report.contents import Subset

#: Figures that tell what calibration changed.
_CALIBRATION = (
    "macro_f1_at_half",
    "micro_f1_at_half",
    "ece",
    "macro_ece",
    "macro_brier",
    "macro_slope",
    "macro_intercept",
)


def of_scored(one: Scored) -> dict[str, Any]:
    """Everything about one set of predictions."""
    made: dict[str, Any] = {**one.of.about, **one.result.to_json()}
    made["patients"] = len(set(one.of.owners))
    if one.replicates is not None:
        made |= _intervals(one.result, one.replicates)
        for c, row in enumerate(made["classes"]):
            row.update(_class_intervals(one.result, one.replicates, c))
    if one.before is not None:
        made["before_calibration"] = {name: _number(one.before.overall[name]) for name in _CALIBRATION}
    if one.before is not None and one.before_replicates is not None:
        drawn = {name: one.before_replicates.overall[name] for name in _CALIBRATION}
        made["before_calibration_intervals"] = _pairs(one.before.overall, drawn)
    made["subsets"] = [_of_subset(subset) for subset in one.subsets]
    return made


def _intervals(result: Evaluation, reps: Replicates) -> dict[str, Any]:
    groups = {
        group: _pairs({name: values[name] for name in reps.groups[group]}, reps.groups[group])
        for group, values in result.groups.items()
    }
    return {
        "intervals": _pairs(result.overall, reps.overall),
        "group_intervals": groups,
        "bias": _bias(reps.overall),
        "group_bias": {group: _bias(reps.groups[group]) for group in groups},
    }


def _bias(reps: Mapping[str, Resampled]) -> dict[str, float]:
    return {name: float(drawn.bias) for name, drawn in reps.items() if drawn.bias}


def _pairs(points: Mapping[str, float], reps: Mapping[str, Resampled]) -> dict[str, list[float | None]]:
    return {name: [_number(end) for end in drawn.interval(points[name])] for name, drawn in reps.items()}


def _class_intervals(result: Evaluation, reps: Replicates, c: int) -> dict[str, Any]:
    points = {name: values[c] for name, values in result.per_class.items()}
    columns = {name: drawn[c] for name, drawn in reps.per_class.items()}
    undefined = {name: float(np.isnan(drawn.values).mean()) for name, drawn in columns.items()}
    return {
        "intervals": _pairs(points, columns),
        "undefined_resamples": {name: share for name, share in undefined.items() if share},
    }


def _of_subset(subset: Subset) -> dict[str, Any]:
    made: dict[str, Any] = {"by": subset.by, "value": subset.value, "images": subset.images}
    made |= {"patients": subset.patients, "overall": subset.result.summary()}
    if subset.replicates is not None:
        made["intervals"] = _pairs(subset.result.overall, subset.replicates.overall)
        made["bias"] = _bias(subset.replicates.overall)
    made["undefined"] = {name: list(classes) for name, classes in subset.result.undefined.items()}
    return made


def of_comparison(one: Comparison) -> dict[str, Any]:
    """Every difference of two sets of predictions."""
    return {
        "run": one.first.of.path,
        "minus": one.second.of.path,
        "overall": {name: _difference(found) for name, found in one.overall.items()},
        "groups": {
            group: {name: _difference(found) for name, found in figures.items()}
            for group, figures in one.groups.items()
        },
        "classes": [
            {"name": name} | {figure: _of_class(one, figure, place) for figure in one.per_class}
            for place, name in enumerate(one.classes)
        ],
    }


def _of_class(one: Comparison, figure: str, place: int) -> dict[str, float | None]:
    found = one.per_class[figure]
    parts = Difference(found.value[place], found.low[place], found.high[place], found.p[place], found.detectable[place])
    return _difference(parts) | {"p_holm": _number(one.adjusted[figure][place])}


def _difference(found: Difference) -> dict[str, float | None]:
    names = ("value", "low", "high", "p", "detectable")
    return {name: _number(getattr(found, name)) for name in names}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def everything(scored: Sequence[Scored], compared: Sequence[Comparison]) -> dict[str, Any]:
    """The runs and their differences."""
    return {"runs": [of_scored(one) for one in scored], "comparisons": [of_comparison(one) for one in compared]}
