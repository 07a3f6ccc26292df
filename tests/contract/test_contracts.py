"""Every installed plugin, whoever wrote it, keeps every rule of the conformance kit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxrlt_cli import registry
from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.posterior import derive
from cxrlt_cli.registry import Plugin
from cxrlt_cli.testing import check
from cxrlt_cli.testing.rules import CLASSES, STATS

EVERY = [plugin for kind in GROUPS for plugin in registry.available(kind)]


@pytest.mark.parametrize("plugin", EVERY, ids=lambda plugin: f"{plugin.kind}-{plugin.qualified}")
def test_it_keeps_the_rules_of_its_kind(plugin: Plugin) -> None:
    findings = check(plugin.kind, registry.resolve(plugin.kind, plugin.qualified))
    assert [(one.rule, one.message) for one in findings if one.verdict == "broken"] == []
    assert sum(one.verdict == "kept" for one in findings) >= 5


@pytest.mark.parametrize("plugin", EVERY, ids=lambda plugin: f"{plugin.kind}-{plugin.qualified}")
def test_an_unknown_option_is_refused(plugin: Plugin) -> None:
    assert registry.option_problems(plugin.kind, {"name": plugin.qualified, "no_such_option": 1})


def test_the_built_in_plugins_are_there() -> None:
    names: dict[str, set[str]] = {kind: {plugin.name for plugin in registry.available(kind)} for kind in GROUPS}
    losses = {"bce", "wbce", "focal", "cb-focal", "asl", "ldam", "db", "logit-adjusted", "hill", "ral", "two-way", "ap"}
    expected: dict[str, set[str]] = {
        "losses": losses,
        "backbones": {"timm"},
        "heads": {"linear", "cosine", "csra", "ml-decoder"},
        "samplers": {"uniform", "class-aware", "root", "progressive", "repeat-factor"},
        "tta": {"none", "flip", "light", "medium", "heavy", "multi-scale", "five-crop"},
        "datasets": {"csv", "phantom"},
    }
    assert all(wanted <= names[kind] for kind, wanted in expected.items())


def test_the_link_of_the_example_is_the_identity() -> None:
    brier: list[Any] = [plugin for plugin in registry.available("losses") if plugin.name == "brier"]
    if not brier:
        pytest.skip("plugins/example is not installed")
    link = derive(registry.build("losses", brier[0].qualified, STATS), np.ones(CLASSES), np.ones(CLASSES))
    assert link is not None
    logits = np.linspace(-8, 8, 33)[:, None].repeat(CLASSES, axis=1)
    np.testing.assert_allclose(link.log_odds_of(logits), logits, atol=1e-3)
