"""A recipe file to a checked ``Recipe``: ``extends``, ``--set``, the schema, the plugins' options.

Everything that is wrong is collected and raised at once, each problem with ``file:line:column``.

``data.path`` is taken relative to the current directory, as everything a user types is, not relative to the recipe: a
recipe is passed from hand to hand, a dataset stays where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxrlt_cli import registry
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.nodes import Node, Place, Problem, parse, parse_value
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sections import PLUGINS, SECTIONS, unknown_key
from cxrlt_cli.recipe.sources import locate, read, shipped
from cxrlt_cli.recipe.write import dump_recipe, json_schema
from cxrlt_cli.wording import explain

__all__ = ["about", "dump_recipe", "json_schema", "load_recipe", "shipped"]

#: Keys that belong to one file and are not handed on by ``extends``.
_OWN = ("name", "about", "extends")


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        source: a path, or the name of a shipped recipe.
        overrides: ``section.key=value`` texts of ``--set``, in order; values follow the rules of the file.

    Raises:
        UsageError: the file is missing or unreadable, or something in it is wrong; all problems at once.
        PluginError: the only problems are plugins that are missing or broken, or options they do not take.
    """
    path = locate(source)
    root, problems = _tree(path, str(source) if path == Path(source) else str(path), ())
    for override in overrides:
        node, found = _override(override)
        root = _merge(root, node)
        problems.extend(found)
    recipe, found = _validate(root, default_name=_name_of(path))
    problems.extend(found)
    problems.extend(_plugin_problems(root))
    if problems or recipe is None:
        raise _error(problems)
    return recipe


def about(path: Path) -> str:
    """What a recipe says it is for; empty when it says nothing or cannot be read. Quick: nothing is checked."""
    try:
        root, _ = parse(read(path), str(path))
    except UsageError:
        return ""
    text = root.at(("about",)).value
    return " ".join(text.split()) if isinstance(text, str) else ""


def _tree(path: Path, label: str, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    """The tree of a file, merged over what it extends. ``chain``: the files that led here."""
    root, problems = parse(read(path), label)
    if problems and not root.value:
        raise _error(problems)
    if not isinstance(root.value, dict):
        raise _error([*problems, Problem(root.place, "a recipe is a mapping of keys to values")])
    base = root.value.get("extends")
    own = replace(root, value={key: node for key, node in root.value.items() if key != "extends"})
    if base is None:
        return own, problems
    inherited, found = _base(base, path, (*chain, path.resolve()))
    return _merge(inherited, own), [*problems, *found]


def _base(extends: Node, path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    if not isinstance(extends.value, str):
        raise _error([Problem(extends.place, "extends: expected the path or the name of one recipe")])
    try:
        found = locate(extends.value, beside=path.parent)
    except UsageError as error:
        raise _error([Problem(extends.place, f"extends: {error.what}", error.cure)]) from error
    if found.resolve() in chain:
        circle = " -> ".join(file.name for file in (*chain, found))
        raise _error([Problem(extends.place, f"recipes extend each other in a circle: {circle}")])
    root, problems = _tree(found, str(found), chain)
    if isinstance(root.value, dict):
        root = replace(root, value={key: node for key, node in root.value.items() if key not in _OWN})
    return root, problems


def _override(text: str) -> tuple[Node, list[Problem]]:
    """One ``--set`` as a tree, to be merged over the recipe."""
    place = Place(f"--set {text}")
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return Node({}, place), [Problem(place, "expected section.key=value, such as optim.lr=3e-4")]
    node, problems = parse_value(value, place)
    if problems:
        return Node({}, place), problems
    for key in reversed(keys):
        node = Node({key: node}, place)
    return node, problems


def _merge(base: Node, over: Node, path: str = "") -> Node:
    """``over`` laid over ``base``: mappings merge, all else replaces, and another plugin brings its own options."""
    if path in PLUGINS:
        base, over = _long_form(base), _long_form(over)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if path in PLUGINS and "name" in over.value and _plugin_name(over) != _plugin_name(base):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        below = f"{path}.{key}".lstrip(".")
        merged[key] = _merge(merged[key], node, below) if key in merged else node
    return replace(base, value=merged)


def _long_form(node: Node) -> Node:
    """``loss: ldam`` as ``loss: {name: ldam}``."""
    return replace(node, value={"name": node}) if isinstance(node.value, str) else node


def _plugin_name(node: Node) -> object:
    return node.at(("name",)).value if isinstance(node.value, dict) and "name" in node.value else None


def _validate(root: Node, default_name: str) -> tuple[Recipe | None, list[Problem]]:
    plain = root.plain
    assert isinstance(plain, dict)
    try:
        return Recipe.model_validate({"name": default_name, **plain}), []
    except ValidationError as error:
        by_place = groupby(error.errors(), key=lambda e: e["loc"])
        return None, [_problem(root, path, list(errors)) for path, errors in by_place]


def _problem(root: Node, path: tuple[str | int, ...], errors: list[Any]) -> Problem:
    place = root.at(path).place
    dotted = ".".join(str(part) for part in path if isinstance(part, str))
    if errors[0]["type"] == "extra_forbidden":
        return Problem(place, unknown_key(dotted))
    if errors[0]["type"] == "missing":
        return Problem(place, f"the key '{dotted}' is missing ({SECTIONS.get(dotted, 'no default')})")
    item = next((part for part in path if isinstance(part, int)), None)
    where = dotted if item is None else f"{dotted}, item {item + 1}"
    return Problem(place, f"{where}: {explain(errors)}" if where else explain(errors))


def _plugin_problems(root: Node) -> list[Problem]:
    found: list[Problem] = []
    for dotted, kind in PLUGINS.items():
        parts = tuple(dotted.split("."))
        node = root.at(parts)
        if node is root.at(parts[:-1]) or not isinstance(name := _plugin_name(_long_form(node)), str) or not name:
            continue
        plain = _long_form(node).plain
        assert isinstance(plain, dict)
        try:
            bad = registry.option_problems(kind, plain)
        except PluginError as error:
            found.append(Problem(node.at(("name",)).place, f"{dotted}: {error.what}", error.cure, plugin=True))
        else:
            found.extend(Problem(node.at((option,)).place, text, plugin=True) for option, text in bad)
    return found


def _error(problems: Sequence[Problem]) -> UsageError | PluginError:
    """One error for all problems, in the order in which they stand in the file."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem.place)
    error = PluginError if all(problem.plugin for problem in ordered) else UsageError
    if len(ordered) == 1:
        return error(ordered[0].text, where=str(ordered[0].place), cure=ordered[0].cure)
    cures = dict.fromkeys(problem.cure for problem in ordered if problem.cure)
    return error("\n".join(f"{problem.place}: {problem.text}" for problem in ordered), cure="\n".join(cures))


def _name_of(path: Path) -> str:
    """The default name of a recipe: its file's stem, with what a name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "recipe"
