"""What the environment says about this process: who started it, and which of several it is. Imports no torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

#: Set by our launcher for the processes it starts, to a folder of their own; it speaks for them when they are done.
WORKER = "CXRLT_WORKER"


def has_speaker() -> bool:
    """Whether our launcher shows the result of this process's work."""
    return WORKER in os.environ


def launched() -> bool:
    """Whether this process was started by torchrun (or by our launcher)."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def first_start() -> bool:
    """Whether this is the first process, and not one that torchrun started again after a failure."""
    return os.environ.get("RANK", "0") == "0" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"


def first_to_report() -> bool:
    """Whether this is the first process of the launch on this machine to report a failure; the others keep quiet."""
    if not launched():
        return True
    parts = (os.environ.get(key, "0") for key in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"))
    parent = os.getppid()
    mark = Path(os.environ.get(WORKER) or tempfile.gettempdir()) / f"cxrlt-{'-'.join(parts)}-{parent}.failed"
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
