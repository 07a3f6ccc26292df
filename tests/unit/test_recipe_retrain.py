"""Head recipes: the shipped ones are valid, and what a method does not read may not be set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cxrlt_cli.errors import PluginError, UsageError
from cxrlt_cli.recipe.load import dump_recipe, load_head_recipe, load_recipe, shipped
from cxrlt_cli.recipe.retrain import Retrain

SHIPPED = ("crt", "crt-focal", "lws", "tau-norm", "ncm", "logistic", "keep-best")


def test_every_method_ships() -> None:
    assert {name.removeprefix("heads/") for name in shipped() if name.startswith("heads/")} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_head_recipes_are_valid(name: str, tmp_path: Path) -> None:
    recipe = load_head_recipe(name)
    assert recipe.name == name
    assert recipe.method == ("crt" if name == "crt-focal" else name)
    assert recipe.about
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_head_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    ("extra", "idle"),
    [
        ({"method": "ncm", "loss": {"name": "bce"}}, "loss"),
        ({"method": "ncm", "tau": 0.5}, "tau"),
        ({"method": "tau-norm", "train": {"epochs": 3}}, "train.epochs"),
        ({"method": "logistic", "features": {"views": 2}}, "features.views"),
        ({"method": "lws", "head": {"name": "cosine"}}, "head"),
        ({"method": "crt", "keep": {"folds": 3}}, "keep"),
        ({"method": "crt", "logistic": {"folds": 4}}, "logistic"),
    ],
)
def test_an_idle_key_is_refused(extra: dict[str, Any], idle: str) -> None:
    with pytest.raises(ValidationError, match=f"does not use '{idle}'"):
        Retrain.model_validate({"name": "x", **extra})


@pytest.mark.parametrize("method", ["crt", "lws", "tau-norm", "ncm", "logistic", "keep-best"])
def test_seed_and_features_belong_to_all(method: str) -> None:
    extra = {"train": {"seed": 3}, "features": {"dtype": "float32", "batch_size": 4}}
    assert Retrain.model_validate({"name": "x", "method": method, **extra}).train.seed == 3


def test_problems_have_places(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("method: crt\noptim: {lr: -1}\ntrian: {epochs: 3}\n")
    with pytest.raises(UsageError) as caught:
        load_head_recipe(path)
    assert f"{path}:2:" in str(caught.value)
    assert "Did you mean 'train'?" in str(caught.value)


def test_a_plugin_is_checked(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="gama"):
        load_head_recipe("crt", ["loss={name: focal, gama: 2}"])


def test_kinds_are_told_apart() -> None:
    with pytest.raises(UsageError, match="retrain-head"):
        load_recipe("crt")
    with pytest.raises(UsageError, match="cxrlt train"):
        load_head_recipe("demo_phantom")


def test_the_optimiser_is_that_of_training() -> None:
    full = load_head_recipe("crt", ["optim.lr=0.5", "optim.clip=2"]).optim.full()
    assert (full.lr, full.clip, full.layer_decay) == (0.5, 2, 1.0)
