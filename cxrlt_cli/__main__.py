"""``python -m cxrlt_cli`` is ``cxrlt``; the processes of a launch and the runs of a sweep start here."""

import os
import signal

from cxrlt_cli.cli import main

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Let the kernel send SIGTERM when the sweep or launcher that started this process is killed.

    Nothing trains on alone, and holds its run directory: what was done is saved, as when the signal comes by itself.
    Linux only; elsewhere such processes go on.
    """
    asked = os.environ.pop("CXRLT_END_WITH_PARENT", "")
    if asked or "TORCHELASTIC_RUN_ID" in os.environ:
        import ctypes

        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    _end_with_parent()
    main()
