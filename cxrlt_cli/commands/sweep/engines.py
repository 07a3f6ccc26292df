"""Who runs the commands of a sweep: processes on this machine, SLURM through submitit, or Ray.

An engine starts a command and hands back a handle that is polled. Nothing here schedules: which command may start is
decided in ``schedule.py``, where it runs is the business of the operating system, of SLURM or of Ray.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cxrlt_cli.errors import UsageError
from cxrlt_cli.recipe.nodes import scalar

#: Exit codes that a command ends with when it was told to stop and has saved.
STOPPED = frozenset({130, 143, -signal.SIGINT, -signal.SIGTERM})
#: Seconds a command that was told to stop has for saving, where no longer limit is set by the engine.
GRACE = 120.0


@dataclass(frozen=True, slots=True)
class Command:
    """A command of ``cxrlt`` for an engine.

    Attributes:
        name: of the step.
        arguments: after ``cxrlt``.
        log: file its output is appended to.
        folder: working directory.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    folder: Path

    def run(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start it as a process of its own session, so that a terminal's Ctrl-C does not reach it twice."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ cxrlt {shlex.join(self.arguments)}\n".encode())
            log.flush()
            return subprocess.Popen(
                [sys.executable, "-m", "cxrlt_cli", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**os.environ, "CXRLT_END_WITH_PARENT": "1", **(environment or {})},
                start_new_session=True,
            )


class Handle(Protocol):
    """A started command."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs or waits."""

    def stop(self, number: int) -> None:
        """Ask it to save and end; ``number`` is SIGINT or SIGTERM, SIGKILL ends it at once."""


class Engine(Protocol):
    """Starts commands.

    Attributes:
        slots: how many commands are started at a time.
    """

    @property
    def slots(self) -> int: ...

    def start(self, command: Command, slot: int) -> Handle:
        """Start a command in a free slot, 0 to ``slots - 1``."""


# -- this machine ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


@dataclass(frozen=True, slots=True)
class Local:
    """Child processes; GPUs are dealt out in turn, and the cores of a CPU shared equally."""

    slots: int
    devices: tuple[str, ...] = ()

    def start(self, command: Command, slot: int) -> Handle:
        """Start a child process on the device of its slot."""
        return _Process(command.run(self.environment(slot)))

    def environment(self, slot: int) -> dict[str, str]:
        """What a child in this slot sees of the machine. A number of threads set by the user is kept."""
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]}
        threads = max(1, len(os.sched_getaffinity(0)) // self.slots)
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}


def devices_here() -> tuple[str, ...]:
    """The GPUs of this machine, as ``CUDA_VISIBLE_DEVICES`` names them; those the user left visible. Loads no torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in {"", "-1"})
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


# -- clusters --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Remote:
    """A command as submitit and Ray call it, somewhere else; it returns the exit code.

    ``checkpoint`` is submitit's: before a job is pre-empted or runs out of time it asks what to queue again. The
    command saves, and the same command continues.
    """

    command: Command
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> int:
        """Run the command to its end; when this process is told to stop, the command saves first."""
        self.process = self.command.run()
        try:
            return self.process.wait()
        except BaseException:
            self.end(signal.SIGINT)
            raise

    def end(self, number: int) -> None:
        """Tell the command to stop and wait until it has saved."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)

    def checkpoint(self) -> Any:
        """What SLURM is to queue again."""
        from submitit.helpers import DelayedSubmission

        self.end(signal.SIGTERM)
        return DelayedSubmission(Remote(self.command))


@dataclass(frozen=True, slots=True)
class _SubmititJob:
    job: Any
    log: Path

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        if error is None:
            return int(self.job.result())
        _append(self.log, str(error))
        return 143 if self.job.state in {"CANCELLED", "INTERRUPTED"} else 1

    def stop(self, number: int) -> None:
        self.job.cancel()


@dataclass(frozen=True, slots=True)
class Submitit:
    """SLURM, through submitit: every command is a job."""

    slots: int
    executor: Any

    def start(self, command: Command, slot: int) -> Handle:
        """Queue a job."""
        self.executor.update_parameters(name=command.name.replace(" ", "_"))
        return _SubmititJob(self.executor.submit(Remote(command)), command.log)


@dataclass(frozen=True, slots=True)
class _RayTask:
    reference: Any
    log: Path

    def poll(self) -> int | None:
        import ray

        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(ray.get(self.reference))
        except (ray.exceptions.TaskCancelledError, KeyboardInterrupt):
            return 130
        except ray.exceptions.RayError as error:
            _append(self.log, str(error))
            return 1

    def stop(self, number: int) -> None:
        import ray

        ray.cancel(self.reference, force=number == signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Ray:
    """A Ray cluster: every command is a task; ``resources`` are the options of a task, such as num_gpus."""

    slots: int
    resources: Mapping[str, Any]

    def start(self, command: Command, slot: int) -> Handle:
        """Hand a task to Ray."""
        import ray

        task = ray.remote(max_retries=0, **self.resources)(_run_remote)
        return _RayTask(task.remote(command), command.log)


def _run_remote(command: Command) -> int:
    return Remote(command)()


def _append(log: Path, text: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


# -- choosing --------------------------------------------------------------------------------------------------------


def make_engine(name: str, jobs: int | None, settings: Sequence[str], folder: Path, steps: int) -> Engine:
    """The engine of that name.

    Args:
        name: "local", "submitit" or "ray".
        jobs: commands at a time; default: one a GPU, or one, on this machine, and as many as there are elsewhere.
        settings: ``key=value`` texts for the engine: parameters of submitit's ``AutoExecutor`` (``cluster``,
            ``timeout_min``, ``slurm_partition``), or of a Ray task (``num_gpus``, ``num_cpus``) and ``address``.
        folder: where the engine may keep its files.
        steps: how many commands there are.

    Raises:
        UsageError: the engine is not installed, or does not take a setting.
    """
    values = dict(_setting(text) for text in settings)
    if name == "local":
        if values:
            raise UsageError("this machine takes no --engine-set", cure="Choose --engine submitit or ray.")
        devices = devices_here()
        return Local(jobs or max(1, len(devices)), devices)
    if name == "submitit":
        return Submitit(jobs or steps, _executor(folder, values))
    return Ray(jobs or steps, _joined(values))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"expected key=value, got {text!r}", where="--engine-set", cure="As in timeout_min=600.")
    return key, scalar(value)


def _executor(folder: Path, values: dict[str, Any]) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise _not_installed("submitit") from error
    try:
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=values.pop("cluster", None))
        executor.update_parameters(**values)
    except (NameError, ValueError, TypeError, RuntimeError) as error:
        raise UsageError(
            f"submitit refuses these settings: {error}", where="--engine-set", cure="`cluster=local` needs no SLURM."
        ) from error
    return executor


def _joined(values: dict[str, Any]) -> dict[str, Any]:
    """Join a Ray cluster, or start one on this machine; what remains of the values are options of a task."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise _not_installed("ray") from error
    address = values.pop("address", None)
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    return {"num_cpus": 1, **values}


def _not_installed(name: str) -> UsageError:
    return UsageError(
        f"{name} is not installed", where=f"--engine {name}", cure=f"Install it with `pip install 'cxrlt[{name}]'`."
    )


def stop_all(handles: Sequence[Handle], number: int, seconds: float = GRACE) -> None:
    """Tell commands to save and end, wait for them, and kill those that do not."""
    for handle in handles:
        handle.stop(number)
    limit = time.monotonic() + seconds
    while any(handle.poll() is None for handle in handles):
        if time.monotonic() > limit:
            for handle in handles:
                handle.stop(signal.SIGKILL)
            return
        time.sleep(0.1)
