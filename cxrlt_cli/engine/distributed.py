"""Several processes as one: joining, wrapping, agreeing, gathering, launching.

torch.distributed is the engine. A process that was started by torchrun finds its place in the environment; everything
here is a no-op for a single process.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cxrlt_cli.engine.environment import WORKER, launched
from cxrlt_cli.errors import TrainingError, UsageError
from cxrlt_cli.events import Emit, Notice


@dataclass(frozen=True, slots=True)
class World:
    """The place of this process among its peers.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        local_rank: number of this process on its machine.
        control: a group on the CPU for flags and small messages; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0


def pick_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:K``.

    Raises:
        UsageError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"there is no device {name!r}", where="--device", cure="Use auto, cpu, cuda or cuda:K."
        ) from None
    if device.type == "cuda":
        _check_cuda(device)
    elif device.type != "cpu":
        raise UsageError(f"device {name!r} is not supported", where="--device", cure="Use auto, cpu, cuda or cuda:K.")
    return device


def _check_cuda(device: torch.device) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= count:
        have = f"{count} GPU{'' if count == 1 else 's'}" if count else "no usable GPU"
        raise UsageError(
            f"device {device} was asked for, and there is {have}",
            where="--device",
            cure="Use `--device cpu`, or fewer `--devices`. `cxrlt doctor` shows what is here.",
        )


@contextmanager
def join(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Take this process's place among those torchrun started; a single process joins nothing.

    Yields:
        The world, and the device of this process.
    """
    if not launched():
        yield World(), device
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        control = dist.new_group(backend="gloo")
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, control), device
    finally:
        dist.destroy_process_group()


def wrap(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """The network as it is trained: averaged gradients over processes, and joint batch statistics on GPUs."""
    if world.size == 1:
        return model
    # Depthwise convolutions on a CPU return gradients in another layout; that costs time only, and is said every run.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def synchronise_norms(model: nn.Module, world: World, device: torch.device) -> nn.Module:
    """Batch norms that share statistics over processes; PyTorch has them for GPUs only."""
    if world.size == 1 or device.type != "cuda":
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def agree(code: int, world: World) -> int:
    """The largest ``code`` of all processes."""
    if world.size == 1:
        return code
    flag = torch.tensor([code], dtype=torch.int32)
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=world.control)
    return int(flag.item())


def share(value: Any, world: World) -> Any:
    """The value of the first process, on every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=world.control)
    return box[0]


def collect(value: Any, world: World) -> list[Any]:
    """The values of all processes, by rank, on every process."""
    if world.size == 1:
        return [value]
    box: list[Any] = [None] * world.size
    dist.all_gather_object(box, value, group=world.control)
    return box


def total(values: Sequence[float], world: World) -> list[float]:
    """The sums of ``values`` over all processes, in float64."""
    if world.size == 1:
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed, group=world.control)
    return [float(value) for value in summed]


def my_rows(count: int, world: World) -> npt.NDArray[np.int64]:
    """The rows of 0..count-1 this process evaluates: every world.size-th one."""
    return np.arange(world.rank, count, world.size, dtype=np.int64)


def gather_rows(local: npt.NDArray[np.float32], count: int, world: World) -> npt.NDArray[np.float32]:
    """Put the rows that every process computed for its ``my_rows`` together, each exactly once.

    Args:
        local: (V, n, C), this process's rows.
        count: N, over all processes.
        world: the processes.

    Returns:
        (V, N, C) on every process.
    """
    if world.size == 1:
        return local
    most = -(-count // world.size)
    padded = np.zeros((local.shape[0], most, local.shape[2]), np.float32)
    padded[:, : local.shape[1]] = local
    parts = [torch.empty(padded.shape, dtype=torch.float32) for _ in range(world.size)]
    dist.all_gather(parts, torch.from_numpy(padded), group=world.control)
    merged = np.empty((local.shape[0], count, local.shape[2]), np.float32)
    for rank, part in enumerate(parts):
        rows = np.arange(rank, count, world.size)
        merged[:, rows] = part.numpy()[:, : len(rows)]
    return merged


def gathered(rows: Tensor, world: World) -> Tensor:
    """The rows (n, C) of all processes by rank (world.size * n, C); gradients reach this process's own rows only."""
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[world.rank] = rows
    return torch.cat(parts)


def accumulating(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """A context in which gradients are averaged over processes only in the ``last`` pass of an accumulation."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and not last:
        return cast("AbstractContextManager[None]", model.no_sync())
    return nullcontext()


#: Exit code of a process that lost its peers; the launcher starts again, as it does when a process is killed.
LOST_PEER = 75


def launch(arguments: Sequence[str], processes: int, emit: Emit, *, restarts: int = 2) -> int:
    """Run ``cxrlt ARGUMENTS`` as ``processes`` processes of this machine through torch's elastic agent.

    When a process is killed by a signal, the others are ended and all are started again, at most ``restarts`` times;
    they continue from the last saved state. A failure that says why is final.

    Returns:
        The exit code of the whole.
    """
    with tempfile.TemporaryDirectory(prefix="cxrlt-") as folder:
        _quiet_agent(processes, folder)
        return _attempts(arguments, processes, emit, restarts)


def _attempts(arguments: Sequence[str], processes: int, emit: Emit, restarts: int) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for attempt in range(restarts + 1):
        try:
            _run_agent(arguments, processes)
        except SignalException as stop:
            return 128 + int(stop.sigval)
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            # The agent ends the peers of a failed process with SIGTERM: that says nothing about what failed.
            killed = [code for code in codes if (code < 0 and code != -signal.SIGTERM) or code == LOST_PEER]
            explained = [code for code in codes if code > 0 and code != LOST_PEER]
            if explained and not killed:
                return explained[0]
            lost = killed or codes
            if attempt == restarts:
                emit(Notice(f"a process was lost {restarts + 1} times ({_named(lost[0])}); giving up", "warning"))
                return TrainingError.code
            emit(Notice(f"a process was lost ({_named(lost[0])}); starting again from the last saved state", "warning"))
        else:
            return 0
    raise AssertionError("unreachable: every attempt returns or is followed by another")


def _run_agent(arguments: Sequence[str], processes: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    elastic_launch(config, sys.executable)("-m", "cxrlt_cli", *arguments)


def _quiet_agent(processes: int, folder: str) -> None:
    # Without this, a second start on one machine can meet the store of the first (pytorch issues 135712, 167288).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[WORKER] = folder
    importlib.import_module("torch.distributed.launcher.api")  # from here on its loggers exist
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they would say is said by our messages


def _named(code: int) -> str:
    try:
        return signal.Signals(-code).name if code < 0 else "its peers ended"
    except ValueError:
        return f"exit code {code}"
