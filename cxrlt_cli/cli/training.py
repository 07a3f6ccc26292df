"""Commands that make runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxrlt_cli.cli.arguments import Device, RecipeName
from cxrlt_cli.events import Emit, Result


def train(
    emit: Emit,
    recipe: RecipeName,
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe, as in optim.lr=3e-4. Repeats."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/NAME.", metavar="RUN")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew instead of continuing.")] = False,
    devices: Annotated[int | None, typer.Option(min=1, metavar="N", help="Training processes on this machine.")] = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and train nothing.")] = False,
) -> Result:
    """Train a model, or continue an interrupted run."""
    from cxrlt_cli.commands.train import run

    return run(
        recipe,
        overrides=overrides or (),
        out=out,
        fresh=fresh,
        devices=devices,
        device=device,
        dry_run=dry_run,
        emit=emit,
    )
