"""What a directory being prepared holds, and whether it may be continued.

``plan.json`` says what was asked for and what the source's table was; it lies there until the dataset is finished and
then moves into ``dataset.json``. Work is continued, or found done, only under the same plan.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import read_json, write_json
from cxrlt_cli.contracts import SourceTable
from cxrlt_cli.errors import DataError, RunError

from .journal import RECORD, read_journal
from .manifest import FORMAT, read_info
from .shards import Layout, ShardWriter

PLAN, JOURNAL, LOCK = "plan.json", "journal", ".lock"

State = Literal["new", "unfinished", "done"]

#: Bytes for the manifest, the journal and the report, and for other programs.
_SPARE = 64 << 20

_ELSEWHERE = "Choose another output directory, or delete this one to prepare it anew."


def make_plan(table: SourceTable, settings: Mapping[str, object]) -> dict[str, Any]:
    """The plan for a table under some settings, as plain JSON values."""
    plan = {"format": FORMAT, **settings, "images": len(table.image_id), "table": table_hash(table)}
    result: dict[str, Any] = json.loads(json.dumps(plan, default=str))
    return result


def table_hash(table: SourceTable) -> str:
    """SHA-256 over everything a source's table says, hexadecimal."""
    digest = hashlib.sha256(repr(tuple(table.classes)).encode())
    columns: dict[str, Sequence[object] | None] = {
        "image_id": table.image_id,
        "patient_id": table.patient_id,
        "path": table.path,
        "study_id": table.study_id,
        "view": table.view,
        "split": table.split,
        **{f"extra {name}": values for name, values in table.extra.items()},
    }
    for name, values in columns.items():
        text = "" if values is None else "\x1f".join(map(str, values))
        digest.update(f"\x1e{name}\x1e{len(text)}\x1e{text}".encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(table.labels).tobytes())
    return digest.hexdigest()


def state_of(out: Path, plan: Mapping[str, Any]) -> State:
    """Whether ``out`` is to be filled, continued, or is done.

    Raises:
        DataError: it is a file, holds something else, or was prepared under another plan.
    """
    if not out.exists():
        return "new"
    if not out.is_dir():
        raise DataError("is a file, not a directory", where=str(out), cure="Choose another output directory.")
    if (out / "dataset.json").exists():
        _compare(read_info(out).get("plan"), plan, f"{out} was prepared")
        return "done"
    if (out / PLAN).exists():
        return _unfinished(out, plan)
    if any(not path.name.startswith(".") for path in out.iterdir()):
        raise DataError(
            "the directory is not empty and holds no prepared dataset",
            where=str(out),
            cure="Choose another output directory, or empty this one.",
        )
    return "new"


def _unfinished(out: Path, plan: Mapping[str, Any]) -> State:
    """An interrupted preparation counts once it has packed an image."""
    journal = out / JOURNAL
    if not journal.exists() or journal.stat().st_size < RECORD.itemsize:
        return "new"
    try:
        before = read_json(out / PLAN)
    except RunError as error:
        raise DataError(error.what, where=error.where, cure=_ELSEWHERE) from error
    _compare(before, plan, f"{out} holds an unfinished dataset that was begun")
    return "unfinished"


def _compare(before: object, now: Mapping[str, Any], opening: str) -> None:
    old = before if isinstance(before, Mapping) else {}
    changed = [name for name in {**now, **old} if name != "table" and old.get(name) != now.get(name)]
    if changed:
        each = ", ".join(f"{name} {_shown(old.get(name))} (now {_shown(now.get(name))})" for name in changed)
        raise DataError(f"{opening} with {each}", cure=f"{_ELSEWHERE} Or ask for the same again.")
    if old.get("table") != now.get("table"):
        raise DataError(
            f"{opening} from another state of its source: rows, labels or file names have changed since",
            cure=_ELSEWHERE,
        )


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def start_anew(out: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, and remove what an attempt that packed nothing may have left."""
    for path in [out / JOURNAL, *(out / "images").glob("*.npy*")]:
        path.unlink(missing_ok=True)
    write_json(out / PLAN, plan)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep a second ``cxrlt prepare`` out of the directory.

    Raises:
        DataError: one is at work there.
    """
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError("another cxrlt prepare is at work here", where=str(out), cure="Wait for it.") from None
        except OSError:  # a file system without locks: nobody is kept out, nothing else is lost
            pass
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def packed_rows(out: Path, layout: Layout, sizes: npt.NDArray[np.int64] | None) -> npt.NDArray[np.void]:
    """The journal's records whose rows are whole on disk, the last one of each row.

    Args:
        out: the directory being prepared.
        layout: of its shards.
        sizes: of the source files now, in bytes, -1 where missing; a file of another size is not what was packed.
    """
    records = read_journal(out / JOURNAL)
    last = {int(index): position for position, index in enumerate(records["index"])}
    records = records[sorted(last.values())]
    keep = np.zeros(len(records), bool)
    with ShardWriter(layout) as writer:
        for position, record in enumerate(records):
            index = int(record["index"])
            if index >= layout.total or not layout.holds(index):
                continue
            changed = sizes is not None and sizes[index] >= 0 and sizes[index] != record["file_size"]
            keep[position] = not changed and writer.checksum(index) == record["crc32"]
    return records[keep]


def check_disk(out: Path, layout: Layout, images: int) -> None:
    """Check that ``images`` images of a layout fit on the disk.

    Raises:
        DataError: they do not.
    """
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    there = sum(path.stat().st_blocks * 512 for path in layout.folder.glob("*.npy*"))
    needed = max(0, images * layout.size**2 - there) + _SPARE
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise DataError(
            f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free",
            where=str(out),
            cure="Make room, choose another disk, or prepare smaller images with --size.",
        )
