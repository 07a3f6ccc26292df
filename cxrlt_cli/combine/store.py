"""The file of an ensemble, ``ensemble.safetensors``: its members, how they are combined, and a card like a model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.artifacts import ModelCard, replacing
from cxrlt_cli.calibration import Calibration
from cxrlt_cli.combine.methods import Combiner
from cxrlt_cli.errors import RunError
from cxrlt_cli.logistic import Array

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A run that an ensemble is made of.

    Attributes:
        path: its directory as seen from that of the ensemble.
        absolute: the same from the root.
        name: of that directory.
        kind: "train", "retrain-head" or "ensemble".
        weights: SHA-256 of its ``model.safetensors`` or ``ensemble.safetensors``.
        epoch: of its weights.
        score: dev macro AP that belongs to them.
        tta: the test-time augmentation of the predictions it was combined with.
    """

    path: str
    absolute: str
    name: str
    kind: str
    weights: str
    epoch: int
    score: float | None
    tta: str


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """A fitted ensemble.

    Attributes:
        members: M of them.
        method: how they are combined.
        final: the combination, fitted on everything.
        by_fold: those fitted without each fold of the patients; what the images it was fitted on are judged by.
        seed: of the folds.
        split: the images it was fitted on,
        dataset: of the dataset with this content hash.
        fold, views: the recipe keys ``data.fold`` and ``data.views`` of its members, which choose the images.
        decisions: calibration and threshold rule of its decisions.
    """

    members: tuple[Member, ...]
    method: str
    final: Combiner
    by_fold: tuple[Combiner, ...]
    seed: int
    split: str
    dataset: str
    fold: int | None
    views: tuple[str, ...] | None
    decisions: Mapping[str, str]


def write_ensemble(path: Path, ensemble: Ensemble, card: ModelCard) -> None:
    """Write the file: tensors ``all/...`` and ``FOLD/...``, and one metadata entry ``card`` with all else."""
    from safetensors.numpy import save_file

    named = {"all": ensemble.final, **{str(k): one for k, one in enumerate(ensemble.by_fold)}}
    tensors: dict[str, Any] = {}
    for name, one in named.items():
        tensors |= {f"{name}/{key}": np.ascontiguousarray(value) for key, value in _tensors(one).items()}
    about = {
        "format": FORMAT,
        "method": ensemble.method,
        "members": [asdict(member) for member in ensemble.members],
        "calibrations": {name: [_about(own) for own in one.maps] for name, one in named.items()},
        "folds": len(ensemble.by_fold),
        "seed": ensemble.seed,
        "fitted_on": {"split": ensemble.split, "dataset": ensemble.dataset},
        "data": {"fold": ensemble.fold, "views": ensemble.views},
        "decisions": dict(ensemble.decisions),
    }
    text = json.dumps({**asdict(card), "ensemble": about}, ensure_ascii=False, sort_keys=True)
    with replacing(path) as part:
        save_file(tensors, part, metadata={"card": text})


def _about(own: Calibration) -> dict[str, Any]:
    return {"method": own.method, "used": own.used}


def _tensors(one: Combiner) -> dict[str, Array]:
    found = {"weights": one.weights, "intercept": one.intercept}
    found["slope"] = np.broadcast_to(one.slope, one.intercept.shape)
    for m, own in enumerate(one.maps):
        found |= {f"{m}/slopes": own.slopes, f"{m}/intercepts": own.intercepts}
        found |= {f"{m}/steps/{c}": knots for c, knots in own.steps.items()}
    for m, mine in enumerate(one.ranks):
        found |= {f"{m}/ranks/{c}": knots for c, knots in enumerate(mine)}
    return found


def read_ensemble(path: Path) -> Ensemble:
    """Read what ``write_ensemble`` wrote; its card is read by ``artifacts.read_card``.

    Raises:
        RunError: the file is missing, damaged, or of a newer format.
    """
    import safetensors

    cure = "The file is damaged, or another version of cxrlt made it: make the ensemble again."
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["card"])["ensemble"]
            if about["format"] > FORMAT:
                what = f"has format {about['format']}, this cxrlt reads up to {FORMAT}"
                raise RunError(what, where=str(path), cure="Install a newer cxrlt.")
            return _parsed(about, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  # no mapping
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"is not a readable ensemble: {error}", where=str(path), cure=cure) from error


def _parsed(about: Mapping[str, Any], tensors: Mapping[str, Array]) -> Ensemble:
    if not all(np.isfinite(value).all() for value in tensors.values()):
        raise ValueError("a number in it is not finite")
    made = {name: _combiner(about, tensors, name) for name in about["calibrations"]}
    views = about["data"]["views"]
    return Ensemble(
        members=tuple(Member(**row) for row in about["members"]),
        method=str(about["method"]),
        final=made["all"],
        by_fold=tuple(made[str(k)] for k in range(about["folds"])),
        seed=int(about["seed"]),
        split=str(about["fitted_on"]["split"]),
        dataset=str(about["fitted_on"]["dataset"]),
        fold=about["data"]["fold"],
        views=None if views is None else tuple(views),
        decisions=about["decisions"],
    )


def _combiner(about: Mapping[str, Any], tensors: Mapping[str, Array], name: str) -> Combiner:
    own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
    classes = own["weights"].shape[1]
    maps = []
    for m, one in enumerate(about["calibrations"][name]):
        steps = {c: own[f"{m}/steps/{c}"] for c in range(classes) if f"{m}/steps/{c}" in own}
        slopes, intercepts = own[f"{m}/slopes"], own[f"{m}/intercepts"]
        maps.append(Calibration(str(one["method"]), tuple(one["used"]), slopes, intercepts, steps))
    ranked = about["method"] == "rank"
    ranks = tuple(tuple(own[f"{m}/ranks/{c}"] for c in range(classes)) for m in range(len(maps))) if ranked else ()
    return Combiner(str(about["method"]), tuple(maps), own["weights"], own["intercept"], ranks, own["slope"])
