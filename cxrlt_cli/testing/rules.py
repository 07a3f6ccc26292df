"""What a rule of the conformance kit is, and how rules are run over a plugin."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cxrlt_cli.contracts import ClassStats
from cxrlt_cli.options import factory_faults, read_options

Verdict = Literal["kept", "broken", "skipped"]

#: Label counts every plugin is built with: a common, a rare and a very rare class, and one that never occurs.
STATS = ClassStats(("Effusion", "Mass", "Hernia", "Bulla"), (500, 40, 5, 0), (480, 960, 995, 1000))
CLASSES = len(STATS.names)


class Broken(Exception):
    """A plugin breaks a rule; the text says what was seen, and what to do, in the author's terms."""


class Skip(Exception):
    """A rule does not apply to a plugin, or cannot be tried on it; the text says why."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A plugin under test.

    Attributes:
        kind: "losses", "backbones", ... (the keys of ``contracts.GROUPS``).
        factory: its factory.
        options: options to build it with.
    """

    kind: str
    factory: Callable[..., Any]
    options: Mapping[str, Any]

    def build(self, *host: object) -> Any:
        """What the factory makes of the host's arguments."""
        return self.factory(*host, **self.options)


Rule = Callable[[Subject], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says of a plugin.

    Attributes:
        rule: name of the rule.
        promise: what it asks for, in one sentence.
        verdict: "kept", "broken", or "skipped" where it does not apply.
        message: what was seen; empty where the rule is kept.
    """

    rule: str
    promise: str
    verdict: Verdict
    message: str = ""


def run_rule(rule: Rule, subject: Subject) -> Finding:
    """Try one rule. Any exception of the plugin's own counts as breaking it."""
    name, promise = rule.__name__, (inspect.getdoc(rule) or "").partition("\n\n")[0].replace("\n", " ")
    try:
        rule(subject)
    except Skip as reason:
        return Finding(name, promise, "skipped", str(reason))
    except Broken as fault:
        return Finding(name, promise, "broken", str(fault))
    except Exception as error:  # a plugin may raise anything
        return Finding(name, promise, "broken", f"it raised {type(error).__name__}: {error}")
    return Finding(name, promise, "kept")


def run_rules(rules: Sequence[Rule], subject: Subject) -> list[Finding]:
    """Try the rules of every kind of plugin, then ``rules``; these only where the factory can be called at all."""
    shared = [run_rule(rule, subject) for rule in (factory_can_be_called, factory_says_what_it_does)]
    if shared[0].verdict != "kept":
        return shared
    missing = [o.name for o in read_options(subject.factory) if o.required and o.name not in subject.options]
    if missing:
        reason = f"it needs the option{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        return shared + [run_rule(_unbuilt(rule, reason), subject) for rule in rules]
    return shared + [run_rule(rule, subject) for rule in rules]


def _unbuilt(rule: Rule, reason: str) -> Rule:
    def skipped(subject: Subject) -> None:
        raise Skip(reason)

    skipped.__name__, skipped.__doc__ = rule.__name__, rule.__doc__
    return skipped


def factory_can_be_called(subject: Subject) -> None:
    """The factory takes the host's arguments by position and its options by keyword, typed and with defaults."""
    faults = factory_faults(subject.kind, subject.factory)
    if faults:
        raise Broken("; ".join(faults))


def factory_says_what_it_does(subject: Subject) -> None:
    """The factory has a docstring: `cxrlt plugins show` prints it, and takes the meaning of options from `Args:`."""
    if not inspect.getdoc(subject.factory):
        raise Broken("the factory has no docstring")
    silent = [option.name for option in read_options(subject.factory) if not option.help]
    if silent:
        raise Broken(f"`Args:` of the factory's docstring says nothing of {', '.join(silent)}")
