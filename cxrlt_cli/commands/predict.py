"""``cxrlt predict``: logits, posteriors and decisions for image files or for a split of the run's dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, writable_directory, write_predictions
from cxrlt_cli.commands.choose_tta import choose_tta
from cxrlt_cli.commands.network import setting_of, view_logits
from cxrlt_cli.commands.opening import (
    OpenRun,
    column,
    open_dataset,
    open_link,
    open_run,
    split_rows,
    stamp,
    without_link,
)
from cxrlt_cli.commands.prediction_table import PredictionTable, overview, write_table
from cxrlt_cli.commands.run_decisions import Asked, decisions_of, plain
from cxrlt_cli.commands.strategies import AUTO, strategy_name, strategy_of
from cxrlt_cli.commands.target_prevalence import Target, parse_target
from cxrlt_cli.decisions import Decisions
from cxrlt_cli.errors import DataError, RunError, TrainingError, UsageError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.submission import check_classes, write_submission
from cxrlt_cli.thresholds import parse_rule

if TYPE_CHECKING:
    from cxrlt_cli.contracts import TestTimeAugmentation
    from cxrlt_cli.data.batches import Images
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.infer import Setting

#: Unreadable files named one by one on the screen.
NAMED = 20


@dataclass(frozen=True, slots=True)
class Work:
    """The N images to predict.

    Attributes:
        images: where they are read from.
        rows: (N,) which of them.
        image_id: N strings.
        patient_id: N strings, empty for files.
        projections: N image views (PA, AP, lateral), empty where unknown.
        unreadable: why an image could not be read, by its position; filled while they are read.
        prepared: the dataset of a split, None for files.
    """

    images: Images
    rows: npt.NDArray[np.int64]
    image_id: list[str]
    patient_id: list[str]
    projections: list[str]
    unreadable: dict[int, str] = field(default_factory=dict)
    prepared: Prepared | None = None


def run(
    run: Path | None,
    inputs: Sequence[Path],
    *,
    split: str | None = None,
    tta: str | None = None,
    force: bool = False,
    out: Path | None = None,
    submission: bool = False,
    data: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    calibration: str | None = None,
    threshold: str | None = None,
    target_prevalence: str | None = None,
    emit: Emit = silent,
) -> Result:
    """Predict image files, or a split.

    Args:
        run: run directory; None for the newest.
        inputs: files and folders; empty with ``split``.
        split: "train", "dev" or "test" of the run's dataset; its logits are kept in the run directory.
        tta: a plugin of ``cxrlt.tta``, or "auto" for the one that is worth its cost on dev; default: the recipe's.
        force: also use views the training never saw.
        out: CSV or Parquet file to write; default: the result carries everything.
        submission: write the form of CXR-LT 2026 instead of the ordinary table.
        data: the dataset of ``split``, if it has moved or is another one.
        device: "auto", "cpu", "cuda" or "cuda:K".
        batch_size: images a forward pass; default: as in the recipe.
        calibration: fitted on dev now and used instead of what the run keeps.
        threshold: a threshold rule, likewise.
        target_prevalence: how frequent findings are among these images: ``estimate``, ``CLASS=VALUE,...`` or a file;
            posteriors are moved there, and thresholds set anew.
        emit: told about progress.

    Returns:
        What was found and written; its ``code`` is 3 when files were unreadable, which are named and left out.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    _check_request(inputs, split, out, submission, data)
    opened = open_run(run)
    asked = Asked(calibration, str(parse_rule(threshold)) if threshold is not None else None)
    target = parse_target(target_prevalence, opened.card.classes) if target_prevalence is not None else None
    if submission:
        check_classes(opened.card.classes, str(opened.dir.path))
    with ExitStack() as stack:
        work = _from_split(opened, split, data, emit) if split else _from_files(opened, inputs, stack)
        if out is not None:
            writable_directory(out.absolute().parent)
        if target is not None:
            target.check(len(work.rows))
        setting = setting_of(opened, device, batch_size)
        choice = choose_tta(opened, setting, force=force, data=data, emit=emit) if tta == AUTO else None
        tta = strategy_name(opened, choice.name if choice else tta)
        strategy = strategy_of(opened, tta, force)
        _check_ranks(strategy, tta, split, force)
        made = _predict(opened, work, strategy, setting, emit)
    kept = opened.predictions(work.prepared, str(split), tta) if work.prepared else None
    if kept is not None:
        write_predictions(kept, made)
        stamp(kept, opened.card, tta)
    decisions = decisions_of(opened, asked, tta=tta, data=data, emit=emit) or plain(opened)
    table, decisions = _decided(opened, made, decisions, target)
    if out is not None and submission:
        write_submission(out, table.image_id, table.classes, table.posteriors)
    elif out is not None:
        write_table(out, table)
    _warn(work, submission, emit)
    result = _result(opened, work, table, {"predictions": kept, "table": out}, tta)
    more = _about(decisions, target is not None) | ({"tta_choice": choice.data} if choice else {})
    return replace(result, data={**result.data, **more})


def _check_request(
    inputs: Sequence[Path], split: str | None, out: Path | None, submission: bool, data: Path | None
) -> None:
    if bool(inputs) == bool(split):
        what = "files and --split are both given" if inputs else "there is nothing to predict"
        raise UsageError(what, cure="Give image files or folders, or a split of the run's dataset with --split.")
    if data is not None and not split:
        raise UsageError("--data names the dataset of a split", cure="Give --split as well, or leave --data out.")
    if submission and out is None:
        raise UsageError("--submission needs a file to write", cure="Give it with -o FILE.csv.")
    if out is None:
        return
    endings = (".csv",) if submission else (".csv", ".parquet")
    if out.suffix.lower() not in endings:
        raise UsageError("the name of the file says no format that is known", where=str(out), cure=_end_in(endings))
    if out.is_dir():
        raise UsageError("is a directory", where=str(out), cure="Give the name of a file.")


def _check_ranks(strategy: TestTimeAugmentation, tta: str, split: str | None, force: bool) -> None:
    if strategy.merge == "rank" and not split and not force:
        raise UsageError(
            f"the test-time augmentation {tta!r} ranks images against each other: what it says of a file would "
            "depend on the files beside it",
            cure="Predict a split with --split, choose another one with --tta, or insist with --force.",
        )


def _end_in(endings: Sequence[str]) -> str:
    return f"Let it end in {' or '.join(endings)}."


# -- which images --------------------------------------------------------------------------------------------------


def _from_split(run: OpenRun, split: str, data: Path | None, emit: Emit) -> Work:
    from cxrlt_cli.data.shards import Reader

    prepared = open_dataset(run, data, emit)
    card = run.card
    if prepared.size < card.image_size:
        raise DataError(
            f"has images of {prepared.size} px, and the network was trained on {card.image_size} px",
            where=str(prepared.path),
            cure=f"Prepare the data with `--size {card.image_size}`.",
        )
    if prepared.fit != card.fit:
        text = f"{prepared.path} was prepared with --fit {prepared.fit}, the training data with --fit {card.fit}"
        emit(Notice(text, "warning"))
    rows = split_rows(run, prepared, split, emit)
    return Work(
        images=Reader(prepared),
        rows=rows,
        image_id=column(prepared.frame, "image_id", rows),
        patient_id=column(prepared.frame, "patient_id", rows),
        projections=column(prepared.frame, "view", rows),
        prepared=prepared,
    )


def _from_files(run: OpenRun, inputs: Sequence[Path], stack: ExitStack) -> Work:
    from cxrlt_cli.data.files import FileImages, find_images

    _refuse_damaged_run(inputs[0])
    files = find_images(inputs)
    fit = cast("Literal['pad', 'squash']", run.card.fit)
    images = stack.enter_context(FileImages(files, run.card.image_size, fit))
    return Work(
        images=images,
        rows=np.arange(len(files), dtype=np.int64),
        image_id=[file.image_id for file in files],
        patient_id=[""] * len(files),
        projections=[""] * len(files),
        unreadable=images.unreadable,
    )


def _refuse_damaged_run(path: Path) -> None:
    """A first folder that holds parts of a run was meant as the run."""
    parts = ("model.safetensors", "recipe.resolved.yaml", "metrics.jsonl")
    if any((path / part).is_file() for part in parts) and not (path / "run.json").is_file():
        raise RunError(
            "is a run directory without its run.json",
            where=str(path),
            cure="It is damaged: copy it again, or train again.",
        )


# -- the network ---------------------------------------------------------------------------------------------------


def _predict(run: OpenRun, work: Work, tta: TestTimeAugmentation, setting: Setting, emit: Emit) -> Predictions:
    """The logits of the images that could be read."""
    from cxrlt_cli.engine.merge import merge

    link = open_link(run)
    if link is None:
        emit(without_link(run))
    views = view_logits(run, work.images, work.rows, setting, views=tta.views, emit=emit)
    read = np.array([row not in work.unreadable for row in range(len(work.rows))])
    if not read.any():
        raise _none_readable(work)
    ids, patients, projections = (
        [value for value, good in zip(values, read, strict=True) if good]
        for values in (work.image_id, work.patient_id, work.projections)
    )
    logits = merge(views[:, read], tta, run.card.classes, projections, link)
    _check_finite(run, ids, logits)
    return Predictions(run.card.classes, ids, patients, logits)


def _check_finite(run: OpenRun, image_id: Sequence[str], logits: npt.NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        named = ", ".join(image_id[row] for row in bad[:5])
        raise TrainingError(
            f"the network's outputs for {len(bad)} images are not finite: {named}",
            where=str(run.dir.path),
            cure="Weights or half precision may be at fault: try `--device cpu`, which computes in full precision.",
        )


# -- posteriors and decisions --------------------------------------------------------------------------------------


def _decided(
    run: OpenRun, made: Predictions, decisions: Decisions, target: Target | None
) -> tuple[PredictionTable, Decisions]:
    """The table, and the decisions it was made with: those for the prevalence that was asked for."""
    link = open_link(run)
    log_odds = link.log_odds_of(made.logits) if link is not None else made.logits.astype(np.float64)
    used = decisions if target is None else target.apply(decisions, log_odds)
    posteriors = used.calibrated(log_odds)
    return PredictionTable(made.image_id, made.classes, made.logits, posteriors, used.thresholds), used


def _about(decisions: Decisions, moved: bool) -> dict[str, Any]:
    """What posteriors and decisions rest on, as JSON."""
    about: dict[str, Any] = {
        "calibration": decisions.calibration.method,
        "threshold_rule": decisions.rule,
        "fitted_on": dict(decisions.provenance) or None,
    }
    shares = dict(zip(decisions.classes, decisions.prevalence.tolist(), strict=True))
    return {**about, "target_prevalence": shares} if moved else about


# -- what is said --------------------------------------------------------------------------------------------------


def _none_readable(work: Work) -> DataError:
    first = min(work.unreadable)
    others = f" and so on for {len(work.unreadable) - 1} more" if len(work.unreadable) > 1 else ""
    return DataError(
        f"{work.unreadable[first]}{others}",
        where=work.image_id[first],
        cure="No image could be read; nothing was written.",
    )


def _warn(work: Work, submission: bool, emit: Emit) -> None:
    """Name the unreadable files."""
    bad = sorted(work.unreadable)
    for row in bad[:NAMED]:
        emit(Notice(f"{work.image_id[row]} {work.unreadable[row]}; left out", "warning"))
    if len(bad) > NAMED:
        emit(Notice(f"and {len(bad) - NAMED} more unreadable files; --json names them all", "warning"))
    if bad and submission:
        emit(Notice(f"the submission lacks {len(bad)} of the {len(work.rows)} images asked for", "warning"))


def _result(run: OpenRun, work: Work, table: PredictionTable, files: Mapping[str, Path | None], tta: str) -> Result:
    data: dict[str, Any] = {
        "run": str(run.dir.path),
        "images": len(table.image_id),
        "unreadable": {work.image_id[row]: work.unreadable[row] for row in sorted(work.unreadable)},
        "tta": tta,
        "linked": run.card.linked,
    }
    written = {key: str(path) for key, path in files.items() if path is not None}
    lost = f", {len(work.unreadable)} unreadable" if work.unreadable else ""
    views = f", test-time augmentation {tta!r}" if tta != "none" else ""
    noun = "image" if len(table.image_id) == 1 else "images"
    text = f"{len(table.image_id):,} {noun}{lost}, {len(table.classes)} classes, run {run.dir.path}{views}"
    blocks: list[Table | str] = [text] if files["table"] is not None else [overview(table), text]
    if written:
        blocks.append(Table(("wrote", ""), tuple(written.items())))
    full = {} if files["table"] is not None else table.data()
    return Result({**data, **written, **full}, tuple(blocks), code=3 if work.unreadable else 0)
