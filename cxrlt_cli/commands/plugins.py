"""``cxrlt plugins``: what is installed, and what each plugin takes."""

from __future__ import annotations

import inspect

from cxrlt_cli import registry
from cxrlt_cli.contracts import GROUPS, HOST_PARAMETERS
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.events import Result, Table
from cxrlt_cli.options import Option
from cxrlt_cli.registry import SINGULAR, Plugin
from cxrlt_cli.wording import did_you_mean

#: How a recipe names a plugin of each kind; test-time augmentation and sources are chosen on the command line as well.
_IN_A_RECIPE = {
    "losses": "loss: {}",
    "backbones": "model: {{backbone: {}}}",
    "heads": "model: {{head: {}}}",
    "samplers": "sampler: {}",
    "tta": "predict: {{tta: {}}}",
}


def run_list(kind: str | None = None) -> Result:
    """Every installed plugin, by kind; metadata only, nothing is imported.

    Raises:
        PluginError: there is no such kind.
    """
    plugins = [plugin for each in ([kind] if kind else GROUPS) for plugin in registry.available(each)]
    rows = tuple((p.kind, p.name, f"{p.distribution} {p.version}", p.value) for p in plugins)
    notes = [*_doubles(plugins), *registry.unreadable()]
    table = Table(("kind", "name", "package", "target"), rows, note="\n".join(notes))
    data = {"plugins": [_as_data(plugin) for plugin in plugins], "problems": notes}
    return Result(data, (table,) if rows else ("No plugin is installed.",))


def run_show(name: str, kind: str | None = None) -> Result:
    """What one plugin does and which options it takes.

    Args:
        name: its name, or ``distribution:name``.
        kind: needed only where plugins of two kinds share the name.

    Raises:
        PluginError: unknown, ambiguous or broken.
        UsageError: plugins of several kinds have the name.
    """
    kind = kind or _kind_of(name)
    plugin = registry.find(kind, name)
    about = inspect.getdoc(registry.resolve(kind, name)) or "It has no description."
    options = registry.options_of(kind, name)
    rows = tuple((o.name, o.type_name, _default(o), o.help) for o in options)
    table = Table(("option", "type", "default", "meaning"), rows, note=_example(plugin, options))
    heading = f"{SINGULAR[kind]} {plugin.name}, of {plugin.distribution} {plugin.version} ({plugin.value})"
    data = {
        **_as_data(plugin),
        "about": about,
        "receives": list(HOST_PARAMETERS[kind]),
        "options": [_option_data(option) for option in options],
    }
    without = "It has no options." + (f"\n{table.note}" if table.note else "")
    return Result(data, (heading, about.partition("\nArgs:")[0].rstrip(), table if rows else without))


def _kind_of(name: str) -> str:
    every = [plugin for kind in GROUPS for plugin in registry.available(kind)]
    kinds = list(dict.fromkeys(p.kind for p in every if name in {p.name, p.qualified}))
    if len(kinds) > 1:
        raise UsageError(
            f"'{name}' is the name of plugins of several kinds.", cure=f"Say which: --kind {' or --kind '.join(kinds)}."
        )
    if not kinds:
        names = sorted({p.name for p in every})
        raise PluginError(
            f"there is no plugin '{name}'.{did_you_mean(name, [*names, *(p.qualified for p in every)])}",
            cure="`cxrlt plugins list` shows what is installed.",
        )
    return kinds[0]


def _doubles(plugins: list[Plugin]) -> list[str]:
    by_name: dict[tuple[str, str], list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault((plugin.kind, plugin.name), []).append(plugin)
    return [
        f"The {SINGULAR[kind]} '{name}' has several owners: write {' or '.join(p.qualified for p in owners)}."
        for (kind, name), owners in by_name.items()
        if len(owners) > 1
    ]


def _example(plugin: Plugin, options: list[Option]) -> str:
    if plugin.kind == "datasets":
        return f"Use: cxrlt prepare {plugin.name} OUT"
    needed = [f"{option.name}: ..." for option in options if option.required]
    first = [f"{option.name}: {_default(option)}" for option in options if option.default is not None]
    shown = ", ".join([f"name: {plugin.name}", *(needed or first[:1])])
    short = f"{{{shown}}}" if options else plugin.name
    return f"In a recipe: {_IN_A_RECIPE[plugin.kind].format(short)}"


def _default(option: Option) -> str:
    """The default as a recipe writes it."""
    value = option.default
    if option.required:
        return "required"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(str, value))}]"
    return repr(value) if value == "" else str(value)


def _as_data(plugin: Plugin) -> dict[str, object]:
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "target": plugin.value,
    }


def _option_data(option: Option) -> dict[str, object]:
    default = None if option.required else option.default
    return {
        "name": option.name,
        "type": option.type_name,
        "default": default,
        "required": option.required,
        "help": option.help,
    }
