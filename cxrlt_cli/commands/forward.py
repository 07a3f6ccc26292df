"""From images to logits: one network over its views, or the members of an ensemble one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, read_predictions
from cxrlt_cli.combine import Ensemble, Member
from cxrlt_cli.combine.crossfit import by_fold
from cxrlt_cli.commands.choose_tta import Chosen, choose_tta
from cxrlt_cli.commands.network import check_finite, setting_of, view_logits
from cxrlt_cli.commands.opening import OpenRun, open_link, open_run, without_link
from cxrlt_cli.commands.run_decisions import kept_cross_fitted
from cxrlt_cli.commands.strategies import AUTO, strategy_name, strategy_of
from cxrlt_cli.commands.work import Work, none_readable, seen_by
from cxrlt_cli.decisions import patient_folds
from cxrlt_cli.errors import RunError, UsageError
from cxrlt_cli.events import Emit, Notice

if TYPE_CHECKING:
    from cxrlt_cli.contracts import TestTimeAugmentation

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class How:
    """How images are predicted: the options ``--tta``, ``--force``, ``--data``, ``--device`` and ``--batch-size``."""

    tta: str | None = None
    force: bool = False
    data: Path | None = None
    device: str = "auto"
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Passed:
    """What came of it: logits, the test-time augmentation they were made with, and why that one."""

    predictions: Predictions
    tta: str
    choice: Chosen | None = None


def forward(run: OpenRun, work: Work, how: How, emit: Emit) -> Passed:
    """The logits of the images that can be read; of an ensemble its log-odds.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    if run.ensemble is not None:
        return _of_members(run, run.ensemble, work, how, emit)
    setting = setting_of(run, how.device, how.batch_size)
    choice = choose_tta(run, setting, force=how.force, data=how.data, emit=emit) if how.tta == AUTO else None
    tta = strategy_name(run, choice.name if choice else how.tta)
    strategy = strategy_of(run, tta, how.force)
    _check_ranks(strategy, tta, work.split, how.force)
    link = open_link(run)
    if link is None:
        emit(without_link(run))
    views = view_logits(run, work.images, work.rows, setting, views=strategy.views, emit=emit)
    return Passed(_merged(run, work, views, strategy), tta, choice)


# -- one network ---------------------------------------------------------------------------------------------------


def _check_ranks(strategy: TestTimeAugmentation, tta: str, split: str, force: bool) -> None:
    if strategy.merge == "rank" and not split and not force:
        raise UsageError(
            f"the test-time augmentation {tta!r} ranks images against each other: what it says of a file would "
            "depend on the files beside it",
            cure="Predict a split with --split, choose another one with --tta, or insist with --force.",
        )


def _merged(run: OpenRun, work: Work, views: npt.NDArray[np.float32], strategy: TestTimeAugmentation) -> Predictions:
    """One set of logits from those of the views, for the images that could be read."""
    from cxrlt_cli.engine.merge import merge

    read = np.array([row not in work.unreadable for row in range(len(work.rows))])
    if not read.any():
        raise none_readable(work)
    ids, patients, projections = (
        [value for value, good in zip(values, read, strict=True) if good]
        for values in (work.image_id, work.patient_id, work.projections)
    )
    logits = merge(views[:, read], strategy, run.card.classes, projections, open_link(run))
    check_finite(run, ids, logits)
    return Predictions(run.card.classes, ids, patients, logits)


# -- members -------------------------------------------------------------------------------------------------------


def _of_members(run: OpenRun, ensemble: Ensemble, work: Work, how: How, emit: Emit) -> Passed:
    """Each member with its own image size and, unless one is asked for, its own test-time augmentation."""
    if how.tta == AUTO:
        raise UsageError(
            "--tta auto chooses for one network, and this is an ensemble",
            where=str(run.dir.path),
            cure="Name one for all members, or leave --tta out: each then has the one it was combined with.",
        )
    own = how.tta in (None, run.card.tta["name"])
    members = [open_member(run, member) for member in ensemble.members]
    made = []
    for number, (opened, member) in enumerate(zip(members, ensemble.members, strict=True), 1):
        emit(Notice(f"member {number} of {len(members)}: {opened.dir.path}"))
        made.append(_of_member(opened, work, replace(how, tta=member.tta if own else how.tta), emit))
    tta = str(run.card.tta["name"] if own else how.tta)
    return Passed(_combined(run, ensemble, work, members, made), tta)


def _of_member(member: OpenRun, work: Work, how: How, emit: Emit) -> Predictions:
    """Its predictions, made now; where labels of these images had a say in its head, the cross-fitted ones it keeps."""
    kept = work.prepared and kept_cross_fitted(member, work.prepared, work.split, strategy_name(member, how.tta))
    if kept and set(work.image_id) <= set((own := read_predictions(kept)).image_id):
        emit(Notice(f"{member.dir.path}: its head was chosen by the labels of {work.split}; {kept} is used as it is"))
        return own
    with seen_by(member, work, emit) as mine:
        passed = forward(member, mine, how, emit)
    work.unreadable.update(mine.unreadable)
    return passed.predictions


def _combined(
    run: OpenRun, ensemble: Ensemble, work: Work, members: Sequence[OpenRun], made: Sequence[Predictions]
) -> Predictions:
    read = np.array([row for row in range(len(work.rows)) if row not in work.unreadable], np.int64)
    if not len(read):
        raise none_readable(work)
    ids, patients = ([values[row] for row in read] for values in (work.image_id, work.patient_id))
    u = np.stack([log_odds_of(one, own, run.card.classes, ids) for one, own in zip(members, made, strict=True)])
    fold = _folds(run, ensemble, work)
    combined = ensemble.final(u) if fold is None else by_fold(ensemble.by_fold, fold[read], u)
    return Predictions(run.card.classes, ids, patients, combined.astype(np.float32))


def log_odds_of(run: OpenRun, made: Predictions, classes: Sequence[str], image_id: Sequence[str]) -> Array:
    """Log-odds after the run's link (N, C), classes and images in the given order."""
    place = {name: row for row, name in enumerate(made.image_id)}
    link, order = open_link(run), [made.classes.index(name) for name in run.card.classes]
    logits = made.logits[[place[name] for name in image_id]][:, order]
    log_odds = logits.astype(np.float64) if link is None else link.log_odds_of(logits)
    return log_odds[:, [run.card.classes.index(name) for name in classes]]


def _folds(run: OpenRun, ensemble: Ensemble, work: Work) -> npt.NDArray[np.int64] | None:
    """The fold (N,) of each image where these are the images the ensemble was fitted on, None elsewhere.

    They are predicted by what the other patients taught, as at first: nobody is flattered by predicting them again.
    """
    prepared = work.prepared
    if prepared is None or (work.split, prepared.content_hash) != (ensemble.split, ensemble.dataset):
        return None
    labels = prepared.labels[work.rows][:, [prepared.classes.index(name) for name in run.card.classes]]
    return patient_folds(labels, work.patient_id, len(ensemble.by_fold), ensemble.seed)


def open_member(run: OpenRun, member: Member) -> OpenRun:
    """A member, which must be what was combined.

    Raises:
        RunError: it is not there, or its weights have changed since.
    """
    path = next((p for p in (run.dir.path / member.path, Path(member.absolute)) if (p / "run.json").is_file()), None)
    if path is None:
        raise RunError(
            f"the member {member.name!r} is not there any more",
            where=member.absolute,
            cure=f"Put it back there, or into the directory {member.path!r} as seen from {run.dir.path}.",
        )
    opened = open_run(path)
    if weights_hash(opened) != member.weights:
        raise RunError(
            f"has other weights than when {run.dir.path} was made of it",
            where=str(path),
            cure="Make the ensemble again with `cxrlt ensemble`, or bring the old weights back.",
        )
    return opened


def weights_hash(run: OpenRun) -> str:
    """SHA-256 of the file that predicts; reads all of it."""
    with run.dir.weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
