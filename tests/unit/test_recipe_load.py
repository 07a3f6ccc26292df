from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe import load
from cxrlt_cli.recipe.load import about, dump_recipe, json_schema, load_recipe, shipped
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sections import PLUGINS, SECTIONS, keys_of, unknown_key

LIGHT = ["model.head=light:linear", "sampler=light:uniform", "predict.tta=light:none"]
LOSSES = """
def one(stats, *, scale: float = 30.0): ...
def two(stats, *, gamma: float = 2.0): ...
"""

SMALL = """\
data: {path: data/x}
model:
  backbone: {name: net, width: 8}
loss: {name: one, scale: 20}
optim:
  lr: 3e-4
"""


@pytest.fixture(autouse=True)
def light_plugins(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that need no torch, and a working directory of its own."""
    backbone = "def build(in_chans, image_size, *, pretrained: bool = False, width: int = 8): ..."
    entries = "[cxrlt.losses]\none = light_loss:one\ntwo = light_loss:two\n[cxrlt.backbones]\nnet = light_net:build\n"
    entries += "[cxrlt.heads]\nlinear = light_rest:head\n[cxrlt.samplers]\nuniform = light_rest:sampler\n"
    entries += "[cxrlt.tta]\nnone = light_rest:tta\n"
    rest = "def head(width, stats): ...\ndef sampler(labels, stats, patients, seed, epochs): ...\ndef tta(): ...\n"
    install("light", entries, {"light_loss": LOSSES, "light_net": backbone, "light_rest": rest})
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "r.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises((UsageError, PluginError)) as caught:
        load_recipe(write(text), overrides)
    return str(caught.value).splitlines()


# -- what is read ------------------------------------------------------------------------------------------------


def test_a_small_recipe() -> None:
    recipe = load_recipe(write(SMALL))
    assert recipe.name == "r"
    assert recipe.optim.lr == 3e-4
    assert recipe.loss.options == {"scale": 20}
    assert recipe.train.epochs == 10


@pytest.mark.parametrize(
    ("file", "name"), [("my recipe.yaml", "my-recipe"), ("_x.yml", "x"), ("ä.yaml", "recipe"), ("a.b-c.yaml", "a.b-c")]
)
def test_the_name_is_the_files(file: str, name: str) -> None:
    assert load_recipe(write(SMALL, file)).name == name


def test_the_data_path_stays_as_it_was_typed() -> None:
    assert load_recipe(write(SMALL, "deep/down/r.yaml")).data.path == "data/x"


def test_a_file_with_a_byte_order_mark() -> None:
    Path("r.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe("r.yaml").name == "r"


def test_overrides_are_applied_in_order() -> None:
    settings = ["optim.lr=1", "optim.lr=2e-3", "data.views=[PA, no]", "train.average.ema.decay=.9"]
    recipe = load_recipe(write(SMALL), settings)
    assert recipe.optim.lr == 2e-3
    assert recipe.data.views == ["PA", "no"]
    assert recipe.train.average.ema is not None
    assert recipe.train.average.ema.decay == 0.9


def test_an_override_may_take_a_value_away() -> None:
    assert load_recipe(write(SMALL), ["optim.clip=null"]).optim.clip is None


# -- extends -----------------------------------------------------------------------------------------------------


def test_extends_merges_deeply() -> None:
    write(SMALL + "  weight_decay: 0.5\n", "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\noptim: {lr: 1}\n"))
    assert (recipe.optim.lr, recipe.optim.weight_decay) == (1, 0.5)


def test_extends_is_relative_to_the_file() -> None:
    write(SMALL, "lib/base.yaml")
    write("extends: base.yaml\n", "lib/r.yaml")
    assert load_recipe("lib/r.yaml").optim.lr == 3e-4


def test_name_and_about_are_not_inherited() -> None:
    write("name: theirs\nabout: theirs\n" + SMALL, "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\n"))
    assert (recipe.name, recipe.about) == ("r", "")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("{scale: 5}", {"name": "one", "scale": 5}),
        ("{name: one}", {"name": "one", "scale": 20}),
        ("one", {"name": "one", "scale": 20}),
        ("{name: two}", {"name": "two"}),
        ("two", {"name": "two"}),
        ("{name: two, gamma: 1}", {"name": "two", "gamma": 1}),
    ],
)
def test_another_plugin_brings_its_own_options(loss: str, expected: dict[str, object]) -> None:
    write(SMALL, "base.yaml")
    assert load_recipe(write(f"extends: base.yaml\nloss: {loss}\n")).loss.model_dump() == expected
    assert load_recipe(write(SMALL), [f"loss={loss}"]).loss.model_dump() == expected


def test_overriding_the_name_drops_the_options_of_the_other() -> None:
    assert load_recipe(write(SMALL), ["loss.name=two", "loss.gamma=3"]).loss.model_dump() == {"name": "two", "gamma": 3}


def test_extends_of_extends() -> None:
    write(SMALL, "a.yaml")
    write("extends: a.yaml\ntrain: {epochs: 3}\n", "b.yaml")
    recipe = load_recipe(write("extends: b.yaml\n"))
    assert (recipe.train.epochs, recipe.optim.lr) == (3, 3e-4)


@pytest.mark.parametrize("first", ["r.yaml", "b.yaml"])
def test_circles_are_found(first: str) -> None:
    write("extends: r.yaml\n", "b.yaml")
    (line,) = problems(f"extends: {first}\n")
    assert "extend each other in a circle: " in line
    assert line.endswith("-> r.yaml")


def test_a_missing_base_is_suggested() -> None:
    write(SMALL, "base.yaml")
    line = problems("extends: bsae.yaml\n")[0]
    assert line.startswith("r.yaml:1:1: extends: there is no recipe 'bsae.yaml'")
    assert "Did you mean 'base.yaml'?" in line


def test_problems_of_the_base_are_told_where_they_stand() -> None:
    write(SMALL + "  weigth_decay: 1\n", "base.yaml")
    assert problems("extends: base.yaml\n") == [
        "base.yaml:7:3: unknown key 'optim.weigth_decay'. Did you mean 'weight_decay'?"
    ]


# -- what is wrong -----------------------------------------------------------------------------------------------


def test_the_example_of_the_design() -> None:
    text = SMALL + "  warmup: 0.1\n  clip: 1\n  weigth_decay: 0.1\n"
    assert problems(text) == ["r.yaml:9:3: unknown key 'optim.weigth_decay'. Did you mean 'weight_decay'?"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("epochs: 3", "unknown key 'epochs'. Did you mean 'train.epochs'?"),
        ("optim.lr: 3", "unknown key 'optim.lr'. Write it nested: 'lr' under 'optim'."),
        ("<<: {lr: 3}", "unknown key '<<'. Merge keys are not known here"),
        ("zzzzzz: 3", "unknown key 'zzzzzz'. Keys here: name, about, data, model"),
        ("extend: b", "unknown key 'extend'. Did you mean 'extends'?"),
        ("train: {epochs: 3.0}", "train.epochs: expected a whole number, got the number 3.0"),
        ("train: {epochs: ten}", "train.epochs: expected a whole number, got the text 'ten'"),
        ("train: {epochs: 0}", "train.epochs: must be at least 1, got 0"),
        ("train: {epochs: true}", "train.epochs: expected a whole number, got true"),
        ("train: {seed: 010}", "train.seed: expected a whole number, got the text '010'"),
        ("train: {compile: on}", "train.compile: expected true or false, got the text 'on'"),
        ("train: {compile: 1}", "train.compile: expected true or false, got the number 1"),
        ("train: {precision: fp8}", "train.precision: expected 'fp32', 'bf16' or 'fp16', got the text 'fp8'"),
        ("train: [1]", "train: expected a mapping of keys to values, got a list"),
        ("train:", "train: expected a mapping of keys to values, got nothing (null)"),
        ("train: {batch_size: 10, accumulate: 3}", "train: batch_size 10 is not a multiple of accumulate 3; use 12"),
        ("augment: {flip: 1.5}", "augment.flip: must be at most 1, got 1.5"),
        ("augment: {scale: 1}", "augment.scale: must be below 1, got 1"),
        ("augment: {noise: .nan}", "augment.noise: must be a finite number"),
        ("name: a b", "name: the text 'a b' does not fit the pattern"),
        ("name: 3", "name: expected text, got the number 3"),
        ("sampler: ''", "sampler.name: must not be empty"),
        ("sampler: {name: 3}", "sampler.name: expected text, got the number 3"),
        ("sampler: 3", "sampler: expected a mapping of keys to values, got the number 3"),
        ("sampler: {}", "the key 'sampler.name' is missing (name of the plugin, or distribution:name)"),
        ("reweight: {cap: 0}", "reweight.cap: must be above 0, got 0"),
        ("about: [a, b]", "about: expected text, got a list"),
    ],
)
def test_problems_in_plain_words(line: str, problem: str) -> None:
    (found,) = problems(SMALL + line + "\n")
    assert found.startswith("r.yaml:7:")
    assert problem in found


def test_items_of_lists_are_counted_from_one() -> None:
    text = SMALL + "  betas: [0.9, x]\n"
    assert problems(text) == ["r.yaml:7:16: optim.betas, item 2: expected a number, got the text 'x'"]
    assert "needs at most 2 items, got 3" in problems(SMALL + "  betas: [0.9, 0.9, 0.9]\n")[0]


def test_missing_keys_are_explained() -> None:
    assert problems("model: {backbone: net}\n") == [
        "r.yaml:1:1: the key 'data' is missing (Which prepared dataset is read, and how)"
    ]
    assert "the key 'data.path' is missing (prepared dataset" in problems("data: {}\nmodel: {backbone: net}\n")[0]


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = (
        "data: {path: 3}\nmodel:\n  backbone: nett\nloss: {name: one, scal: 3}\noptim:\n  lr: -1\n  lr: 2\nfoo: !x 1\n"
    )
    lines = problems(text)
    assert [line.split(": ")[0] for line in lines[:6]] == [
        "r.yaml:1:8",
        "r.yaml:3:3",
        "r.yaml:4:19",
        "r.yaml:6:3",
        "r.yaml:7:3",
        "r.yaml:8:1",
    ]


@pytest.mark.parametrize("text", ["- 1\n", "just text\n", "3\n"])
def test_a_recipe_is_a_mapping(text: str) -> None:
    assert problems(text) == ["r.yaml:1:1: a recipe is a mapping of keys to values"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optim.lr=abc", "--set optim.lr=abc: optim.lr: expected a number, got the text 'abc'"),
        ("optim.lr", "--set optim.lr: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("optim..lr=3", "--set optim..lr=3: expected section.key=value"),
        ("lr=3", "--set lr=3: unknown key 'lr'. Did you mean 'optim.lr'?"),
        ("optm.lr=3", "--set optm.lr=3: unknown key 'optm'. Did you mean 'optim'?"),
        ("optim.lr.x=3", "--set optim.lr.x=3: optim.lr: expected a number, got a mapping"),
        ("data.views=[PA", "--set data.views=[PA: not valid YAML"),
        ("loss.scal=3", "--set loss.scal=3: unknown option 'scal' of the loss 'one'. Did you mean 'scale'?"),
        ("loss=onee", "--set loss=onee: loss: there is no loss 'onee'. Did you mean 'one'?"),
    ],
)
def test_problems_of_set_name_the_argument(override: str, problem: str) -> None:
    assert problems(SMALL, override)[0].startswith(problem)


# -- plugins -----------------------------------------------------------------------------------------------------


def test_only_plugin_problems_are_a_plugin_error() -> None:
    with pytest.raises(PluginError) as caught:
        load_recipe(write(SMALL.replace("name: one", "name: absent")))
    assert "there is no loss 'absent'" in caught.value.what
    assert caught.value.where == "r.yaml:4:8"


def test_mixed_problems_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there is no loss 'absent'"):
        load_recipe(write(SMALL.replace("name: one", "name: absent") + "  foo: 1\n"))


def test_options_of_plugins_have_their_place() -> None:
    text = SMALL.replace("width: 8", "width: wide").replace("scale: 20", "scale: 20, gamma: 2")
    assert problems(text) == [
        "r.yaml:3:25: option 'width' of the backbone 'net': expected a whole number, got the text 'wide'",
        "r.yaml:4:30: unknown option 'gamma' of the loss 'one'. Options: scale.",
    ]


# -- where recipes lie -------------------------------------------------------------------------------------------


def test_shipped_recipes_have_nested_names(monkeypatch: pytest.MonkeyPatch) -> None:
    write(SMALL, "package/recipes/demo.yaml")
    write(SMALL, "package/recipes/paper/row1.yaml")
    monkeypatch.setattr("cxrlt_cli.recipe.sources._PACKAGE", Path("package").absolute())
    assert list(shipped()) == ["demo", "paper/row1"]
    for name in ("paper/row1", "paper/row1.yaml", "recipes/paper/row1.yaml", "./recipes/paper/row1.yaml"):
        assert load_recipe(name).name == "row1"
    with pytest.raises(UsageError, match="Did you mean 'demo'") as caught:
        load_recipe("dmeo")
    assert "Shipped: demo, paper/row1" in caught.value.cure


def test_a_file_of_the_user_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    write(SMALL, "package/recipes/demo.yaml")
    monkeypatch.setattr("cxrlt_cli.recipe.sources._PACKAGE", Path("package").absolute())
    write(SMALL.replace("3e-4", "7"), "demo.yaml")
    assert load_recipe("demo.yaml").optim.lr == 7
    assert load_recipe("demo").optim.lr == 3e-4


@pytest.mark.parametrize("source", ["absent.yaml", "absent", "", ".", "folder", "x\0y", "a" * 5000])
def test_what_is_no_recipe(source: str) -> None:
    Path("folder").mkdir()
    with pytest.raises(UsageError):
        load_recipe(source)


def test_an_unreadable_file(deny: Callable[[Path], None]) -> None:
    deny(Path(write(SMALL)))
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        load_recipe("r.yaml")


def test_a_binary_file() -> None:
    Path("r.yaml").write_bytes(b"a: 1\n\xff\xfe")
    with pytest.raises(UsageError, match="line 2 is not UTF-8"):
        load_recipe("r.yaml")


def test_about_is_quick_and_never_fails() -> None:
    write("about: >\n  two\n  lines\nfoo: !bad 1\n")
    assert about(Path("r.yaml")) == "two lines"
    assert about(Path("absent")) == ""
    assert about(Path(write("a: ["))) == ""
    assert about(Path(write("- 1"))) == ""


# -- and back ----------------------------------------------------------------------------------------------------


def test_dump_reads_back_the_same() -> None:
    recipe = load_recipe(write(SMALL), [*LIGHT, "train.average.ema.decay=0.9999", "optim.lr=1e-5", "data.views=[PA]"])
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


@settings(deadline=None)
@given(st.text())
def test_every_text_survives(text: str) -> None:
    base = {"name": "r", "data": {"path": "x"}, "model": {"backbone": {"name": "net", "tag": text}}, "about": text}
    recipe = Recipe.model_validate(base)
    tree, found = load.parse(dump_recipe(recipe), "r")
    assert not found
    assert tree.at(("about",)).value == text
    assert tree.at(("model", "backbone", "tag")).value == text


@pytest.mark.parametrize(
    "text", ["3e-4", "no", "null", "~", "true", "1:30", "010", "1e5", ".5", ".inf", "", "2026-01-01"]
)
def test_text_that_looks_like_something_else_is_quoted(text: str) -> None:
    recipe = load_recipe(write(SMALL), LIGHT).model_copy(update={"about": text})
    again = load_recipe(write(dump_recipe(recipe), "again.yaml"))
    assert again.about == text


def test_a_dump_is_plain_yaml_for_others_too() -> None:
    recipe = load_recipe(write(SMALL))
    assert yaml.safe_load(dump_recipe(recipe))["model"]["backbone"] == {"name": "net", "width": 8}


# -- schema ------------------------------------------------------------------------------------------------------


def test_every_plugin_of_the_schema_is_checked() -> None:
    assert PLUGINS == {
        "model.backbone": "backbones",
        "model.head": "heads",
        "loss": "losses",
        "sampler": "samplers",
        "predict.tta": "tta",
    }


def test_every_key_has_a_description() -> None:
    bare = {path for path, text in SECTIONS.items() if not text}
    assert bare <= {"train.epochs", "train.channels_last", "train.seed", "optim.betas"}


def test_keys_of_sections() -> None:
    assert keys_of("train.average.ema") == ["decay", "warmup"]
    assert "extends" in keys_of("")
    assert unknown_key("model.name") == "unknown key 'model.name'. Did you mean 'model.backbone.name'?"


def test_json_schema_names_the_installed_plugins() -> None:
    schema = json.loads(json.dumps(json_schema()))
    loss = schema["properties"]["loss"]["anyOf"][0]["anyOf"][0]["enum"]
    assert {"one", "two", "bce"} <= set(loss)
    assert "extends" in schema["properties"]
    assert schema["anyOf"] == [{"required": ["extends"]}, {"required": ["data", "model"]}]


def test_json_schema_refers_to_nothing_missing() -> None:
    text = json.dumps(json_schema())
    schema = json.loads(text)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]}
    assert references <= set(schema["$defs"])
