"""The conformance kit: what every plugin promises, as rules that run over a factory and explain what they saw.

For the tests of a plugin package::

    from cxrlt_cli.testing import verify
    from mypackage import build

    def test_it_keeps_the_contract() -> None:
        verify("losses", build)

The same rules run over installed plugins with ``cxrlt plugins check PACKAGE``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.testing.rules import Broken, Finding, Rule, Skip, Subject, run_rule, run_rules

__all__ = ["Broken", "Finding", "Rule", "Skip", "broken_views", "check", "rules_of", "verify"]


def rules_of(kind: str) -> Sequence[Rule]:
    """The rules of a kind of plugin ("losses", "heads", ...), beside those of its factory.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in GROUPS:
        raise ValueError(f"there is no kind of plugin {kind!r}; kinds: {', '.join(GROUPS)}")
    if kind == "losses":
        from cxrlt_cli.testing.losses import RULES
    elif kind == "heads":
        from cxrlt_cli.testing.networks import HEADS as RULES
    elif kind == "backbones":
        from cxrlt_cli.testing.networks import BACKBONES as RULES
    elif kind == "samplers":
        from cxrlt_cli.testing.orders import RULES
    elif kind == "tta":
        from cxrlt_cli.testing.views import RULES
    else:
        from cxrlt_cli.testing.sources import RULES
    return RULES


def check(kind: str, factory: Callable[..., Any], **options: Any) -> list[Finding]:
    """Run every rule of a kind over a factory; one finding a rule.

    Args:
        kind: "losses", "backbones", "heads", "samplers", "tta" or "datasets".
        factory: what the entry point names.
        options: options to build it with. Without any, those of the factory's attribute ``example`` are taken, which
            a plugin with required options should have: ``build.example = {"model": "resnet10t"}``.

    Raises:
        ValueError: there is no such kind.
    """
    rules = rules_of(kind)
    return run_rules(rules, Subject(kind, factory, options or dict(getattr(factory, "example", {}))))


def broken_views(strategy: object) -> Finding | None:
    """The first rule that a test-time augmentation breaks as it was built; None where it keeps all of them."""
    subject = Subject("tta", lambda: strategy, {})
    findings = (run_rule(rule, subject) for rule in rules_of("tta"))
    return next((finding for finding in findings if finding.verdict == "broken"), None)


def verify(kind: str, factory: Callable[..., Any], **options: Any) -> None:
    """Run every rule, as :func:`check` does, for use in a test.

    Raises:
        AssertionError: a rule is broken; it names each, what it promises and what was seen.
    """
    broken = [finding for finding in check(kind, factory, **options) if finding.verdict == "broken"]
    if broken:
        raise AssertionError("\n".join(f"{one.rule}: {one.message}\n    (rule: {one.promise})" for one in broken))
