"""Rules of ``cxrlt.datasets``; the contracts are ``Source``, ``DrawingSource`` and ``SourceTable``."""

from __future__ import annotations

import csv
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.contracts import PluginFault, PrepareRequest, SourceTable
from cxrlt_cli.testing.rules import Broken, Rule, Skip, Subject

SIZE = 64


@contextmanager
def _source(subject: Subject) -> Iterator[Any]:
    """The source on a small table with its images, for those that read files, or else on nothing, for those that draw.

    A source of another form of table refuses both; its author tries it on a sample of that form.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_sample(folder)
        requests = [
            PrepareRequest(folder / "images", folder / "labels.csv", SIZE, 0),
            PrepareRequest(None, None, SIZE, 0),
        ]
        reasons = []
        for request in requests:
            try:
                source = subject.build(request)
            except PluginFault as fault:
                reasons.append(str(fault.what))
                continue
            yield source
            return
    raise Skip(f"it neither reads the kit's sample table nor draws images: {reasons[0]}")


def _write_sample(folder: Path) -> None:
    from PIL import Image

    (folder / "images").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "Effusion", "Mass"])
        for number in range(6):
            Image.fromarray(np.full((20, 20), 30 * number, np.uint8)).save(folder / "images" / f"i{number}.png")
            writer.writerow([f"i{number}.png", f"p{number // 2}", number % 2, "" if number == 3 else 0])


def its_table_is_whole(subject: Subject) -> None:
    """Labels are (N, C) int8 of 1, 0 and -1; identifiers are unique, non-empty strings; every column has N entries."""
    with _source(subject) as source:
        table: SourceTable = source.table
        count = len(table.image_id)
        if table.labels.shape != (count, len(table.classes)) or table.labels.dtype != np.int8:
            raise Broken(
                f"labels are {table.labels.dtype} {table.labels.shape}; N, C are {count}, {len(table.classes)}"
            )
        if not set(np.unique(table.labels).tolist()) <= {-1, 0, 1}:
            raise Broken("labels hold other values than 1, 0 and -1")
        if len(set(table.image_id)) < count:
            raise Broken("two images share an image_id")
        for name in ("image_id", "patient_id", "classes"):
            if not all(isinstance(value, str) and value for value in getattr(table, name)):
                raise Broken(f"{name} holds something that is not a non-empty string")
        columns = {name: getattr(table, name) for name in ("patient_id", "path", "study_id", "view", "split")}
        for name, column in {**columns, **table.extra}.items():
            if column is not None and len(column) != count:
                raise Broken(f"the column {name} has {len(column)} entries for {count} images")


def views_and_splits_have_their_names(subject: Subject) -> None:
    """Views are PA, AP, lateral or empty; splits are train, dev and test, and no patient stands in two."""
    with _source(subject) as source:
        table: SourceTable = source.table
        for name, allowed in (("view", {"PA", "AP", "lateral", ""}), ("split", {"train", "dev", "test"})):
            odd = sorted(set(getattr(table, name) or ()) - allowed)
            if odd:
                raise Broken(f"{name} holds {', '.join(map(repr, odd[:3]))}")
        if table.split is not None:
            pairs = set(zip(table.patient_id, table.split, strict=True))
            if len(pairs) > len({patient for patient, _ in pairs}):
                raise Broken("a patient stands in two splits")


def drawing_is_pure(subject: Subject) -> None:
    """A source that draws its images gives (size, size) uint8, the same each time, also in another process."""
    with _source(subject) as source:
        if source.table.path is not None:
            raise Skip("the images of this source are files")
        sent = pickle.loads(pickle.dumps(source))  # how it reaches the processes that draw
        for index in (0, len(source.table.image_id) - 1):
            image = source.draw(index)
            if image.shape != (SIZE, SIZE) or image.dtype != np.uint8:
                raise Broken(f"draw({index}) is {image.dtype} {image.shape}, not uint8 ({SIZE}, {SIZE})")
            if not np.array_equal(sent.draw(index), image) or not np.array_equal(source.draw(index), image):
                raise Broken(f"draw({index}) gives another image the second time, or in a copy of the source")


def absent_files_are_refused_with_a_cure(subject: Subject) -> None:
    """A table that is not there is a PluginFault that says what, where and what to do."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject.build(PrepareRequest(Path(folder) / "absent", Path(folder) / "absent.csv", SIZE, 0))
        except PluginFault as fault:
            if not fault.what or not fault.cure:
                raise Broken("its PluginFault does not say what is wrong and what to do") from fault
            return
    raise Broken("it accepts --images and --labels that do not exist")


RULES: Sequence[Rule] = (
    its_table_is_whole,
    views_and_splits_have_their_names,
    drawing_is_pure,
    absent_files_are_refused_with_a_cure,
)
