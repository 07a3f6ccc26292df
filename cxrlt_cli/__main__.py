"""``python -m cxrlt_cli`` is ``cxrlt``; ``torchrun -m cxrlt_cli train ...`` and the runs of a sweep start here."""

import os
import signal

from cxrlt_cli.cli import main

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM when the sweep that started this process is killed: nothing trains on alone."""
    if os.environ.pop("CXRLT_END_WITH_PARENT", ""):
        import ctypes

        prctl = getattr(
            ctypes.CDLL(None), "prctl", None
        )  # Linux has it; elsewhere a killed sweep leaves its runs going
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    _end_with_parent()
    main()
