"""``cxrlt train``: open or continue the run directory, train, say what came out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_cli.artifacts import RunDir, read_lines
from cxrlt_cli.commands.decide import after_training
from cxrlt_cli.commands.expected import as_table, drawn, expectation
from cxrlt_cli.commands.run_directory import begin, claimed, move_aside, note
from cxrlt_cli.commands.strategies import check_strategy
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.engine.environment import first_start, first_to_report, has_speaker, launched
from cxrlt_cli.errors import CxrltError, Interrupted, TrainingError, UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.recipe.load import load_recipe

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.parts import Job
    from cxrlt_cli.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    recipe: str
    overrides: tuple[str, ...]
    out: Path | None
    fresh: bool
    device: str
    dry_run: bool

    def run_dir(self, recipe: Recipe) -> RunDir:
        """Where the run lies."""
        return RunDir(self.out or Path("runs") / recipe.name)


def run(
    recipe: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    fresh: bool = False,
    devices: int | None = None,
    device: str = "auto",
    dry_run: bool = False,
    emit: Emit = silent,
) -> Result:
    """Train a recipe, or continue its interrupted run.

    Args:
        recipe: path of a recipe, or the name of a shipped one.
        overrides: ``key=value`` settings that take precedence over the recipe.
        out: run directory; default ``runs/<name of the recipe>``.
        fresh: start anew; what was there is moved aside.
        devices: number of processes on this machine; None for one.
        device: "auto", "cpu", "cuda" or "cuda:K".
        dry_run: say what would happen, and stop.
        emit: told about progress.

    Returns:
        The scores of the best epoch and where everything lies. Processes started by torchrun other than the first
        return an empty result.

    Raises:
        CxrltError: whatever is wrong, with its cure.
        SystemExit: in a process of several whose failure another one reports.
    """
    request = Request(recipe, tuple(overrides), out, fresh, device, dry_run)
    try:
        # Before torch is imported, which takes seconds: a misspelt key is answered at once.
        resolved = load_recipe(recipe, request.overrides)
        prepared = load_prepared(Path(resolved.data.path))
        if devices is not None and devices > 1 and not dry_run and not launched():
            return _launch(request, resolved, prepared, devices, emit)
        result = _train(request, resolved, prepared, emit)
    except CxrltError as error:
        if first_to_report():
            raise
        raise SystemExit(error.code) from error
    return Result(result.data) if has_speaker() else result


# -- one process -------------------------------------------------------------------------------------------------


def _train(request: Request, recipe: Recipe, prepared: Prepared, emit: Emit) -> Result:
    from cxrlt_cli.engine.distributed import join, pick_device, share
    from cxrlt_cli.engine.parts import Job

    check_strategy(recipe)
    chosen = pick_device(request.device)
    run_dir = request.run_dir(recipe)
    if request.dry_run:
        return _plan(recipe, prepared, run_dir, chosen, emit)
    if request.fresh and first_start():
        move_aside(run_dir, emit)
    with join(chosen) as (world, device), claimed(run_dir, mine=world.first):
        done = share(begin(run_dir, recipe, prepared) if world.first else None, world)
        if done and world.first:
            emit(Notice(f"{run_dir.path} is already finished; nothing to do (start anew with --fresh)"))
        if not done:
            _carry_out(Job(recipe, prepared, run_dir, device, world), emit)
    return _summary(run_dir, recipe, prepared) if world.first else Result({})


def _carry_out(job: Job, emit: Emit) -> None:
    from cxrlt_cli.engine.fit import fit
    from cxrlt_cli.engine.state import read_state

    saved = read_state(job.run.path, emit if job.world.first else silent)
    if saved is not None and job.world.first:
        emit(Notice(f"continuing {job.run.path} at step {saved.progress.step}, epoch {saved.progress.epoch + 1}"))
    began = time.monotonic()
    note(job, status="running", saved=saved)
    try:
        with _explained(job):
            if saved is None and job.world.first:
                _show_draws(job, emit)
            outcome = fit(job, saved, emit)
    except Interrupted:
        note(job, status="interrupted", seconds=time.monotonic() - began)
        raise
    except BaseException as error:
        note(job, status="failed", seconds=time.monotonic() - began, reason=str(error).splitlines()[:1])
        raise
    note(job, status="finished", seconds=time.monotonic() - began, outcome=outcome)
    if job.world.first:
        after_training(job.run.path, emit)


def _show_draws(job: Job, emit: Emit) -> None:
    found = expectation(job.recipe, job.prepared)
    if found is not None:
        emit(as_table(found, short=True))


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """Turn exhausted memory and lost peers into errors with a cure."""
    import torch

    from cxrlt_cli.engine.distributed import LOST_PEER

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(job) from error
    except RuntimeError as error:
        text = str(error)
        if "can't allocate memory" in text or "not enough memory" in text:
            raise _out_of_memory(job) from error
        if job.world.size > 1 and ("onnection" in text or "peer" in text):
            if first_to_report():
                print(f"cxrlt: process {job.world.rank} lost its peers and ends", file=sys.stderr)
            os._exit(LOST_PEER)  # the process group cannot be left in order any more
        raise


def _out_of_memory(job: Job) -> TrainingError:
    train = job.recipe.train
    return TrainingError(
        f"out of memory on {job.device} with train.batch_size {train.batch_size}, train.accumulate {train.accumulate} "
        f"and {job.world.size} process{'es' if job.world.size > 1 else ''}",
        where=str(job.run.path),
        cure=f"Try `--set train.accumulate={train.accumulate * 2}` (same result, less memory), a smaller "
        "train.batch_size or data.size, or train.precision bf16.",
    )


# -- several processes -------------------------------------------------------------------------------------------


def _launch(request: Request, recipe: Recipe, prepared: Prepared, devices: int, emit: Emit) -> Result:
    """Check what can be checked, then run the same command as several processes."""
    from cxrlt_cli.engine.distributed import launch, pick_device

    pick_device(request.device if request.device != "cuda" else f"cuda:{devices - 1}")
    parts = devices * recipe.train.accumulate
    if recipe.train.batch_size % parts:
        raise UsageError(
            f"train.batch_size {recipe.train.batch_size} cannot be shared out over {devices} devices and "
            f"{recipe.train.accumulate} accumulation steps",
            where="--devices",
            cure=f"Choose a multiple of {parts}.",
        )
    run_dir = request.run_dir(recipe)
    if request.fresh:
        # Once, here: processes that are started again must continue, not start anew.
        move_aside(run_dir, emit)
    settings = [part for override in request.overrides for part in ("--set", override)]
    arguments = ["train", request.recipe, *settings, "--out", str(run_dir.path), "--device", request.device]
    code = launch(arguments, devices, emit)
    if code:
        raise SystemExit(code)
    return _summary(run_dir, recipe, prepared)


# -- what is said ------------------------------------------------------------------------------------------------


def _summary(run_dir: RunDir, recipe: Recipe, prepared: Prepared) -> Result:
    info, history = run_dir.info(), read_lines(run_dir.metrics)
    best = info.get("best", {})
    row = next((line for line in history if line["epoch"] == best.get("epoch")), {})
    files = {"run": run_dir.path, "weights": run_dir.model, "predictions": run_dir.predictions("dev")}
    data = {
        "name": recipe.name,
        "status": info["status"],
        "epochs": info.get("epochs"),
        "best": row,
        "average": info.get("average"),
        "seconds": info.get("seconds"),
        **drawn(expectation(recipe, prepared)),
        **{key: str(path) for key, path in files.items()},
    }
    early = " (stopped early)" if info.get("stopped_early") else ""
    epochs = f"{info.get('epochs')} epoch{'' if info.get('epochs') == 1 else 's'}{early}"
    text = (
        f"{epochs} in {info.get('seconds', 0):.0f} s; best epoch {best.get('epoch')}: "
        f"dev macro AP {best.get('macro_ap', float('nan')):.4f}{_averaged(info)}"
    )
    rows = tuple((key, str(path)) for key, path in files.items())
    return Result(data, (text, Table(("wrote", ""), rows), f"Next: cxrlt evaluate {run_dir.path}"))


def _averaged(info: Mapping[str, Any]) -> str:
    """What was saved in place of the best epoch."""
    average = info.get("average")
    if not average:
        return ""
    epochs = ", ".join(map(str, average["epochs"]))
    return f"; saved: the mean of epochs {epochs}, dev macro AP {average['macro_ap']:.4f}"


def _plan(recipe: Recipe, prepared: Prepared, run_dir: RunDir, device: Any, emit: Emit) -> Result:
    """What training would do."""
    from cxrlt_cli.engine.distributed import World
    from cxrlt_cli.engine.parts import Job, assemble

    parts = assemble(Job(recipe, prepared, run_dir, device, World()), emit)
    count = sum(parameter.numel() for parameter in parts.model.parameters())
    data = {
        "run": str(run_dir.path),
        "device": str(device),
        "training_images": len(parts.rows.train),
        "dev_images": len(parts.rows.dev),
        "classes": len(prepared.classes),
        "image_size": parts.size,
        "parameters": count,
        "steps_per_epoch": parts.plan.steps,
        "epochs": parts.plan.epochs,
        "steps": parts.plan.total,
    }
    expected = expectation(recipe, prepared)
    rows = tuple(
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)) for key, value in data.items()
    )
    draws = () if expected is None else (as_table(expected, short=False),)
    return Result(data | drawn(expected), (Table(("dry run", ""), rows), *draws, "Nothing was written."))
