"""How every command behaves: ``--json``, ``--quiet``, ``--verbose``, events, results and errors."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from cxrlt_cli.events import Result
from cxrlt_cli.failure import exit_on_errors

#: Options of every command.
SHARED = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print the result as JSON.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and the result only.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Show details, and tracebacks of errors.")],
}

Stub = Callable[..., Result]


def group(**settings: Any) -> typer.Typer:
    """A group of commands with plain help: rich panels take three times as long and break in pipes."""
    return typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def command(where: typer.Typer, name: str) -> Callable[[Stub], Stub]:
    """Register a stub ``(emit, ...) -> Result`` as the command ``name``."""

    def register(stub: Stub) -> Stub:
        where.command(name)(shown(stub))
        return stub

    return register


def shown(stub: Stub) -> Callable[..., None]:
    """A stub as Typer wants it: without ``emit``, with the options that all commands share.

    It shows the stub's events and its result, and ends the process with one message where an error escapes.
    """

    @functools.wraps(stub)
    def run(*, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
        with exit_on_errors(verbose), _handed_on(quiet, verbose) as (silenced, detailed):
            from cxrlt_cli.console import Console

            with Console(quiet=silenced, verbose=detailed, as_json=as_json) as console:
                result = stub(console.emit, **options)
                console.show(result)
            if result.code:
                sys.exit(result.code)
            sys.stdout.flush()

    own = list(inspect.signature(stub, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in SHARED.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect.signature
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def _handed_on(quiet: bool, verbose: bool) -> Iterator[tuple[bool, bool]]:
    """Let processes that a command starts say as much as the command itself, through their environment."""
    asked = {"CXRLT_QUIET": quiet, "CXRLT_VERBOSE": verbose}
    mine = [name for name, wanted in asked.items() if wanted and name not in os.environ]
    os.environ.update(dict.fromkeys(mine, "1"))
    try:
        yield "CXRLT_QUIET" in os.environ, "CXRLT_VERBOSE" in os.environ
    finally:
        for name in mine:
            del os.environ[name]
