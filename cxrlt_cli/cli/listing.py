"""Commands that list and show: plugins, recipes, runs, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxrlt_cli.cli.arguments import RecipeName
from cxrlt_cli.events import Emit, Result
from cxrlt_cli.stubs import command, group

plugins_app = group(help="List, show, check and make plugins.")
recipe_app = group(help="List, show and check recipes.")
runs_app = group(help="List and show runs.")

Kind = Annotated[str | None, typer.Option(metavar="KIND", help="losses, backbones, heads, samplers, tta or datasets.")]
RecipeKind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="train, head or sweep.")]
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


@command(plugins_app, "check")
def _plugins_check(
    emit: Emit,
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="An installed package, or the name of a plugin.")],
    *,
    kind: Kind = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="Build the plugins with this option. Repeats."),
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="Also list the rules that are kept.")] = False,
) -> Result:
    """Run the conformance kit over the plugins of a package."""
    from cxrlt_cli.commands.plugin_check import run

    return run(package, kind=kind, overrides=options or (), details=details, emit=emit)


@command(plugins_app, "new")
def _plugins_new(
    emit: Emit,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="loss, backbone, head, sampler, tta or dataset.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory; default: cxrlt-NAME.")] = None,
) -> Result:
    """Write a plugin package: code, entry point, test, README."""
    from cxrlt_cli.commands.plugin_new import run

    return run(kind, name, out=out, emit=emit)


@command(recipe_app, "list")
def _recipe_list(emit: Emit, kind: RecipeKind = None) -> Result:
    """List the recipes, head recipes and sweeps that ship with cxrlt."""
    from cxrlt_cli.commands import recipe

    return recipe.run_list(kind)


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
def _recipe_schema(
    emit: Emit,
    kind: RecipeKind = None,
    options: Annotated[bool, typer.Option("--options", help="With the options of every plugin; imports them.")] = False,
) -> Result:
    """Print the JSON schema of recipes, for editors."""
    from cxrlt_cli.commands import recipe

    return recipe.run_schema(kind or "train", options=options)


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


def doctor(emit: Emit) -> Result:
    """Versions, devices, disk and plugins, in one paste."""
    from cxrlt_cli.commands import doctor

    return doctor.run()
