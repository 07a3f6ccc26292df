"""Which patients and images a run has learned from, itself or through the runs it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.forward import open_member
from cxrlt_cli.commands.opening import OpenRun, column, find_dataset, open_run
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.errors import CxrltError, DataError

#: Told what cannot be known, as a training set or a parent is not there any more.
Unknown = Callable[[CxrltError], None]


@dataclass(frozen=True, slots=True)
class Learned:
    """The training images of a network.

    Attributes:
        run: of the network: the run itself, a parent or a member.
        patients: their identifiers.
        images: theirs.
    """

    run: OpenRun
    patients: frozenset[str]
    images: frozenset[str]


def learned_from(run: OpenRun, known: dict[str, Prepared], unknown: Unknown) -> Iterator[Learned]:
    """The training images of every network that has a part in a run.

    A re-trained head has learned from its parent's training images too, an ensemble from its members'.

    Args:
        run: the run.
        known: datasets by their hash; those that are read are added.
        unknown: told why a network is left out.
    """
    for source in _lineage(run, unknown):
        try:
            data = _training_data(source, known)
        except CxrltError as error:
            unknown(error)
            continue
        rows = data.rows("train", fold=source.recipe.data.fold, views=source.recipe.data.views)
        patients, images = (frozenset(column(data.frame, name, rows)) for name in ("patient_id", "image_id"))
        yield Learned(source, patients, images)


def seen(
    run: OpenRun, prepared: Prepared, image_id: Sequence[str], patient_id: Sequence[str]
) -> npt.NDArray[np.bool_] | None:
    """Whether the run has learned from the patient of each image of a dataset, (N,); None where that cannot be told.

    Patients of another dataset than the run's are known by their identifiers, and by those of their images.
    """
    if prepared.content_hash == run.card.dataset:
        train = prepared.rows("train", fold=run.recipe.data.fold)
        known = set(column(prepared.frame, "patient_id", train))
        return np.array([name in known for name in patient_id], bool)
    unknown: list[CxrltError] = []
    found = list(learned_from(run, {prepared.content_hash: prepared}, unknown.append))
    if unknown or not found:
        return None
    patients, images = (frozenset().union(*sets) for sets in zip(*((f.patients, f.images) for f in found), strict=True))
    pairs = list(zip(image_id, patient_id, strict=True))
    met = (patients | {patient for image, patient in pairs if image in images}) - {""}
    return np.array([patient in met or image in images for image, patient in pairs], bool)


def _lineage(run: OpenRun, unknown: Unknown) -> Iterator[OpenRun]:
    """The run with a network, or those it was made of; each with what it was made of."""
    if run.ensemble is not None:
        for member in run.ensemble.members:
            try:
                yield from _lineage(open_member(run, member), unknown)
            except CxrltError as error:
                unknown(error)
        return
    yield run
    parent = run.info.get("parent")
    if isinstance(parent, dict) and parent.get("path"):
        try:
            yield from _lineage(open_run(_parent_path(run, str(parent["path"]))), unknown)
        except CxrltError as error:
            unknown(error)


def _parent_path(run: OpenRun, recorded: str) -> Path:
    """The parent where it was, or beside the run."""
    path = Path(recorded)
    return path if (path / "run.json").is_file() else run.dir.path.resolve().with_name(path.name)


def _training_data(run: OpenRun, known: dict[str, Prepared]) -> Prepared:
    if run.card.dataset not in known:
        found = load_prepared(find_dataset(run), images=False)
        if found.content_hash != run.card.dataset:
            raise DataError("its content has changed since training", where=str(found.path))
        known[found.content_hash] = found
    return known[run.card.dataset]
