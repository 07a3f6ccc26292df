"""The command line: stubs only. Every command imports what it needs when it runs.

``stubs.py`` says what all commands have in common.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cxrlt_cli.events import Emit, Result
from cxrlt_cli.failure import exit_on_errors
from cxrlt_cli.stubs import command, group, shown


class _InOrder(TyperGroup):
    """Commands in the order of their use."""

    def list_commands(self, ctx: Any) -> list[str]:
        first = ["prepare", "train", "evaluate", "predict"]
        return sorted(super().list_commands(ctx), key=lambda name: first.index(name) if name in first else len(first))


app = group(cls=_InOrder, help="Train long-tailed, multi-label chest X-ray classifiers whose numbers can be believed.")


# -- prepare -----------------------------------------------------------------------------------------------------


class _Sources(TyperGroup):
    """``prepare SOURCE``: one command a source plugin, made from its options when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        from cxrlt_cli.registry import available

        return list(dict.fromkeys(plugin.name for plugin in available("datasets")))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The list for ``prepare --help``, from metadata: no plugin is imported."""
        from cxrlt_cli.registry import available

        rows = [(plugin.name, f"from {plugin.distribution} {plugin.version}") for plugin in available("datasets")]
        with formatter.section("Sources (options of each: cxrlt prepare SOURCE --help)"):
            formatter.write_dl(rows or [("none", "no source is installed")])

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from cxrlt_cli.source_command import source_command

        single = group()
        single.command(cmd_name)(shown(source_command(cmd_name, _prepare)))
        return typer.main.get_command(single)


sources = group(
    cls=_Sources,
    subcommand_metavar="SOURCE OUT [OPTIONS]",
    short_help="Audit, split, decode once and pack a dataset.",
    help="Audit, split, decode once and pack: from a source of radiographs to a prepared dataset in OUT.",
)
app.add_typer(sources, name="prepare")


def _prepare(
    emit: Emit,
    source: str,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory of the prepared dataset.")],
    *,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the image files.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="The label table.")] = None,
    size: Annotated[int, typer.Option(min=16, max=4096, metavar="PIXELS", help="Side of the prepared images.")] = 512,
    fit: Annotated[
        Literal["pad", "squash"],
        typer.Option(metavar="pad|squash", help="Make images square by padding, or by squashing."),
    ] = "pad",
    split: Annotated[
        str | None, typer.Option(help="Shares split off by patient.", metavar="dev=0.1,test=0.1", show_default=False)
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, metavar="N", help="Also deal the patients into folds.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of splits and of everything drawn.")] = 0,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; default: one a CPU.")] = None,
    allow_quarantine: Annotated[
        bool, typer.Option("--allow-quarantine", help="Go on when more than 1 % of the images are unreadable.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check, write nothing.")] = False,
    options: dict[str, object],
) -> Result:
    from cxrlt_cli.commands import prepare

    return prepare.run(
        source,
        out,
        images=images,
        labels=labels,
        size=size,
        fit=fit,
        split=split,
        folds=folds,
        seed=seed,
        options=options,
        allow_quarantine=allow_quarantine,
        jobs=jobs,
        dry_run=dry_run,
        emit=emit,
    )


# -- train, evaluate, predict ------------------------------------------------------------------------------------

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or the name of a shipped recipe.")]
Data = Annotated[Path | None, typer.Option(help="Prepared dataset, if it has moved since training.", metavar="DIR")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:K.")]


@command(app, "train")
def _train(
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
    from cxrlt_cli.commands import train

    return train.run(
        recipe,
        overrides=overrides or (),
        out=out,
        fresh=fresh,
        devices=devices,
        device=device,
        dry_run=dry_run,
        emit=emit,
    )


@command(app, "evaluate")
def _evaluate(
    emit: Emit,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN", help="Run directories; default: the newest run.")
    ] = None,
    *,
    split: Annotated[str, typer.Option(metavar="dev|test|train", help="Which images.")] = "dev",
    absent: Annotated[
        Literal["skip", "zero"],
        typer.Option(metavar="skip|zero", help="Classes without positives: named and left out, or scored 0."),
    ] = "skip",
    data: Data = None,
) -> Result:
    """Score runs: mAP, AUROC, F1, calibration.

    Overall, for each class, and for head, medium and tail; several runs side by side.
    """
    from cxrlt_cli.commands import evaluate

    return evaluate.run(runs or [], split=split, absent=absent, data=data, emit=emit)


@command(app, "predict")
def _predict(
    emit: Emit,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN|FILE|DIR",
            help="First the run directory (it holds a run.json; default: the newest run), then images and folders.",
        ),
    ] = None,
    *,
    split: Annotated[str | None, typer.Option(metavar="SPLIT", help="A split of the run's dataset, no files.")] = None,
    tta: Annotated[str | None, typer.Option(metavar="NAME", help="Test-time augmentation plugin.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Use views the training never saw.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help=".csv or .parquet file.")] = None,
    submission: Annotated[bool, typer.Option("--submission", help="Write the form of CXR-LT 2026.")] = False,
    data: Data = None,
    device: Device = "auto",
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Images per forward pass.")] = None,
) -> Result:
    """Logits, posteriors and decisions for images.

    The images are files and folders, or a split of the dataset the run was trained on.
    """
    from cxrlt_cli.commands import predict

    run, inputs = _run_and_inputs(paths or [])
    return predict.run(
        run,
        inputs,
        split=split,
        tta=tta,
        force=force,
        out=out,
        submission=submission,
        data=data,
        device=device,
        batch_size=batch_size,
        emit=emit,
    )


def _run_and_inputs(paths: list[Path]) -> tuple[Path | None, list[Path]]:
    """The run and the images among the paths of ``predict``: a first path with a run.json in it is the run."""
    if paths and (paths[0] / "run.json").is_file():
        return paths[0], paths[1:]
    return None, paths


# -- plugins, recipes, runs, the machine -------------------------------------------------------------------------

plugins_app = group(help="List and show plugins.")
recipe_app = group(help="List, show and check recipes.")
runs_app = group(help="List and show runs.")
app.add_typer(plugins_app, name="plugins")
app.add_typer(recipe_app, name="recipe")
app.add_typer(runs_app, name="runs")

Kind = Annotated[str | None, typer.Option(metavar="KIND", help="losses, backbones, heads, samplers, tta or datasets.")]
Root = Annotated[Path, typer.Option(metavar="DIR", help="The directory that holds the runs.")]


@command(plugins_app, "list")
def _plugins_list(emit: Emit, kind: Kind = None) -> Result:
    """List plugins by kind; imports none of them."""
    from cxrlt_cli.commands import plugins

    return plugins.run_list(kind)


@command(plugins_app, "show")
def _plugins_show(
    emit: Emit,
    name: Annotated[str, typer.Argument(metavar="NAME", help="NAME, or DISTRIBUTION:NAME.")],
    kind: Kind = None,
) -> Result:
    """What a plugin does, and its options."""
    from cxrlt_cli.commands import plugins

    return plugins.run_show(name, kind)


@command(recipe_app, "list")
def _recipe_list(emit: Emit) -> Result:
    """List the recipes that ship with cxrlt."""
    from cxrlt_cli.commands import recipe

    return recipe.run_list()


@command(recipe_app, "show")
def _recipe_show(
    emit: Emit,
    name: RecipeName,
    resolved: Annotated[bool, typer.Option("--resolved", help="With what it extends and every default.")] = False,
) -> Result:
    """Print a recipe."""
    from cxrlt_cli.commands import recipe

    return recipe.run_show(name, resolved=resolved)


@command(recipe_app, "validate")
def _recipe_validate(
    emit: Emit, recipes: Annotated[list[str], typer.Argument(metavar="RECIPE", help="Recipe files or names.")]
) -> Result:
    """Check recipes and their plugins; name every problem."""
    from cxrlt_cli.commands import recipe

    return recipe.run_validate(recipes)


@command(recipe_app, "schema")
def _recipe_schema(emit: Emit) -> Result:
    """Print the JSON schema of recipes, for editors."""
    from cxrlt_cli.commands import recipe

    return recipe.run_schema()


@command(runs_app, "list")
def _runs_list(emit: Emit, root: Root = Path("runs")) -> Result:
    """List runs, the newest first."""
    from cxrlt_cli.commands import runs

    return runs.run_list(root)


@command(runs_app, "show")
def _runs_show(
    emit: Emit,
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Run directory; default: the newest run.")] = None,
) -> Result:
    """What a run is, how it went, and what it left."""
    from cxrlt_cli.commands import runs

    return runs.run_show(run)


@command(app, "doctor")
def _doctor(emit: Emit) -> Result:
    """Versions, devices, disk and plugins, in one paste."""
    from cxrlt_cli.commands import doctor

    return doctor.run()


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
