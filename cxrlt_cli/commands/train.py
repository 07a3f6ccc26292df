"""``cxrlt train``: open or continue the run directory, train, say what came out."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrlt_cli.artifacts import FORMAT, RunDir, read_lines, writable_directory, write_json, write_text
from cxrlt_cli.errors import CxrltError, Interrupted, RunError, TrainingError, UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.recipe.load import dump_recipe, load_recipe
from cxrlt_cli.registry import find

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.distributed import World
    from cxrlt_cli.engine.fit import Outcome
    from cxrlt_cli.engine.parts import Job
    from cxrlt_cli.engine.state import Saved
    from cxrlt_cli.recipe.schema import Recipe

#: Recipe keys that may differ when a run is continued: none changes the weights.
MAY_DIFFER = ("about", "data.path", "train.save_minutes", "train.patience", "predict")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    recipe: str
    overrides: tuple[str, ...]
    out: Path | None
    fresh: bool
    device: str
    dry_run: bool


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
    from cxrlt_cli.engine.distributed import has_speaker, launched

    if devices is not None and devices > 1 and not launched():
        return _launch(request, devices, emit)
    try:
        result = _train(request, emit)
    except CxrltError as error:
        from cxrlt_cli.engine.distributed import first_to_report

        if first_to_report():
            raise
        raise SystemExit(error.code) from error
    return Result(result.data) if has_speaker() else result


# -- one process -------------------------------------------------------------------------------------------------


def _train(request: Request, emit: Emit) -> Result:
    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.engine.distributed import first_start, join, pick_device, share
    from cxrlt_cli.engine.parts import Job

    recipe = load_recipe(request.recipe, request.overrides)
    chosen = pick_device(request.device)
    prepared = load_prepared(Path(recipe.data.path))
    run_dir = RunDir(request.out or Path("runs") / recipe.name)
    if request.dry_run:
        return _plan(recipe, prepared, run_dir, chosen, emit)
    if request.fresh and first_start():
        _move_aside(run_dir, emit)
    with join(chosen) as (world, device), _claimed(run_dir, world):
        done = share(_open(run_dir, recipe, prepared) if world.first else None, world)
        if done:
            emit(Notice(f"{run_dir.path} is already finished; nothing to do (start anew with --fresh)"))
            return _summary(run_dir, recipe)
        job = Job(recipe, prepared, run_dir, device, world)
        _carry_out(job, emit)
    return _summary(run_dir, recipe) if world.first else Result({})


def _carry_out(job: Job, emit: Emit) -> None:
    from cxrlt_cli.engine.fit import fit
    from cxrlt_cli.engine.state import read_state

    saved = read_state(job.run.path, emit if job.world.first else silent)
    if saved is not None and job.world.first:
        emit(Notice(f"continuing {job.run.path} at step {saved.progress.step}, epoch {saved.progress.epoch + 1}"))
    began = time.monotonic()
    _note(job, status="running", saved=saved)
    try:
        with _explained(job):
            outcome = fit(job, saved, emit)
    except Interrupted:
        _note(job, status="interrupted", seconds=time.monotonic() - began)
        raise
    except BaseException as error:
        _note(job, status="failed", seconds=time.monotonic() - began, reason=str(error).splitlines()[:1])
        raise
    _note(job, status="finished", seconds=time.monotonic() - began, outcome=outcome)


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """Turn exhausted memory and lost peers into errors with a cure."""
    import torch

    from cxrlt_cli.engine.distributed import LOST_PEER, first_to_report

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


# -- the run directory -------------------------------------------------------------------------------------------


@contextmanager
def _claimed(run_dir: RunDir, world: World) -> Iterator[None]:
    """Make the directory and keep every other training out of it."""
    if not world.first:
        yield
        return
    writable_directory(run_dir.path)
    descriptor = os.open(run_dir.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(
            "another process is training in this run directory",
            where=str(run_dir.path),
            cure="Wait for it, or choose another directory with --out.",
        ) from None
    finally:
        os.close(descriptor)


def _open(run_dir: RunDir, recipe: Recipe, prepared: Prepared) -> bool:
    """Begin the run directory, or check that it may be continued. Returns whether it is finished already."""
    if run_dir.run_json.exists() and _holds_work(run_dir):
        info = run_dir.info()
        _check_same(run_dir, recipe, prepared, info)
        return bool(info.get("status") == "finished")
    if any(run_dir.path.iterdir()) and not run_dir.run_json.exists():
        raise RunError(
            "is not empty and not a run directory", where=str(run_dir.path), cure="Choose another directory with --out."
        )
    write_text(run_dir.recipe, dump_recipe(recipe))
    write_json(run_dir.run_json, _identity(recipe, prepared))
    return False


def _holds_work(run_dir: RunDir) -> bool:
    """Whether anything was trained here that could be lost."""
    return any(path.exists() for path in (run_dir.model, run_dir.last, run_dir.path / "previous"))


def _move_aside(run_dir: RunDir, emit: Emit) -> None:
    from cxrlt_cli.engine.distributed import World

    if not run_dir.path.exists():
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    target = run_dir.path.with_name(f"{run_dir.path.name}.before-{stamp}")
    with _claimed(run_dir, World()):
        run_dir.path.rename(target)
    emit(Notice(f"moved the earlier run to {target}"))


def _check_same(run_dir: RunDir, recipe: Recipe, prepared: Prepared, info: Mapping[str, Any]) -> None:
    cure = "Train into another directory with --out, or start anew with --fresh (what is there is moved aside)."
    before = load_recipe(str(run_dir.recipe))
    changes = list(_differences(before.model_dump(), recipe.model_dump()))
    if changes:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in changes)
        raise RunError(f"was made with another recipe:\n{lines}", where=str(run_dir.path), cure=cure)
    if info.get("dataset", {}).get("hash") != prepared.content_hash:
        what = f"was trained on other data than {prepared.path} holds now"
        raise RunError(what, where=str(run_dir.path), cure=cure)


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    if key in MAY_DIFFER:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def _identity(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    refs = {
        "backbones": recipe.model.backbone,
        "heads": recipe.model.head,
        "losses": recipe.loss,
        "samplers": recipe.sampler,
    }
    plugins = {kind: find(kind, ref.name) for kind, ref in refs.items()}
    return {
        "format": FORMAT,
        "name": recipe.name,
        "status": "new",
        "created": _now(),
        "seed": recipe.train.seed,
        "dataset": {
            "path": str(prepared.path),
            "name": prepared.name,
            "hash": prepared.content_hash,
            "images": len(prepared),
            "classes": len(prepared.classes),
        },
        "plugins": {kind: f"{p.distribution}:{p.name} {p.version}" for kind, p in plugins.items()},
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("cxrlt", "torch", "timm", "numpy", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _note(
    job: Job,
    *,
    status: str,
    seconds: float = 0.0,
    saved: Saved | None = None,
    outcome: Outcome | None = None,
    reason: Sequence[str] = (),
) -> None:
    """Bring run.json up to date; only the first process writes."""
    if not job.world.first:
        return
    info = job.run.info()
    info |= {"status": status, "updated": _now(), "device": str(job.device), "processes": job.world.size}
    info["seconds"] = round(info.get("seconds", 0.0) + seconds, 1)
    info["reason"] = reason[0] if reason else None
    if saved is not None:
        info["continued"] = [*info.get("continued", []), {"at": _now(), "step": saved.progress.step}]
    if outcome is not None:
        info["epochs"] = outcome.epochs
        info["stopped_early"] = outcome.stopped_early
        info["best"] = {"epoch": outcome.best_epoch, "macro_ap": outcome.best_score}
    write_json(job.run.run_json, info)


# -- several processes -------------------------------------------------------------------------------------------


def _launch(request: Request, devices: int, emit: Emit) -> Result:
    """Check what can be checked, then run the same command as several processes."""
    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.engine.distributed import launch, pick_device

    recipe = load_recipe(request.recipe, request.overrides)
    pick_device(request.device if request.device != "cuda" else f"cuda:{devices - 1}")
    load_prepared(Path(recipe.data.path))
    run_dir = RunDir(request.out or Path("runs") / recipe.name)
    if request.dry_run:
        return _train(request, emit)
    if recipe.train.batch_size % (devices * recipe.train.accumulate):
        raise UsageError(
            f"train.batch_size {recipe.train.batch_size} cannot be shared out over {devices} devices and "
            f"{recipe.train.accumulate} accumulation steps",
            where="--devices",
            cure=f"Choose a multiple of {devices * recipe.train.accumulate}.",
        )
    if request.fresh:
        # Once, here: processes that are started again must continue, not start anew.
        _move_aside(run_dir, emit)
    settings = [part for override in request.overrides for part in ("--set", override)]
    arguments = ["train", request.recipe, *settings, "--out", str(run_dir.path), "--device", request.device]
    code = launch(arguments, devices, emit)
    if code:
        raise SystemExit(code)
    return _summary(run_dir, recipe)


# -- what is said ------------------------------------------------------------------------------------------------


def _summary(run_dir: RunDir, recipe: Recipe) -> Result:
    info, history = run_dir.info(), read_lines(run_dir.metrics)
    best = info.get("best", {})
    row = next((line for line in history if line["epoch"] == best.get("epoch")), {})
    files = {"run": run_dir.path, "weights": run_dir.model, "predictions": run_dir.predictions("dev")}
    data = {
        "name": recipe.name,
        "status": info["status"],
        "epochs": info.get("epochs"),
        "best": row,
        "seconds": info.get("seconds"),
        **{key: str(path) for key, path in files.items()},
    }
    early = " (stopped early)" if info.get("stopped_early") else ""
    text = (
        f"{info.get('epochs')} epochs{early} in {info.get('seconds', 0):.0f} s; best epoch {best.get('epoch')}: "
        f"dev macro AP {best.get('macro_ap', float('nan')):.4f}"
    )
    rows = tuple((key, str(path)) for key, path in files.items())
    return Result(data, (text, Table(("wrote", ""), rows), f"Next: cxrlt evaluate {run_dir.path}"))


def _plan(recipe: Recipe, prepared: Prepared, run_dir: RunDir, device: Any, emit: Emit) -> Result:
    """What training would do."""
    from cxrlt_cli.engine.distributed import World
    from cxrlt_cli.engine.parts import Job, assemble

    with_random_weights = recipe.model.backbone.model_copy(update={"pretrained": False})
    model = recipe.model.model_copy(update={"backbone": with_random_weights})
    recipe = recipe.model_copy(update={"model": model})
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
    rows = tuple(
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value)) for key, value in data.items()
    )
    return Result(data, (Table(("dry run", ""), rows), "Nothing was written."))
