"""``cxrlt doctor``: what a reader of a problem report needs to know, in one paste."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cxrlt_cli import __version__, registry
from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.errors import PluginError
from cxrlt_cli.events import Result

_PACKAGES = (
    *("torch", "timm", "numpy", "pandas", "pyarrow", "scikit-learn", "pillow", "safetensors"),
    *("pydantic", "pyyaml", "typer", "rich", "jinja2"),
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "RANK", "WORLD_SIZE")


def run() -> Result:
    """Versions, processors, memory, devices, disk and plugins. Broken plugins are named with their cause."""
    data: dict[str, Any] = {
        "cxrlt": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory(),
        "devices": _devices(),
        "disk": _disk(Path.cwd()),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "plugins": {kind: _plugins(kind) for kind in GROUPS},
        "problems": registry.unreadable(),
    }
    return Result(data, ("\n".join(_lines(data)),))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> dict[str, float | None]:
    """Memory of the machine and the limit of the control group, in GiB; None where unknown."""
    total = _sysconf("SC_PHYS_PAGES")
    try:
        limit: float | None = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")) / 2**30
    except (OSError, ValueError):
        limit = None
    return {"total": total, "limit": limit if limit and total and limit < total else None}


def _sysconf(pages: str) -> float | None:
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken torch raises anything; the doctor reports it
        return {"error": f"torch cannot be imported: {type(error).__name__}: {error}"}
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [
            {
                "name": card.name,
                "memory_gib": card.total_memory / 2**30,
                "capability": f"{card.major}.{card.minor}",
                "bf16": card.major >= 8,
            }
            for card in cards
        ],
    }


def _disk(folder: Path) -> dict[str, Any]:
    usage = shutil.disk_usage(folder)
    return {
        "folder": str(folder),
        "free_gib": usage.free / 2**30,
        "total_gib": usage.total / 2**30,
        "writable": os.access(folder, os.W_OK),
    }


def _plugins(kind: str) -> list[dict[str, str]]:
    found = []
    for plugin in registry.available(kind):
        entry = {"name": plugin.name, "package": f"{plugin.distribution} {plugin.version}", "broken": ""}
        try:
            registry.resolve(kind, plugin.qualified)
        except PluginError as error:
            entry["broken"] = error.what
        found.append(entry)
    return found


def _lines(data: Mapping[str, Any]) -> Iterator[str]:
    yield f"cxrlt      {data['cxrlt']}"
    yield f"python     {data['python']}"
    yield f"system     {data['system']}"
    yield "packages   " + ", ".join(f"{name} {found or 'MISSING'}" for name, found in data["packages"].items())
    memory = data["memory_gib"]
    limit = f", limited to {memory['limit']:.1f} GiB" if memory["limit"] else ""
    yield f"machine    {data['cpus']} CPUs, {_gib(memory['total'])} of memory{limit}"
    yield from _device_lines(data["devices"])
    disk = data["disk"]
    state = "" if disk["writable"] else ", NOT WRITABLE"
    yield f"disk       {disk['free_gib']:.1f} of {disk['total_gib']:.1f} GiB free in {disk['folder']}{state}"
    if data["environment"]:
        yield "variables  " + ", ".join(f"{name}={value}" for name, value in data["environment"].items())
    for kind, plugins in data["plugins"].items():
        yield f"{kind:<11}" + (", ".join(_plugin_name(plugin) for plugin in plugins) or "none")
    broken = [plugin["broken"] for plugins in data["plugins"].values() for plugin in plugins if plugin["broken"]]
    yield from (f"broken     {text}" for text in [*broken, *data["problems"]])


def _device_lines(devices: Mapping[str, Any]) -> Iterator[str]:
    if "error" in devices:
        yield f"torch      {devices['error']}"
        return
    cuda = f"built for CUDA {devices['cuda']}" if devices["cuda"] else "built without CUDA"
    yield f"torch      {devices['threads']} threads, {cuda}, {len(devices['gpus']) or 'no'} GPUs"
    for number, card in enumerate(devices["gpus"]):
        bf16 = "bf16" if card["bf16"] else "no bf16"
        yield f"cuda:{number}     {card['name']}, {card['memory_gib']:.1f} GiB, {card['capability']}, {bf16}"


def _plugin_name(plugin: Mapping[str, str]) -> str:
    return f"{plugin['name']} (BROKEN)" if plugin["broken"] else plugin["name"]


def _gib(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f} GiB"
