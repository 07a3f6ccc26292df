"""Commands that make runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cxrlt_cli.cli.arguments import Data, Device, Overrides, RecipeName
from cxrlt_cli.events import Emit, Result


def train(
    emit: Emit,
    recipe: RecipeName,
    *,
    overrides: Overrides = None,
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


def sweep(
    emit: Emit,
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Sweep file, or the name of a shipped sweep.")],
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value of every row's recipe. Repeats."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Runs and tables; default: runs/NAME.", metavar="DIR")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, metavar="N", help="Commands at a time; default: one a GPU, or one.")
    ] = None,
    split: Annotated[
        Literal["dev", "test"] | None, typer.Option(metavar="dev|test", help="Images to score; default: the table's.")
    ] = None,
    engine: Annotated[
        Literal["local", "submitit", "ray"],
        typer.Option(metavar="local|submitit|ray", help="Who runs the commands: this machine, SLURM, or Ray."),
    ] = "local",
    engine_set: Annotated[
        list[str] | None,
        typer.Option("--engine-set", metavar="KEY=VALUE", help="A setting of submitit or Ray. Repeats."),
    ] = None,
    device: Device = "auto",
    form: Annotated[
        Literal["text", "markdown", "latex", "csv"],
        typer.Option("--format", metavar="text|markdown|latex|csv", help="Form of the printed table."),
    ] = "text",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show what would run.")] = False,
) -> Result:
    """Train the rows of a table, and compare them.

    What is finished is left alone; the same command continues after an interruption.
    """
    from cxrlt_cli.commands.sweep import run

    return run(
        table,
        overrides=overrides or (),
        out=out,
        jobs=jobs,
        engine=engine,
        engine_settings=engine_set or (),
        device=device,
        split=split,
        form=form,
        dry_run=dry_run,
        emit=emit,
    )


def retrain_head(
    emit: Emit,
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run whose head is to be replaced.")],
    recipe: Annotated[
        str,
        typer.Argument(metavar="[RECIPE]", help="Head recipe file, or crt, lws, tau-norm, ncm, logistic, keep-best."),
    ] = "crt",
    *,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the result; default: RUN-RECIPE.", metavar="RUN")
    ] = None,
    data: Data = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew; what is there is moved aside.")] = False,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and write nothing.")] = False,
) -> Result:
    """Make another head for a run, in seconds, on cached features."""
    from cxrlt_cli.commands.retrain_head import run

    return run(
        run_dir,
        recipe,
        overrides=overrides or (),
        out=out,
        data=data,
        fresh=fresh,
        device=device,
        dry_run=dry_run,
        emit=emit,
    )
