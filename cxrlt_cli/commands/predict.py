"""``cxrlt predict``: logits, posteriors and decisions for image files or for a split of the run's dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.artifacts import writable_directory, write_predictions
from cxrlt_cli.commands.forward import How, Passed, forward
from cxrlt_cli.commands.opening import OpenRun, open_link, open_run, stamp
from cxrlt_cli.commands.prediction_table import PredictionTable, overview, write_table
from cxrlt_cli.commands.run_decisions import Asked, chosen_on, decisions_of, kept_cross_fitted, plain
from cxrlt_cli.commands.strategies import AUTO
from cxrlt_cli.commands.target_prevalence import Target, parse_target
from cxrlt_cli.commands.work import Work, from_files, from_split
from cxrlt_cli.decisions import Decisions
from cxrlt_cli.errors import RunError, UsageError
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
        data: the dataset of ``split``, if it has moved or is another one; with files, where that of training is now,
            for what is chosen or fitted on its dev split.
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
    from_dev = tta == AUTO or calibration is not None or threshold is not None
    _check_inputs(inputs, split, None if from_dev else data)
    _check_out(out, submission)
    opened = open_run(run)
    asked = Asked(calibration, str(parse_rule(threshold)) if threshold is not None else None)
    target = parse_target(target_prevalence, opened.card.classes) if target_prevalence is not None else None
    if submission:
        check_classes(opened.card.classes, str(opened.dir.path))
    with ExitStack() as stack:
        work = from_split(opened, split, data, emit) if split else from_files(opened, inputs, stack)
        _check_before(work, out, target)
        passed = forward(opened, work, How(tta, force, data, device, batch_size), emit)
    kept = _keep(opened, work, passed, emit)
    decisions = decisions_of(opened, asked, tta=passed.tta, data=data, emit=emit) or plain(opened)
    made = _made(opened, passed, decisions, target, emit)
    if out is not None:
        _write(out, made.table, submission)
    _warn(work, submission, emit)
    return _result(opened, work, made, {"predictions": kept, "table": out})


def _check_inputs(inputs: Sequence[Path], split: str | None, data: Path | None) -> None:
    if bool(inputs) == bool(split):
        what = "files and --split are both given" if inputs else "there is nothing to predict"
        raise UsageError(what, cure="Give image files or folders, or a split of the run's dataset with --split.")
    if data is not None and not split:
        raise UsageError("--data names the dataset of a split", cure="Give --split as well, or leave --data out.")
    for path in inputs:
        _check_no_run(path)


def _check_no_run(path: Path) -> None:
    """Refuse weights and folders with parts of a run: they were meant as the run."""
    cure = (
        "`cxrlt predict` takes a whole run directory: copy it again, with run.json and recipe.resolved.yaml, or train "
        "again. In Python, `load_model` reads weights alone; see 'Use a model elsewhere' in docs/howto.md."
    )
    if path.suffix == ".safetensors" and path.is_file():
        whole = (path.parent / "run.json").is_file()
        named = f"Name its run directory: `cxrlt predict {path.parent} ...`."
        raise UsageError("is a file of weights, no image", where=str(path), cure=named if whole else cure)
    parts = ("model.safetensors", "ensemble.safetensors", "recipe.resolved.yaml", "metrics.jsonl")
    if any((path / part).is_file() for part in parts) and not (path / "run.json").is_file():
        raise RunError("is a run directory without its run.json", where=str(path), cure=cure)


def _check_out(out: Path | None, submission: bool) -> None:
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


def _check_before(work: Work, out: Path | None, target: Target | None) -> None:
    """Find out before the work whether its result can be written and used."""
    if out is not None:
        writable_directory(out.absolute().parent)
    if target is not None:
        target.check(len(work.rows))


# -- what is written -----------------------------------------------------------------------------------------------


def _keep(run: OpenRun, work: Work, passed: Passed, emit: Emit) -> Path | None:
    """Keep the logits of a split in the run directory; the file, or None where nothing was kept.

    Where labels of dev had a say in the head, the dev predictions that came with it are cross-fitted and cannot be made
    again: they stay.
    """
    if work.prepared is None:
        return None
    kept = run.predictions(work.prepared, work.split, passed.tta)
    if chosen_on(run, work.prepared, work.split):
        seen = f"{run.dir.path}: the head was chosen by the labels of {work.split}, so that it looks too good there"
        if kept_cross_fitted(run, work.prepared, work.split, passed.tta):
            emit(Notice(f"{seen}; {kept} holds cross-fitted predictions, and stays as it is"))
            return None
        emit(Notice(f"{seen}, and {kept} is not cross-fitted", "warning"))
    write_predictions(kept, passed.predictions)
    stamp(kept, run.card, passed.tta)
    return kept


def _write(out: Path, table: PredictionTable, submission: bool) -> None:
    if submission:
        write_submission(out, table.image_id, table.classes, table.posteriors)
    else:
        write_table(out, table)


# -- posteriors and decisions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """What came of it.

    Attributes:
        table: logits, posteriors and decisions.
        passed: how the logits were made.
        before: the decisions of the run.
        used: those the table was made with: the same, or those for the prevalence that was asked for.
    """

    table: PredictionTable
    passed: Passed
    before: Decisions
    used: Decisions

    @property
    def moved(self) -> bool:
        """Whether posteriors are for another prevalence."""
        return self.used is not self.before


def _made(run: OpenRun, passed: Passed, decisions: Decisions, target: Target | None, emit: Emit) -> _Made:
    link, own = open_link(run), passed.predictions
    log_odds = link.log_odds_of(own.logits) if link is not None else own.logits.astype(np.float64)
    used = decisions if target is None else target.apply(decisions, log_odds, emit)
    table = PredictionTable(own.image_id, own.classes, own.logits, used.calibrated(log_odds), used.thresholds)
    return _Made(table, passed, decisions, used)


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


def _result(run: OpenRun, work: Work, made: _Made, files: Mapping[str, Path | None]) -> Result:
    table = made.table
    written = {key: str(path) for key, path in files.items() if path is not None}
    blocks: list[Table | str] = [overview(table)] if files["table"] is None else []
    blocks += [_prevalences(made)] if made.moved else []
    blocks.append(_summary(run, work, made))
    if written:
        blocks.append(Table(("wrote", ""), tuple(written.items())))
    full = table.data() if files["table"] is None else {}
    data = {**_facts(run, work, made), **written, **full, **_about(made)}
    return Result(data, tuple(blocks), code=3 if work.unreadable else 0)


def _facts(run: OpenRun, work: Work, made: _Made) -> dict[str, Any]:
    return {
        "run": str(run.dir.path),
        "images": len(made.table.image_id),
        "unreadable": {work.image_id[row]: work.unreadable[row] for row in sorted(work.unreadable)},
        "tta": made.passed.tta,
        "linked": run.card.linked,
    }


def _about(made: _Made) -> dict[str, Any]:
    """What posteriors and decisions rest on, as JSON."""
    used, choice = made.used, made.passed.choice
    about: dict[str, Any] = {
        "calibration": used.calibration.method,
        "threshold_rule": used.rule,
        "fitted_on": dict(used.provenance) or None,
    }
    if made.moved:
        about["target_prevalence"] = dict(zip(used.classes, used.prevalence.tolist(), strict=True))
    return about | ({"tta_choice": choice.data} if choice else {})


def _summary(run: OpenRun, work: Work, made: _Made) -> str:
    count, tta = len(made.table.image_id), made.passed.tta
    lost = f", {len(work.unreadable)} unreadable" if work.unreadable else ""
    views = f", test-time augmentation {tta!r}" if tta != "none" else ""
    how = f", calibration {made.used.calibration.method}, threshold {made.used.rule}"
    noun = "image" if count == 1 else "images"
    return f"{count:,} {noun}{lost}, {len(made.table.classes)} classes, run {run.dir.path}{views}{how}"


def _prevalences(made: _Made) -> Table:
    """What the other prevalence is, and what it does to thresholds."""
    before, used = made.before, made.used
    rows = tuple(
        (
            name,
            f"{before.prevalence[c]:.4f}",
            f"{used.prevalence[c]:.4f}",
            f"{before.thresholds[c]:.4f}",
            f"{used.thresholds[c]:.4f}",
        )
        for c, name in enumerate(used.classes)
        if used.shift[c] != before.shift[c]
    )
    return Table(("class", "prevalence fitted on", "prevalence here", "threshold fitted", "threshold here"), rows)
