from __future__ import annotations

import importlib.metadata
import sys
from typing import Any

import pytest

from cxrlt_cli import registry
from cxrlt_cli.contracts import GROUPS
from cxrlt_cli.errors import DataError, PluginError

LOSS = """
def build(stats, *, scale: float = 30.0, name_of: str | None = None):
    return (stats, scale, name_of)
"""


def test_available_agrees_with_importlib_metadata() -> None:
    for kind, group in GROUPS.items():
        expected = {(e.name, e.value, e.dist.name) for e in importlib.metadata.entry_points(group=group) if e.dist}
        assert {(p.name, p.value, p.distribution) for p in registry.available(kind)} == expected


def test_listing_imports_no_plugin(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nboom = acme_boom:build\n", {"acme_boom": "raise RuntimeError('imported')"})
    assert "boom" in {plugin.name for plugin in registry.available("losses")}
    assert "acme_boom" not in sys.modules


def test_plugin_knows_its_distribution(install: Any) -> None:
    install("acme-losses", "[cxrlt.losses]\ntversky = acme:build\n", {"acme": LOSS}, version="2.5")
    plugin = registry.find("losses", "tversky")
    assert (plugin.distribution, plugin.version, plugin.value) == ("acme-losses", "2.5", "acme:build")
    assert plugin.qualified == "acme-losses:tversky"


def test_groups_that_are_not_ours_are_left_alone(install: Any) -> None:
    install("acme", "[cxrlt.future]\nx = acme:build\n[console_scripts]\nacme = acme:main\n", {"acme": LOSS})
    assert all(p.distribution != "acme" for kind in GROUPS for p in registry.available(kind))


def test_unknown_kind_is_suggested() -> None:
    with pytest.raises(PluginError, match=r"no kind of plugin 'loss'\. Did you mean 'losses'\?"):
        registry.available("loss")


def test_misspelt_name_is_suggested_and_all_are_listed() -> None:
    with pytest.raises(PluginError, match=r"no loss 'ldma'\. Did you mean 'ldam'\?") as caught:
        registry.resolve("losses", "ldma")
    assert "bce" in caught.value.cure


@pytest.mark.parametrize("name", ["", ":", ":ldam", "cxrlt:", "x:ldam", "ldam:", "LDAM", " ldam"])
def test_names_are_exact(name: str) -> None:
    with pytest.raises(PluginError, match="there is no loss"):
        registry.find("losses", name)


def test_name_of_another_kind_is_pointed_out() -> None:
    with pytest.raises(PluginError, match="There is a backbone of that name"):
        registry.resolve("losses", "timm")


def test_two_owners_are_told_apart_by_distribution(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nbce = acme:build\n", {"acme": LOSS})
    with pytest.raises(PluginError, match=r"registered by acme 1.0 and cxrlt") as caught:
        registry.resolve("losses", "bce")
    assert caught.value.cure == "Say which one: acme:bce or cxrlt:bce."
    assert registry.resolve("losses", "acme:bce").__module__ == "acme"


def test_distribution_names_are_compared_normalised(install: Any) -> None:
    install("Acme_Losses", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    assert registry.find("losses", "acme-losses:x").name == "x"


def test_first_copy_of_a_distribution_counts(install: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS}, version="2.0")
    info = tmp_path / "old" / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cxrlt.losses]\nx = acme:build\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "old")])
    assert registry.find("losses", "x").version == "2.0"


@pytest.mark.parametrize(
    ("target", "source", "reason"),
    [
        ("acme_gone:build", "", "ModuleNotFoundError: No module named 'acme_gone'"),
        ("acme:absent", LOSS, "AttributeError: module 'acme' has no attribute 'absent'"),
        ("acme:build", "import acme_dependency", "ModuleNotFoundError: No module named 'acme_dependency'"),
        ("acme:build", "raise ValueError('bad weather')", "ValueError: bad weather"),
        ("acme:build", "raise SystemExit(3)", "SystemExit: 3"),
        ("acme:build", "def build(:", "SyntaxError"),
        ("acme:build", "build = 3", "is not a factory but of type int"),
        ("acme", LOSS, "written module:attribute"),
        ("acme build", LOSS, "written module:attribute"),
    ],
)
def test_a_plugin_that_does_not_load_says_why(install: Any, target: str, source: str, reason: str) -> None:
    install("acme", f"[cxrlt.losses]\nx = {target}\n", {"acme": source})
    with pytest.raises(PluginError) as caught:
        registry.resolve("losses", "x")
    assert reason in caught.value.what
    assert f"loss 'x' ({target}, of acme 1.0)" in caught.value.what
    assert "uninstall acme" in caught.value.cure


def test_broken_contract_is_told_in_the_authors_terms(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": "def build(stats, scale=3): ..."})
    with pytest.raises(PluginError, match=r"scale must be keyword-only: build\(stats, \*, \.\.\.\)"):
        registry.resolve("losses", "x")


@pytest.mark.parametrize(
    "text", ["[cxrlt.losses]\nonly a name\n", "[cxrlt.losses\n", "cxrlt.\n[cxrlt.losses]\n= x:y\n"]
)
def test_unreadable_entry_points_hurt_nobody_else(install: Any, text: str) -> None:
    install("acme", text)
    assert {"bce", "ldam"} <= {plugin.name for plugin in registry.available("losses")}


def test_unreadable_entry_points_are_reported(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nonly a name\n")
    assert any("acme 1.0 cannot be read" in text for text in registry.unreadable())


def test_distribution_without_metadata_is_still_named(install: Any, tmp_path: Any) -> None:
    site = install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    (site / "acme-1.0.dist-info" / "METADATA").unlink()
    registry._scan.cache_clear()
    plugin = registry.find("losses", "x")
    assert (plugin.distribution, plugin.version) == ("acme", "1.0")


def test_options_are_checked_all_at_once(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    with pytest.raises(PluginError) as caught:
        registry.check_options("losses", {"name": "x", "scal": 3, "name_of": 4}, where="r.yaml:3:1")
    assert "unknown option 'scal' of the loss 'x'. Did you mean 'scale'?" in caught.value.what
    assert "option 'name_of' of the loss 'x': expected text, got the number 4" in caught.value.what
    assert caught.value.where == "r.yaml:3:1"


def test_defaults_are_filled_in_and_ints_serve_as_floats(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    assert registry.check_options("losses", "x") == {"scale": 30.0, "name_of": None}
    assert registry.check_options("losses", {"name": "x", "scale": 3}) == {"scale": 3.0, "name_of": None}


def test_build_calls_the_factory_and_overrides_win(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    assert registry.build("losses", {"name": "x", "scale": 3}, "stats") == ("stats", 3.0, None)
    assert registry.build("losses", {"name": "x", "scale": 3}, "stats", scale=4.0) == ("stats", 4.0, None)


def test_build_accepts_a_plugin_reference_of_a_recipe(install: Any) -> None:
    from cxrlt_cli.recipe.schema import PluginRef

    install("acme", "[cxrlt.losses]\nx = acme:build\n", {"acme": LOSS})
    reference = PluginRef.model_validate({"name": "x", "scale": 2})
    assert registry.build("losses", reference, "stats") == ("stats", 2.0, None)


FAULTS = """
from cxrlt_cli.contracts import PluginFault

def fault(*, request=None): ...

def source(request):
    raise PluginFault("no such column 'id'", where="labels.csv", cure="Name it with --id.")

def loss(stats):
    raise PluginFault("two classes at least", cure="Add a class.")

def bug(stats):
    return {}["absent"]
"""


def test_faults_become_errors_with_the_code_of_their_kind(install: Any) -> None:
    entries = "[cxrlt.datasets]\ns = acme:source\n[cxrlt.losses]\nl = acme:loss\nb = acme:bug\n"
    install("acme", entries, {"acme": FAULTS})
    with pytest.raises(DataError) as data:
        registry.build("datasets", "s", None)
    assert (data.value.what, data.value.where, data.value.cure) == (
        "no such column 'id'",
        "labels.csv",
        "Name it with --id.",
    )
    with pytest.raises(PluginError, match="two classes at least"):
        registry.build("losses", "l", None)


def test_a_factory_with_a_bug_is_named(install: Any) -> None:
    install("acme", "[cxrlt.losses]\nb = acme:bug\n", {"acme": FAULTS})
    with pytest.raises(PluginError, match=r"loss 'b' \(acme:bug, of acme 1.0\) failed: KeyError: 'absent'") as caught:
        registry.build("losses", "b", None)
    assert isinstance(caught.value.__cause__, KeyError)
