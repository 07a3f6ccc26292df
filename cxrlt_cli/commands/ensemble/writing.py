"""The run directory of an ensemble."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import FORMAT, ModelCard, Predictions, RunDir, read_predictions, write_json, write_predictions
from cxrlt_cli.combine import CrossCombined, Ensemble, Member, write_ensemble
from cxrlt_cli.commands.ensemble.gain import macro_figures
from cxrlt_cli.commands.ensemble.members import Ready, why_again
from cxrlt_cli.commands.forward import log_odds_of
from cxrlt_cli.commands.opening import OpenRun, column, split_rows, stamp
from cxrlt_cli.commands.run_decisions import SPLIT, fresh_stamp, stored
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Emit

KIND = "ensemble"
#: The name of a test-time augmentation that differs from member to member.
OWN = "own"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be combined, and where it goes.

    Attributes:
        opened: the members.
        weights: SHA-256 of the file of each.
        prepared: the dataset.
        rows: (N,) manifest positions of the split.
        target: the run directory to make.
        method: how to combine.
        split: the split.
        seed: of the folds.
    """

    opened: Sequence[OpenRun]
    weights: Sequence[str]
    prepared: Prepared
    rows: npt.NDArray[np.int64]
    target: RunDir
    method: str
    split: str
    seed: int

    def members(self, tta: Sequence[str]) -> tuple[Member, ...]:
        """The members as the file names them; ``tta`` is that of their predictions."""
        folder = self.target.path.resolve()
        return tuple(
            Member(
                path=os.path.relpath(one.dir.path.resolve(), folder),
                absolute=str(one.dir.path.resolve()),
                name=one.dir.name,
                kind=str(one.info.get("kind", "train")),
                weights=weights,
                epoch=one.card.epoch,
                score=one.card.score,
                tta=views,
            )
            for one, weights, views in zip(self.opened, self.weights, tta, strict=True)
        )

    @property
    def asked(self) -> dict[str, object]:
        """What decides what the ensemble is: the same again need not be made again."""
        own = {"method": self.method, "split": self.split, "seed": self.seed}
        return {**own, "dataset": self.prepared.content_hash, "members": list(self.weights)}


def already_made(request: Request) -> bool:
    """Whether the same ensemble is finished there.

    Raises:
        RunError: something else lies there.
    """
    target, cure = request.target, "Choose another directory with --out, or start anew with --fresh."
    if not target.run_json.exists():
        if any(target.path.iterdir()):
            raise RunError("is not empty and not a run directory", where=str(target.path), cure=cure)
        return False
    info = target.info()
    if info.get("kind") != KIND:
        raise RunError("holds a run of another kind", where=str(target.path), cure=cure)
    if info.get("status") != "finished":
        return False
    if info.get("asked") != request.asked:
        what = "is another ensemble: its members, their weights, the method, split, seed or data differ"
        raise RunError(what, where=str(target.path), cure=cure)
    otherwise = [
        one["name"] for run, one in zip(request.opened, info["members"], strict=True) if _differs(request, run, one)
    ]
    if otherwise:
        what = f"was made of predictions or calibrations that have changed since: those of {', '.join(otherwise)}"
        raise RunError(what, where=str(target.path), cure=cure)
    return True


def _differs(request: Request, run: OpenRun, kept: Mapping[str, Any]) -> bool:
    """Whether a member's test-time augmentation or calibration is another one than when it was combined."""
    path, decisions = run.predictions(request.prepared, request.split), stored(run)
    if decisions is not None and decisions.calibration.method != kept["calibration"]:
        return True
    return not why_again(run, path) and fresh_stamp(run, path) != kept["tta"]


def begin(request: Request) -> None:
    """Write the first run.json."""
    prepared = request.prepared
    now = datetime.now(UTC).isoformat(timespec="seconds")
    dataset = {"path": str(prepared.path), "name": prepared.name, "hash": prepared.content_hash}
    info = {
        "format": FORMAT,
        "kind": KIND,
        "name": request.target.name,
        "status": "running",
        "created": now,
        "method": request.method,
        "split": request.split,
        "seed": request.seed,
        "asked": request.asked,
        "dataset": {**dataset, "images": len(prepared), "classes": len(prepared.classes)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("cxrlt", "numpy")}},
    }
    write_json(request.target.run_json, info)


def described(request: Request, members: Ready, made: CrossCombined) -> list[dict[str, Any]]:
    """What run.json says of the members: which they are, their weights, and their scores alone."""
    rows = []
    for m, member in enumerate(request.members(members.tta)):
        row: dict[str, Any] = {"name": members.names[m], "path": member.path, "kind": member.kind}
        row |= {"sha256": member.weights, "epoch": member.epoch, "tta": member.tta}
        row |= {"calibration": members.scales[m].method, "weight": float(made.final.weights[m].mean())}
        rows.append(row | macro_figures(members.labels, members.log_odds[m]))
    return rows


def write_run(request: Request, members: Ready, made: CrossCombined, emit: Emit) -> ModelCard:
    """Write the combination and the out-of-fold predictions; the card says what they score."""
    first = request.opened[0]
    card = _card(request, members, macro_figures(members.labels, made.judged)["macro_ap"])
    views = first.recipe.data.views
    ensemble = Ensemble(
        members=request.members(members.tta),
        method=request.method,
        final=made.final,
        by_fold=made.combiners,
        seed=request.seed,
        split=request.split,
        dataset=request.prepared.content_hash,
        fold=first.recipe.data.fold,
        views=None if views is None else tuple(views),
        decisions={"calibration": first.recipe.predict.calibration, "threshold": first.recipe.predict.threshold},
    )
    _keep(request, card, request.split, Predictions(card.classes, members.image_id, members.patients, _f4(made.judged)))
    if request.split != SPLIT:
        _dev_too(request, card, members, made, emit)
    write_ensemble(request.target.ensemble, ensemble, card)
    return card


def _keep(request: Request, card: ModelCard, split: str, made: Predictions) -> None:
    path = request.target.predictions(split)
    write_predictions(path, made)
    stamp(path, card, str(card.tta["name"]))


def _f4(log_odds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return log_odds.astype(np.float32)


def _dev_too(request: Request, card: ModelCard, members: Ready, made: CrossCombined, emit: Emit) -> None:
    """The ensemble's predictions of dev, to fit its decisions on, where all members have theirs, of the same views."""
    runs, prepared = request.opened, request.prepared
    paths = [one.predictions(prepared, SPLIT) for one in runs]
    if any(why_again(one, path) for one, path in zip(runs, paths, strict=True)):
        return
    if tuple(fresh_stamp(one, path) for one, path in zip(runs, paths, strict=True)) != members.tta:
        return
    rows = split_rows(runs[0], prepared, SPLIT, emit)
    image_id, patients = (column(prepared.frame, name, rows) for name in ("image_id", "patient_id"))
    kept = [read_predictions(path) for path in paths]
    if any(not set(image_id) <= set(one.image_id) for one in kept):
        return
    u = np.stack([log_odds_of(one, own, card.classes, image_id) for one, own in zip(runs, kept, strict=True)])
    _keep(request, card, SPLIT, Predictions(card.classes, image_id, patients, _f4(made.final(u))))


def _card(request: Request, members: Ready, score: float | None) -> ModelCard:
    first, cards = request.opened[0].card, [one.card for one in request.opened]
    views = set(members.tta)
    return ModelCard(
        classes=first.classes,
        positives=first.positives,
        negatives=first.negatives,
        image_size=max(card.image_size for card in cards),
        in_chans=first.in_chans,
        fit=first.fit,
        backbone={"name": KIND, "method": request.method},
        head={"name": KIND},
        loss={"name": KIND},
        views=first.views,
        dataset=request.prepared.content_hash,
        tta={"name": views.pop() if len(views) == 1 else OWN},
        linked=request.method != "rank",
        epoch=0,
        score=score,
    )
