"""What the user reads when a command fails, and the exit status (DESIGN 9)."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from cxrlt_cli.errors import CxrltError, Interrupted

#: Exit status of a process whose reader went away, as a shell reports SIGPIPE.
_PIPE_CLOSED = 141


@contextmanager
def exit_on_errors(verbose: bool = False) -> Iterator[None]:
    """Turn any error that escapes into one message on stderr and an exit status."""
    try:
        yield
    except CxrltError as error:
        sys.exit(report_known(error, verbose))
    except KeyboardInterrupt:
        _print("interrupted")
        sys.exit(Interrupted.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes stdout once more as it ends
        sys.exit(_PIPE_CLOSED)
    except Exception as error:  # the last resort: a bug still ends with one message and keeps its traceback
        sys.exit(report_unknown(error, verbose))


def report_known(error: CxrltError, verbose: bool = False) -> int:
    """Print what, where and cure to stderr; the exit status."""
    text = f"{error.where}: {error.what}" if error.where else error.what
    several = "\n" in error.what and not error.where  # a list of problems, each with its own place
    head = _rank() + _head("error:") + ("\n" if several else " ")
    _print(text if isinstance(error, Interrupted) else head + text)
    if error.cure:
        _print(error.cure)
    if verbose and error.__cause__ is not None:
        _print("".join(traceback.format_exception(error.__cause__)).rstrip())
    return error.code


def report_unknown(error: Exception, verbose: bool = False) -> int:
    """Print a short message for an error nobody foresaw, and keep its traceback; the exit status."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        _print(f"{_rank()}{_head('error:')} {where}{error.strerror}")
    else:
        summary = "".join(traceback.format_exception_only(error)).strip()
        _print(f"{_rank()}{_head('error:')} {summary}\nThis is a bug in cxrlt or in a plugin; please report it.")
    trace = "".join(traceback.format_exception(error))
    if verbose:
        _print(trace.rstrip())
    else:
        _print(_kept(trace))
    return 1


def _kept(trace: str) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="cxrlt-", suffix=".traceback", delete=False) as file:
            file.write(trace)
    except OSError:
        return "Run it again with -v for the traceback."
    return f"The traceback is in {file.name}; -v prints it."


def _print(text: str) -> None:
    try:
        print(text, file=sys.stderr)
    except BrokenPipeError:
        return


def _rank() -> str:
    """Which of several training processes speaks; empty for a single one."""
    return f"[process {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE") or 1) > 1 else ""


def _head(text: str) -> str:
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1;31m{text}\033[0m"
