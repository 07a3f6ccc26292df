"""Sweeps as documents: what is read, what a row becomes, what is refused and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxrlt_cli.commands.sweep.plan import Plan, make_plan
from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.load import kind_of, load_any, load_head_recipe, load_recipe, load_sweep
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sweep import Sweep, expand, repetitions

BASE = "data: {path: data/x}\nmodel: {backbone: {name: net, width: 8}}\nloss: {name: one, scale: 20}\n"
TABLE = """\
base: base.yaml
seeds: [0, 1]
rows:
  - {name: plain}
  - name: other
    set: {loss: two, optim.lr: 3e-4}
"""


@pytest.fixture(autouse=True)
def place(install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins that need no torch, and a base recipe."""
    code = "def one(stats, *, scale: float = 30.0): ...\ndef two(stats, *, gamma: float = 2.0): ...\n"
    code += "def net(in_chans, image_size, *, pretrained: bool = False, width: int = 8): ...\n"
    entries = "[cxrlt.losses]\none = light:one\ntwo = light:two\n[cxrlt.backbones]\nnet = light:net\n"
    install("light", entries, {"light": code})
    monkeypatch.chdir(tmp_path)
    write(BASE, "base.yaml")
    write("method: crt\ntrain: {epochs: 3}\n", "again.yaml")


def write(text: str, name: str = "table.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def plan(text: str, *overrides: str) -> Plan:
    return make_plan(load_sweep(write(text)), overrides)


def problem(text: str) -> str:
    with pytest.raises((UsageError, PluginError)) as caught:
        plan(text)
    return str(caught.value)


# -- kinds ---------------------------------------------------------------------------------------------------------


def test_documents_are_told_apart_by_their_keys() -> None:
    assert kind_of(Path("base.yaml")) == "train"
    assert kind_of(Path("again.yaml")) == "head"
    assert kind_of(Path(write(TABLE))) == "sweep"
    assert kind_of(Path("absent.yaml")) == "train"


def test_the_kind_may_be_inherited() -> None:
    write(TABLE)
    assert kind_of(Path(write("extends: table.yaml\nname: mine\n", "mine.yaml"))) == "sweep"
    assert load_sweep("mine.yaml").value.rows[1].name == "other"


@pytest.mark.parametrize(
    ("name", "loader", "told"),
    [
        ("table.yaml", load_recipe, "is a sweep, not a recipe to train"),
        ("again.yaml", load_recipe, "is a head recipe, not a recipe to train"),
        ("base.yaml", load_sweep, "is a recipe to train, not a sweep"),
        ("table.yaml", load_head_recipe, "is a sweep, not a head recipe"),
    ],
)
def test_a_document_of_another_kind_is_sent_to_its_command(name: str, loader: Any, told: str) -> None:
    write(TABLE)
    with pytest.raises(UsageError, match=told) as caught:
        loader(name)
    assert "It is for `cxrlt " in caught.value.cure


def test_any_kind_is_read_by_load_any() -> None:
    kinds = [type(load_any(name).value).__name__ for name in ("base.yaml", "again.yaml", write(TABLE))]
    assert kinds == ["Recipe", "Retrain", "Sweep"]


# -- rows ----------------------------------------------------------------------------------------------------------


def test_every_row_is_trained_with_every_seed() -> None:
    made = plan(TABLE)
    runs = [step.run.path for step in made.steps.values() if step.kind == "train"]
    assert runs == [Path("runs/table") / name for name in ("plain-0", "plain-1", "other-0", "other-1")]
    recipe = made.steps["other-1"].recipe
    assert isinstance(recipe, Recipe)
    assert (recipe.loss.name, recipe.optim.lr, recipe.train.seed, recipe.name) == ("two", 3e-4, 1, "other-1")
    assert [run.path.name for run in made.entries[1].runs] == ["other-0", "other-1"]


def test_what_a_child_is_told_gives_the_same_recipe() -> None:
    odd = "{loss: {name: one, scale: 3}, about: 'a, b: [c]', data.views: [PA, no], optim.clip: null}"
    step = plan(f"{TABLE}  - {{name: odd, set: {odd}}}\n", "train.epochs=7").steps["odd-1"]
    words = list(step.arguments)
    assert words[0] == "train"
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    assert load_recipe(words[1], settings) == step.recipe
    assert step.recipe.train.epochs == 7


def test_a_seed_wins_over_set_on_the_command_line() -> None:
    assert plan(TABLE, "train.seed=9").steps["plain-1"].recipe.train.seed == 1


def test_every_row_takes_what_the_table_sets() -> None:
    made = plan(TABLE.replace("rows:", "set: {train.epochs: 5, optim.lr: 1.0}\nrows:"))
    assert {step.recipe.train.epochs for step in made.steps.values()} == {5}
    assert [made.steps[key].recipe.optim.lr for key in ("plain-0", "other-0")] == [1.0, 3e-4]  # type: ignore[union-attr]


def test_axes_make_rows() -> None:
    made = plan("base: base.yaml\naxes:\n  loss: [one, two]\n  optim.lr: [1e-3, 5e-3]\n")
    assert [entry.name for entry in made.entries] == [
        "loss-one_lr-0.001",
        "loss-one_lr-0.005",
        "loss-two_lr-0.001",
        "loss-two_lr-0.005",
    ]
    recipe = made.steps["loss-two_lr-0.005-0"].recipe
    assert isinstance(recipe, Recipe)
    assert (recipe.loss.name, recipe.optim.lr) == ("two", 5e-3)


def test_rows_cross_with_axes() -> None:
    sweep = Sweep.model_validate(
        {
            "base": "b",
            "rows": [{"name": "a"}, {"name": "b", "of": "a", "tta": "flip"}],
            "axes": {"loss": ["x", {"name": "y", "s": 1}]},
        }
    )
    assert [(row.name, row.of) for row in expand(sweep)] == [
        ("a_loss-x", None),
        ("a_loss-name-y-s-1", None),
        ("b_loss-x", "a_loss-x"),
        ("b_loss-name-y-s-1", "a_loss-name-y-s-1"),
    ]


@pytest.mark.parametrize(
    ("keys", "endings"),
    [
        ({"seeds": [3]}, ["3"]),
        ({"folds": [0, 2]}, ["fold0", "fold2"]),
        ({"folds": [0, 1], "seeds": [4, 5]}, ["fold0-4", "fold0-5", "fold1-4", "fold1-5"]),
    ],
)
def test_repetitions(keys: dict[str, Any], endings: list[str]) -> None:
    found = repetitions(Sweep.model_validate({"base": "b", "rows": [{"name": "a"}], **keys}))
    assert [ending for ending, _ in found] == endings
    assert all("train.seed" in values and ("data.fold" in values) == ("folds" in keys) for _, values in found)


def test_what_only_differs_afterwards_is_trained_once() -> None:
    rows = "  - {name: crt, of: plain, retrain: again.yaml}\n  - {name: views, of: crt, tta: flip}\n"
    made = plan(TABLE + rows)
    trained = [step for step in made.steps.values() if step.kind == "train"]
    assert len(trained) == 4
    step = made.steps["crt-1"]
    assert (step.kind, step.needs, step.parent) == ("retrain-head", ("plain-1",), made.steps["plain-1"].run)
    assert (step.recipe.train.seed, step.recipe.train.epochs) == (1, 3)
    assert made.entries[3].runs == made.entries[2].runs
    assert made.entries[3].needs[1] == ("crt-1 on dev with flip",)
    assert made.entries[2].needs[1] == ("crt-1 on dev",)


def test_a_row_that_is_retrained_at_once_keeps_both_runs() -> None:
    made = plan(TABLE + "  - {name: crt, retrain: {recipe: again.yaml, set: {train.epochs: 4}}}\n")
    assert made.steps["crt-0"].needs == ("crt.joint-0",)
    assert made.steps["crt-0"].recipe.train.epochs == 4
    assert made.steps["crt.joint-0"].kind == "train"


def test_steps_come_after_what_they_need() -> None:
    made = plan(TABLE + "  - {name: crt, of: plain, retrain: again.yaml}\n  - {name: views, of: crt, tta: flip}\n")
    seen: set[str] = set()
    for key, step in made.steps.items():
        assert set(step.needs) <= seen
        seen.add(key)


def test_on_test_the_decisions_of_other_views_are_fitted_on_dev() -> None:
    made = plan(TABLE.replace("seeds: [0, 1]", "split: test") + "  - {name: views, of: plain, tta: flip}\n")
    assert made.entries[2].needs == (("plain-0 on dev with flip", "plain-0 on test with flip"),)


def test_paths_start_at_the_tables_folder() -> None:
    write(BASE, "deep/base.yaml")
    write(TABLE, "deep/table.yaml")
    made = make_plan(load_sweep("deep/table.yaml"), (), out=Path("here"))
    assert made.steps["plain-0"].arguments[1] == "deep/base.yaml"
    assert made.steps["plain-0"].run.path == Path("here/plain-0")


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("optim.lr: 3e-4", "optim.lrr: 3e-4"), "table.yaml:6:22: unknown key 'optim.lrr'. Did you mean 'lr'?"),
        (("optim.lr: 3e-4", "optim.lr: fast"), "table.yaml:6:22: optim.lr: expected a number, got the text 'fast'"),
        (("name: other", "nam: other"), "unknown key 'rows.nam'. Did you mean 'name'?"),
        (("name: other", "name: plain"), "the row name stands twice: 'plain'"),
        (("name: other", "name: a b"), "rows.name, item 2: the text 'a b' does not fit the pattern"),
        (("seeds: [0, 1]", "seeds: [0, 0]"), "a value of 'seeds' stands twice"),
        (("seeds: [0, 1]", "seeds: []"), "seeds: needs at least 1 items"),
        (("seeds: [0, 1]", "reference: plian"), "the reference 'plian' is no row. Did you mean 'plain'?"),
        (("base: base.yaml\n", ""), "'plain', 'other': no recipe; give the table a 'base' or the row a 'recipe'"),
        (("base: base.yaml", "base: bsae.yaml"), "Did you mean 'base.yaml'?"),
        (("name: other", "name: other\n    tta: auto"), "'other': 'tta: auto' would choose anew for every run"),
        (("name: other", "name: other\n    of: plain"), "'other' builds on 'plain', which is trained already"),
    ],
)
def test_problems_are_told_where_they_stand(change: tuple[str, str], told: str) -> None:
    assert told in problem(TABLE.replace(*change))


def test_a_row_builds_on_one_above_it() -> None:
    assert "'late' builds on 'plan', which is no row above it. Did you mean 'plain'?" in problem(
        TABLE + "  - {name: late, of: plan}\n"
    )


def test_all_wrong_rows_are_told_at_once() -> None:
    text = TABLE + "  - {name: x, set: {foo: 1}}\n  - {name: y, set: {bar: 1}}\n  - {name: z, of: y, tta: flip}\n"
    told = problem(text)
    assert "unknown key 'foo'" in told
    assert "unknown key 'bar'" in told


def test_a_row_must_not_write_where_another_does() -> None:
    text = "base: base.yaml\nfolds: [0]\nseeds: [0]\nrows: [{name: a}, {name: a-fold0, recipe: base.yaml}]\n"
    plan(text)
    text = "base: base.yaml\nrows: [{name: crt, retrain: again.yaml}, {name: crt.joint}]\n"
    assert "two rows would write to runs/table/crt.joint-0" in problem(text)
