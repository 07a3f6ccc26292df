"""``cxrlt plugins check`` and ``cxrlt plugins new``, as the author of a plugin uses them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cxrlt_cli.commands.plugin_new import KINDS
from cxrlt_cli.testing import check

INVERTED = '''
import torch
from torch import nn


class Inverted(nn.Module):
    def forward(self, logits, targets, weight):
        unknown = weight == 0
        z, y = logits.masked_fill(unknown, 0), targets.masked_fill(unknown, 0)
        p = torch.sigmoid(z)
        right = (1 - p - 0.05).clamp(min=0)
        cost = -y * (1 - p) * torch.log(p.clamp(min=1e-8)) - (1 - y) * right**4 * torch.log(right.clamp(min=1e-8))
        return (cost * weight).sum() / torch.count_nonzero(weight).clamp(min=1)


def build(stats):
    """An asymmetric loss, inverted.

    Args:
        stats: unused.
    """
    return Inverted()
'''


def test_the_built_in_plugins_keep_every_rule(cxrlt: Any) -> None:
    done = cxrlt("plugins", "check", "cxrlt", "--kind", "losses")
    assert done.code == 0, done.out
    assert "keep every rule" in done.out


def test_a_broken_plugin_is_named_and_explained(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\ninverted = acme_x:build\nbce = acme_gone:build\n", {"acme_x": INVERTED})
    done = cxrlt("plugins", "check", "acme")
    assert done.code == 4
    assert "breaks the rule 'slopes lead towards the label'" in done.out
    assert "for a negative of class" in done.out
    assert "No module named 'acme_gone'" in done.out
    assert "2 of 2 plugins break a rule." in done.out
    found = {plugin["name"]: plugin for plugin in cxrlt("plugins", "check", "acme", "--json").json["plugins"]}
    assert {rule["verdict"] for rule in found["inverted"]["rules"]} == {"kept", "broken"}


def test_one_plugin_with_options_and_details(cxrlt: Any) -> None:
    done = cxrlt("plugins", "check", "ldam", "--set", "scale=10", "--details")
    assert done.code == 0
    assert "  kept: slopes lead towards the label" in done.out
    assert "The plugin keeps every rule." in done.out
    refused = cxrlt("plugins", "check", "ldam", "--set", "scale=-1")
    assert refused.code == 4
    assert "scale is -1" in refused.out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("check", "cxrtl"), 4, "Did you mean 'cxrlt'?"),
        (("check", "cxrlt", "--kind", "loses"), 4, "there is no kind of plugin"),
        (("check", "ldam", "--set", "scale"), 2, "is no option=value"),
        (("new", "lossy", "mine"), 2, "there is no kind of plugin 'lossy'"),
        (("new", "loss", "My Loss"), 2, "cannot be the name of a plugin"),
    ],
)
def test_mistakes_have_a_cure(cxrlt: Any, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = cxrlt("plugins", *arguments)
    assert done.code == code
    assert text in done.err


def test_new_never_writes_over_a_directory(cxrlt: Any, tmp_path: Path) -> None:
    assert cxrlt("plugins", "new", "loss", "mine").code == 0
    kept = (tmp_path / "cxrlt-mine/README.md").read_text()
    done = cxrlt("plugins", "new", "loss", "mine")
    assert done.code == 3
    assert "is there already" in done.err
    assert (tmp_path / "cxrlt-mine/README.md").read_text() == kept


def test_new_warns_of_a_name_that_is_taken(cxrlt: Any) -> None:
    done = cxrlt("plugins", "new", "losses", "bce", "--out", "elsewhere")
    assert done.code == 0
    assert "cxrlt has a loss 'bce' already" in done.err


@pytest.mark.parametrize(("word", "kind"), KINDS.items())
def test_a_new_package_passes_the_kit_and_its_own_test(
    cxrlt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, kind: str
) -> None:
    name = f"made-{word}"
    assert cxrlt("plugins", "new", word, name).code == 0
    folder = tmp_path / f"cxrlt-{name}"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    module, _, attribute = project["entry-points"][f"cxrlt.{kind}"][name].partition(":")
    monkeypatch.syspath_prepend(folder)
    findings = check(kind, getattr(importlib.import_module(module), attribute))
    assert [(one.rule, one.message) for one in findings if one.verdict == "broken"] == []
    if kind == "losses":
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(tests, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
