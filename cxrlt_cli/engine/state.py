"""The state an interrupted run continues from: saved and loaded exactly, torn ones detected.

``last/`` holds ``state.safetensors`` (weights, moments, averages) and ``state.json`` (the step, the history, and the
SHA-256 of the tensors). A new state is written whole into a directory beside it and renamed; the one before it stays as
``previous/``. Whatever moment the process dies at, one of the two is complete, and reading proves which.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrlt_cli.artifacts import FORMAT, flush
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Emit, Notice

_TENSORS, _JSON = "state.safetensors", "state.json"


@dataclass
class Progress:
    """How far training has come. Everything else follows from it, the seed and the recipe.

    Attributes:
        step: optimiser steps done, over all epochs.
        epoch: epochs finished and evaluated.
        best_epoch: epoch of the best dev macro AP, counted from 1; 0 before the first.
        best_score: that macro AP.
        loss_sum: sum of the losses of this epoch's steps so far.
        seconds: training time of this epoch so far.
        history: the metrics of every finished epoch.
        scaler: state of the fp16 gradient scaler.
    """

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    loss_sum: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)


def save_state(
    run: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    *,
    loss: nn.Module | None = None,
) -> None:
    """Write the state beside ``run/last`` and let it take its place.

    Args:
        run: the run directory.
        progress: how far training has come.
        model: its weights and buffers.
        optimizer: its moments.
        average: averaged weights, or None.
        loss: the buffers of its ``state_dict``, which is what it remembers; None for a loss without.

    Raises:
        RunError: it cannot be written; the state before it is untouched.
    """
    from safetensors.torch import save_file

    part = run / f".last.{os.getpid()}.part"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save_file(_pack(model, optimizer, average, loss), part / _TENSORS)
        document = _document(progress, _digest(part / _TENSORS))
        (part / _JSON).write_text(json.dumps(document), encoding="utf-8")
        for path in (part / _TENSORS, part / _JSON, part):
            flush(path)
        _swap_in(run, part)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RunError(
            f"the state of training cannot be saved: {error.strerror or error}",
            where=str(run),
            cure="Make room or repair the disk, then run the same command: it continues from the state before.",
        ) from error


def _swap_in(run: Path, part: Path) -> None:
    last, previous = run / "last", run / "previous"
    if last.exists():
        shutil.rmtree(previous, ignore_errors=True)
        last.rename(previous)
    part.rename(last)
    flush(run)


def _document(progress: Progress, digest: str) -> dict[str, Any]:
    body = {"format": FORMAT, "tensors": digest, "progress": asdict(progress)}
    return {**body, "sha256": _seal(body)}


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pack(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    loss: nn.Module | None,
) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{key}": value for key, value in moments.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in (average or {}).items()}
    tensors |= {f"loss.{name}": tensor for name, tensor in (loss.state_dict() if loss else {}).items()}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Saved:
    """A state that was read and proven whole."""

    progress: Progress
    tensors: dict[str, Tensor]


def discard_states(run: Path) -> None:
    """Remove what a finished run no longer needs."""
    for name in ("last", "previous"):
        shutil.rmtree(run / name, ignore_errors=True)
    sweep(run)


def sweep(run: Path) -> None:
    """Remove half-written states that a killed process left behind."""
    for part in run.glob(".last.*.part"):
        shutil.rmtree(part, ignore_errors=True)


def read_state(run: Path, emit: Emit) -> Saved | None:
    """The newest whole state in a run directory; None when there is none at all.

    A damaged ``last`` is reported through ``emit`` and ``previous`` is used.

    Raises:
        RunError: states exist, and none of them is whole.
    """
    faults = []
    for name in ("last", "previous"):
        directory = run / name
        if not directory.is_dir():
            continue
        try:
            saved = _read(directory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults.append(f"{name}: {error}")
            continue
        if faults:
            text = f"the last saved state is damaged ({faults[0]}); continuing from the one before, at step"
            emit(Notice(f"{text} {saved.progress.step}", "warning"))
        return saved
    if faults:
        raise RunError(
            f"no saved state is whole ({'; '.join(faults)})", where=str(run), cure="Start anew with `--fresh`."
        )
    return None


def _read(directory: Path) -> Saved:
    import safetensors
    from safetensors.torch import load_file

    document = json.loads((directory / _JSON).read_text(encoding="utf-8"))
    seal = document.pop("sha256")
    if seal != _seal(document):
        raise ValueError(f"{_JSON} does not match its checksum")
    if document["format"] > FORMAT:
        raise ValueError(f"it has format {document['format']}, this cxrlt reads up to {FORMAT}")
    if document["tensors"] != _digest(directory / _TENSORS):
        raise ValueError(f"{_TENSORS} does not belong to {_JSON}")
    try:
        tensors = load_file(directory / _TENSORS)
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error
    known = {item.name for item in fields(Progress)}
    return Saved(Progress(**{k: v for k, v in document["progress"].items() if k in known}), tensors)


def restore(
    saved: Saved,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor] | None,
    loss: nn.Module | None = None,
) -> Progress:
    """Put a saved state into a freshly built model, optimiser, average and loss, in place.

    Raises:
        RunError: the state is of another model.
    """
    try:
        model.load_state_dict(_section(saved.tensors, "model."))
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _moments(saved.tensors)})
        if average is not None:
            kept = _section(saved.tensors, "ema.")
            for name, tensor in average.items():
                tensor.copy_(kept[name])
        if loss is not None:
            loss.load_state_dict(_section(saved.tensors, "loss."))
    except (RuntimeError, KeyError, ValueError) as error:
        raise RunError(
            f"the saved state does not fit this network: {' '.join(str(error).split())[:200]}",
            where="last/state.safetensors",
            cure="A plugin changed since it was saved. Install the old version, or start anew with `--fresh`.",
        ) from error
    return saved.progress


def _section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _section(tensors, "optim.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    return state
