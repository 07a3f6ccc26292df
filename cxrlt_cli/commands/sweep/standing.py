"""What of a sweep is there already: finished runs are left alone, those made with another recipe are refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cxrlt_cli.artifacts import RunDir, read_card
from cxrlt_cli.commands.opening import open_run, read_stamp
from cxrlt_cli.commands.retrained import HEAD_RECIPE
from cxrlt_cli.commands.run_directory import differences
from cxrlt_cli.commands.sweep.plan import Step
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.errors import CxrltError, RunError
from cxrlt_cli.recipe.nodes import parse
from cxrlt_cli.recipe.retrain import Retrain
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sources import read


def refuse_changed(steps: Sequence[Step]) -> None:
    """Compare what is there with what would be made.

    Raises:
        RunError: runs were made with another recipe, or on other data; all of them at once.
    """
    datasets: dict[str, Prepared] = {}
    lines = [line for step in steps if step.kind != "predict" for line in _changes(step, datasets)]
    if lines:
        raise RunError(
            "runs of this sweep were made otherwise:\n" + "\n".join(lines),
            cure="Give the changed sweep another directory with --out, or move these runs away.",
        )


def _changes(step: Step, datasets: dict[str, Prepared]) -> Iterator[str]:
    if not _holds_work(step):
        return
    before = made_with(step)
    changed = list(differences(before.model_dump() if before else {}, step.recipe.model_dump()))
    yield from (f"  {step.run.path}: {key}: {old} -> {new}" for key, old, new in changed if key != "about")
    if not isinstance(step.recipe, Recipe):
        return
    path = step.recipe.data.path
    if path not in datasets:
        datasets[path] = load_prepared(Path(path))
    if step.run.info().get("dataset", {}).get("hash") != datasets[path].content_hash:
        yield f"  {step.run.path}: was trained on other data than {path} holds now"


def _holds_work(step: Step) -> bool:
    return step.run.run_json.exists() and (step.run.model.exists() or step.run.last.exists())


def made_with(step: Step) -> Recipe | Retrain | None:
    """The recipe a run was made with; None where it cannot be read as one of this kind."""
    model: type[Recipe] | type[Retrain] = type(step.recipe)
    path = step.run.recipe if step.kind == "train" else step.run.path / HEAD_RECIPE
    try:
        tree: Any = parse(read(path), str(path))[0].plain
        return model.model_validate(tree)
    except (CxrltError, ValidationError):
        return None


def is_done(step: Step) -> bool:
    """Whether a step has nothing left to do. Reads files only, never torch."""
    try:
        if step.kind == "predict":
            return _predicted(step)
        info = step.run.info()
        finished = info.get("status") == "finished" and step.run.model.exists()
        return finished and (step.parent is None or _same_weights(info.get("parent", {}), step.parent))
    except CxrltError:
        return False


def _same_weights(parent: dict[str, Any], run: RunDir) -> bool:
    """Whether a head was made from the weights that its parent has now."""
    card = read_card(run.model)
    return (parent.get("epoch"), parent.get("score")) == (card.epoch, card.score)


def _predicted(step: Step) -> bool:
    """Whether there are predictions by the run's present weights, with the test-time augmentation asked for."""
    if not step.run.model.exists() or step.run.info().get("status") != "finished":
        return False
    run = open_run(step.run.path)
    card = read_card(step.run.model)
    tta = step.tta or card.tta["name"]
    path = step.run.predictions(step.split, None if tta == card.tta["name"] else tta)
    if not path.exists():
        return False
    made = read_stamp(path)
    if not made:  # written with the weights themselves
        return step.split == "dev" and tta == str(run.recipe.predict.tta.name)
    return (made.get("epoch"), made.get("score"), made.get("tta")) == (card.epoch, card.score, tta)
