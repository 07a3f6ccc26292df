"""``cxrlt ensemble``: several runs as one, from their predictions. Loads no torch where the predictions are there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.combine import COMBINATIONS, CrossCombined, cross_combined
from cxrlt_cli.commands.decide import after_training
from cxrlt_cli.commands.ensemble.gain import Resampling, compare, differences
from cxrlt_cli.commands.ensemble.leaks import refuse_leaks
from cxrlt_cli.commands.ensemble.members import Ready, opened_members, ready, where_to_combine
from cxrlt_cli.commands.ensemble.result import planned, summary
from cxrlt_cli.commands.ensemble.writing import Request, already_made, begin, described, write_run
from cxrlt_cli.commands.retrained import note_status
from cxrlt_cli.commands.run_directory import claimed, move_aside
from cxrlt_cli.errors import Interrupted, UsageError
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Result, Started, silent
from cxrlt_cli.wording import did_you_mean

_STAGE = "combine"
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Options:
    """How to combine: method, split, seed of the folds and resamples, resamples of the patients (0 for none)."""

    method: str = "greedy"
    split: str = "dev"
    seed: int = 0
    resamples: int = 1000


def run(
    runs: Sequence[Path],
    *,
    method: str = "greedy",
    split: str = "dev",
    out: Path | None = None,
    seed: int = 0,
    resamples: int = 1000,
    data: Path | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    emit: Emit = silent,
) -> Result:
    """Combine runs, say what that gains, and make a run directory of it.

    Args:
        runs: directories of at least two runs, which may be ensembles.
        method: one of ``combine.COMBINATIONS``.
        split: the labelled images on which scales and weights are found.
        out: directory of the result; default: beside the first run, ``ensemble-METHOD``.
        seed: of the folds and resamples.
        resamples: of the patients, for intervals; 0 for none.
        data: the dataset, if it has moved, or another one.
        fresh: start anew; what was there is moved aside.
        dry_run: check everything, and stop before anything is predicted or written.
        emit: told about progress.

    Returns:
        Weights, out-of-fold gains over the best single member and over the plain mean, diversity, files.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    options = Options(method, split, seed, resamples)
    request = _checked(runs, options, out, data, emit)
    if dry_run:
        return planned(request)
    if fresh:
        move_aside(request.target, emit)
    with claimed(request.target):
        if already_made(request):
            _tell_made(request.target, options, emit)
        else:
            _carry_out(request, options, emit)
    return summary(request.target)


def _tell_made(target: RunDir, options: Options, emit: Emit) -> None:
    resamples = target.info()["ensemble"]["resamples"]
    other = resamples != options.resamples
    what = f"is already made, with {resamples:,} resamples" if other else "is already made; nothing to do"
    emit(Notice(f"{target.path} {what} (start anew with --fresh)", "warning" if other else "info"))


def _checked(runs: Sequence[Path], options: Options, out: Path | None, data: Path | None, emit: Emit) -> Request:
    if options.method not in COMBINATIONS:
        hint = did_you_mean(options.method, COMBINATIONS)
        cure = f"Choose from {', '.join(COMBINATIONS)}."
        raise UsageError(f"there is no method {options.method!r}.{hint}", cure=cure)
    found = opened_members(runs)
    opened = list(found.values())
    prepared, rows = where_to_combine(opened, options.split, data, emit)
    refuse_leaks(opened, prepared, rows, options.split, emit)
    target = RunDir(out or opened[0].dir.path.with_name(f"ensemble-{options.method}"))
    taken = {one.dir.path.resolve() for one in opened}
    if target.path.resolve() in taken:
        raise UsageError("is one of the members", where=str(target.path), cure="Choose another --out.")
    return Request(opened, list(found), prepared, rows, target, options.method, options.split, options.seed)


def _carry_out(request: Request, options: Options, emit: Emit) -> None:
    began = time.monotonic()
    begin(request)
    try:
        members = ready(request.opened, request.prepared, request.rows, request.split, emit)
        made = _combined(request, members, emit)
        compared = compare(members, made, options.method, Resampling(options.resamples, options.seed), emit)
        card = write_run(request, members, made, emit)
        facts = {"compared": compared, "diversity": differences(members), "resamples": options.resamples}
        note_status(
            request.target,
            "running",
            members=described(request, members, made),
            best={"macro_ap": card.score},
            ensemble={**facts, "single_by_fold": [members.names[m] for m in made.chosen]},
        )
        after_training(request.target.path, emit)
    except (Interrupted, KeyboardInterrupt):
        note_status(request.target, "interrupted", seconds=time.monotonic() - began)
        raise
    except BaseException as error:
        reason = str(error).splitlines()[:1]
        note_status(request.target, "failed", seconds=time.monotonic() - began, reason=reason)
        raise
    note_status(request.target, "finished", seconds=time.monotonic() - began)


def _combined(request: Request, members: Ready, emit: Emit) -> CrossCombined:
    emit(Started(_STAGE, FOLDS + 1, unit="fits"))
    made = cross_combined(
        members.labels,
        members.log_odds,
        members.patients,
        members.scales,
        request.method,
        folds=FOLDS,
        seed=request.seed,
        progress=lambda done: emit(Advanced(_STAGE, done)),
    )
    emit(Finished(_STAGE))
    return made
