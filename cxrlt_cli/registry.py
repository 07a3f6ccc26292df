"""From a plugin's name to its factory, through entry points.

Listing reads the metadata of installed distributions and imports nothing. Resolving imports the one entry point that
is named. Whatever is wrong with a plugin is one ``PluginError`` that says which plugin it is, where it comes from and
why it cannot be used; it never hurts anybody who does not name it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import TYPE_CHECKING, Any, Protocol

from cxrlt_cli.contracts import GROUPS, PluginFault
from cxrlt_cli.errors import CxrltError, DataError, PluginError
from cxrlt_cli.wording import did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cxrlt_cli.options import Option

#: What one plugin of each kind is called in a sentence.
SINGULAR: Mapping[str, str] = {
    "losses": "loss",
    "backbones": "backbone",
    "heads": "head",
    "samplers": "sampler",
    "tta": "test-time augmentation",
    "datasets": "dataset source",
}


class NamedOptions(Protocol):
    """A plugin's name and the options beside it (``recipe.schema.PluginRef``)."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


Reference = NamedOptions | Mapping[str, Any] | str


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin, known from metadata alone.

    Attributes:
        kind: "losses", "backbones", ... (the keys of ``contracts.GROUPS``).
        name: the name recipes use.
        value: the entry point's target, ``module:attribute``.
        distribution: the installed package that registers it.
        version: of that package.
    """

    kind: str
    name: str
    value: str
    distribution: str
    version: str

    @property
    def qualified(self) -> str:
        """``distribution:name``, which is unique where ``name`` may not be."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        return f"{SINGULAR[self.kind]} '{self.name}' ({self.value}, of {self.distribution} {self.version})"


def available(kind: str) -> list[Plugin]:
    """Every installed plugin of a kind, sorted by name. Imports no plugin.

    Raises:
        PluginError: there is no such kind.
    """
    if kind not in GROUPS:
        raise PluginError(
            f"there is no kind of plugin '{kind}'.{did_you_mean(kind, GROUPS)}", cure=f"Kinds: {', '.join(GROUPS)}."
        )
    return [plugin for plugin in _scan(tuple(sys.path))[0] if plugin.kind == kind]


def unreadable() -> list[str]:
    """Distributions whose entry points cannot be read, one sentence each."""
    return list(_scan(tuple(sys.path))[1])


def find(kind: str, name: str) -> Plugin:
    """The one plugin that ``name`` or ``distribution:name`` stands for.

    Raises:
        PluginError: unknown (with a suggestion and the list), or owned by two distributions.
    """
    owner, colon, short = name.rpartition(":")
    plugins = available(kind)
    found = [p for p in plugins if p.name == short and (not colon or _normal(p.distribution) == _normal(owner))]
    if not found:
        raise _unknown(kind, name, short, plugins)
    if len(found) > 1:
        owners = " and ".join(f"{p.distribution} {p.version}" for p in found)
        raise PluginError(
            f"the {SINGULAR[kind]} '{name}' is registered by {owners}.",
            cure=f"Say which one: {' or '.join(p.qualified for p in found)}.",
        )
    return found[0]


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """Import the one entry point that is named and return its factory.

    Raises:
        PluginError: unknown or ambiguous; the import fails; the target is missing or not a factory the host can call.
    """
    plugin = find(kind, name)
    factory = _import(plugin)
    from cxrlt_cli.options import factory_faults

    faults = factory_faults(kind, factory)
    if faults:
        raise _broken(plugin, "breaks the contract: " + "; ".join(faults))
    return factory


def options_of(kind: str, name: str) -> list[Option]:
    """The options of a plugin, in the order of its signature, with type, default and help."""
    from cxrlt_cli.options import read_options

    return read_options(resolve(kind, name))


def options_model(kind: str, name: str) -> type[BaseModel]:
    """A strict pydantic model of a plugin's options, made from its keyword-only parameters."""
    from cxrlt_cli.options import make_model

    return make_model(name, resolve(kind, name))


def option_problems(kind: str, ref: Reference) -> list[tuple[str, str]]:
    """What is wrong with a plugin's options: (option, sentence) pairs, empty when all is well.

    Raises:
        PluginError: the plugin itself cannot be used.
    """
    from cxrlt_cli.options import problems

    name, given = _split(ref)
    return problems(f"{SINGULAR[kind]} '{name}'", options_model(kind, name), given)


def check_options(kind: str, ref: Reference, where: str = "") -> dict[str, Any]:
    """The options of ``ref``, validated, with defaults filled in.

    Raises:
        PluginError: the plugin cannot be used, or options are unknown, missing or of the wrong type (all at once).
    """
    found = option_problems(kind, ref)
    if found:
        raise PluginError("\n".join(text for _, text in found), where=where)
    name, given = _split(ref)
    return dict(options_model(kind, name)(**given))


def build(kind: str, ref: Reference, *host_args: object, **override: object) -> Any:
    """Resolve a plugin, check its options and call its factory.

    Args:
        kind: kind of the plugin.
        ref: its name and options: ``{"name": "ldam", "scale": 30}``, a ``PluginRef``, or just the name.
        host_args: the positional arguments of ``contracts.HOST_PARAMETERS``.
        override: options that take precedence over those of ``ref``.

    Raises:
        DataError: a dataset source refused its input.
        PluginError: anything else that is wrong with the plugin, its options or its input.
    """
    name, given = _split(ref)
    options = check_options(kind, {"name": name, **given, **override})
    plugin = find(kind, name)
    try:
        return resolve(kind, name)(*host_args, **options)
    except PluginFault as fault:
        error = DataError if kind == "datasets" else PluginError
        raise error(fault.what, where=fault.where or f"{SINGULAR[kind]} {name}", cure=fault.cure) from fault
    except CxrltError:
        raise
    except Exception as error:
        raise _broken(plugin, f"failed: {_cause(error)}") from error


@lru_cache(maxsize=4)
def _scan(path: tuple[str, ...]) -> tuple[tuple[Plugin, ...], tuple[str, ...]]:
    """Plugins and faults of every distribution on ``path``; the first of several copies of a distribution counts."""
    plugins: dict[tuple[str, str, str], Plugin] = {}
    faults: list[str] = []
    seen: set[str] = set()
    for distribution in distributions(path=list(path)):
        text = _entry_point_text(distribution)
        if "[cxrlt." not in text:
            continue
        name, version = _identity(distribution)
        if _normal(name) in seen:
            continue
        seen.add(_normal(name))
        try:
            entries = list(distribution.entry_points)
        except Exception as error:  # the file is a stranger's; whatever it does must not reach other plugins
            faults.append(f"the entry points of {name} {version} cannot be read: {_cause(error)}")
            continue
        for entry in entries:
            kind = entry.group.removeprefix("cxrlt.")
            if entry.group.startswith("cxrlt.") and kind in GROUPS:
                plugins.setdefault((kind, entry.name, name), Plugin(kind, entry.name, entry.value, name, version))
    return tuple(plugins[key] for key in sorted(plugins)), tuple(faults)


def _entry_point_text(distribution: Distribution) -> str:
    try:
        return distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        return ""


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version; from the name of its folder where METADATA is missing or damaged."""
    folder = getattr(distribution, "_path", None)
    name, _, version = (folder.name.rpartition(".")[0] if folder else "").partition("-")
    with suppress(Exception):  # importlib.metadata raises many things for a damaged file
        metadata = distribution.metadata
        name, version = metadata["Name"] or name, metadata["Version"] or version
    return name or "an unnamed distribution", version or "(unknown version)"


def _import(plugin: Plugin) -> Callable[..., Any]:
    entry = EntryPoint(plugin.name, plugin.value, GROUPS[plugin.kind])
    if not entry.pattern.match(plugin.value) or ":" not in plugin.value:
        raise _broken(plugin, "cannot be loaded: the target of an entry point is written module:attribute")
    try:
        factory = entry.load()
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything while it is imported
        raise _broken(plugin, f"cannot be loaded: {_cause(error)}") from error
    if not callable(factory):
        raise _broken(plugin, f"is not a factory but of type {type(factory).__name__}")
    return factory  # type: ignore[no-any-return]  # EntryPoint.load returns Any; callable() was just checked


def _broken(plugin: Plugin, what: str) -> PluginError:
    return PluginError(
        f"{plugin} {what}",
        cure=f"Repair, update or uninstall {plugin.distribution}, or name another {SINGULAR[plugin.kind]}; "
        "everything else keeps working.",
    )


def _unknown(kind: str, name: str, short: str, plugins: list[Plugin]) -> PluginError:
    names = sorted({plugin.name for plugin in plugins})
    hint = did_you_mean(name, [*names, *(plugin.qualified for plugin in plugins)])
    elsewhere = [other for other in GROUPS if other != kind and any(p.name == short for p in available(other))]
    if not hint and elsewhere:
        hint = f" There is a {SINGULAR[elsewhere[0]]} of that name."
    installed = f"Installed: {', '.join(names)}." if names else "None is installed."
    return PluginError(f"there is no {SINGULAR[kind]} '{name}'.{hint}", cure=installed)


def _split(ref: Reference) -> tuple[str, dict[str, Any]]:
    if isinstance(ref, str):
        return ref, {}
    if isinstance(ref, Mapping):
        return str(ref["name"]), {key: value for key, value in ref.items() if key != "name"}
    return ref.name, dict(ref.options)


def _cause(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _normal(distribution: str) -> str:
    """A distribution's name in the form in which names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
