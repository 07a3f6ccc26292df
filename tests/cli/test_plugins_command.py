from __future__ import annotations

import sys
from typing import Any

LOSS = '''
def build(stats, *, scale: float = 30.0, mode: str = "", names: list[str] | None = None, must: int):
    """A loss of ours.

    Longer text.

    Args:
        stats: the counts.
        scale: multiplies the logits.
    """
'''


def test_list_is_by_kind_and_names_the_package(cxrlt: Any) -> None:
    done = cxrlt("plugins", "list")
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines()]
    assert ["losses", "ldam", "cxrlt", "0.1.0", "cxrlt_plugins.losses.ldam:build"] in rows
    kinds = [row[0] for row in rows[2:]]
    assert kinds == sorted(kinds, key=["losses", "backbones", "heads", "samplers", "tta", "datasets"].index)


def test_list_of_one_kind(cxrlt: Any) -> None:
    done = cxrlt("plugins", "list", "--kind", "heads", "--json")
    assert {plugin["kind"] for plugin in done.json["plugins"]} == {"heads"}


def test_list_imports_nothing_and_marks_doubles(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nbce = acme_x:build\n", {"acme_x": "raise RuntimeError"})
    done = cxrlt("plugins", "list")
    assert done.code == 0
    assert "The loss 'bce' has several owners: write acme:bce or cxrlt:bce." in done.out
    assert "acme_x" not in sys.modules


def test_list_tells_of_unreadable_packages(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nonly a name\n")
    done = cxrlt("plugins", "list")
    assert done.code == 0
    assert "the entry points of acme 1.0 cannot be read" in done.out


def test_an_unknown_kind(cxrlt: Any) -> None:
    done = cxrlt("plugins", "list", "--kind", "loss")
    assert done.code == 4
    assert "Did you mean 'losses'?" in done.err


def test_show_tells_the_docstring_and_the_options(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nours = acme:build\n", {"acme": LOSS})
    done = cxrlt("plugins", "show", "ours")
    assert done.code == 0
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert lines[0] == "loss ours, of acme 1.0 (acme:build)"
    assert "A loss of ours." in lines
    assert "scale float 30.0 multiplies the logits." in lines
    assert "names list of str | None null" in lines
    assert "mode str ''" in lines
    assert "must int required" in lines
    assert "In a recipe: loss: {name: ours, must: ...}" in lines
    assert "Args:" not in done.out


def test_show_as_json(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nours = acme:build\n", {"acme": LOSS})
    data = cxrlt("plugins", "show", "acme:ours", "--json").json
    assert data["receives"] == ["stats"]
    assert data["options"][0] == {
        "name": "scale",
        "type": "float",
        "default": 30.0,
        "required": False,
        "help": "multiplies the logits.",
    }


def test_show_of_a_plugin_without_options(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nbare = acme:build\n", {"acme": "def build(stats): ..."})
    done = cxrlt("plugins", "show", "bare")
    assert "It has no description." in done.out
    assert "It has no options." in done.out
    assert "In a recipe: loss: bare" in done.out


def test_show_of_an_unknown_name(cxrlt: Any) -> None:
    done = cxrlt("plugins", "show", "ldma")
    assert done.code == 4
    assert "there is no plugin 'ldma'. Did you mean 'ldam'?" in done.err


def test_show_of_a_name_in_two_kinds(cxrlt: Any, install: Any) -> None:
    entries = "[cxrlt.losses]\nboth = acme:loss\n[cxrlt.tta]\nboth = acme:tta\n"
    install("acme", entries, {"acme": "def loss(stats): ...\ndef tta(): ..."})
    done = cxrlt("plugins", "show", "both")
    assert done.code == 2
    assert "--kind losses or --kind tta" in done.err
    assert "predict: {tta: both}" in cxrlt("plugins", "show", "both", "--kind", "tta").out


def test_show_of_a_broken_plugin(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.losses]\nbroken = acme_gone:build\n")
    done = cxrlt("plugins", "show", "broken")
    assert done.code == 4
    assert "No module named 'acme_gone'" in done.err


def test_show_of_a_source_says_how_it_is_used(cxrlt: Any, install: Any) -> None:
    install("acme", "[cxrlt.datasets]\nmine = acme:build\n", {"acme": "def build(request): ..."})
    assert "Use: cxrlt prepare mine OUT" in cxrlt("plugins", "show", "mine").out
