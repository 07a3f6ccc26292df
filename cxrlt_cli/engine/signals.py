"""Ctrl-C and SIGTERM as a request that is answered at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cxrlt_cli.errors import Interrupted, Terminated

#: Codes of ``StopRequest.code``, in rising precedence; they are compared over processes.
NONE, INTERRUPT, TERMINATE, FAILED = range(4)


class StopRequest:
    """Whether somebody asked the work to stop.

    Attributes:
        code: ``NONE``, ``INTERRUPT`` (Ctrl-C) or ``TERMINATE`` (SIGTERM).
    """

    def __init__(self) -> None:
        self.code = NONE


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second Ctrl-C raises KeyboardInterrupt at once.

    Outside the main thread signals cannot be caught, and the request never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.code == INTERRUPT:
            raise KeyboardInterrupt
        request.code = INTERRUPT if number == signal.SIGINT else TERMINATE

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_if_asked(request: StopRequest, what: str, *, where: str = "", cure: str) -> None:
    """End the work when somebody asked for it; what shall be kept was saved before.

    Raises:
        Interrupted: Ctrl-C.
        Terminated: SIGTERM.
    """
    if request.code != NONE:
        kind = Interrupted if request.code == INTERRUPT else Terminated
        raise kind(what, where=where, cure=cure)
