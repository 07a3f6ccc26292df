"""``cxrlt recipe``: the shipped recipes, and the checking of any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrlt_cli.errors import CxrltError, PluginError, UsageError
from cxrlt_cli.events import Result, Table
from cxrlt_cli.recipe.load import about, dump_recipe, json_schema, load_recipe, shipped
from cxrlt_cli.recipe.sources import locate, read

if TYPE_CHECKING:
    from cxrlt_cli.recipe.schema import Recipe


def run_list() -> Result:
    """The recipes that ship with cxrlt, and what each is for."""
    recipes = {name: (path, about(path)) for name, path in shipped().items()}
    data = {"recipes": [{"name": n, "about": text, "path": path} for n, (path, text) in recipes.items()]}
    if not recipes:
        return Result(data, ("No recipe ships with this installation.",))
    rows = tuple((name, text) for name, (_, text) in recipes.items())
    return Result(data, (Table(("recipe", "about"), rows, note="Train one with `cxrlt train NAME`."),))


def run_show(name: str, *, resolved: bool = False) -> Result:
    """The text of a recipe; ``resolved``: merged with what it extends, every default written out.

    Raises:
        UsageError: there is no such recipe, or (resolved) it has problems.
        PluginError: (resolved) it names plugins that cannot be used.
    """
    path = locate(name)
    text = dump_recipe(load_recipe(name)) if resolved else read(path)
    return Result({"name": path.stem, "path": path, "text": text}, (text.rstrip("\n"),))


def run_validate(recipes: Sequence[str]) -> Result:
    """Check every recipe, the options of its plugins included.

    Raises:
        UsageError: at least one recipe is wrong; all problems of all recipes at once.
        PluginError: the only problems are plugins and their options.
    """
    checked: list[Recipe] = []
    errors: list[UsageError | PluginError] = []
    for recipe in recipes:
        try:
            checked.append(load_recipe(recipe))
        except (UsageError, PluginError) as error:
            errors.append(error)
    if errors:
        raise _together(errors)
    found = [(source, recipe.name, _notes(recipe)) for source, recipe in zip(recipes, checked, strict=True)]
    lines = [
        line for source, _, notes in found for line in (f"{source}: valid", *(f"  note: {note}" for note in notes))
    ]
    data = {"recipes": [{"source": source, "name": name, "notes": notes} for source, name, notes in found]}
    return Result(data, ("\n".join(lines),))


def _notes(recipe: Recipe) -> list[str]:
    """What is allowed, and rarely meant."""
    reweight = recipe.reweight
    if reweight.scheme == "none" or reweight.relative_to != "mean" or reweight.apply_to == "negatives":
        return []
    return [
        "reweight.relative_to mean, the published form, weighs the positives of the more frequent classes down, on a "
        "long tail most of them; training says how many. relative_to head weighs none down"
    ]


def run_schema() -> Result:
    """The JSON schema of recipe files, for editors."""
    schema = json_schema()
    return Result(schema, (json.dumps(schema, indent=2, ensure_ascii=False),))


def _together(errors: list[UsageError | PluginError]) -> CxrltError:
    if len(errors) == 1:
        return errors[0]
    kind = PluginError if all(isinstance(error, PluginError) for error in errors) else UsageError
    lines = [f"{error.where}: {error.what}" if error.where else error.what for error in errors]
    cures = dict.fromkeys(error.cure for error in errors if error.cure)
    return kind("\n".join(lines), cure="\n".join(cures))
