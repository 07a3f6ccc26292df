"""The command line: stubs only. Every command imports what it needs when it runs.

``stubs.py`` says what all commands have in common.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cxrlt_cli.cli.listing import doctor, plugins_app, recipe_app, runs_app
from cxrlt_cli.cli.prepare import sources
from cxrlt_cli.cli.scoring import decide, ensemble, evaluate, predict
from cxrlt_cli.cli.training import retrain_head, sweep, train
from cxrlt_cli.failure import exit_on_errors
from cxrlt_cli.stubs import Stub, command, group

#: The commands that have no subcommands, in the order of their use.
COMMANDS: dict[str, Stub] = {
    "train": train,
    "retrain-head": retrain_head,
    "sweep": sweep,
    "evaluate": evaluate,
    "predict": predict,
    "decide": decide,
    "ensemble": ensemble,
    "doctor": doctor,
}
FIRST = ("prepare", "train", "retrain-head", "sweep", "evaluate", "predict", "decide", "ensemble")


class _InOrder(TyperGroup):
    """Commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


app = group(cls=_InOrder, help="Train long-tailed, multi-label chest X-ray classifiers whose numbers can be believed.")
app.add_typer(sources, name="prepare")
for name, stub in COMMANDS.items():
    command(app, name)(stub)
app.add_typer(plugins_app, name="plugins")
app.add_typer(recipe_app, name="recipe")
app.add_typer(runs_app, name="runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        from cxrlt_cli import __version__

        typer.echo(f"cxrlt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train long-tailed, multi-label chest X-ray classifiers whose numbers can be believed."""


def main() -> None:
    """The entry point: run a command, and turn whatever goes wrong into one message and an exit status."""
    # pydantic reads the entry points of every installed package for plugins of its own; a torn one would stop us
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with exit_on_errors():
        app(prog_name="cxrlt")
