"""``cxrlt prepare SOURCE``: the options of a source plugin as options of a command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from cxrlt_cli import registry
from cxrlt_cli.errors import PluginError
from cxrlt_cli.stubs import SHARED

if TYPE_CHECKING:
    from cxrlt_cli.events import Emit, Result
    from cxrlt_cli.options import Option

#: Parameters of the stub that are not options of the command.
_HANDED = ("source", "options")


def source_command(name: str, stub: Callable[..., Result]) -> Callable[..., Result]:
    """``stub(emit, source, ..., options)`` with the options of the source ``name`` as parameters of their own.

    A source whose natural image side is not 512 says so with an attribute of its factory: ``build.default_size = 128``.

    Raises:
        PluginError: there is no such source, it cannot be loaded, or an option of it is one of ``prepare`` already.
    """
    factory = registry.resolve("datasets", name)
    options = {option.name: option for option in registry.options_of("datasets", name)}
    host = dict(inspect.signature(stub, eval_str=True).parameters)
    taken = sorted(set(options) & (set(host) | {*SHARED, "json", "help"}))
    if taken:
        raise PluginError(
            f"the options {', '.join(taken)} of the dataset source '{name}' are options of cxrlt prepare already.",
            cure="Its author has to rename them.",
        )

    @functools.wraps(stub)
    def command(emit: Emit, **values: Any) -> Result:
        given = _given(options, {key: values.pop(key) for key in options})
        return stub(emit, source=name, options=given, **values)

    kept = [parameter for key, parameter in host.items() if key not in _HANDED]
    size = getattr(factory, "default_size", host["size"].default)
    kept = [p.replace(default=size) if p.name == "size" else p for p in kept]
    parameters = [*kept, *(_parameter(option) for option in options.values())]
    ordered = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]  # read by inspect.signature
    command.__doc__ = (inspect.getdoc(factory) or "").partition("\nArgs:")[0].strip()
    return command


def _given(options: Mapping[str, Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options the user gave, as the plugin's model takes them."""
    given = {}
    for name, option in options.items():
        value = _value(option.annotation, values[name])
        if value is not None and value != [] and value != _shown_default(option):
            given[name] = value
    return given


def _value(annotation: Any, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [part for item in value for part in _parts(item)]
    literal = _single(annotation)
    if get_origin(literal) is Literal:
        return {str(choice): choice for choice in get_args(literal)}.get(str(value), value)
    return value


def _parts(item: Any) -> list[Any]:
    """One value of a list option: text is split at commas."""
    return [part.strip() for part in item.split(",") if part.strip()] if isinstance(item, str) else [item]


def _parameter(option: Option) -> inspect.Parameter:
    single = _single(option.annotation)
    several = get_origin(single) not in {None, Literal} and not option.required
    note = " Repeats, or separate by commas." if several else ""
    metavar = "|".join(map(str, get_args(single))) if get_origin(single) is Literal else None
    declared = typer.Option(help=option.help + note or None, metavar=metavar)
    default = inspect.Parameter.empty if option.required else _shown_default(option)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[_shown_type(option), declared],
    )


def _shown_default(option: Option) -> Any:
    return list(option.default) if isinstance(option.default, tuple) else option.default


def _shown_type(option: Option) -> Any:
    """The type for Typer: bool, int, float, str or a list of one of them; everything else is read as text."""
    single = _single(option.annotation)
    if get_origin(single) is not None and get_origin(single) is not Literal and get_args(single):
        item = get_args(single)[0]
        shown: Any = list[item if item in {int, float} else str]  # type: ignore[misc]  # a type made at run time
    else:
        shown = single if single in {bool, int, float, str} else str
    return shown if option.required or option.default is not None else shown | None


def _single(annotation: Any) -> Any:
    """The one type beside None, without its metadata; ``str`` where there are several."""
    if get_origin(annotation) is Annotated:
        return _single(get_args(annotation)[0])
    if get_origin(annotation) in {Union, UnionType}:
        real = [argument for argument in get_args(annotation) if argument is not NoneType]
        return _single(real[0]) if len(real) == 1 else str
    return annotation
