"""The run directory of a re-trained head: begun, written, and what is said about it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import (
    ModelCard,
    Predictions,
    RunDir,
    write_json,
    write_lines,
    write_predictions,
    write_text,
)
from cxrlt_cli.bootstrap import p_text
from cxrlt_cli.commands.opening import OpenRun, column
from cxrlt_cli.commands.run_directory import differences, identity
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Advanced, Emit, Finished, Result, Started, Table
from cxrlt_cli.recipe.load import dump_recipe, load_head_recipe
from cxrlt_cli.recipe.schema import PluginRef, Recipe
from cxrlt_cli.wording import SIGNED, between, figure

if TYPE_CHECKING:
    from cxrlt_cli.commands.retrain_head import Request
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.head_job import HeadJob, NewHead
    from cxrlt_cli.recipe.retrain import Retrain

KIND = "retrain-head"
#: Beside the recipe of a run: how its head was made.
HEAD_RECIPE = "head.resolved.yaml"

#: Figures that are compared: what they are called, and their key.
COMPARED = {"mAP": "macro_ap", "AUROC": "macro_auroc"}
RESAMPLES = 1000

#: Said of methods that rescale the logits of each class.
MONOTONE = (
    "{} changes the logits of each class by one rising function, as temperatures, logit adjustment and thresholds do. "
    "With one sigmoid a class that cannot change AP or AUROC; it moves posteriors and decisions only."
)
_RISING = {"tau-norm": "tau-normalisation", "lws": "LWS"}


@dataclass(frozen=True, slots=True)
class Parent:
    """The run whose head was replaced, as run.json names it.

    Attributes:
        path: its directory.
        name: of that directory.
        epoch: of its weights.
        score: dev macro AP of that epoch.
        weights: SHA-256 of its model file.
    """

    path: str
    name: str
    epoch: int
    score: float | None
    weights: str

    @classmethod
    def of(cls, run: OpenRun) -> Parent:
        """The parent that a run is; reads its whole model file."""
        with run.dir.model.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(str(run.dir.path), run.dir.name, run.card.epoch, run.card.score, weights)


# -- run.json ------------------------------------------------------------------------------------------------------


def begin(target: RunDir, recipe: Retrain, run: OpenRun, parent: Parent, prepared: Prepared) -> bool:
    """Begin the run directory, or check that what is there is the same work. Returns whether that is finished.

    Raises:
        RunError: something else lies there.
    """
    if target.run_json.exists():
        return _finished_before(target, recipe, parent, prepared)
    if any(target.path.iterdir()):
        raise RunError(
            "is not empty and not a run directory", where=str(target.path), cure="Choose another directory with --out."
        )
    base = _recipe_of(target, run, recipe, prepared, head=recipe.head, loss=recipe.loss)
    head = {"method": recipe.method, "parent": asdict(parent), "seed": recipe.train.seed}
    write_text(target.path / HEAD_RECIPE, dump_recipe(recipe))
    write_text(target.recipe, dump_recipe(base))
    write_json(target.run_json, {**identity(base, prepared), "kind": KIND, **head})
    return False


def _finished_before(target: RunDir, recipe: Retrain, parent: Parent, prepared: Prepared) -> bool:
    info = target.info()
    cure = "Choose another directory with --out, or start anew with --fresh (what is there is moved aside)."
    if info.get("kind") != KIND:
        raise RunError("holds a run of another kind", where=str(target.path), cure=cure)
    before = load_head_recipe(target.path / HEAD_RECIPE)
    changes = [f"  {key}: {old} -> {new}" for key, old, new in differences(before.model_dump(), recipe.model_dump())]
    if changes:
        what = "\n".join(["was made with another head recipe:", *changes])
        raise RunError(what, where=str(target.path), cure=cure)
    if info.get("parent", {}).get("weights") != parent.weights:
        raise RunError("was made from another run, or other weights of it", where=str(target.path), cure=cure)
    if info.get("dataset", {}).get("hash") != prepared.content_hash:
        raise RunError(f"was made on other data than {prepared.path}", where=str(target.path), cure=cure)
    return bool(info.get("status") == "finished")


def note_status(
    target: RunDir, status: str, *, seconds: float = 0.0, reason: Sequence[str] = (), **more: object
) -> None:
    """Bring run.json up to date."""
    info = target.info()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    info |= {"status": status, "updated": now, "reason": reason[0] if reason else None, **more}
    info["seconds"] = round(info.get("seconds", 0.0) + seconds, 1)
    write_json(target.run_json, info)


# -- the result ----------------------------------------------------------------------------------------------------


def write_run(target: RunDir, request: Request, job: HeadJob, made: NewHead, emit: Emit) -> None:
    """Write everything a run directory holds: recipe, weights with their link, dev predictions, metrics, comparison."""
    import torch

    from cxrlt_cli.model import read_weights, save_model
    from cxrlt_cli.posterior import link_tensors

    run, prepared = request.parent, request.prepared
    base = _recipe_of(target, run, request.recipe, prepared, head=made.ref, loss=made.loss)
    card = _card(run, base, prepared, job, made)
    kept = {name: value for name, value in read_weights(run.dir.model).items() if not name.startswith("head.")}
    weights = {**kept, **{f"head.{name}": value for name, value in made.state.items()}}
    if made.link is not None:
        weights |= {name: torch.from_numpy(value) for name, value in link_tensors(made.link).items()}
    compared = compare(job, made, emit)
    write_text(target.recipe, dump_recipe(base))
    ids, patients = (column(prepared.frame, name, request.dev) for name in ("image_id", "patient_id"))
    write_predictions(target.predictions("dev"), Predictions(card.classes, ids, patients, _dev_logits(made)))
    save_model(target.model, weights, card)
    write_lines(target.metrics, made.history)
    facts = {**made.facts, "notes": list(made.notes), "compared": compared}
    note_status(
        target, "running", epochs=len(made.history), stopped_early=False, best=_best(card), processes=1, head=facts
    )


def _best(card: ModelCard) -> dict[str, Any]:
    return {"epoch": card.epoch, "macro_ap": card.score}


def _dev_logits(made: NewHead) -> npt.NDArray[np.float32]:
    """What is kept of dev: the new head's logits; cross-fitted ones where dev labels had a say in the head."""
    from cxrlt_cli.engine.keep_best import judged_logits

    return made.logits if made.judged is None else judged_logits(made)


def _recipe_of(
    target: RunDir, run: OpenRun, recipe: Retrain, prepared: Prepared, *, head: PluginRef | None, loss: PluginRef | None
) -> Recipe:
    """The parent's recipe with another head, and what it learned with."""
    before = run.recipe
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).lstrip("._-") or recipe.name
    own = prepared.content_hash == run.card.dataset
    changes: dict[str, Any] = {
        "name": name,
        "about": f"{recipe.method} on {run.dir.name}",
        "data": before.data if own else before.data.model_copy(update={"path": str(prepared.path)}),
        "model": before.model.model_copy(update={"head": head or PluginRef.model_validate(run.card.head)}),
        "loss": loss or PluginRef.model_validate(run.card.loss),
    }
    if recipe.method in ("crt", "lws") or (recipe.method == "keep-best" and recipe.keep.candidate == "crt"):
        changes |= {"sampler": recipe.sampler, "reweight": recipe.reweight}
    return before.model_copy(update=changes)


def _card(run: OpenRun, base: Recipe, prepared: Prepared, job: HeadJob, made: NewHead) -> ModelCard:
    stats, last = job.cohort.stats, made.history[-1]
    return replace(
        run.card,
        positives=stats.positives,
        negatives=stats.negatives,
        head={"name": made.ref.name, **made.ref.options},
        loss={"name": base.loss.name, **base.loss.options},
        dataset=prepared.content_hash,
        linked=made.link is not None,
        epoch=last["epoch"],
        score=last["macro_ap"],
    )


# -- the comparison ------------------------------------------------------------------------------------------------


def compare(job: HeadJob, made: NewHead, emit: Emit) -> dict[str, dict[str, Any]]:
    """Scores on dev before and after, and their paired difference by the patient-clustered bootstrap.

    Returns:
        For each of ``COMPARED``: before, after, difference, low, high (95 %), p, detectable; None where undefined.
    """
    from cxrlt_cli.bootstrap import paired, replicates
    from cxrlt_cli.metrics import auroc, average_precision

    cohort = job.cohort
    after = made.logits if made.judged is None else made.judged
    before = (
        job.joint.logits
        if made.judged is None or job.joint.link is None
        else job.joint.link.log_odds_of(job.joint.logits)
    )
    emit(Started("resamples", 2 * RESAMPLES, "resamples"))
    drawn = [
        replicates(
            cohort.dev_labels,
            scores,
            cohort.dev_patients,
            resamples=RESAMPLES,
            progress=lambda done, first=first: emit(Advanced("resamples", first + done)),  # type: ignore[misc]
        )
        for first, scores in ((0, before), (RESAMPLES, after))
    ]
    emit(Finished("resamples"))
    points = {
        "macro_ap": [_macro(average_precision(cohort.dev_labels, scores)) for scores in (before, after)],
        "macro_auroc": [_macro(auroc(cohort.dev_labels, scores)) for scores in (before, after)],
    }
    result = {}
    for key, (old, new) in points.items():
        found = paired(new, old, drawn[1].overall[key], drawn[0].overall[key])
        values = {
            "before": old,
            "after": new,
            "difference": found.value,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "detectable": found.detectable,
        }
        result[key] = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
    return result


def _macro(values: npt.NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


# -- what is said --------------------------------------------------------------------------------------------------


def summary(target: RunDir) -> Result:
    """What a finished run of this kind has to say."""
    info = target.info()
    head, parent = info["head"], info["parent"]
    files = {"run": target.path, "weights": target.model, "predictions": target.predictions("dev")}
    data = {
        "name": target.name,
        "method": info["method"],
        "parent": parent,
        "status": info["status"],
        "compared": head["compared"],
        "seconds": info["seconds"],
        **{key: str(path) for key, path in files.items()},
    }
    rows = tuple((key, str(path)) for key, path in files.items())
    blocks: list[Table | str] = [_comparison(target, info), *_remarks(info)]
    return Result(data, (*blocks, Table(("wrote", ""), rows), f"Next: cxrlt evaluate {parent['path']} {target.path}"))


def _comparison(target: RunDir, info: dict[str, Any]) -> Table:
    rows = []
    for label, key in COMPARED.items():
        found = info["head"]["compared"][key]
        cells = [figure(found[name]) for name in ("before", "after")]
        cells += [figure(found["difference"], SIGNED), between(found["low"], found["high"], SIGNED)]
        rows.append((label, *cells, p_text(found["p"]), figure(found["detectable"])))
    title = f"{info['method']} on {info['parent']['path']}, dev, in {info['seconds']:.1f} s"
    note = (
        f"{RESAMPLES:,} resamples of dev patients, the same for both; detectable: the smallest true difference found "
        "with 80 % power."
    )
    columns = ("dev", "before", "after", "difference", "95 % interval", "p", "detectable")
    return Table(columns, tuple(rows), title=title, note=note)


def _remarks(info: dict[str, Any]) -> list[str]:
    method = info["method"]
    remarks = list(info["head"]["notes"])
    remarks += [MONOTONE.format(_RISING[method])] if method in _RISING else []
    if method == "keep-best":
        remarks.append(
            "'after' is cross-fitted: each dev patient is scored by heads that the other patients' labels chose. So "
            "are the dev predictions that were written; `cxrlt predict --split dev` leaves them as they are, since the "
            "final head has seen these labels."
        )
    return remarks
