"""``cxrlt evaluate``: what the predictions of runs are worth. Loads no torch where the predictions are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import Predictions, read_predictions
from cxrlt_cli.commands.opening import (
    OpenRun,
    column,
    open_dataset,
    open_link,
    open_run,
    read_stamp,
    split_rows,
    without_link,
)
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import Prepared
from cxrlt_cli.errors import DataError, RunError
from cxrlt_cli.events import Emit, Notice, Result, Table, silent
from cxrlt_cli.metrics import GROUPS, Absent, Evaluation, evaluate
from cxrlt_cli.posterior import posterior_of


@dataclass(frozen=True, slots=True)
class Scored:
    """One run and what its predictions are worth.

    Attributes:
        run: the run.
        prepared: the dataset its labels come from.
        image_id: N strings, in the order of the dataset.
        tta: test-time augmentation the predictions were made with.
        result: the figures.
    """

    run: OpenRun
    prepared: Prepared
    image_id: list[str]
    tta: str
    result: Evaluation


def run(
    runs: Sequence[Path],
    *,
    split: str = "dev",
    absent: Absent = "skip",
    data: Path | None = None,
    emit: Emit = silent,
) -> Result:
    """Evaluate runs on a split of the dataset each was trained on.

    Args:
        runs: run directories, shown in this order; none for the newest run.
        split: "train", "dev" or "test".
        absent: what classes without positives count as in mAP and F1: "skip" leaves them out, "zero" counts 0.
        data: the dataset to take instead, if it has moved or is another one.
        emit: told about progress.

    Returns:
        Every figure as ``data``; a headline table, what was left out, and a table of classes as ``blocks``.

    Raises:
        CxrltError: whatever is wrong, with its cure.
    """
    paths: list[Path | None] = [*runs] or [None]
    scored = [_score(open_run(path), split, absent, data, emit) for path in paths]
    same = all(set(one.image_id) == set(scored[0].image_id) for one in scored)
    if not same:
        emit(Notice("the runs were evaluated on different images: differences between them mean little", "warning"))
    data_out = {"split": split, "absent": absent, "same_images": same, "runs": [_json(one) for one in scored]}
    return Result(data_out, _blocks(scored, split))


# -- labels and predictions of one run -----------------------------------------------------------------------------


def _score(run: OpenRun, split: str, absent: Absent, data: Path | None, emit: Emit) -> Scored:
    prepared = open_dataset(run, data, emit)
    rows = split_rows(run, prepared, split, emit)
    labels = _labels(run, prepared, rows, split)
    link = open_link(run)
    if link is None:
        emit(without_link(run))
    predictions, tta = _predictions(run, prepared, split, data, emit)
    image_id = column(prepared.frame, "image_id", rows)
    logits = _aligned(run, predictions, image_id, run.predictions(prepared, split))
    result = evaluate(labels, logits, posterior_of(link, logits), run.card.classes, run.card.stats.share, absent=absent)
    return Scored(run, prepared, image_id, tta, result)


def _labels(run: OpenRun, prepared: Prepared, rows: npt.NDArray[np.int64], split: str) -> npt.NDArray[np.int8]:
    """(N, C) labels in the order of the run's classes."""
    order = [prepared.classes.index(name) for name in run.card.classes]
    labels = prepared.labels[rows][:, order]
    if (labels == UNKNOWN).all():
        raise DataError(
            f"no label is known in the split {split!r}, so there is nothing to compare with",
            where=str(prepared.path),
            cure=f"It can be predicted, with `cxrlt predict {run.dir.path} --split {split}`, but not evaluated.",
        )
    return labels


def _predictions(
    run: OpenRun, prepared: Prepared, split: str, data: Path | None, emit: Emit
) -> tuple[Predictions, str]:
    """The run's predictions of a split, made now where there are none of its present weights."""
    path = run.predictions(prepared, split)
    reason = _why_again(run, path)
    if reason:
        from cxrlt_cli.commands import predict

        emit(Notice(f"{run.dir.path} {reason} of the split {split!r}: making them"))
        predict.run(run.dir.path, [], split=split, data=data, emit=emit)
    return read_predictions(path), str(read_stamp(path).get("tta", "none"))


def _why_again(run: OpenRun, path: Path) -> str:
    if not path.exists():
        return "has no predictions"
    read_predictions(path)
    made = read_stamp(path)
    if made and (made.get("epoch"), made.get("score")) != (run.card.epoch, run.card.score):
        return "was trained on since its predictions"
    return ""


def _aligned(run: OpenRun, predictions: Predictions, image_id: list[str], path: Path) -> npt.NDArray[np.float32]:
    """(N, C) logits, rows in the order of ``image_id``, columns in the order of the run's classes."""
    again = "Make them again with `cxrlt predict RUN --split SPLIT`."
    if set(predictions.classes) != set(run.card.classes):
        odd = sorted(set(predictions.classes) ^ set(run.card.classes))
        raise RunError(f"the classes are not those of the model: look at {_some(odd)}", where=str(path), cure=again)
    place = {name: row for row, name in enumerate(predictions.image_id)}
    missing = [name for name in image_id if name not in place]
    extra = sorted(set(place) - set(image_id))
    if missing or extra or len(place) != len(predictions.image_id):
        parts = [f"{len(missing)} are missing ({_some(missing)})"] if missing else []
        parts += [f"{len(extra)} are not in the dataset ({_some(extra)})"] if extra else []
        parts += [] if parts else ["some occur more than once"]
        raise RunError(f"the images are not those of the split: {'; '.join(parts)}", where=str(path), cure=again)
    columns = [predictions.classes.index(name) for name in run.card.classes]
    return predictions.logits[[place[name] for name in image_id]][:, columns]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


# -- what is said --------------------------------------------------------------------------------------------------

_RANGES = {"head": "head, > 10 %", "medium": "medium, 1-10 %", "tail": "tail, < 1 %"}
_LEGEND = "F1 at posterior 0.5. ECE pools all entries in 15 bins, class ECE averages over classes."
#: Heading of a column -> name of the figure, for all classes and for each group.
_FIGURES = {
    "mAP": "macro_ap",
    "chance": "chance_ap",
    "AUROC": "macro_auroc",
    "F1": "macro_f1",
    "micro F1": "micro_f1",
    "ECE": "ece",
    "class ECE": "macro_ece",
}


def _blocks(scored: Sequence[Scored], split: str) -> tuple[Table | str, ...]:
    if len(scored) == 1:
        return (_headline(scored[0], split), *_left_out(scored), _class_table(scored[0]))
    names = _short_names(scored)
    return (_comparison(scored, names, split), *_left_out(scored), _class_comparison(scored, names))


def _headline(one: Scored, split: str) -> Table:
    rows = [("all", len(one.result.classes), one.result.overall)]
    rows += [(_RANGES[name], one.result.counts[name], one.result.groups[name]) for name in GROUPS]
    cells = tuple(
        (name, str(classes), *(_number(figures[key], 4) if key in figures else "" for key in _FIGURES.values()))
        for name, classes, figures in rows
    )
    return Table(("training prevalence", "classes", *_FIGURES), cells, title=_described(one, split), note=_LEGEND)


def _described(one: Scored, split: str) -> str:
    views = "" if one.tta == "none" else f", test-time augmentation {one.tta!r}"
    return f"{one.run.dir.path}, epoch {one.run.card.epoch}, on {split} of {one.prepared.name}: " + (
        f"{one.result.images:,} images{views}"
    )


def _left_out(scored: Sequence[Scored]) -> list[str]:
    """A sentence for each kind of class that an average leaves out, or counts as 0; by run where runs differ."""
    lines = [_left_out_of(one.result) for one in scored]
    if all(line == lines[0] for line in lines):
        return lines[0]
    return [f"{one.run.dir.path}: {line}" for one, mine in zip(scored, lines, strict=True) for line in mine]


def _left_out_of(result: Evaluation) -> list[str]:
    lacking, unranked = result.undefined.get("ap", ()), result.undefined.get("auroc", ())
    full = [name for name in unranked if name not in lacking]
    how = (
        "left out of mAP, F1 and AUROC" if result.absent == "skip" else "counted as 0 in mAP and F1, left out of AUROC"
    )
    lines = [f"Without a positive here, and {how}: {', '.join(lacking)}."] if lacking else []
    return lines + ([f"Without a negative here, and left out of AUROC: {', '.join(full)}."] if full else [])


def _class_table(one: Scored) -> Table:
    result = one.result
    rows = []
    for index in _by_frequency(one):
        counts = (one.run.card.positives[index], result.positives[index], result.negatives[index])
        figures = (_number(result.per_class[name][index], 3) for name in ("ap", "auroc", "f1", "ece"))
        rows.append((result.classes[index], result.group[index], *(f"{count:,}" for count in counts), *figures))
    columns = ("class", "group", "train", "pos.", "neg.", "AP", "AUROC", "F1", "ECE")
    return Table(columns, tuple(rows), note="train: positives in training; pos. and neg.: among these images")


def _by_frequency(one: Scored) -> list[int]:
    """Classes from the most to the least frequent in training."""
    return sorted(range(len(one.result.classes)), key=lambda index: -one.run.card.positives[index])


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _short_names(scored: Sequence[Scored]) -> list[str]:
    """The names of the runs, or their paths where two share a name."""
    names = [one.run.dir.name for one in scored]
    return names if len(set(names)) == len(names) else [str(one.run.dir.path) for one in scored]


def _comparison(scored: Sequence[Scored], names: Sequence[str], split: str) -> Table:
    rows = [("images", *(f"{one.result.images:,}" for one in scored))]
    rows += [(label, *(_number(one.result.overall[key], 4) for one in scored)) for label, key in _FIGURES.items()]
    for label, key in (("mAP", "macro_ap"), ("AUROC", "macro_auroc"), ("F1", "macro_f1")):
        rows += [
            (f"{label}, {_RANGES[name]}", *(_number(one.result.groups[name][key], 4) for one in scored))
            for name in GROUPS
        ]
    views = [f"{name}: {one.tta}" for name, one in zip(names, scored, strict=True) if one.tta != "none"]
    note = _LEGEND + (f" Test-time augmentation: {', '.join(views)}." if views else "")
    return Table(("", *names), tuple(rows), title=f"{len(scored)} runs on {split}", note=note)


def _class_comparison(scored: Sequence[Scored], names: Sequence[str]) -> Table:
    """AP by class; a class that a run does not have stays empty."""
    owners: dict[str, tuple[Scored, int]] = {}
    for one in scored:
        for index in _by_frequency(one):
            owners.setdefault(one.result.classes[index], (one, index))
    rows = []
    for name, (owner, index) in owners.items():
        cells = [_ap_of(one.result, name) for one in scored]
        rows.append((name, owner.result.group[index], f"{owner.result.positives[index]:,}", *cells))
    return Table(("AP by class", "group", "pos.", *names), tuple(rows))


def _ap_of(result: Evaluation, name: str) -> str:
    return _number(result.per_class["ap"][result.classes.index(name)], 3) if name in result.classes else ""


def _json(one: Scored) -> dict[str, object]:
    return {
        "run": str(one.run.dir.path),
        "name": one.run.dir.name,
        "epoch": one.run.card.epoch,
        "linked": one.run.card.linked,
        "tta": one.tta,
        "dataset": {"name": one.prepared.name, "path": str(one.prepared.path), "hash": one.prepared.content_hash},
        **one.result.to_json(),
    }
