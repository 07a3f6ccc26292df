"""``cxrlt recipe``: the documents that ship (recipes to train, head recipes, sweeps), and the checking of any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cxrlt_cli.errors import CxrltError, PluginError, UsageError
from cxrlt_cli.events import Result, Table
from cxrlt_cli.recipe.load import about, dump_recipe, json_schema, kind_of, load_any, shipped
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sections import FORMS, Form
from cxrlt_cli.recipe.sources import locate, read
from cxrlt_cli.recipe.sweep import Sweep
from cxrlt_cli.wording import did_you_mean


def run_list(kind: str | None = None) -> Result:
    """The documents that ship with cxrlt, their kind, and what each is for; ``kind``: of one kind only.

    Raises:
        UsageError: there is no such kind.
    """
    wanted = {form.kind for form in FORMS} if kind is None else {_form(kind).kind}
    found = [(name, kind_of(path), path) for name, path in shipped().items()]
    recipes = [
        {"name": name, "kind": its, "about": about(path), "path": path} for name, its, path in found if its in wanted
    ]
    if not recipes:
        return Result({"recipes": recipes}, ("No such recipe ships with this installation.",))
    rows = tuple((str(each["name"]), str(each["kind"]), str(each["about"])) for each in recipes)
    uses = ", ".join(f"{form.kind}: `{form.usage}`" for form in FORMS)
    return Result({"recipes": recipes}, (Table(("recipe", "kind", "about"), rows, note=f"{uses}."),))


def run_show(name: str, *, resolved: bool = False) -> Result:
    """The text of a document; ``resolved``: merged with what it extends, every default written out.

    Raises:
        UsageError: there is no such document, or (resolved) it has problems.
        PluginError: (resolved) it names plugins that cannot be used.
    """
    path = locate(name)
    text = dump_recipe(load_any(name).value) if resolved else read(path)
    return Result({"name": path.stem, "kind": kind_of(path), "path": path, "text": text}, (text.rstrip("\n"),))


def run_validate(recipes: Sequence[str]) -> Result:
    """Check documents of any kind, the options of their plugins and the rows of sweeps included.

    Raises:
        UsageError: at least one is wrong; all problems of all of them at once.
        PluginError: the only problems are plugins and their options.
    """
    checked: list[tuple[str, list[str]]] = []
    errors: list[UsageError | PluginError] = []
    for recipe in recipes:
        try:
            checked.append(_checked(recipe))
        except (UsageError, PluginError) as error:
            errors.append(error)
    if errors:
        raise _together(errors)
    found = [(source, *name_and_notes) for source, name_and_notes in zip(recipes, checked, strict=True)]
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


def _checked(source: str) -> tuple[str, list[str]]:
    """The name of a valid document, and the notes on it; a sweep's rows are checked too."""
    loaded = load_any(source)
    if isinstance(loaded.value, Sweep):
        from cxrlt_cli.commands.sweep.plan import check_plugins, make_plan

        plan = make_plan(loaded, ())
        check_plugins(list(plan.steps.values()), loaded)
    return loaded.value.name, _notes(loaded.value) if isinstance(loaded.value, Recipe) else []


def run_schema(kind: str = "train", *, options: bool = False) -> Result:
    """The JSON schema of documents of one kind, for editors; ``options``: with those of every plugin, imported for it.

    Raises:
        UsageError: there is no such kind.
    """
    schema = json_schema(_form(kind), options=options)
    return Result(schema, (json.dumps(schema, indent=2, ensure_ascii=False),))


def _form(kind: str) -> Form[Any]:
    found = next((form for form in FORMS if form.kind == kind), None)
    if found is None:
        kinds = [form.kind for form in FORMS]
        what = f"there is no kind of recipe '{kind}'.{did_you_mean(kind, kinds)}"
        raise UsageError(what, where="--kind", cure=f"Kinds: {', '.join(kinds)}.")
    return found


def _together(errors: list[UsageError | PluginError]) -> CxrltError:
    if len(errors) == 1:
        return errors[0]
    kind = PluginError if all(isinstance(error, PluginError) for error in errors) else UsageError
    lines = [f"{error.where}: {error.what}" if error.where else error.what for error in errors]
    cures = dict.fromkeys(error.cure for error in errors if error.cure)
    return kind("\n".join(lines), cure="\n".join(cures))
