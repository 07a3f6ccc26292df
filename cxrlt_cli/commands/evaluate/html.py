"""The HTML report of an evaluation. Loads torch for heat maps only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli import __version__
from cxrlt_cli.artifacts import RunDir, write_text
from cxrlt_cli.commands.evaluate.compare import Comparison
from cxrlt_cli.commands.evaluate.foreign import LABELS_EVALUATED
from cxrlt_cli.commands.evaluate.of_run import Asked
from cxrlt_cli.commands.evaluate.scored import Predicted, Scored, Settings
from cxrlt_cli.commands.opening import open_run
from cxrlt_cli.errors import CxrltError, DataError, UsageError
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.report import comparison, evaluation
from cxrlt_cli.report.contents import Contrast, Judged, Pictures, Ran, Worth
from cxrlt_cli.report.mistakes import Mistake, worst
from cxrlt_cli.report.page import spread
from cxrlt_cli.report.thumbnails import heated, jpegs, read_small, side_of


@dataclass(frozen=True, slots=True)
class Wanted:
    """What report is wanted.

    Attributes:
        file: where it goes; None for the run directory, where one run is evaluated, or else for none.
        none: write no report at all.
        heatmaps: draw what speaks for the findings that were decided wrongly.
    """

    file: Path | None = None
    none: bool = False
    heatmaps: bool = False


#: No report.
NONE = Wanted(none=True)


def place_of(of: Predicted, asked: Asked) -> Path:
    """Where the report of one run goes: ``report.html`` of dev, and a file of its own for any other predictions."""
    assert of.images is not None
    run = open_run(Path(of.path))
    of_what = run.predictions(of.images.prepared, asked.split, asked.tta).stem
    return run.dir.report if of_what == "dev" else run.dir.path / f"report.{of_what}.html"


def check(wanted: Wanted, runs: int) -> None:
    """Make sure that the report can be made, before any work is done.

    Args:
        wanted: the report.
        runs: how many runs are evaluated; 0 for tables of other programs.

    Raises:
        UsageError: options contradict each other.
    """
    if wanted.none and (wanted.file is not None or wanted.heatmaps):
        raise UsageError("--no-report goes with neither --report nor --heatmaps", cure="Leave one of them out.")
    if wanted.heatmaps and runs != 1:
        what = "several runs have" if runs else "tables of other programs have"
        raise UsageError(f"--heatmaps needs one run: {what} no heat maps", cure="Evaluate one run.")
    if wanted.file is not None and (wanted.file.is_dir() or wanted.file.suffix.lower() not in (".html", ".htm")):
        raise UsageError("the report is an .html file", where=str(wanted.file), cure="Give a file name such as a.html.")


@dataclass(frozen=True, slots=True)
class Place:
    """How the evaluation was made, on which split (empty for tables), and where its report goes by itself."""

    settings: Settings
    split: str = ""
    file: Path | None = None


def write(
    scored: Sequence[Scored],
    compared: Sequence[Comparison],
    wanted: Wanted,
    place: Place,
    emit: Emit,
    *,
    worth: Worth | None = None,
) -> Path | None:
    """Write the report.

    Args:
        scored: what was evaluated; several are shown side by side.
        compared: their differences.
        wanted: what is wanted.
        place: how the evaluation was made, and where the report goes by itself.
        emit: told where the report is, and what it lacks.
        worth: what the scores of one run are worth on another split; None where that was not asked.

    Returns:
        Where it is; None where none was wanted.

    Raises:
        DataError: it was asked for and cannot be written.
        PluginError: the network has no heat maps.
    """
    target = None if wanted.none else wanted.file or place.file
    if target is None:
        return None
    ran = _ran(scored, place.settings, place.split)
    text = _several(scored, compared, ran) if len(scored) > 1 else _one(scored[0], ran, wanted, emit, worth)
    try:
        write_text(target, text)
    except OSError as error:
        reason = f"the report cannot be written: {error.strerror or error}"
        if wanted.file is not None:
            raise DataError(reason, where=str(target), cure="Choose another file.") from error
        emit(Notice(f"{target}: {reason}", "warning"))  # a run directory that is only lent for reading
        return None
    emit(Notice(f"report: {target}"))
    return target


def _one(scored: Scored, ran: Ran, wanted: Wanted, emit: Emit, worth: Worth | None) -> str:
    judged = _judged(scored, scored.of.name)
    mistakes = worst(judged)
    return evaluation.render(judged, ran, mistakes, _pictures(scored.of, mistakes, wanted.heatmaps, emit), worth)


def _several(scored: Sequence[Scored], compared: Sequence[Comparison], ran: Ran) -> str:
    names = _names(scored)
    judged = [_judged(one, name) for one, name in zip(scored, names, strict=True)]
    contrasts = [_contrast(one, name, names[0]) for one, name in zip(compared, names[1:], strict=False)]
    return comparison.render(judged, contrasts, ran)


# -- what was evaluated --------------------------------------------------------------------------------------------


def _names(scored: Sequence[Scored]) -> list[str]:
    names = [one.of.name for one in scored]
    return names if len(set(names)) == len(names) else [one.of.path for one in scored]


def _judged(one: Scored, name: str) -> Judged:
    of = one.of
    return Judged(
        name=name,
        title=of.title,
        classes=of.classes,
        image_id=of.image_id,
        labels=of.labels,
        scores=of.scores,
        posteriors=of.posteriors,
        decisions=of.decisions,
        uncalibrated=of.uncalibrated,
        thresholds=of.thresholds,
        frequency=of.frequency,
        order=of.by_frequency,
        result=one.result,
        before=one.before,
        replicates=one.replicates,
        before_replicates=one.before_replicates,
        subsets=one.subsets,
    )


def _contrast(one: Comparison, name: str, minus: str) -> Contrast:
    return Contrast(name, minus, one.overall, one.groups, one.classes, one.per_class["ap"], one.adjusted["ap"])


# -- what ran ------------------------------------------------------------------------------------------------------


def _ran(scored: Sequence[Scored], settings: Settings, split: str) -> Ran:
    facts: list[tuple[str, str]] = []
    recipe = ""
    for one in scored:
        about = one.of.about
        if "run" in about:
            info = RunDir(Path(one.of.path)).info()
            facts += _run_facts(about, info)
            recipe = _recipe(Path(one.of.path)) if len(scored) == 1 else ""
        else:
            facts += [(key, str(about[key])) for key in ("predictions", "labels") if key in about]
            facts.append(("groups by", str(about.get("groups_from", ""))))
        facts.append(("decisions", _decided(about.get("decisions"))))
    facts += [("split", split)] if split else []
    facts += _settings(scored, settings)
    return Ran(facts, recipe, _remarks(scored, split), _warnings(scored, split))


def _run_facts(about: Mapping[str, Any], info: Mapping[str, Any]) -> list[tuple[str, str]]:
    dataset, versions = about.get("dataset", {}), info.get("versions", {})
    made = {
        "run": about["run"],
        "made by": _made_by(info),
        "members": ", ".join(f"{one['name']} (weight {one['weight']:.3f})" for one in info.get("members", ())),
        "weights": f"epoch {about['epoch']}" if about.get("epoch") else "",
        "made on": f"{str(info.get('created', ''))[:10]}, {info.get('device', '')}".strip(", "),
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "plugins": ", ".join(sorted(map(str, info.get("plugins", {}).values()))),
        "dataset": f"{dataset.get('name')} ({dataset.get('path')}), content {str(dataset.get('hash'))[:12]}",
        "test-time augmentation": about.get("tta", "none"),
    }
    return [(label, str(value)) for label, value in made.items() if value]


def _made_by(info: Mapping[str, Any]) -> str:
    """The command, its method, and the run it went out from."""
    method, parent = info.get("method"), info.get("parent")
    made = f"{info.get('kind', 'train')} ({method})" if method else str(info.get("kind", "train"))
    return made + (f" from {parent['path']}, epoch {parent['epoch']}" if parent else "")


def _decided(made: object) -> str:
    """How posteriors were calibrated and findings called, in a line."""
    if not isinstance(made, Mapping):
        return ""
    how = str(made.get("how", ""))
    if "calibration" not in made:
        return "not calibrated; a finding is called from 0.5 on" if how == "none" else how
    return f"calibration {made['calibration']}, threshold {made['threshold']}; {how}" + (
        " by patient" if how == "cross-fitted" else ""
    )


def _settings(scored: Sequence[Scored], settings: Settings) -> list[tuple[str, str]]:
    patients = spread(len(set(one.of.owners)) for one in scored)
    drawn = f"{settings.resamples:,} resamples of the patients, seed {settings.seed}" if settings.resamples else "none"
    absent = "left out" if settings.absent == "skip" else "count 0"
    return [
        ("images", f"{spread(one.result.images for one in scored)}, of {patients} patients"),
        ("intervals", drawn),
        ("classes without positives", absent),
        ("evaluated", f"{time.strftime('%Y-%m-%d %H:%M')} by cxrlt {__version__}"),
    ]


def _recipe(run: Path) -> str:
    try:
        return RunDir(run).recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _remarks(scored: Sequence[Scored], split: str) -> list[str]:
    chosen = dict.fromkeys(_chosen_here(one.of) for one in scored if split == "dev" and one.of.images is not None)
    found = [f"{what} chosen on these images, so the figures are a little too good." for what in chosen if what]
    if any(one.of.about.get("groups_from") == LABELS_EVALUATED for one in scored):
        found.append("No training table was given: whatever is said of training here goes by the labels evaluated.")
    return found


def _chosen_here(of: Predicted) -> str:
    """What was chosen by its score on dev of the run's own dataset, as the start of a sentence; empty for nothing."""
    assert of.images is not None
    run = open_run(Path(of.path))
    if of.images.prepared.content_hash != run.card.dataset:
        return ""
    if run.ensemble is not None:  # its own weights are judged out of fold
        return "The epochs of the members were"
    averaged = run.info.get("average")
    return "" if averaged and averaged["kind"] == "swa" else "The epoch was"


def _warnings(scored: Sequence[Scored], split: str) -> list[str]:
    found = []
    if any(one.of.about.get("linked") is False for one in scored):
        found.append("The loss has no posterior link: what is called a posterior here need not be a probability.")
    if any(one.of.about.get("patients_known") is False for one in scored):
        found.append("Patients are not known: every image counts as one of its own, and intervals are too narrow.")
    if split == "train":
        found.append("These are the images of the training: the figures say nothing about other patients.")
    return found


# -- pictures ------------------------------------------------------------------------------------------------------


def _pictures(of: Predicted, mistakes: Sequence[Mistake], heatmaps: bool, emit: Emit) -> Pictures | None:
    """Thumbnails of the images decided wrongly; None where the images are not at hand."""
    if of.images is None or not mistakes:
        return None
    shown = sorted({one.row for one in mistakes})
    try:
        small = read_small(of.images.prepared, of.images.rows[shown].tolist())
    except CxrltError as error:
        if heatmaps:
            raise
        emit(Notice(f"the report has no pictures: {error.where}: {error.what}", "warning"))
        return None
    pixels = dict(zip(shown, small, strict=True))
    heats = _heats(of, mistakes, emit) if heatmaps else {}
    warm = {(row, c): heated(pixels[row], heat) for (row, c), heat in heats.items()}
    return Pictures(
        side_of(of.images.prepared.size),
        jpegs(pixels),
        jpegs(warm),
        places=next((heat.shape for heat in heats.values()), (0, 0)),
        silent=frozenset(key for key, heat in heats.items() if not heat.any()),
    )


def _heats(of: Predicted, mistakes: Sequence[Mistake], emit: Emit) -> dict[tuple[int, int], Any]:
    """Heat maps by row and class."""
    from cxrlt_cli.commands.network import setting_of
    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.gradcam import heat_maps
    from cxrlt_cli.model import load_model

    assert of.images is not None
    run = open_run(Path(of.path))
    if not run.dir.model.exists():
        raise UsageError(
            "--heatmaps needs a network, and this run has none of its own",
            where=of.path,
            cure="Evaluate one of its members.",
        )
    setting = setting_of(run, "auto", None)
    model, _ = load_model(run.dir.model, setting.device)
    keys = sorted({(one.row, one.c) for one in mistakes})
    rows = of.images.rows[[row for row, _ in keys]]
    reader = Reader(of.images.prepared)
    try:
        maps = heat_maps(model, reader, rows, np.array([c for _, c in keys], np.int64), setting, emit=emit)
    finally:
        reader.close()
    return dict(zip(keys, maps, strict=True))
