"""The options of a plugin, read from the keyword-only parameters of its factory."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from cxrlt_cli.contracts import HOST_PARAMETERS
from cxrlt_cli.wording import did_you_mean, explain

_SCALARS = (bool, int, float, str)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a plugin.

    Attributes:
        name: as written in a recipe.
        annotation: the evaluated type.
        default: the default; ``required`` options have none.
        required: the user must give it.
        help: its line of the factory's docstring (Google style ``Args:``), or empty.
    """

    name: str
    annotation: Any
    default: Any
    required: bool
    help: str

    @property
    def type_name(self) -> str:
        """The type as an author writes it: ``float``, ``int | None``, ``'pad' | 'squash'``."""
        return _type_name(self.annotation)


def factory_faults(kind: str, factory: Callable[..., Any]) -> list[str]:
    """What is wrong with a factory, in its author's terms; empty when the host can call it."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        return ["its signature cannot be read"]
    wanted = HOST_PARAMETERS[kind]
    given = tuple(p.name.lstrip("_") for p in parameters if p.kind in _POSITIONAL)
    faults = [] if given == wanted else [_positional_fault(wanted, given)]
    for parameter in parameters:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            faults.append(f"'{parameter}' is not allowed: every option is a keyword-only parameter of its own")
        if parameter.kind is parameter.KEYWORD_ONLY:
            faults.extend(_option_faults(parameter, factory))
    return faults


def read_options(factory: Callable[..., Any]) -> list[Option]:
    """The options of a factory without faults, in the order of its signature."""
    helps = _argument_lines(inspect.getdoc(factory) or "")
    return [
        Option(
            name=parameter.name,
            annotation=_annotation(parameter, factory),
            default=parameter.default,
            required=parameter.default is parameter.empty,
            help=helps.get(parameter.name, ""),
        )
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def make_model(name: str, factory: Callable[..., Any]) -> type[BaseModel]:
    """A strict model of the options: no coercion, no unknown key, an int accepted for a float."""
    fields: dict[str, Any] = {
        option.name: (_tolerant(option.annotation), ... if option.required else option.default)
        for option in read_options(factory)
    }
    return create_model(name, __base__=_Strict, **fields)


def problems(owner: str, model: type[BaseModel], given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(option, sentence) for everything wrong with ``given``; ``owner`` names the plugin in the sentences."""
    try:
        model(**given)
    except ValidationError as error:
        by_option = groupby(error.errors(), key=lambda e: str(e["loc"][0]))
        return [(option, _sentence(owner, option, list(errors), model)) for option, errors in by_option]
    return []


def _sentence(owner: str, option: str, errors: list[Any], model: type[BaseModel]) -> str:
    known = list(model.model_fields)
    if errors[0]["type"] == "extra_forbidden":
        listed = f" Options: {', '.join(known)}." if known else " It has no options."
        return f"unknown option '{option}' of the {owner}.{did_you_mean(option, known) or listed}"
    if errors[0]["type"] == "missing":
        return f"the {owner} needs the option '{option}'"
    item = next((part for part in errors[0]["loc"][1:] if isinstance(part, int)), None)
    place = "" if item is None else f", item {item + 1}"
    return f"option '{option}' of the {owner}{place}: {explain(errors)}"


def _positional_fault(wanted: tuple[str, ...], given: tuple[str, ...]) -> str:
    signature = ", ".join([*wanted, "*", "..."])
    extra = [name for name in given if name not in wanted]
    if given[: len(wanted)] == wanted:
        return f"the parameters {', '.join(extra)} must be keyword-only: build({signature})"
    return f"the host calls it as build({signature}), but its positional parameters are ({', '.join(given)})"


def _option_faults(parameter: inspect.Parameter, factory: Callable[..., Any]) -> list[str]:
    name = parameter.name
    if name == "name" or name.startswith("_") or hasattr(BaseModel, name):
        return [f"the option name '{name}' is reserved"]
    if parameter.annotation is parameter.empty:
        return [f"the option '{name}' has no type annotation"]
    try:
        annotation = _annotation(parameter, factory)
    except Exception as error:  # an annotation is an expression of the author's; evaluating it may raise anything
        return [f"the annotation of the option '{name}' ({parameter.annotation}) cannot be evaluated: {error}"]
    if not _supported(annotation):
        return [
            f"the option '{name}' is a {_type_name(annotation)}; options are bool, int, float, str, Literal, "
            "list or tuple of these, or None"
        ]
    return _default_faults(parameter, annotation)


def _default_faults(parameter: inspect.Parameter, annotation: Any) -> list[str]:
    if parameter.default is parameter.empty:
        return []
    model = create_model("Default", __base__=_Strict, value=(_tolerant(annotation), ...))
    try:
        model.model_validate({"value": parameter.default})
    except ValidationError as error:
        return [f"the default of the option '{parameter.name}' does not fit its type: {explain(error.errors())}"]
    return []


def _annotation(parameter: inspect.Parameter, factory: Callable[..., Any]) -> Any:
    """The annotation as an object. One at a time, so that names imported for type checkers only hurt nobody else."""
    alone = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    return typing.get_type_hints(alone, _globals(factory), include_extras=True)[parameter.name]


def _globals(factory: Callable[..., Any]) -> dict[str, Any]:
    while isinstance(factory, functools.partial):
        factory = factory.func
    inner = inspect.unwrap(factory)
    if isinstance(inner, types.FunctionType):
        return inner.__globals__
    owner = inner if isinstance(inner, type) else type(inner)
    return vars(sys.modules[owner.__module__])


def _supported(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in {*_SCALARS, None, types.NoneType} or origin is Literal:
        return True
    if origin is Annotated:
        return _supported(arguments[0])
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis and _supported(arguments[0])
    return origin in {list, Sequence, Union, types.UnionType} and all(_supported(a) for a in arguments)


def _tolerant(annotation: Any) -> Any:
    """The annotation with tuples that also take a list: recipes and command lines have no tuples."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return Annotated[annotation, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
    if origin in {Union, types.UnionType}:
        return functools.reduce(lambda left, right: left | right, (_tolerant(argument) for argument in arguments))
    return annotation


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in {None, types.NoneType}:
        return "None"
    if origin in {Union, types.UnionType}:
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in {list, tuple, Sequence}:
        return f"list of {_type_name(arguments[0])}" if arguments else "list"
    return getattr(annotation, "__name__", str(annotation))


def _argument_lines(doc: str) -> dict[str, str]:
    """Parameter -> text of a Google style ``Args:`` section; continuation lines are joined."""
    found: dict[str, str] = {}
    lines = iter(doc.splitlines())
    name, depth = "", 0
    for line in lines:
        if line.strip() == "Args:":
            break
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        head, colon, text = line.strip().partition(":")
        if colon and head.isidentifier() and indent <= (depth or indent):
            name, depth = head, indent
            found[name] = text.strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
