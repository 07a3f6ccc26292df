"""``cxrlt plugins check``: the conformance kit over the plugins of a package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cxrlt_cli import registry
from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.events import Advanced, Emit, Finished, Result, Started, Table, silent
from cxrlt_cli.registry import SINGULAR, Plugin
from cxrlt_cli.wording import did_you_mean

if TYPE_CHECKING:
    from cxrlt_cli.testing import Finding


def run(
    package: str, *, kind: str | None = None, overrides: Sequence[str] = (), details: bool = False, emit: Emit = silent
) -> Result:
    """Run the conformance kit over every plugin a package registers, or over one plugin.

    Args:
        package: an installed distribution, or a plugin as NAME or DISTRIBUTION:NAME.
        kind: only plugins of this kind.
        overrides: ``option=value`` texts to build the plugins with, in place of those their factory suggests.
        details: also list the rules that are kept or do not apply.
        emit: told about progress.

    Returns:
        What each rule says of each plugin; ``code`` is 4 when one is broken.

    Raises:
        PluginError: no such package or plugin.
        UsageError: an override is no ``option=value``.
    """
    plugins, options = _chosen(package, kind), _options(overrides)
    emit(Started("check", len(plugins), "plugins"))
    checked = []
    for done, plugin in enumerate(plugins, 1):
        checked.append((plugin, _check(plugin, options)))
        emit(Advanced("check", done, str(plugin.qualified)))
    emit(Finished("check"))
    broken = sum(_count(findings, "broken") > 0 for _, findings in checked)
    data = {"package": package, "broken": broken, "plugins": [_as_data(*pair) for pair in checked]}
    last = f"{broken} of {len(plugins)} plugins break a rule." if broken else _praise(len(plugins))
    return Result(data, (_table(checked), *_messages(checked, details), last), code=PluginError.code if broken else 0)


def _chosen(package: str, kind: str | None) -> list[Plugin]:
    every = [plugin for each in ([kind] if kind else GROUPS) for plugin in registry.available(each)]
    chosen = [p for p in every if _same(p.distribution, package)]
    chosen = chosen or [p for p in every if package in {p.name, p.qualified}]
    if not chosen:
        names = sorted({name for p in every for name in (p.distribution, p.name)})
        raise PluginError(
            f"no installed package or plugin is called '{package}'.{did_you_mean(package, names)}",
            cure="Install the package into this environment first; `cxrlt plugins list` shows what is there.",
        )
    return chosen


def _same(distribution: str, name: str) -> bool:
    return distribution.replace("_", "-").lower() == name.replace("_", "-").lower()


def _options(overrides: Sequence[str]) -> dict[str, Any]:
    from cxrlt_cli.recipe.nodes import Place, parse_value

    options = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        node, problems = parse_value(value, Place(f"--set {text}"))
        if not equals or not name.isidentifier() or problems:
            raise UsageError(f"'{text}' is no option=value", where="--set", cure="Write --set model=resnet10t.")
        options[name] = node.plain
    return options


def _check(plugin: Plugin, options: Mapping[str, Any]) -> list[Finding]:
    from cxrlt_cli.testing import Finding, check

    try:
        factory = registry.resolve(plugin.kind, plugin.qualified)
        known = {option.name for option in registry.options_of(plugin.kind, plugin.qualified)}
    except PluginError as error:
        promise = "The entry point names a factory that can be imported and called."
        return [Finding("it_can_be_loaded", promise, "broken", error.what)]
    suggested = dict(getattr(factory, "example", {}))
    return check(plugin.kind, factory, **suggested | {name: options[name] for name in options if name in known})


def _count(findings: Sequence[Finding], verdict: str) -> int:
    return sum(finding.verdict == verdict for finding in findings)


def _table(checked: Sequence[tuple[Plugin, Sequence[Finding]]]) -> Table:
    rows = [
        (SINGULAR[p.kind], p.name, *(str(_count(found, verdict)) for verdict in ("kept", "broken", "skipped")))
        for p, found in checked
    ]
    return Table(("kind", "name", "kept", "broken", "not applicable"), tuple(rows), title="rules of the contract")


def _messages(checked: Sequence[tuple[Plugin, Sequence[Finding]]], details: bool) -> list[str]:
    """A paragraph for each broken rule, and with ``details`` one a plugin that lists the others."""
    blocks = []
    for plugin, findings in checked:
        blocks += [
            f"{plugin} breaks the rule '{_words(one)}':\n  {one.message}\n  The rule: {one.promise}"
            for one in findings
            if one.verdict == "broken"
        ]
        others = [one for one in findings if one.verdict != "broken"]
        if details and others:
            lines = (f"  {one.verdict}: {_words(one)}{f': {one.message}' if one.message else ''}" for one in others)
            blocks.append("\n".join([f"{plugin}", *lines]))
    return blocks


def _words(finding: Finding) -> str:
    return finding.rule.replace("_", " ")


def _praise(count: int) -> str:
    return "The plugin keeps every rule." if count == 1 else f"All {count} plugins keep every rule."


def _as_data(plugin: Plugin, findings: Sequence[Finding]) -> dict[str, Any]:
    rules = [
        {"rule": one.rule, "promise": one.promise, "verdict": one.verdict, "message": one.message} for one in findings
    ]
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "rules": rules,
    }
