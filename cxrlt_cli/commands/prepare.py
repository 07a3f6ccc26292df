"""``cxrlt prepare``: from a source of radiographs to a prepared dataset.

Plan, audit, pack (decode once, in parallel), audit the pixels, split, write. Every step can be interrupted; the same
command continues, and does nothing once all is done.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from cxrlt_cli import registry
from cxrlt_cli.artifacts import replacing, writable_directory, write_json, write_text
from cxrlt_cli.contracts import DrawingSource, PrepareRequest, Source, SourceTable
from cxrlt_cli.data import assemble, audit, packing, plan, splits
from cxrlt_cli.data.decode import Fit
from cxrlt_cli.data.journal import append_journal
from cxrlt_cli.data.manifest import SPLITS, Prepared, load_prepared, write_table
from cxrlt_cli.data.shards import Layout, allocate, finish, plan_layout, settle
from cxrlt_cli.engine.signals import NONE, TERMINATE, stop_requests
from cxrlt_cli.errors import DataError, Interrupted, Terminated, UsageError
from cxrlt_cli.events import Advanced, Emit, Finished, Notice, Result, Started, silent
from cxrlt_cli.report import dataset as report

if TYPE_CHECKING:
    import pyarrow as pa

#: More quarantined images than this share stop the command, unless it is told to go on.
MOST_QUARANTINED = 0.01


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for, checked."""

    source: str
    out: Path
    request: PrepareRequest
    options: Mapping[str, object]
    fit: Fit
    split: str | None
    folds: int | None
    allow_quarantine: bool
    jobs: int
    emit: Emit


@dataclass(frozen=True, slots=True)
class _Packed:
    """What packing gave: a record of each good row in table order, and the reason of every other."""

    records: npt.NDArray[np.void]
    refused: Mapping[int, str]

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of the source's table that are packed, ascending."""
        return self.records["index"].astype(np.int64)


def run(
    source: str,
    out: Path,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    size: int = 512,
    fit: Fit = "pad",
    split: str | None = None,
    folds: int | None = None,
    seed: int = 0,
    options: Mapping[str, object] | None = None,
    allow_quarantine: bool = False,
    jobs: int | None = None,
    dry_run: bool = False,
    emit: Emit = silent,
) -> Result:
    """Prepare a dataset.

    Args:
        source: name of a dataset plugin.
        out: directory to fill; it is made. An unfinished one is continued, a finished one left alone.
        images: folder of image files, for sources that read them.
        labels: label table, for sources that read one.
        size: side of the square images, in pixels.
        fit: make images square by padding or by squashing.
        split: shares such as "dev=0.1,test=0.1". Default: the source's own splits, else that; "dev=0.1" with folds.
        folds: number of folds to deal the patients of train and dev into.
        seed: of splits and of everything drawn.
        options: of the source plugin.
        allow_quarantine: go on when more than 1 % of the images cannot be used.
        jobs: processes; default: one a CPU.
        dry_run: read and check everything but the pixels, and write nothing.
        emit: receives progress and messages.

    Raises:
        UsageError: a setting is out of range.
        PluginError: the source cannot be used.
        DataError: table, images or directory cannot be used.
        Interrupted: stopped by Ctrl-C (Terminated: by SIGTERM) after what was packed had been noted.
    """
    _check_settings(size, fit, split=split, folds=folds, seed=seed, jobs=jobs)
    request = PrepareRequest(images=images, labels=labels, size=size, seed=seed)
    order = _Order(
        source, out, request, options or {}, fit, split, folds, allow_quarantine, jobs or packing.usable_cpus(), emit
    )
    origin = _source(order)
    table = origin.table
    wanted = plan.make_plan(table, _settings(order))
    state = plan.state_of(out, wanted)
    if state == "done":
        return _nothing_to_do(order)
    division = _divide(order, table, np.arange(len(table.image_id)), ())  # what cannot be split fails before work
    layout = plan_layout(out / "images", size, len(table.image_id))
    if dry_run:
        return _forecast(order, table, division.split, layout, state)
    _carry_out(order, origin, layout, state, wanted)
    return _result(order, load_prepared(out))


def _check_settings(size: int, fit: str, *, split: str | None, folds: int | None, seed: int, jobs: int | None) -> None:
    if not 16 <= size <= 4096:
        raise UsageError(f"--size {size} does not lie between 16 and 4096", cure="512 is usual.")
    if fit not in ("pad", "squash"):
        raise UsageError(f"--fit {fit} is unknown", cure="Choose pad or squash.")
    if split is not None:
        splits.parse_split(split)
    if folds is not None and not 2 <= folds <= splits.MAX_FOLDS:
        raise UsageError(f"--folds {folds} does not lie between 2 and {splits.MAX_FOLDS}", cure="5 is usual.")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative", cure="Give 0 or more.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs} is less than 1", cure="Leave it out for one process a CPU.")


def _source(order: _Order) -> Source:
    """The source, its table checked and its notes told."""
    origin: Source = registry.build("datasets", {"name": order.source, **order.options}, order.request)
    audit.check_table(origin.table, order.source)
    for note in origin.table.notes:
        order.emit(Notice(note))
    return origin


def _carry_out(order: _Order, origin: Source, layout: Layout, state: plan.State, wanted: Mapping[str, Any]) -> None:
    """Pack and write, or continue with it, while nobody else works in the directory."""
    writable_directory(order.out)
    with plan.alone(order.out):
        if state == "new":
            plan.start_anew(order.out, wanted)
        packed = _pack(order, origin, layout)
        _check_quarantine(order, origin.table, packed)
        _write(order, origin.table, layout, packed, wanted)


def _settings(order: _Order) -> dict[str, object]:
    return {
        "source": order.source,
        "options": dict(order.options),
        "size": order.request.size,
        "fit": order.fit,
        "split": order.split,
        "folds": order.folds,
        "seed": order.request.seed,
    }


# -- packing -------------------------------------------------------------------------------------------------------


def _pack(order: _Order, origin: Source, layout: Layout) -> _Packed:
    """Pack every image that is not packed yet."""
    table = origin.table
    sizes = None if table.path is None else _file_sizes(table.path, order.emit)
    before = plan.packed_rows(order.out, layout, sizes)
    todo = np.setdiff1d(np.arange(layout.total), before["index"])
    missing = todo[sizes[todo] < 0] if sizes is not None else todo[:0]
    _check_missing(order, table, missing)
    plan.check_disk(order.out, layout, layout.total - len(missing))
    allocate(layout)
    order.emit(Started("pack", layout.total, done=len(before)))
    records = [before]
    refused: dict[int, str] = {}
    for outcome in _outcomes(order, origin, layout, todo.tolist()):
        records.append(outcome.records)
        refused.update(outcome.refused)
        done = sum(map(len, records)) + len(refused)
        order.emit(Advanced("pack", done, f"{len(refused)} unreadable" if refused else ""))
    order.emit(Finished("pack"))
    every = np.concatenate(records)
    return _Packed(every[np.argsort(every["index"])], dict(sorted(refused.items())))


def _outcomes(order: _Order, origin: Source, layout: Layout, todo: Sequence[int]) -> Iterator[packing.Outcome]:
    """Pack rows and note them in the journal, until all are done or somebody asks to stop."""
    drawn = cast("DrawingSource", origin) if origin.table.path is None else None
    work = packing.Packing(layout, order.fit, origin.table.path, drawn, order.source)
    left = len(todo)
    with (
        (order.out / plan.JOURNAL).open("ab") as journal,
        stop_requests() as request,
        closing(packing.pack(work, todo, order.jobs, lambda: request.code != NONE)) as outcomes,
    ):
        for outcome in outcomes:
            append_journal(journal, outcome.records)
            left -= len(outcome.records) + len(outcome.refused)
            yield outcome
    if left:
        error = Terminated if request.code == TERMINATE else Interrupted
        raise error(
            f"stopped: {layout.total - left:,} of {layout.total:,} images are packed",
            where=str(order.out),
            cure="Run the same command again: it continues.",
        )


def _file_sizes(paths: Sequence[str], emit: Emit) -> npt.NDArray[np.int64]:
    """Bytes of every file, -1 where there is none."""
    emit(Started("look for files", len(paths)))
    sizes = np.full(len(paths), -1, np.int64)
    for index, path in enumerate(paths):
        try:
            sizes[index] = os.stat(path).st_size
        except (OSError, ValueError):  # whatever is wrong with it, reading it will say
            continue
        if index % 5000 == 0:
            emit(Advanced("look for files", index))
    emit(Finished("look for files"))
    return sizes


def _check_missing(order: _Order, table: SourceTable, missing: npt.NDArray[np.int64]) -> None:
    """Stop before hours of work when too many files are not there."""
    total = len(table.image_id)
    if len(missing) > MOST_QUARANTINED * total and not order.allow_quarantine:
        assert table.path is not None
        raise DataError(
            f"{len(missing):,} of {total:,} image files are missing, such as {table.path[int(missing[0])]}",
            where=str(order.request.images or order.source),
            cure="Check --images, or go on without them with --allow-quarantine.",
        )


def _check_quarantine(order: _Order, table: SourceTable, packed: _Packed) -> None:
    """Write quarantine.csv, and stop when too many images are in it."""
    file = order.out / "quarantine.csv"
    paths = table.path or [""] * len(table.image_id)
    rows = ((table.image_id[row], table.patient_id[row], paths[row], reason) for row, reason in packed.refused.items())
    _write_csv(file, ("image_id", "patient_id", "path", "reason"), rows)
    total, bad = len(table.image_id), len(packed.refused)
    if bad == total:
        raise DataError(f"none of the {total:,} images can be used", where=str(file), cure="It names the reasons.")
    if bad > MOST_QUARANTINED * total and not order.allow_quarantine:
        first = next(iter(packed.refused))
        raise DataError(
            f"{bad:,} of {total:,} images ({bad / total:.1%}) cannot be used; the first, {table.image_id[first]}, "
            f"{packed.refused[first]}",
            where=str(file),
            cure="Repair the files it names and run the same command again, or go on without them with "
            "--allow-quarantine. What is packed is kept.",
        )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# -- writing -------------------------------------------------------------------------------------------------------


def _divide(
    order: _Order, table: SourceTable, rows: npt.NDArray[np.int64], same: Sequence[npt.NDArray[np.int64]]
) -> splits.Division:
    return splits.divide(
        table, rows, same, source=order.source, split=order.split, folds=order.folds, seed=order.request.seed
    )


def _write(order: _Order, table: SourceTable, layout: Layout, packed: _Packed, wanted: Mapping[str, Any]) -> None:
    """Everything but the images; ``dataset.json`` comes last and makes the dataset complete."""
    same = audit.equal_groups(packed.records["pixel_sha256"])
    division = _divide(order, table, packed.rows, same)
    layout, places = settle(layout, packed.rows)
    rows = assemble.manifest(
        table, packed.records, division=division, layout=layout, places=places, source=order.source
    )
    duplicates = _duplicates(order, rows, same, table.labels[packed.rows])
    further = {
        "quarantined": len(packed.refused),
        "duplicates": {"groups": len(duplicates), "leaks": sum(found.leak for found in duplicates)},
        "source": {
            "images": None if order.request.images is None else str(order.request.images.absolute()),
            "labels": None if order.request.labels is None else str(order.request.labels.absolute()),
            "notes": list(table.notes),
        },
        "plan": wanted,
    }
    info = assemble.describe(
        order.out, rows, classes=table.classes, fit=order.fit, layout=layout, division=division, further=further
    )
    finish(layout)
    write_table(order.out / "manifest.parquet", rows)
    quarantine = [(table.image_id[row], reason) for row, reason in packed.refused.items()]
    write_text(order.out / "report.html", report.render(info, rows, duplicates, quarantine))
    write_json(order.out / "dataset.json", info)
    for name in (plan.PLAN, plan.JOURNAL):
        (order.out / name).unlink(missing_ok=True)


def _duplicates(
    order: _Order, rows: pa.Table, same: Sequence[npt.NDArray[np.int64]], labels: npt.NDArray[np.int8]
) -> list[audit.Duplicates]:
    """Describe images of equal pixels, list them in duplicates.csv, and tell the user."""
    names, patients, split, files = (rows[name].to_pylist() for name in ("image_id", "patient_id", "split", "sha256"))
    found = audit.describe_duplicates(same, files, patients, split, labels)
    listed = [
        (number, names[row], patients[row], split[row], group.same_file, group.same_labels, group.leak)
        for number, group in enumerate(found)
        for row in group.rows
    ]
    header = ("group", "image_id", "patient_id", "split", "same_file", "same_labels", "leak")
    _write_csv(order.out / "duplicates.csv", header, listed)
    for text, level in audit.duplicate_notes(found):
        order.emit(Notice(f"{text} (duplicates.csv)", level))
    return found


# -- results -------------------------------------------------------------------------------------------------------


def _nothing_to_do(order: _Order) -> Result:
    prepared = load_prepared(order.out)
    again = " To try the quarantined images again, delete the directory." if prepared.info["quarantined"] else ""
    order.emit(Notice(f"{order.out} is prepared already, under the same settings: nothing to do.{again}"))
    return _result(order, prepared)


def _result(order: _Order, prepared: Prepared) -> Result:
    info = prepared.info
    text = (
        f"{info['images']:,} images of {info['patients']:,} patients, {info['quarantined']:,} quarantined, "
        f"{info['bytes'] / 1e6:,.0f} MB in {order.out}"
    )
    data = {key: value for key, value in info.items() if key not in ("plan", "source")}
    for absent in report.absent_classes(info["counts"]):
        order.emit(Notice(f"no positives in {absent}", "warning"))
    tables = report.class_table(info["counts"]), report.split_table(info["counts"])
    return Result({"path": str(order.out), **data}, (*tables, text))


def _forecast(
    order: _Order, table: SourceTable, split: npt.NDArray[np.object_], layout: Layout, state: plan.State
) -> Result:
    """What would be done."""
    missing = 0 if table.path is None else sum(not os.path.exists(path) for path in table.path)
    what = "continued" if state == "unfinished" else "prepared"
    images = {part: int((split == part).sum()) for part in SPLITS}
    text = (
        f"{layout.total:,} images would be {what} in {order.out} at {layout.size} x {layout.size} pixels, "
        f"{layout.nbytes / 1e6:,.0f} MB; {missing:,} files are missing; "
        f"about {', '.join(f'{part} {count:,}' for part, count in images.items())}. Nothing was written."
    )
    data = {
        "path": str(order.out),
        "images": layout.total,
        "missing": missing,
        "bytes": layout.nbytes,
        "classes": list(table.classes),
        "splits": images,
    }
    return Result(data, (text,))
