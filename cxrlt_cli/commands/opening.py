"""Opening a run for prediction and evaluation: its card, its recipe, its dataset, its rows. Never loads torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from cxrlt_cli.artifacts import ModelCard, RunDir, find_run, read_card, replacing
from cxrlt_cli.combine import Ensemble, read_ensemble
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.errors import DataError, RunError, UsageError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.posterior import Link, read_link
from cxrlt_cli.recipe.nodes import parse
from cxrlt_cli.recipe.schema import Recipe
from cxrlt_cli.recipe.sources import read

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that can be used.

    Attributes:
        dir: its directory.
        info: the content of run.json.
        card: its model card.
        recipe: its resolved recipe; that of an ensemble says which images it is for and how it decides, no more.
        ensemble: what an ensemble is made of; None for a run with a network of its own.
    """

    dir: RunDir
    info: Mapping[str, Any]
    card: ModelCard
    recipe: Recipe
    ensemble: Ensemble | None = None

    @property
    def made(self) -> str:
        """What predicts, in a few words."""
        own = self.ensemble
        return f"epoch {self.card.epoch}" if own is None else f"{own.method} of {len(own.members)} members"

    def predictions(self, prepared: Prepared, split: str, tta: str | None = None) -> Path:
        """Where logits of a split are kept.

        The name tells those of another dataset than the run's own apart, and those made with a test-time augmentation
        ``tta`` that is not the run's default.
        """
        own = prepared.content_hash == self.card.dataset
        other = None if tta == self.card.tta["name"] else tta
        return self.dir.predictions(split if own else f"{split}-{prepared.content_hash[:12]}", other)


def open_run(path: Path | None) -> OpenRun:
    """Open the run at ``path``, or the newest one.

    Raises:
        RunError: there is no such run, it is damaged, or it has no model yet.
    """
    found = find_run(path, trained=True)
    info = found.info()
    _check_made(found, info)
    card = read_card(found.weights)
    if found.ensemble.exists():
        ensemble = read_ensemble(found.ensemble)
        return OpenRun(found, info, card, _recipe_of(ensemble, found, info), ensemble)
    return OpenRun(found, info, card, _recipe(found.recipe))


def _check_made(found: RunDir, info: Mapping[str, Any]) -> None:
    """Refuse what another command than training has begun and not finished."""
    kind = info.get("kind")
    if kind in ("retrain-head", "ensemble") and not found.weights.exists():
        raise RunError("is not finished", where=str(found.path), cure=f"Run the same `cxrlt {kind}` again.")


def open_network(path: Path | None) -> OpenRun:
    """As ``open_run``, for what needs one network.

    Raises:
        RunError: also where the run is an ensemble.
    """
    run = open_run(path)
    check_network(run)
    return run


def check_network(run: OpenRun) -> None:
    """Refuse an ensemble.

    Raises:
        RunError: the run is one.
    """
    if run.ensemble is not None:
        members = ", ".join(member.name for member in run.ensemble.members)
        raise RunError(
            "is an ensemble and has no network of its own", where=str(run.dir.path), cure=f"Name a member: {members}."
        )


def _recipe_of(ensemble: Ensemble, found: RunDir, info: Mapping[str, Any]) -> Recipe:
    """What of a recipe an ensemble has: the images it is for, and how it decides."""
    views = None if ensemble.views is None else list(ensemble.views)
    path = str(info.get("dataset", {}).get("path", ""))
    plain = {
        "data": {"path": path, "fold": ensemble.fold, "views": views},
        "model": {"backbone": "ensemble", "head": "ensemble"},
        "loss": "ensemble",
        "predict": dict(ensemble.decisions),
    }
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise RunError(
            f"is not a readable ensemble: {error.errors()[0]['msg']}",
            where=str(found.ensemble),
            cure="The file is damaged; make the ensemble again.",
        ) from error


def _recipe(path: Path) -> Recipe:
    """The resolved recipe. It was checked before training; its plugins are neither needed nor imported here."""
    try:
        root, problems = parse(read(path), str(path))
        if problems:
            raise _damaged(path, problems[0].text)
        return Recipe.model_validate(root.plain)
    except UsageError as error:
        raise _damaged(path, error.what) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(
        f"is not the resolved recipe of a run: {reason}",
        where=str(path),
        cure="The run is damaged, or of a version whose recipes had other keys: copy it again, or train again.",
    )


def open_link(run: OpenRun) -> Link | None:
    """The posterior link of the run's model, or None when its loss has none.

    The outputs of an ensemble are log-odds already; its link changes nothing.

    Raises:
        RunError: the link is damaged, or missing where the card promises one.
    """
    path, count = run.dir.model, len(run.card.classes)
    if run.ensemble is not None:
        return Link(np.array([0.0, 1.0]), np.tile([0.0, 1.0], (count, 1))) if run.card.linked else None
    link = read_link(path)
    if link is None and not run.card.linked:
        return None
    if link is None or link.log_odds.shape != (count, len(link.logit)) or not np.isfinite(link.log_odds).all():
        raise RunError(
            f"the posterior link is {'missing' if link is None else 'damaged'}",
            where=str(path),
            cure="The file was changed after training; copy it again, or train again.",
        )
    return link


def without_link(run: OpenRun) -> Notice:
    """The warning that posteriors are not posteriors."""
    method = run.info.get("method")
    source = (
        f"the method '{method}'" if method in ("tau-norm", "ncm", "rank") else f"the loss '{run.card.loss.get('name')}'"
    )
    return Notice(
        f"{run.dir.path}: {source} has no posterior link: posteriors are sigmoid(logit), "
        "which need not be probabilities, and neither are decisions and calibration made from them",
        "warning",
    )


# -- the dataset ---------------------------------------------------------------------------------------------------


def open_dataset(run: OpenRun, data: Path | None, emit: Emit, *, images: bool = True) -> Prepared:
    """The dataset the run was trained on, or another one given with ``--data``; ``images`` as in ``load_prepared``.

    Raises:
        DataError: it is not there or damaged; it has changed since training and was not given with ``--data``; its
            classes are not those of the run.
    """
    prepared = load_prepared(data if data is not None else find_dataset(run), images=images)
    if prepared.content_hash != run.card.dataset:
        if data is None:
            raise DataError(
                f"is not what {run.dir.path} was trained on: its content has changed",
                where=str(prepared.path),
                cure="Give it with --data to use it all the same.",
            )
        emit(Notice(f"{prepared.path} is not the dataset {run.dir.path} was trained on; it is used all the same"))
    same_classes(run, prepared)
    return prepared


def find_dataset(run: OpenRun) -> Path:
    """The dataset at the path training used, seen from here or from a folder above the run; unchecked.

    Raises:
        DataError: there is none.
    """
    recorded = Path(str(run.info.get("dataset", {}).get("path", run.recipe.data.path)))
    for path in (recorded, *(folder / recorded for folder in run.dir.path.resolve().parents)):
        if (path / "dataset.json").is_file():
            return path
    raise DataError(
        f"the dataset of {run.dir.path} is not there",
        where=str(recorded),
        cure="Give the directory it is in now with --data DIR.",
    )


def same_classes(run: OpenRun, prepared: Prepared) -> None:
    """Make sure that a dataset has the classes of the run, in whatever order.

    Raises:
        DataError: it lacks some, or has others.
    """
    ours, theirs = set(run.card.classes), set(prepared.classes)
    if ours == theirs:
        return
    lacking = f"it lacks {_some(ours - theirs)}" if ours - theirs else ""
    unknown = f"the run does not know {_some(theirs - ours)}" if theirs - ours else ""
    raise DataError(
        f"the classes do not match those of {run.dir.path}: {'; '.join(filter(None, (lacking, unknown)))}",
        where=str(prepared.path),
        cure="Prepare the data with the class names the run was trained on.",
    )


def _some(names: set[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(repr(name) for name in listed[:10]) + more


def split_rows(run: OpenRun, prepared: Prepared, split: str, emit: Emit) -> npt.NDArray[np.int64]:
    """Manifest positions of a split as the run's recipe sees it: its fold, its views.

    Raises:
        DataError: there is no such split, or no image in it.
    """
    fold, views = run.recipe.data.fold, run.recipe.data.views
    if fold is not None and prepared.content_hash != run.card.dataset and "fold" not in prepared.frame:
        emit(Notice(f"{prepared.path} has no folds: all of its split {split!r} is taken"))
        fold = None
    rows = prepared.rows(split, fold=fold, views=views)
    if len(rows) == 0:
        limits = {"data.fold": fold, "data.views": views}
        chosen = " and ".join(f"{key} {value}" for key, value in limits.items() if value is not None)
        raise DataError(
            f"there is no image in the split {split!r}" + (f" with {chosen}" if chosen else ""),
            where=str(prepared.path),
            cure="Prepare the data with a share for it (`--split dev=0.1,test=0.1`), or choose another --split.",
        )
    return rows


def column(frame: pd.DataFrame, name: str, rows: npt.NDArray[np.int64]) -> list[str]:
    """A text column of the manifest at some rows; empty text where nothing is stated."""
    values: Sequence[Any] = frame[name].iloc[rows].tolist()
    return [value if isinstance(value, str) else "" for value in values]


# -- how predictions were made -------------------------------------------------------------------------------------

_STAMP = b"cxrlt"


def stamp(path: Path, card: ModelCard, tta: str) -> None:
    """Note in a predictions file which weights made it, and with which test-time augmentation."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    text = json.dumps({"epoch": card.epoch, "score": card.score, "tta": tta})
    with replacing(path) as part:
        pq.write_table(table.replace_schema_metadata({_STAMP: text.encode()}), part)


def read_stamp(path: Path) -> dict[str, Any]:
    """What ``stamp`` noted; empty for predictions that training wrote with the weights themselves.

    Raises:
        RunError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        text = (pq.read_schema(path).metadata or {}).get(_STAMP)
        return dict(json.loads(text)) if text else {}
    except (OSError, ValueError, pa.ArrowException) as error:
        cure = "Make it again with `cxrlt predict`."
        raise RunError(f"cannot be read: {error}", where=str(path), cure=cure) from error
