"""``decisions.safetensors``: decisions by class name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.artifacts import replacing
from cxrlt_cli.calibration import Calibration
from cxrlt_cli.decisions.fitting import Decisions
from cxrlt_cli.errors import RunError
from cxrlt_cli.logistic import Array

FORMAT = 1


def write_decisions(path: Path, decisions: Decisions) -> None:
    """Write tensors ``map/CLASS``, ``sketch/CLASS`` and ``steps/CLASS``, and one metadata entry ``decisions``."""
    from safetensors.numpy import save_file

    own = decisions.calibration
    tensors: dict[str, Array] = {}
    for c, name in enumerate(decisions.classes):
        numbers = (*own.slopes[c], own.intercepts[c], decisions.thresholds[c], decisions.prevalence[c])
        tensors[f"map/{name}"] = np.array([*numbers, decisions.shift[c]], np.float64)
        tensors[f"sketch/{name}"] = np.ascontiguousarray(decisions.sketch[c])
        if c in own.steps:
            tensors[f"steps/{name}"] = np.ascontiguousarray(own.steps[c])
    columns = {"used": own.used, **{key: getattr(decisions, key) for key in _COUNTS}}
    about = {
        "format": FORMAT,
        "calibration": own.method,
        "threshold": decisions.rule,
        "classes": [
            {"name": name, **{key: values[c] for key, values in columns.items()}}
            for c, name in enumerate(decisions.classes)
        ],
        "provenance": dict(decisions.provenance),
    }
    with replacing(path) as part:
        save_file(tensors, part, metadata={"decisions": json.dumps(about, ensure_ascii=False, sort_keys=True)})


_COUNTS = ("set_by", "positives", "negatives", "patients")


def read_decisions(path: Path) -> Decisions:
    """Read what ``write_decisions`` wrote.

    Raises:
        RunError: the file is missing, damaged, of another program, or of a newer format.
    """
    import safetensors

    cure = "Make it again with `cxrlt decide RUN`."
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["decisions"])
            if about["format"] > FORMAT:
                raise RunError(
                    f"has format {about['format']}, this cxrlt reads up to {FORMAT}",
                    where=str(path),
                    cure="Install a newer cxrlt.",
                )
            return _parsed(about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        raise RunError("there are no decisions", where=str(path), cure=cure) from None
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"is not a readable file of decisions: {error}", where=str(path), cure=cure) from error


def _parsed(about: Mapping[str, Any], tensors: Mapping[str, Array]) -> Decisions:
    rows = about["classes"]
    names = tuple(str(row["name"]) for row in rows)
    numbers = np.array([tensors[f"map/{name}"] for name in names]).reshape(-1, 6)
    _check(names, numbers, tensors)
    steps = {c: tensors[f"steps/{name}"] for c, name in enumerate(names) if f"steps/{name}" in tensors}
    used = tuple(str(row["used"]) for row in rows)
    return Decisions(
        classes=names,
        calibration=Calibration(str(about["calibration"]), used, numbers[:, :2], numbers[:, 2], steps),
        rule=str(about["threshold"]),
        thresholds=numbers[:, 3],
        prevalence=numbers[:, 4],
        shift=numbers[:, 5],
        sketch=tuple(tensors[f"sketch/{name}"] for name in names),
        provenance=dict(about["provenance"]),
        set_by=tuple(str(row["set_by"]) for row in rows),
        positives=tuple(int(row["positives"]) for row in rows),
        negatives=tuple(int(row["negatives"]) for row in rows),
        patients=tuple(int(row["patients"]) for row in rows),
    )


def _check(names: Sequence[str], numbers: Array, tensors: Mapping[str, Array]) -> None:
    """Make sure that nothing in it can fail or mislead later.

    Raises:
        ValueError: something can.
    """
    if len(set(names)) < len(names):
        raise ValueError("a class stands twice in it")
    tables = [values for key, values in tensors.items() if not key.startswith("map/")]
    if not all(np.isfinite(values).all() for values in (numbers, *tables)):
        raise ValueError("a number in it is not finite")
    if not all(values.ndim == 2 and values.shape[1] == 2 and len(values) for values in tables):
        raise ValueError("a table in it has not two columns")
    slopes, threshold, prevalence = numbers[:, :2], numbers[:, 3], numbers[:, 4]
    if not ((slopes > 0).all() and ((threshold >= 0) & (threshold <= 1)).all()):
        raise ValueError("a slope or threshold in it is out of its range")
    if not ((prevalence > 0) & (prevalence < 1)).all():
        raise ValueError("a prevalence in it is not between 0 and 1")
