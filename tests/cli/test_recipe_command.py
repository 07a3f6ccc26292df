from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxrlt_cli.recipe.load import load_recipe, shipped

GOOD = "data: {path: x}\nmodel: {backbone: net}\n"


@pytest.fixture(autouse=True)
def light(install: Any) -> None:
    """A backbone that needs no torch."""
    install(
        "light", "[cxrlt.backbones]\nnet = light_net:build\n", {"light_net": "def build(in_chans, image_size): ..."}
    )


def test_list_names_what_ships(cxrlt: Any) -> None:
    done = cxrlt("recipe", "list", "--json")
    assert [recipe["name"] for recipe in done.json["recipes"]] == list(shipped())
    assert {"convnext_ldam_drw", "demo_phantom", "nih_lite0"} <= set(shipped())


def test_every_shipped_recipe_says_what_it_is_for(cxrlt: Any) -> None:
    assert all(recipe["about"] for recipe in cxrlt("recipe", "list", "--json").json["recipes"])


def test_show_prints_the_file(cxrlt: Any) -> None:
    assert cxrlt("recipe", "show", "demo_phantom").out == shipped()["demo_phantom"].read_text()


def test_show_resolved_prints_every_default(cxrlt: Any) -> None:
    Path("base.yaml").write_text(GOOD)
    Path("r.yaml").write_text("extends: base.yaml\n")
    done = cxrlt("recipe", "show", "r.yaml", "--resolved")
    Path("again.yaml").write_text(done.out)
    assert "extends" not in done.out
    assert "weight_decay: 0.01" in done.out
    assert load_recipe("again.yaml") == load_recipe("r.yaml")


def test_show_of_an_unknown_recipe(cxrlt: Any) -> None:
    done = cxrlt("recipe", "show", "demo_fantom")
    assert done.code == 2
    assert "Did you mean 'demo_phantom'?" in done.err


def test_validate(cxrlt: Any) -> None:
    Path("a.yaml").write_text(GOOD)
    Path("b.yaml").write_text(GOOD)
    done = cxrlt("recipe", "validate", "a.yaml", "b.yaml")
    assert (done.code, done.out) == (0, "a.yaml: valid\nb.yaml: valid\n")
    found = cxrlt("recipe", "validate", "a.yaml", "--json").json
    assert found == {"recipes": [{"source": "a.yaml", "name": "a", "notes": []}]}


def test_validate_notes_what_is_rarely_meant(cxrlt: Any) -> None:
    Path("a.yaml").write_text(GOOD + "reweight: {scheme: effective, relative_to: mean}\n")
    done = cxrlt("recipe", "validate", "a.yaml")
    assert done.code == 0
    assert "note: reweight.relative_to mean" in done.out


def test_every_shipped_recipe_is_valid(cxrlt: Any) -> None:
    done = cxrlt("recipe", "validate", *shipped())
    assert (done.code, done.err) == (0, "")


def test_validate_tells_every_problem_of_every_recipe(cxrlt: Any) -> None:
    Path("a.yaml").write_text(GOOD + "foo: 1\nbar: 2\n")
    Path("b.yaml").write_text(GOOD + "loss: absent\n")
    done = cxrlt("recipe", "validate", "a.yaml", "b.yaml", "absent.yaml")
    assert done.code == 2
    assert done.out == ""
    for text in (
        "a.yaml:3:1: unknown key 'foo'",
        "a.yaml:4:1: unknown key 'bar'",
        "b.yaml:3:1: loss: there is no loss",
    ):
        assert text in done.err
    assert "there is no recipe 'absent.yaml'" in done.err


def test_validate_of_plugin_problems_alone_is_4(cxrlt: Any) -> None:
    Path("b.yaml").write_text(GOOD + "loss: absent\n")
    assert cxrlt("recipe", "validate", "b.yaml").code == 4


def test_schema_is_the_same_in_both_forms(cxrlt: Any) -> None:
    assert cxrlt("recipe", "schema").json == cxrlt("recipe", "schema", "--json").json


def test_list_tells_kinds_apart(cxrlt: Any) -> None:
    kinds = {each["name"]: each["kind"] for each in cxrlt("recipe", "list", "--json").json["recipes"]}
    assert (kinds["demo_phantom"], kinds["heads/crt"], kinds["ablation/phantom"]) == ("train", "head", "sweep")
    only = cxrlt("recipe", "list", "--kind", "head", "--json").json["recipes"]
    assert {each["kind"] for each in only} == {"head"}


def test_an_unknown_kind(cxrlt: Any) -> None:
    done = cxrlt("recipe", "list", "--kind", "heads")
    assert done.code == 2
    assert "Did you mean 'head'?" in done.err


def test_the_schema_of_each_kind(cxrlt: Any) -> None:
    sweep = cxrlt("recipe", "schema", "--kind", "sweep").json
    assert "axes" in sweep["properties"]
    head = cxrlt("recipe", "schema", "--kind", "head").json
    assert {"required": ["method"]} in head["anyOf"]


def test_the_schema_may_carry_the_options_of_plugins(cxrlt: Any) -> None:
    branches = cxrlt("recipe", "schema", "--options").json["properties"]["loss"]["anyOf"]
    (ldam,) = [b for b in branches if b.get("properties", {}).get("name") == {"const": "ldam"}]
    assert ldam["properties"]["scale"]["default"] == 30.0
    assert "factor" in ldam["properties"]["scale"]["description"]
    assert ldam["additionalProperties"] is False


def test_validate_checks_the_rows_of_a_sweep(cxrlt: Any) -> None:
    Path("base.yaml").write_text(GOOD)
    Path("table.yaml").write_text("base: base.yaml\nrows: [{name: a, set: {optm.lr: 1}}]\n")
    done = cxrlt("recipe", "validate", "table.yaml")
    assert done.code == 2
    assert "table.yaml:2:24: unknown key 'optm'" in done.err
