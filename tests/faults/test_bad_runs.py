"""Run directories that are damaged, foreign or incomplete: every one ends with a message, a cure and its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import factories
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from cxrlt_cli.artifacts import RunDir
from cxrlt_cli.commands import evaluate, predict
from cxrlt_cli.errors import CxrltError, DataError, PluginError, RunError

COUNT = 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole dataset and a whole run."""
    root = tmp_path_factory.mktemp("whole")
    prepared = factories.make_dataset(root / "data", count=COUNT)
    run = factories.make_run(root / "run", prepared)
    factories.write_logits(run, prepared, "dev")
    factories.write_images(root / "images", factories.image_ids(4), factories.make_pixels(4))
    return root


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDir:
    """A copy of the run, to be damaged."""
    return RunDir(Path(shutil.copytree(whole / "run", tmp_path / "run")))


@pytest.fixture
def images(whole: Path) -> Path:
    return whole / "images"


Damage = Callable[[RunDir], object]


def tensors(run: RunDir) -> dict[str, np.ndarray]:
    with safe_open(run.model, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping


def metadata(run: RunDir) -> dict[str, str]:
    with safe_open(run.model, framework="numpy") as file:
        return dict(file.metadata())


def with_tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    def damage(run: RunDir) -> None:
        values, card = tensors(run), metadata(run)
        edit(values)
        save_file(values, run.model, metadata=card)

    return damage


def truncated(share: float) -> Damage:
    def damage(run: RunDir) -> None:
        data = run.model.read_bytes()
        run.model.write_bytes(data[: int(len(data) * share)])

    return damage


def foreign(run: RunDir) -> None:
    save_file({"fc.weight": np.zeros((3, 4), np.float32)}, run.model, metadata={"format": "pt"})


def with_info(**changes: object) -> Damage:
    return lambda run: run.run_json.write_text(json.dumps({**json.loads(run.run_json.read_text()), **changes}))


def with_card(**changes: object) -> Damage:
    return lambda run: factories.rewrite_card(run.model, **changes)


#: Damage -> (what is done, words of the message). Found by both commands, before torch is loaded.
DAMAGED: dict[str, tuple[Damage, str]] = {
    "no run.json": (lambda run: run.run_json.unlink(), "run.json"),
    "run.json empty": (lambda run: run.run_json.write_text(""), "cannot be read"),
    "run.json torn": (lambda run: run.run_json.write_text('{"format": 1, "na'), "cannot be read"),
    "run.json of something else": (lambda run: run.run_json.write_text("[1, 2]"), "is not the run.json of a run"),
    "run.json of a newer program": (with_info(format=99), "has format 99"),
    "no recipe": (lambda run: run.recipe.unlink(), "is not the resolved recipe of a run"),
    "recipe torn": (lambda run: run.recipe.write_text("data: {path: "), "is not the resolved recipe of a run"),
    "recipe without a section": (lambda run: run.recipe.write_text("name: x\n"), "data"),
    "recipe binary": (lambda run: run.recipe.write_bytes(b"\xff\x00"), "UTF-8"),
    "no model": (lambda run: run.model.unlink(), "no finished epoch"),
    "model empty": (lambda run: run.model.write_bytes(b""), "not a readable safetensors file"),
    "model cut within its header": (truncated(0.001), "not a readable safetensors file"),
    "model cut in the middle": (truncated(0.5), "not a readable safetensors file"),
    "model lacks its last byte": (truncated(0.999999), "not a readable safetensors file"),
    "model of pickles": (lambda run: run.model.write_bytes(b"\x80\x04\x95" * 50), "not a readable safetensors file"),
    "model of another program": (foreign, "of another program"),
    "card torn": (lambda run: save_file({"x": np.zeros(1)}, run.model, metadata={"card": "{"}), "damaged model card"),
    "card lacks entries": (lambda run: save_file({"x": np.zeros(1)}, run.model, metadata={"card": "{}"}), "damaged"),
    "card of a newer program": (with_card(format=99), "has format 99"),
    "link missing": (with_tensors(lambda values: values.pop("link.logit")), "the posterior link is missing"),
    "link of other classes": (
        with_tensors(lambda values: values.update({"link.log_odds": values["link.log_odds"][:2]})),
        "the posterior link is damaged",
    ),
    "link not finite": (
        with_tensors(lambda values: values.update({"link.log_odds": values["link.log_odds"] * np.nan})),
        "the posterior link is damaged",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_prediction_says_what_is_damaged(run: RunDir, images: Path, tmp_path: Path, name: str) -> None:
    damage, words = DAMAGED[name]
    damage(run)
    with pytest.raises(RunError, match=words) as caught:
        predict.run(run.path, [images], out=tmp_path / "out.csv")
    check(caught.value, run)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("name", list(DAMAGED))
def test_evaluation_says_what_is_damaged(run: RunDir, name: str) -> None:
    damage, words = DAMAGED[name]
    damage(run)
    with pytest.raises(RunError, match=words) as caught:
        evaluate.run([run.path])
    check(caught.value, run)


def check(error: CxrltError, run: RunDir) -> None:
    assert error.code == 5
    assert str(run.path) in error.where
    assert error.cure


#: Weights that do not fit: only prediction reads them.
MISFIT: dict[str, tuple[Damage, str]] = {
    "weights missing": (with_tensors(lambda values: values.pop("head.weight")), "head.weight"),
    "weights of another shape": (
        with_tensors(lambda values: values.update({"head.bias": np.zeros(9, np.float32)})),
        "size mismatch for head.bias",
    ),
    "further weights": (with_tensors(lambda values: values.update({"fc": np.zeros(9, np.float32)})), "fc"),
    "another network": (with_card(backbone={"name": "timm", "model": "test_vit"}), "do not fit the model"),
}


@pytest.mark.parametrize("name", list(MISFIT))
def test_weights_that_do_not_fit_are_a_run_error(run: RunDir, images: Path, name: str) -> None:
    damage, words = MISFIT[name]
    damage(run)
    with pytest.raises(RunError, match=words) as caught:
        predict.run(run.path, [images])
    check(caught.value, run)


@pytest.mark.parametrize(
    ("part", "options"),
    [("backbone", {"name": "vanished"}), ("head", {"name": "vanished"}), ("head", {"name": "linear", "knots": 3})],
)
def test_a_plugin_that_is_not_there_any_more_is_named(
    run: RunDir, images: Path, part: str, options: dict[str, object]
) -> None:
    with_card(**{part: options})(run)
    with pytest.raises(PluginError, match=r"vanished|knots"):
        predict.run(run.path, [images])


def test_the_loss_need_not_be_installed(run: RunDir, images: Path) -> None:
    with_card(loss={"name": "vanished", "strength": 3})(run)
    run.recipe.write_text(run.recipe.read_text().replace("  name: bce", "  name: vanished"))
    assert "vanished" in run.recipe.read_text()
    assert predict.run(run.path, [images]).data["images"] == 4


# -- predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PAR1", b"image_id,effusion.logit\na,1\n"])
def test_a_predictions_file_that_cannot_be_read_is_a_run_error(run: RunDir, content: bytes) -> None:
    run.predictions("dev").write_bytes(content)
    with pytest.raises(RunError, match="cannot be read") as caught:
        evaluate.run([run.path])
    check(caught.value, run)


def test_predictions_of_another_model_are_a_run_error(run: RunDir, tmp_path: Path) -> None:
    other = factories.make_dataset(tmp_path / "other", count=COUNT, classes=("goiter", "nodule", "mass", "hernia"))
    factories.write_logits(run, other, "dev")
    with pytest.raises(RunError, match="effusion, goiter") as caught:
        evaluate.run([run.path])
    check(caught.value, run)


# -- what is no run ------------------------------------------------------------------------------------------------


def test_a_file_is_no_run(run: RunDir) -> None:
    with pytest.raises(RunError, match="is a file, and a run is a directory"):
        evaluate.run([run.model])


def test_a_folder_is_no_run(images: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        evaluate.run([images])


def test_without_any_run_the_cure_is_to_train_one(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (lambda: evaluate.run([]), lambda: predict.run(None, [images])):
        with pytest.raises(RunError, match="there is no run") as caught:
            command()
        assert "cxrlt train" in caught.value.cure


def test_a_run_without_its_run_json_is_not_taken_for_a_folder_of_images(
    run: RunDir, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.path, tmp_path / "runs" / "good")
    monkeypatch.chdir(tmp_path)
    run.run_json.unlink()
    with pytest.raises(RunError, match=r"run directory without its run\.json"):
        predict.run(None, [run.path, images])


# -- the dataset ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_dataset_that_is_gone_is_asked_for(run: RunDir, command: str) -> None:
    with_info(dataset={"path": "nowhere/data", "name": "data", "hash": "0"})(run)
    with pytest.raises(DataError, match="is not there") as caught:
        evaluate.run([run.path]) if command == "evaluate" else predict.run(run.path, [], split="dev")
    assert caught.value.code == 3
    assert "--data" in caught.value.cure


def test_a_dataset_with_a_torn_shard_is_a_data_error(run: RunDir, whole: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(whole / "data", tmp_path / "data"))
    shard = next((data / "images").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="bytes") as caught:
        predict.run(run.path, [], split="dev", data=data)
    assert str(shard) in caught.value.where


@pytest.mark.parametrize("split", ["validation", "Dev", ""])
def test_a_split_that_does_not_exist_is_an_error(run: RunDir, split: str) -> None:
    with pytest.raises(CxrltError) as caught:
        evaluate.run([run.path], split=split)
    assert "train, dev, test" in caught.value.cure
