"""``cxrlt predict``: logits, posteriors and decisions for image files or for a split of the run's dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.artifacts import Predictions, writable_directory, write_predictions
from cxrlt_cli.commands.forward import How, Passed, forward
from cxrlt_cli.commands.opening import OpenRun, open_link, open_run, stamp
from cxrlt_cli.commands.prediction_table import PredictionTable, overview, write_table
from cxrlt_cli.commands.run_decisions import Asked, decisions_of, plain
from cxrlt_cli.commands.target_prevalence import Target, parse_target
from cxrlt_cli.commands.work import Work, from_files, from_split
from cxrlt_cli.decisions import Decisions
from cxrlt_cli.errors import UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.submission import check_classes, write_submission
from cxrlt_cli.thresholds import parse_rule

#: Unreadable files named one by one on the screen.
NAMED = 20


def run(
    run: Path | None,
    inputs: Sequence[Path],
    *,
    split: str | None = None,
    tta: str | None = None,
    force: bool = False,
    out: Path | None = None,
    submission: bool = False,
    data: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    calibration: str | None = None,
    threshold: str | None = None,
    target_prevalence: str | None = None,
    emit: Emit = silent,
) -> Result:
    """Predict image files, or a split.

    Args:
        run: run directory; None for the newest.
        inputs: files and folders; empty with ``split``.
        split: "train", "dev" or "test" of the run's dataset; its logits are kept in the run directory.
        tta: a plugin of ``cxrlt.tta``, or "auto" for the one that is worth its cost on dev; default: the recipe's.
        force: also use views the training never saw.
        out: CSV or Parquet file to write; default: the result carries everything.
        submission: write the form of CXR-LT 2026 instead of the ordinary table.
        data: the dataset of ``split``, if it has moved or is another one.
        device: "auto", "cpu", "cuda" or "cuda:K".
        batch_size: images a forward pass; default: as in the recipe.
        calibration: fitted on dev now and used instead of what the run keeps.
        threshold: a threshold rule, likewise.
        target_prevalence: how frequent findings are among these images: ``estimate``, ``CLASS=VALUE,...`` or a file;
            posteriors are moved there, and thresholds set anew.
        emit: told about progress.

    Returns:
        What was found and written; its ``code`` is 3 when files were unreadable, which are named and left out.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    _check_request(inputs, split, out, submission, data)
    opened = open_run(run)
    asked = Asked(calibration, str(parse_rule(threshold)) if threshold is not None else None)
    target = parse_target(target_prevalence, opened.card.classes) if target_prevalence is not None else None
    if submission:
        check_classes(opened.card.classes, str(opened.dir.path))
    with ExitStack() as stack:
        work = from_split(opened, split, data, emit) if split else from_files(opened, inputs, stack)
        if out is not None:
            writable_directory(out.absolute().parent)
        if target is not None:
            target.check(len(work.rows))
        passed = forward(opened, work, How(tta, force, data, device, batch_size), emit)
    kept = _keep(opened, work, passed)
    decisions = decisions_of(opened, asked, tta=passed.tta, data=data, emit=emit) or plain(opened)
    table, decisions = _decided(opened, passed.predictions, decisions, target)
    if out is not None:
        _write(out, table, submission)
    _warn(work, submission, emit)
    result = _result(opened, work, table, {"predictions": kept, "table": out}, passed.tta)
    more = _about(decisions, target is not None) | ({"tta_choice": passed.choice.data} if passed.choice else {})
    return replace(result, data={**result.data, **more})


def _check_request(
    inputs: Sequence[Path], split: str | None, out: Path | None, submission: bool, data: Path | None
) -> None:
    if bool(inputs) == bool(split):
        what = "files and --split are both given" if inputs else "there is nothing to predict"
        raise UsageError(what, cure="Give image files or folders, or a split of the run's dataset with --split.")
    if data is not None and not split:
        raise UsageError("--data names the dataset of a split", cure="Give --split as well, or leave --data out.")
    if submission and out is None:
        raise UsageError("--submission needs a file to write", cure="Give it with -o FILE.csv.")
    if out is None:
        return
    endings = (".csv",) if submission else (".csv", ".parquet")
    if out.suffix.lower() not in endings:
        raise UsageError("the name of the file says no format that is known", where=str(out), cure=_end_in(endings))
    if out.is_dir():
        raise UsageError("is a directory", where=str(out), cure="Give the name of a file.")


def _end_in(endings: Sequence[str]) -> str:
    return f"Let it end in {' or '.join(endings)}."


def _keep(run: OpenRun, work: Work, passed: Passed) -> Path | None:
    """Keep the logits of a split in the run directory; the file, or None where the images are not a split's."""
    if work.prepared is None:
        return None
    kept = run.predictions(work.prepared, work.split, passed.tta)
    write_predictions(kept, passed.predictions)
    stamp(kept, run.card, passed.tta)
    return kept


def _write(out: Path, table: PredictionTable, submission: bool) -> None:
    if submission:
        write_submission(out, table.image_id, table.classes, table.posteriors)
    else:
        write_table(out, table)


# -- posteriors and decisions --------------------------------------------------------------------------------------


def _decided(
    run: OpenRun, made: Predictions, decisions: Decisions, target: Target | None
) -> tuple[PredictionTable, Decisions]:
    """The table, and the decisions it was made with: those for the prevalence that was asked for."""
    link = open_link(run)
    log_odds = link.log_odds_of(made.logits) if link is not None else made.logits.astype(np.float64)
    used = decisions if target is None else target.apply(decisions, log_odds)
    posteriors = used.calibrated(log_odds)
    return PredictionTable(made.image_id, made.classes, made.logits, posteriors, used.thresholds), used


def _about(decisions: Decisions, moved: bool) -> dict[str, Any]:
    """What posteriors and decisions rest on, as JSON."""
    about: dict[str, Any] = {
        "calibration": decisions.calibration.method,
        "threshold_rule": decisions.rule,
        "fitted_on": dict(decisions.provenance) or None,
    }
    shares = dict(zip(decisions.classes, decisions.prevalence.tolist(), strict=True))
    return {**about, "target_prevalence": shares} if moved else about


# -- what is said --------------------------------------------------------------------------------------------------


def _warn(work: Work, submission: bool, emit: Emit) -> None:
    """Name the unreadable files."""
    bad = sorted(work.unreadable)
    for row in bad[:NAMED]:
        emit(Notice(f"{work.image_id[row]} {work.unreadable[row]}; left out", "warning"))
    if len(bad) > NAMED:
        emit(Notice(f"and {len(bad) - NAMED} more unreadable files; --json names them all", "warning"))
    if bad and submission:
        emit(Notice(f"the submission lacks {len(bad)} of the {len(work.rows)} images asked for", "warning"))


def _result(run: OpenRun, work: Work, table: PredictionTable, files: Mapping[str, Path | None], tta: str) -> Result:
    data: dict[str, Any] = {
        "run": str(run.dir.path),
        "images": len(table.image_id),
        "unreadable": {work.image_id[row]: work.unreadable[row] for row in sorted(work.unreadable)},
        "tta": tta,
        "linked": run.card.linked,
    }
    written = {key: str(path) for key, path in files.items() if path is not None}
    lost = f", {len(work.unreadable)} unreadable" if work.unreadable else ""
    views = f", test-time augmentation {tta!r}" if tta != "none" else ""
    noun = "image" if len(table.image_id) == 1 else "images"
    text = f"{len(table.image_id):,} {noun}{lost}, {len(table.classes)} classes, run {run.dir.path}{views}"
    blocks: list[Table | str] = [text] if files["table"] is not None else [overview(table), text]
    if written:
        blocks.append(Table(("wrote", ""), tuple(written.items())))
    full = {} if files["table"] is not None else table.data()
    return Result({**data, **written, **full}, tuple(blocks), code=3 if work.unreadable else 0)
