"""No member may have learned from the patients it is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from cxrlt_cli.commands.learned_from import Learned, learned_from
from cxrlt_cli.commands.opening import OpenRun, column
from cxrlt_cli.commands.run_decisions import told
from cxrlt_cli.data.manifest import Prepared
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
    """The split: its name, patients and images."""

    split: str
    patients: frozenset[str]
    images: frozenset[str]


def refuse_leaks(
    runs: Sequence[OpenRun], prepared: Prepared, rows: npt.NDArray[np.int64], split: str, emit: Emit
) -> None:
    """Compare the patients and images of the split with those that every member learned from.

    Where a training set is not there any more, a warning says that this could not be checked.

    Raises:
        DataError: a member was trained on some of them; it and they are named.
    """
    patients, images = (frozenset(column(prepared.frame, name, rows)) - {""} for name in ("patient_id", "image_id"))
    judged = _Judged(split, patients, images)
    known = {prepared.content_hash: prepared}
    for one in runs:
        for learned in learned_from(one, known, partial(_unchecked, one, emit)):
            _refuse(one, learned, judged)


def _unchecked(run: OpenRun, emit: Emit, error: CxrltError) -> None:
    text = f"{run.dir.path}: whether it was trained on these patients cannot be checked ({told(error)})"
    emit(Notice(text, "warning"))


def _refuse(run: OpenRun, learned: Learned, judged: _Judged) -> None:
    for noun, theirs, mine in (
        ("patients", learned.patients, judged.patients),
        ("images", learned.images, judged.images),
    ):
        shared = sorted(mine & theirs)
        if shared:
            more = ", ..." if len(shared) > _NAMED else ""
            through = "" if learned.run is run else f" (through {learned.run.dir.path})"
            raise DataError(
                f"was trained on {len(shared)} of the {len(mine)} {noun} of the split {judged.split!r}{through}: "
                f"{', '.join(shared[:_NAMED])}{more}",
                where=str(run.dir.path),
                cure=_CURE,
            )
