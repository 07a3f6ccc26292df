"""Small real trainings in processes of their own, which can be killed at a chosen step.

Children are forked from a server that has imported torch and the engine once, so that one costs a second instead of
ten, and no thread of the test process is ever forked.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
# Modules that any Python finds: the server does not know pytest's paths, and passes over what it cannot import.
_CONTEXT.set_forkserver_preload(["timm", "torch._dynamo", "cxrlt_cli.engine.fit"])

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "model": {"backbone": {"name": "timm", "model": "test_convnext2", "pretrained": False}, "in_chans": 1},
    "loss": {"name": "ldam", "scale": 10.0},
    "reweight": {"scheme": "effective", "start": 0.5},
    "augment": {"rotate": 5.0, "noise": 0.02, "erase": 0.3},
    "optim": {"lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 24, "average": {"ema": {"decay": 0.9}}, "save_minutes": 0.0},
}


def recipe(data: Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny recipe on ``data``; ``changes`` are merged section by section."""
    merged = {**RECIPE, "data": {"path": str(data)}}
    for section, values in changes.items():
        merged[section] = {**merged.get(section, {}), **values} if isinstance(values, Mapping) else values
    return merged


def train(
    settings: Mapping[str, Any], run: Path, *, kill_at: int = 0, signal_at: Sequence[int] = (), processes: int = 1
) -> list[int]:
    """Run ``fit`` on a recipe, continuing what ``run`` holds.

    Args:
        settings: from ``recipe``.
        run: run directory; made when absent.
        kill_at: the first process kills itself with SIGKILL after this many optimiser steps; 0 never.
        signal_at: (signal, step): the first process sends itself this signal after that step.
        processes: of one torch.distributed group.

    Returns:
        The exit codes by rank; -9 for a killed process.
    """
    from training_child import main

    run.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    children = []
    for rank in range(processes):
        place = {
            "RANK": rank,
            "WORLD_SIZE": processes,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {key: str(value) for key, value in place.items()} if processes > 1 else {}
        orders = (kill_at, signal.SIGKILL) if kill_at else (signal_at[1], signal_at[0]) if signal_at else (0, 0)
        arguments = (dict(settings), str(run), environment, *(orders if rank == 0 else (0, 0)))
        children.append(_CONTEXT.Process(target=main, args=arguments))
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        if child.is_alive():
            child.kill()
            raise AssertionError("a training hangs")
    return [int(child.exitcode or 0) for child in children]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
