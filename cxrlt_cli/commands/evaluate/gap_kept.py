"""The gap of a run, kept beside its report, so that the next report of the same predictions shows it again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from cxrlt_cli.artifacts import write_text
from cxrlt_cli.commands.evaluate.gap_inputs import Sought
from cxrlt_cli.commands.evaluate.gap_show import Found, worth
from cxrlt_cli.commands.evaluate.scored import Predicted
from cxrlt_cli.events import Emit, Notice
from cxrlt_cli.gap import Gap, Waterfall
from cxrlt_cli.report.contents import Worth


class Kept(BaseModel):
    """A gap as it stands in its file.

    Attributes:
        of: fingerprint of the predictions it explains.
        made: the day.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    of: str
    made: str
    split: str
    target: str
    resamples: int
    classes: tuple[str, ...]
    left_out: tuple[str, ...]
    waterfalls: dict[str, Waterfall]
    observed: dict[str, float]
    notes: tuple[str, ...]


def file_of(report: Path) -> Path:
    """Where the gap of a report is kept: ``gap.json`` of ``report.html``, ``gap.test.json`` of ``report.test.html``."""
    return report.with_name(f"gap{report.name.removeprefix('report').removesuffix('.html')}.json")


def keep(found: Found, report: Path, emit: Emit) -> None:
    """Write the gap beside the report of its run."""
    made = Kept(
        of=fingerprint(found.of),
        made=time.strftime("%Y-%m-%d"),
        split=found.sought.split,
        target=found.sought.target,
        resamples=found.gap.resamples,
        classes=found.gap.classes,
        left_out=found.gap.left_out,
        waterfalls=dict(found.gap.waterfalls),
        observed=dict(found.observed),
        notes=found.notes,
    )
    try:
        write_text(file_of(report), made.model_dump_json(indent=2) + "\n")
    except OSError as error:  # a run directory that is only lent for reading
        text = f"the gap cannot be kept for further reports: {error.strerror or error}"
        emit(Notice(f"{file_of(report)}: {text}", "warning"))


def kept(of: Predicted, report: Path, emit: Emit) -> Worth | None:
    """What was kept beside the report, where it explains these very predictions; otherwise a notice says why not."""
    file = file_of(report)
    try:
        made = Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        emit(Notice(f"{file} cannot be read: the report is without the gap; `cxrlt evaluate --gap` makes it anew"))
        return None
    if made.of != fingerprint(of):
        emit(Notice(f"{file} is of other predictions: the report is without it; `cxrlt evaluate --gap` makes it anew"))
        return None
    gap = Gap(made.waterfalls, made.classes, made.left_out, None, made.resamples)
    notes = (*made.notes, f"found on {made.made}")
    return worth(Found(of.path, of, Sought(made.split, made.target), gap, made.observed, notes))


def fingerprint(of: Predicted) -> str:
    """SHA-256 of what a gap starts from: dataset, images, classes, scores, posteriors and decisions of a run."""
    digest = hashlib.sha256()
    dataset = of.about["dataset"]
    assert isinstance(dataset, Mapping)
    for text in (str(dataset["hash"]), *of.image_id, *of.classes):
        digest.update(text.encode() + b"\0")
    # calibration is fitted anew each time, and the last digits may depend on the number of threads
    for values in (of.scores, of.posteriors.round(6), of.decisions):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
