"""A run directory while it is written: begun or continued, claimed, its run.json kept up to date."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from cxrlt_cli.artifacts import FORMAT, RunDir, writable_directory, write_json, write_text
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.recipe.load import dump_recipe, load_recipe
from cxrlt_cli.registry import find

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.fit import Outcome
    from cxrlt_cli.engine.parts import Job
    from cxrlt_cli.engine.state import Saved
    from cxrlt_cli.recipe.schema import Recipe

#: Recipe keys that may differ when a run is continued: none changes the weights.
MAY_DIFFER = ("about", "data.path", "train.save_minutes", "train.patience", "predict")


@contextmanager
def claimed(run_dir: RunDir, *, mine: bool = True) -> Iterator[None]:
    """Make the directory and keep every other training out of it; ``mine`` false leaves that to another process.

    Raises:
        RunError: another process is training there.
        DataError: it cannot be written.
    """
    if not mine:
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


def begin(run_dir: RunDir, recipe: Recipe, prepared: Prepared) -> bool:
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
    write_json(run_dir.run_json, identity(recipe, prepared))
    return False


def _holds_work(run_dir: RunDir) -> bool:
    """Whether anything was trained here that could be lost."""
    return any(path.exists() for path in (run_dir.model, run_dir.last, run_dir.path / "previous"))


def move_aside(run_dir: RunDir, emit: Emit) -> None:
    """Rename what is there, so that a run can start anew and nothing is lost."""
    if not run_dir.path.exists():
        return
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    target = run_dir.path.with_name(f"{run_dir.path.name}.before-{stamp}")
    with claimed(run_dir):
        run_dir.path.rename(target)
    emit(Notice(f"moved the earlier run to {target}"))


def _check_same(run_dir: RunDir, recipe: Recipe, prepared: Prepared, info: Mapping[str, Any]) -> None:
    cure = "Train into another directory with --out, or start anew with --fresh (what is there is moved aside)."
    before = load_recipe(str(run_dir.recipe))
    changes = list(differences(before.model_dump(), recipe.model_dump()))
    if changes:
        lines = "\n".join(f"  {key}: {old} -> {new}" for key, old, new in changes)
        raise RunError(f"was made with another recipe:\n{lines}", where=str(run_dir.path), cure=cure)
    if info.get("dataset", {}).get("hash") != prepared.content_hash:
        what = f"was trained on other data than {prepared.path} holds now"
        raise RunError(what, where=str(run_dir.path), cure=cure)


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, old, new) wherever two dumped recipes differ in what may not differ when a run is continued."""
    if key in MAY_DIFFER:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield key, old, new


def identity(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What run.json says of a run that begins."""
    refs = {
        "backbones": recipe.model.backbone,
        "heads": recipe.model.head,
        "losses": recipe.loss,
        "samplers": recipe.sampler,
    }
    plugins = {kind: find(kind, ref.name) for kind, ref in refs.items()}
    return {
        "format": FORMAT,
        "kind": "train",
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


def note(
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
        if outcome.average is not None:
            info["average"] = outcome.average
    write_json(job.run.run_json, info)
