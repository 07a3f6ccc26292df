"""A document to its checked model: ``extends``, ``--set``, the schema, the plugins' options.

There are three kinds: recipes to train, head recipes and sweeps (``sections.FORMS``). Everything that is wrong is
collected and raised at once, each problem with ``file:line:column``.

``data.path`` is taken relative to the current directory, as everything a user types is, not relative to the recipe: a
recipe is passed from hand to hand, a dataset stays where it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Generic

from pydantic import ValidationError

from cxrlt_cli import registry
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.nodes import Node, Place, Problem, parse, parse_value
from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sections import FORMS, HEAD, SWEEP, TRAIN, Form, M
from cxrlt_cli.recipe.sources import locate, read, shipped
from cxrlt_cli.recipe.sweep import Sweep
from cxrlt_cli.recipe.write import dump_recipe, json_schema
from cxrlt_cli.wording import explain

__all__ = ["about", "dump_recipe", "json_schema", "load_recipe", "shipped"]

Source = str | os.PathLike[str]

#: Keys that belong to one file and are not handed on by ``extends``.
_OWN = ("name", "about", "extends")

#: Where documents of any kind name plugins.
_PLUGIN_PATHS = frozenset(path for form in FORMS for path in form.plugins)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A checked document with its tree.

    Attributes:
        value: the document.
        root: its tree, which knows where each value was written.
        path: its file.
    """

    value: M
    root: Node
    path: Path


def load_recipe(source: Source, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge and check a recipe to train.

    Args:
        source: a path, or the name of a shipped recipe.
        overrides: ``section.key=value`` texts of ``--set``, in order; values follow the rules of the file.

    Raises:
        UsageError: the file is missing or unreadable, or something in it is wrong; all problems at once.
        PluginError: the only problems are plugins that are missing or broken, or options they do not take.
    """
    return load(TRAIN, source, overrides).value


def load_head_recipe(source: Source, overrides: Sequence[str] = ()) -> Retrain:
    """Read, merge and check a head recipe; arguments and errors as of ``load_recipe``."""
    return load(HEAD, source, overrides).value


def load_sweep(source: Source, overrides: Sequence[str] = ()) -> Loaded[Sweep]:
    """Read, merge and check a sweep; arguments and errors as of ``load_recipe``. Its rows are not checked here."""
    return load(SWEEP, source, overrides)


def load(
    form: Form[M],
    source: Source,
    overrides: Sequence[str] = (),
    *,
    overlays: Sequence[Node] = (),
    beside: Path | None = None,
    plugins: bool = True,
) -> Loaded[M]:
    """Read, merge and check a document.

    Args:
        form: the kind it has to be.
        source: a path, or the name of a shipped document.
        overrides: ``section.key=value`` texts, laid over the file in order.
        overlays: trees, laid over the result.
        beside: the folder paths start at; None for the current directory.
        plugins: check plugins and their options too, which imports them.

    Raises:
        UsageError, PluginError: as ``load_recipe``.
    """
    path = locate(source, beside)
    root, problems = _read(path, source)
    if (found := form_of(root)) is not form:
        raise UsageError(f"is {found.noun}, not {form.noun}", where=str(source), cure=f"It is for `{found.usage}`.")
    for override in overrides:
        node, wrong = override_node(override)
        root = _merge(root, node)
        problems.extend(wrong)
    for node in overlays:
        root = _merge(root, node)
    return _checked(form, path, root, problems, plugins=plugins)


def _read(path: Path, source: Source) -> tuple[Node, list[Problem]]:
    """The tree of a document, called in messages what the user called it. Read once: it may be a pipe."""
    return _tree(path, str(source) if path == Path(source) else str(path), ())


def _checked(form: Form[M], path: Path, root: Node, problems: list[Problem], *, plugins: bool) -> Loaded[M]:
    value, wrong = _validate(root, form, default_name=_name_of(path))
    problems = [*problems, *wrong, *(_plugin_problems(root, form) if plugins else ())]
    if problems or value is None:
        raise error_of(problems)
    return Loaded(value, root, path)


def form_of(root: Node) -> Form[Any]:
    """The kind of document a tree is; one to train where nothing says otherwise."""
    keys: Collection[str] = root.value if isinstance(root.value, dict) else ()
    return next((form for form in FORMS if any(mark in keys for mark in form.marks)), TRAIN)


def load_any(source: Source) -> Loaded[Any]:
    """A document of whatever kind, checked as ``load`` does."""
    path = locate(source)
    root, problems = _read(path, source)
    return _checked(form_of(root), path, root, problems, plugins=True)


def kind_of(path: Path) -> str:
    """The kind of a document by its own keys and those it extends; "train" where it cannot be read."""
    try:
        return form_of(_tree(path, str(path), ())[0]).kind
    except UsageError:
        return TRAIN.kind


def nested(dotted: str, node: Node) -> Node:
    """``a.b`` and a value as the tree ``{a: {b: value}}``, every part of it at the value's place."""
    for key in reversed(dotted.split(".")):
        node = Node({key: node}, node.place)
    return node


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
        raise error_of(problems)
    if not isinstance(root.value, dict):
        raise error_of([*problems, Problem(root.place, "a recipe is a mapping of keys to values")])
    base = root.value.get("extends")
    own = replace(root, value={key: node for key, node in root.value.items() if key != "extends"})
    if base is None:
        return own, problems
    inherited, found = _base(base, path, (*chain, path.resolve()))
    return _merge(inherited, own), [*problems, *found]


def _base(extends: Node, path: Path, chain: tuple[Path, ...]) -> tuple[Node, list[Problem]]:
    if not isinstance(extends.value, str):
        raise error_of([Problem(extends.place, "extends: expected the path or the name of one recipe")])
    try:
        found = locate(extends.value, beside=path.parent)
    except UsageError as error:
        raise error_of([Problem(extends.place, f"extends: {error.what}", error.cure)]) from error
    if found.resolve() in chain:
        circle = " -> ".join(file.name for file in (*chain, found))
        raise error_of([Problem(extends.place, f"recipes extend each other in a circle: {circle}")])
    root, problems = _tree(found, str(found), chain)
    if isinstance(root.value, dict):
        root = replace(root, value={key: node for key, node in root.value.items() if key not in _OWN})
    return root, problems


def override_node(text: str) -> tuple[Node, list[Problem]]:
    """One ``--set`` as a tree, to be laid over a document, and what is wrong with it."""
    place = Place(f"--set {text}")
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return Node({}, place), [Problem(place, "expected section.key=value, such as optim.lr=3e-4")]
    node, problems = parse_value(value, place)
    if problems:
        return Node({}, place), problems
    return nested(path.strip(), node), problems


def _merge(base: Node, over: Node, path: str = "") -> Node:
    """``over`` laid over ``base``: mappings merge, all else replaces, and another plugin brings its own options."""
    if path in _PLUGIN_PATHS:
        base, over = _long_form(base), _long_form(over)
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if path in _PLUGIN_PATHS and "name" in over.value and _plugin_name(over) != _plugin_name(base):
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


def _validate(root: Node, form: Form[M], default_name: str) -> tuple[M | None, list[Problem]]:
    plain = root.plain
    assert isinstance(plain, dict)
    try:
        return form.model.model_validate({"name": default_name, **plain}), []
    except ValidationError as error:
        by_place = groupby(error.errors(), key=lambda e: e["loc"])
        return None, [_problem(root, form, path, list(errors)) for path, errors in by_place]


def _problem(root: Node, form: Form[Any], path: tuple[str | int, ...], errors: list[Any]) -> Problem:
    place = root.at(path).place
    dotted = ".".join(str(part) for part in path if isinstance(part, str))
    if errors[0]["type"] == "extra_forbidden":
        return Problem(place, form.unknown_key(dotted))
    if errors[0]["type"] == "missing":
        return Problem(place, f"the key '{dotted}' is missing ({form.sections.get(dotted, 'no default')})")
    item = next((part for part in path if isinstance(part, int)), None)
    where = dotted if item is None else f"{dotted}, item {item + 1}"
    return Problem(place, f"{where}: {explain(errors)}" if where else explain(errors))


def _plugin_problems(root: Node, form: Form[Any]) -> list[Problem]:
    found: list[Problem] = []
    for dotted, kind in form.plugins.items():
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


def error_of(problems: Sequence[Problem]) -> UsageError | PluginError:
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
