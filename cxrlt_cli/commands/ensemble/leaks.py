"""No member may have learned from the patients it is judged on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.forward import open_member
from cxrlt_cli.commands.opening import OpenRun, column, find_dataset, open_run
from cxrlt_cli.commands.run_decisions import told
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.errors import CxrltError, DataError
from cxrlt_cli.events import Emit, Notice

#: Patients named in a message.
_NAMED = 5

_CURE = (
    "Leave it out, or combine on a --split none of whose patients a member was trained on; members of a "
    "cross-validation have to be of the same fold. Where equal identifiers mean different patients, prepare one of the "
    "datasets with other identifiers."
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """The split: dataset, name, its patients and images."""

    prepared: Prepared
    split: str
    patients: frozenset[str]
    images: frozenset[str]


def refuse_leaks(
    runs: Sequence[OpenRun], prepared: Prepared, rows: npt.NDArray[np.int64], split: str, emit: Emit
) -> None:
    """Compare the patients and images of the split with those that every member learned from.

    A re-trained head has learned from its parent's training images too, an ensemble from its members'. Where a
    training set is not there any more, a warning says that this could not be checked.

    Raises:
        DataError: a member was trained on some of them; it and they are named.
    """
    patients, images = (frozenset(column(prepared.frame, name, rows)) - {""} for name in ("patient_id", "image_id"))
    judged = _Judged(prepared, split, patients, images)
    known = {prepared.content_hash: prepared}
    for one in runs:
        for source in _lineage(one, emit):
            _refuse(one, source, judged, known, emit)


def _lineage(run: OpenRun, emit: Emit) -> Iterator[OpenRun]:
    """The run with a network, or those it was made of; each with what it was made of."""
    if run.ensemble is not None:
        for member in run.ensemble.members:
            try:
                yield from _lineage(open_member(run, member), emit)
            except CxrltError as error:
                _unchecked(run, error, emit)
        return
    yield run
    parent = run.info.get("parent")
    if isinstance(parent, dict) and parent.get("path"):
        try:
            yield from _lineage(open_run(_parent_path(run, str(parent["path"]))), emit)
        except CxrltError as error:
            _unchecked(run, error, emit)


def _parent_path(run: OpenRun, recorded: str) -> Path:
    """The parent where it was, or beside the run."""
    path = Path(recorded)
    return path if (path / "run.json").is_file() else run.dir.path.resolve().with_name(path.name)


def _unchecked(run: OpenRun, error: CxrltError, emit: Emit) -> None:
    text = f"{run.dir.path}: whether it was trained on these patients cannot be checked ({told(error)})"
    emit(Notice(text, "warning"))


def _refuse(run: OpenRun, source: OpenRun, judged: _Judged, known: dict[str, Prepared], emit: Emit) -> None:
    try:
        data = _training_data(source, known)
    except CxrltError as error:
        _unchecked(run, error, emit)
        return
    rows = data.rows("train", fold=source.recipe.data.fold, views=source.recipe.data.views)
    for noun, name, mine in (("patients", "patient_id", judged.patients), ("images", "image_id", judged.images)):
        shared = sorted(mine & set(column(data.frame, name, rows)))
        if shared:
            more = ", ..." if len(shared) > _NAMED else ""
            through = "" if source is run else f" (through {source.dir.path})"
            raise DataError(
                f"was trained on {len(shared)} of the {len(mine)} {noun} of the split {judged.split!r}{through}: "
                f"{', '.join(shared[:_NAMED])}{more}",
                where=str(run.dir.path),
                cure=_CURE,
            )


def _training_data(run: OpenRun, known: dict[str, Prepared]) -> Prepared:
    if run.card.dataset not in known:
        found = load_prepared(find_dataset(run), images=False)
        if found.content_hash != run.card.dataset:
            raise DataError("its content has changed since training", where=str(found.path))
        known[found.content_hash] = found
    return known[run.card.dataset]
