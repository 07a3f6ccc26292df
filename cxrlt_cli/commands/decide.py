"""``cxrlt decide``: fit the calibration and thresholds of a run on dev, and keep them. Never loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrlt_cli.commands.opening import OpenRun, open_dataset, open_run
from cxrlt_cli.commands.run_decisions import Asked, fit, told
from cxrlt_cli.decisions import Decisions, write_decisions
from cxrlt_cli.errors import CxrltError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.thresholds import parse_rule


def run(
    run: Path | None,
    *,
    calibration: str | None = None,
    threshold: str | None = None,
    data: Path | None = None,
    emit: Emit = silent,
) -> Result:
    """Fit the decisions of a run on dev, anew, and keep them.

    Args:
        run: run directory; None for the newest.
        calibration: a calibration; default: the recipe's.
        threshold: a threshold rule; default: the recipe's.
        data: a dataset whose dev split to take instead; the run's predictions of it must be there.
        emit: told about progress.

    Returns:
        What each class got.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    opened = open_run(run)
    if threshold is not None:
        parse_rule(threshold)
    prepared = open_dataset(opened, data, emit, images=False)
    made = fit(opened, prepared, Asked(calibration, threshold), emit=emit)
    write_decisions(opened.dir.decisions, made)
    return _result(opened, made)


def after_training(run_dir: Path, emit: Emit = silent) -> None:
    """Fit and keep the decisions of a run that has just been finished; a warning says why where that cannot be."""
    try:
        opened = open_run(run_dir)
        write_decisions(opened.dir.decisions, fit(opened, open_dataset(opened, None, emit, images=False)))
    except CxrltError as error:
        emit(Notice(f"no calibration and thresholds were fitted: {told(error)}", "warning"))


# -- what is said --------------------------------------------------------------------------------------------------


def _result(run: OpenRun, made: Decisions) -> Result:
    path = run.dir.decisions
    order = sorted(range(len(made.classes)), key=lambda c: -run.card.positives[c])
    rows = tuple(
        (
            made.classes[c],
            f"{run.card.positives[c]:,}",
            f"{made.positives[c]:,}",
            made.calibration.used[c],
            f"{made.prevalence[c]:.4f}",
            f"{made.thresholds[c]:.4f}",
            made.set_by[c],
        )
        for c in order
    )
    about = made.provenance
    text = (
        f"{run.dir.path}: calibration {made.calibration.method}, threshold {made.rule}, fitted on "
        f"{about['images']:,} images of {about['split']}"
    )
    columns = ("class", "train", "pos.", "calibration", "expected", "threshold", "set by")
    note = f"train, pos.: positives in training and among these images; expected: {_expected(made)}"
    data = {"run": str(run.dir.path), "decisions": str(path), **summary(made)}
    return Result(
        data, (Table(columns, rows, title=text, note=note), Table(("wrote", ""), (("decisions", str(path)),)))
    )


def _expected(made: Decisions) -> str:
    """What the share of positives is that the posteriors hold for."""
    moves = made.calibration.method not in ("none", "temperature")
    return "mean calibrated posterior" if moves else "share of positives in training, which these posteriors hold for"


def summary(decisions: Decisions) -> dict[str, Any]:
    """The decisions as JSON has them."""
    own = decisions.calibration
    classes = [
        {
            "name": name,
            "positives": decisions.positives[c],
            "negatives": decisions.negatives[c],
            "patients": decisions.patients[c],
            "calibration": own.used[c],
            "slopes": own.slopes[c].tolist(),
            "intercept": float(own.intercepts[c]),
            "prevalence": float(decisions.prevalence[c]),
            "threshold": float(decisions.thresholds[c]),
            "set_by": decisions.set_by[c],
        }
        for c, name in enumerate(decisions.classes)
    ]
    about: Mapping[str, Any] = decisions.provenance
    return {"calibration": own.method, "threshold": decisions.rule, "fitted_on": dict(about), "classes": classes}
