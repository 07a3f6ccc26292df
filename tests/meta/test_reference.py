"""docs/reference.md says what the program does: every command, option, recipe key, plugin, file and column."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyarrow.parquet as pq
import pytest
import typer
from pydantic import BaseModel

from cxrlt_cli import errors
from cxrlt_cli.cli import app
from cxrlt_cli.commands import predict, train
from cxrlt_cli.commands.run_directory import MAY_DIFFER
from cxrlt_cli.data.manifest import COLUMNS, load_prepared
from cxrlt_cli.metrics import evaluate
from cxrlt_cli.recipe.nodes import scalar
from cxrlt_cli.recipe.retrain import Method, Retrain
from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.recipe.sections import keys_of
from cxrlt_cli.recipe.sweep import Row, Sweep
from cxrlt_cli.registry import available, options_of

TEXT = (Path(__file__).resolve().parents[2] / "docs/reference.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """The text below a heading, to the next one of its depth or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", TEXT, re.M)
    assert found, f"docs/reference.md has no heading {heading!r}"
    rest = TEXT[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    headers = {number - 1 for number, row in enumerate(cells) if set(row[0]) == {"-"}}
    return [row for number, row in enumerate(cells) if number not in headers and set(row[0]) != {"-"}]


def named(text: str) -> set[str]:
    """What stands in backticks in the first cells of the tables."""
    return {name for row in rows(text) for name in re.findall(r"`([^`]+)`", row[0])}


# -- commands ------------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command and its options by name: the default, None where there is none to show."""

    name: str
    options: dict[str, Any]


def commands(command: Any, path: tuple[str, ...]) -> Iterator[Command]:
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from commands(command.get_command(None, name), (*path, name))
        return
    given = [parameter for parameter in command.params if parameter.opts[0].startswith("-")]
    yield Command(" ".join(path), {option: parameter.default for parameter in given for option in parameter.opts})


OURS = {plugin.name for plugin in available("datasets") if plugin.distribution == "cxrlt"}
COMMANDS = [
    command
    for command in commands(typer.main.get_command(app), ("cxrlt",))
    if not command.name.startswith("cxrlt prepare") or command.name.split()[2] in OURS
]


#: Options that belong to every command.
SHARED = set.intersection(*(set(command.options) for command in COMMANDS))


def test_every_command_has_a_section() -> None:
    assert set(re.findall(r"^### (cxrlt .*)$", TEXT, re.M)) == {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_option_is_there(command: Command) -> None:
    assert named(section(command.name)) == set(command.options) - SHARED


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_defaults_are_right(command: Command) -> None:
    for first, default, *_ in rows(section(command.name)):
        options = re.findall(r"`(-[^`]+)`", first)
        if len(options) == 1 and command.options[options[0]] not in (None, False, ""):
            assert default.strip("`") == str(command.options[options[0]]), options[0]


def test_shared_options_are_there() -> None:
    assert named(section("Commands").partition("\n### ")[0]) == SHARED | {"--help", "-h"}


def test_keys_that_may_differ_are_there() -> None:
    sentence = section("cxrlt train").partition("These keys may differ")[2].partition(".\n")[0]
    assert set(re.findall(r"`([^`]+)`", sentence)) == set(MAY_DIFFER)


def test_every_exit_code_is_there() -> None:
    known = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert {int(row[0]) for row in rows(section("Exit codes"))} == known | {0, 141}


# -- recipes and plugins -------------------------------------------------------------------------------------------


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a recipe that holds a value, with its default; ``...`` where it is required."""
    for name, field in model.model_fields.items():
        default = field.default
        inner = next((a for a in (field.annotation, *_arguments(field.annotation)) if _is_model(a)), None)
        if inner is None or inner is PluginRef or default is None:
            shown = default.name if isinstance(default, PluginRef) else default
            yield prefix + name, ... if field.is_required() else shown
        if inner is not None and inner is not PluginRef:
            yield from keys(inner, f"{prefix}{name}.")


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", ())


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def recipe_rows() -> dict[str, str]:
    return {row[0].strip("`"): row[2].strip("`") for row in rows(section("Recipe keys"))}


def test_every_recipe_key_is_there() -> None:
    assert set(recipe_rows()) == {key for key, _ in keys(Recipe)} | {"extends"}
    assert {key.partition(".")[0] for key in recipe_rows()} == set(keys_of(""))


@pytest.mark.parametrize(("key", "default"), [pair for pair in keys(Recipe) if pair[0] not in {"name", "about"}])
def test_the_default_of_a_recipe_key(key: str, default: Any) -> None:
    shown = recipe_rows()[key]
    if default is ...:
        assert shown == "required"
    elif isinstance(default, list):
        assert [scalar(item.strip()) for item in shown.strip("[]").split(",")] == default
    else:
        assert scalar(shown) == default


def head_rows() -> dict[str, str]:
    return {row[0].strip("`"): row[2].strip("`") for row in rows(section("Head recipe keys")) if row[1] not in METHODS}


#: What the second column of the table of methods begins with is prose; its rows are told by their first cell.
METHODS = {row[1] for row in rows(section("Head recipe keys")) if row[0].strip("`") in get_args(Method)}


def test_every_head_recipe_key_is_there() -> None:
    assert set(head_rows()) == {key for key, _ in keys(Retrain)} | {"extends"}
    assert len(METHODS) == len(get_args(Method))


@pytest.mark.parametrize(("key", "default"), [pair for pair in keys(Retrain) if pair[0] not in {"name", "about"}])
def test_the_default_of_a_head_recipe_key(key: str, default: Any) -> None:
    shown = head_rows()[key]
    if isinstance(default, list):
        assert [scalar(item.strip()) for item in shown.strip("[]").split(",")] == default
    else:
        assert shown == "required" if default is ... else scalar(shown) == default


def test_every_sweep_key_is_there() -> None:
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows(section("Sweep keys"))}
    assert set(shown) == set(Sweep.model_fields) | {f"rows.{name}" for name in Row.model_fields}
    for key, value in {"seeds": "[0]", "split": "dev", "resamples": "1000"}.items():
        assert (shown[key], str(Sweep.model_fields[key].default)) == (value, value)


def plugin_rows() -> dict[tuple[str, str], dict[str, str]]:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for kind, name, option, default, _ in rows(section("Plugins")):
        if name:
            options = found.setdefault((kind, name.strip("`")), {})
        if option.startswith("`"):
            options[option.strip("`")] = default
    return found


def value(shown: str) -> Any:
    """A default as it is written; a list in brackets is a tuple."""
    return tuple(scalar(item.strip()) for item in shown[1:-1].split(",")) if shown.startswith("[") else scalar(shown)


def test_every_built_in_plugin_is_there() -> None:
    kinds = ("losses", "backbones", "heads", "samplers", "tta", "datasets")
    ours = {(kind, p.name) for kind in kinds for p in available(kind) if p.distribution == "cxrlt"}
    assert set(plugin_rows()) == ours


@pytest.mark.parametrize(("kind", "name"), [pair for pair in plugin_rows() if pair[0] != "datasets"])
def test_the_options_of_a_plugin(kind: str, name: str) -> None:
    shown = {option: value(default) for option, default in plugin_rows()[kind, name].items()}
    assert shown == {o.name: "required" if o.required else o.default for o in options_of(kind, name)}


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, with predictions of another split."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    settings = (f"data.path={phantom}", "train.epochs=1", "train.batch_size=64")
    train.run("demo_phantom", overrides=settings, out=out)
    predict.run(out, [], split="test", out=out.parent / "table.csv")
    return out


def test_every_file_of_a_prepared_dataset_is_there(phantom: Path) -> None:
    text = section("The prepared dataset")
    for path in phantom.rglob("*"):
        if path.is_file():
            assert f"`{path.relative_to(phantom)}`" in text


def test_every_field_of_a_prepared_dataset_is_there(phantom: Path) -> None:
    text = section("The prepared dataset")
    prepared = load_prepared(phantom)
    assert set(prepared.info) | set(COLUMNS) | {"fold"} <= named(text)
    for name in ("quarantine.csv", "duplicates.csv"):
        with (phantom / name).open(newline="") as file:
            header = next(csv.reader(file))
        (row,) = [row for row in rows(text) if row[0] == f"`{name}`"]
        assert re.findall(r"`(\w+)`", row[1]) == header


def test_every_file_of_a_run_is_there(run: Path) -> None:
    text = section("The run directory")
    for path in run.rglob("*"):
        name = str(path.relative_to(run)).replace("predictions/dev.", "predictions/<split>.")
        name = re.sub(r"(?<=predictions/dev-epochs/)\d+", "<epoch>", name)
        assert path.is_dir() or f"`{name.replace('predictions/test', 'predictions/<split>')}`" in text, name


def test_every_field_of_a_run_is_there(run: Path) -> None:
    text = section("The run directory")
    info = json.loads((run / "run.json").read_text())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert set(info) | set(line) | {"continued"} <= named(text)


def test_every_figure_of_an_evaluation_is_there(phantom: Path) -> None:
    prepared = load_prepared(phantom)
    scores = prepared.labels.astype(float)
    prevalence = prepared.stats(prepared.rows("train")).prevalence
    result = evaluate(prepared.labels, scores, scores, prepared.classes, prevalence)
    shown = {
        name for row in rows(section("cxrlt evaluate")) if len(row) == 3 for name in re.findall(r"`(\w+)`", row[1])
    }
    assert set(result.overall) <= shown


def test_the_columns_of_predictions_are_there(run: Path) -> None:
    header = (run.parent / "table.csv").read_text().partition("\n")[0].split(",")
    written = {re.sub(r"^Normal\.", "<class>.", name) for name in header[:4]}
    assert written == named(section("Predictions"))
    kept = pq.read_schema(run / "predictions/dev.parquet").names
    assert kept[:3] == ["image_id", "patient_id", "Normal.logit"]
