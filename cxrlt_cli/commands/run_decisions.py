"""The decisions of a run: fitted on its dev predictions, found again, judged. Never loads torch.

``train`` and the like call ``decide.after_training`` at their end; ``predict`` and ``evaluate`` call ``decisions_of``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import read_predictions
from cxrlt_cli.calibration import identity
from cxrlt_cli.commands.opening import (
    OpenRun,
    column,
    open_dataset,
    open_link,
    read_stamp,
    split_rows,
    without_link,
)
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared, load_prepared
from cxrlt_cli.decisions import (
    CrossFitted,
    Decisions,
    cross_fitted,
    fit_decisions,
    read_decisions,
    write_decisions,
)
from cxrlt_cli.errors import CxrltError, DataError, RunError
from cxrlt_cli.events import Emit, Notice, silent
from cxrlt_cli.thresholds import parse_rule

Array = npt.NDArray[np.float64]

#: The images decisions are fitted on.
SPLIT = "dev"


@dataclass(frozen=True, slots=True)
class Asked:
    """What decisions are wanted: a calibration and a threshold rule, None for the run's own."""

    calibration: str | None = None
    threshold: str | None = None

    def __bool__(self) -> bool:
        return self.calibration is not None or self.threshold is not None

    def of(self, run: OpenRun) -> dict[str, str]:
        """The calibration and threshold, from here or from the recipe."""
        own = run.recipe.predict
        return {"calibration": self.calibration or own.calibration, "threshold": self.threshold or own.threshold}

    def beside(self, kept: Decisions | None) -> Asked:
        """The same, and what is not asked for as the run keeps it."""
        if kept is None:
            return self
        return Asked(self.calibration or kept.calibration.method, self.threshold or kept.rule)


# -- fitting and keeping -------------------------------------------------------------------------------------------


def fit(
    run: OpenRun, prepared: Prepared, asked: Asked | None = None, *, tta: str | None = None, emit: Emit = silent
) -> Decisions:
    """Decisions fitted on the run's predictions of a dataset's dev split; nothing is written.

    Args:
        run: the run.
        prepared: the dataset.
        asked: what is wanted; default: the recipe's.
        tta: the test-time augmentation of the predictions; default: the run's own.
        emit: told that posteriors are none without a link.

    Raises:
        RunError: there are no predictions of dev, or they are of other weights or images.
        DataError: no label of dev is known.
    """
    path = run.predictions(prepared, SPLIT, tta)
    made_with = fresh_stamp(run, path, _options(run, prepared, tta))
    predictions = read_predictions(path)
    rows = split_rows(run, prepared, SPLIT, emit)
    place = _places(predictions.image_id, column(prepared.frame, "image_id", rows), path)
    columns = [predictions.classes.index(name) for name in run.card.classes]
    labels = prepared.labels[rows][:, [prepared.classes.index(name) for name in run.card.classes]]
    if (labels == UNKNOWN).all():
        raise DataError(
            f"no label is known in the split {SPLIT!r}, so there is nothing to fit calibration and thresholds to",
            where=str(prepared.path),
            cure="Prepare the data with labels for it.",
        )
    link = open_link(run)
    if link is None:
        emit(without_link(run))
    logits = predictions.logits[place][:, columns]
    log_odds = link.log_odds_of(logits) if link is not None else logits.astype(np.float64)
    about = {
        "split": SPLIT,
        "dataset": prepared.content_hash,
        "images": len(rows),
        "epoch": run.card.epoch,
        "score": run.card.score,
        "tta": made_with,
        "linked": link is not None,
    }
    return fit_decisions(
        labels,
        log_odds,
        column(prepared.frame, "patient_id", rows),
        classes=run.card.classes,
        prevalence=run.card.stats.prevalence,
        **(asked or Asked()).of(run),
        provenance=about,
    )


def chosen_on(run: OpenRun, prepared: Prepared, split: str) -> bool:
    """Whether labels of these images had a say in the run's head, as the method ``keep-best`` has it."""
    own = (split, prepared.content_hash) == (SPLIT, run.card.dataset)
    return own and run.info.get("method") == "keep-best"


def kept_cross_fitted(run: OpenRun, prepared: Prepared, split: str, tta: str) -> Path | None:
    """The file of the predictions that came with a head ``chosen_on`` these images, which cannot be made again."""
    path = run.predictions(prepared, split, tta)
    try:
        came_with_it = chosen_on(run, prepared, split) and path.is_file() and not read_stamp(path)
    except RunError:
        return None
    return path if came_with_it else None


def _options(run: OpenRun, prepared: Prepared, tta: str | None) -> str:
    """What ``cxrlt predict`` needs besides the split to make these predictions."""
    elsewhere = f" --data {prepared.path}" if prepared.content_hash != run.card.dataset else ""
    return elsewhere + (f" --tta {tta}" if tta not in (None, run.card.tta["name"]) else "")


def fresh_stamp(run: OpenRun, path: Path, options: str = "") -> str:
    """The test-time augmentation of the predictions at ``path``, which ``cxrlt predict`` with ``options`` makes.

    Raises:
        RunError: they are not there, damaged, or of weights the run no longer has.
    """
    cure = f"Make them with `cxrlt predict {run.dir.path} --split {SPLIT}{options}`."
    if not path.is_file():
        raise RunError("there are no predictions to fit calibration and thresholds on", where=str(path), cure=cure)
    made = read_stamp(path)
    if made and (made.get("epoch"), made.get("score")) != (run.card.epoch, run.card.score):
        raise RunError("the predictions are of other weights than the run has now", where=str(path), cure=cure)
    return str(made.get("tta", "none"))


def _places(found: Sequence[str], wanted: Sequence[str], path: Path) -> list[int]:
    """Where each wanted image stands among those found."""
    place = {name: row for row, name in enumerate(found)}
    if len(place) != len(found) or set(place) != set(wanted):
        odd = sorted(set(place) ^ set(wanted)) or ["some stand twice"]
        raise RunError(
            f"the images are not those of the split {SPLIT!r}: look at {', '.join(odd[:5])}",
            where=str(path),
            cure=f"Make them again with `cxrlt predict RUN --split {SPLIT}`.",
        )
    return [place[name] for name in wanted]


def told(error: CxrltError) -> str:
    """What is wrong and where, without the cure, for a notice."""
    return f"{error.where}: {error.what}" if error.where else error.what


# -- finding them again --------------------------------------------------------------------------------------------


def decisions_of(
    run: OpenRun,
    asked: Asked | None = None,
    *,
    tta: str | None = None,
    data: Path | None = None,
    emit: Emit = silent,
) -> Decisions | None:
    """The decisions of a run: those it keeps, or made now from its dev predictions where it keeps none of its weights.

    What is made is kept in the run directory, unless it was asked for here or belongs to a test-time augmentation that
    is not the run's own. Whatever is not asked for is as the run keeps it, else as the recipe says.

    Args:
        run: the run.
        asked: a calibration or threshold other than the run's own.
        tta: test-time augmentation of the images to decide on; default: the run's own.
        data: where the run's dataset may lie now; another dataset is not used.
        emit: told what could not be done.

    Returns:
        For the classes of the run in its order; None where there are none and none can be made (a warning says why).

    Raises:
        RunError: what was asked for cannot be made.
    """
    asked, kept = asked or Asked(), stored(run)
    answer = _from_kept(kept, asked)
    if kept is not None and answer is not None:
        if _same_views(run, kept, tta):
            if tta not in (None, kept.provenance.get("tta", tta)):
                cure = f"`cxrlt predict {run.dir.path} --split {SPLIT}` makes those that fit."
                emit(_of_other_views(run, kept, f"those of {SPLIT} were made without {tta!r}", cure))
            return answer
        if not _of_own_images(run, kept):
            emit(_of_other_views(run, kept, "fitted on the images that `cxrlt decide` was given"))
            return answer
    try:
        made = fit(run, _own_dataset(run, data), asked.beside(kept), tta=tta, emit=emit)
    except CxrltError as error:
        return _without(run, kept, asked, error, emit)
    if kept is not None and not _of_own_images(run, kept):
        text = f"fitted on its own {SPLIT} split, not on the images that `cxrlt decide` was given"
        emit(Notice(f"{run.dir.path}: {text}"))
    elif not asked and tta in (None, run.card.tta["name"]):
        _keep(run, made, emit)
    return made


def _from_kept(kept: Decisions | None, asked: Asked) -> Decisions | None:
    """What is asked for, where what is kept answers it without labels; else None."""
    if kept is None or asked.calibration not in (None, kept.calibration.method):
        return None
    if asked.threshold in (None, kept.rule):
        return kept
    rule = parse_rule(str(asked.threshold))
    return with_threshold(kept, rule.value) if rule.name == "fixed" else None


def _of_own_images(run: OpenRun, kept: Decisions) -> bool:
    """Whether they were fitted on the dataset of training, and not on one given to ``cxrlt decide``."""
    return bool(kept.provenance.get("dataset") == run.card.dataset)


def stored(run: OpenRun) -> Decisions | None:
    """What the run keeps, where that belongs to its weights, for its classes in its order.

    Raises:
        RunError: the file is damaged, or lacks a class.
    """
    path = run.dir.decisions
    if not path.is_file():
        return None
    found = read_decisions(path)
    if (found.provenance.get("epoch"), found.provenance.get("score")) != (run.card.epoch, run.card.score):
        return None
    missing = sorted(set(run.card.classes) - set(found.classes))
    if missing:
        raise RunError(
            f"lacks {len(missing)} of the run's classes: {', '.join(missing[:5])}",
            where=str(path),
            cure="Make it again with `cxrlt decide RUN`.",
        )
    return found.select(run.card.classes)


def _same_views(run: OpenRun, kept: Decisions, tta: str | None) -> bool:
    """Whether nothing better can be made for this test-time augmentation than what is kept."""
    path = run.dir.predictions(SPLIT, None if tta == run.card.tta["name"] else tta)
    if not _of_own_images(run, kept):
        return tta in (None, run.card.tta["name"], kept.provenance.get("tta"))
    try:
        return kept.provenance.get("tta") == fresh_stamp(run, path)
    except RunError:
        return tta in (None, run.card.tta["name"], kept.provenance.get("tta"))


def _own_dataset(run: OpenRun, data: Path | None) -> Prepared:
    """The dataset the run was trained on, at ``data`` where that is it."""
    if data is not None:
        there = load_prepared(data, images=False)
        if there.content_hash == run.card.dataset:
            return open_dataset(run, data, silent, images=False)
    return open_dataset(run, None, silent, images=False)


def _without(run: OpenRun, kept: Decisions | None, asked: Asked, error: CxrltError, emit: Emit) -> Decisions | None:
    """What is left where nothing can be fitted."""
    answer = _from_kept(kept, asked)
    if kept is not None and answer is not None:
        emit(_of_other_views(run, kept, told(error), error.cure))
        return answer
    wanted = asked.of(run)
    if asked and wanted["calibration"] == "none" and parse_rule(wanted["threshold"]).name == "fixed":
        return with_threshold(plain(run), parse_rule(wanted["threshold"]).value)
    if asked:
        raise error
    text = "has no calibration and thresholds, and none can be made now"
    uncalibrated = "posteriors are uncalibrated, and findings are called from 0.5 on"
    emit(Notice(f"{run.dir.path} {text} ({told(error)}): {uncalibrated}", "warning"))
    return None


def _of_other_views(run: OpenRun, kept: Decisions, why: str, cure: str = "") -> Notice:
    views = kept.provenance.get("tta", "none")
    text = f"{run.dir.path}: calibration and thresholds are those of predictions with test-time augmentation"
    return Notice(f"{text} {views!r} ({why}). {cure}".rstrip())


def _keep(run: OpenRun, made: Decisions, emit: Emit) -> None:
    """Write, unless the run is being trained or cannot be written to."""
    try:
        if not run.dir.in_use():
            write_decisions(run.dir.decisions, made)
    except OSError as error:
        emit(Notice(f"{run.dir.decisions} cannot be kept: {error.strerror or error}"))


def plain(run: OpenRun) -> Decisions:
    """The posteriors of the link, and decisions at 0.5: what there is without labels."""
    count = len(run.card.classes)
    return Decisions(
        classes=run.card.classes,
        calibration=identity(count),
        rule="0.5",
        thresholds=np.full(count, 0.5),
        set_by=("0.5",) * count,
        positives=(0,) * count,
        negatives=(0,) * count,
        patients=(0,) * count,
        prevalence=np.array(run.card.stats.prevalence),
        sketch=tuple(np.array([[share, 1.0]]) for share in run.card.stats.prevalence),
        shift=np.zeros(count),
    )


def with_threshold(decisions: Decisions, threshold: float) -> Decisions:
    """The same calibration, and one threshold for all classes."""
    count, text = len(decisions.classes), f"{threshold:g}"
    return replace(decisions, rule=text, thresholds=np.full(count, threshold), set_by=(text,) * count)


# -- judging -------------------------------------------------------------------------------------------------------


def judged(
    run: OpenRun,
    decisions: Decisions | None,
    where: tuple[Prepared, str],
    *,
    labels: npt.NDArray[np.int8],
    log_odds: Array,
    patients: Sequence[str],
) -> CrossFitted:
    """Posteriors and decisions (N, C) that may be scored against the labels.

    On the images the decisions were fitted on, each patient is judged by what the other patients teach; elsewhere the
    decisions are used as they are. Without decisions: the posteriors of the link, and 0.5.

    Args:
        run: the run.
        decisions: from ``decisions_of``.
        where: dataset and split of the images.
        labels: (N, C), classes in the order of the run.
        log_odds: (N, C) after the link.
        patients: N identifiers.
    """
    used = decisions if decisions is not None else plain(run)
    prepared, split = where
    about = used.provenance
    if decisions is not None and (about.get("dataset"), about.get("split")) == (prepared.content_hash, split):
        return cross_fitted(
            labels,
            log_odds,
            patients,
            prevalence=run.card.stats.prevalence,
            calibration=used.calibration.method,
            threshold=used.rule,
        )
    posteriors = used.calibrated(log_odds)
    return CrossFitted(posteriors, used.decide(posteriors))
