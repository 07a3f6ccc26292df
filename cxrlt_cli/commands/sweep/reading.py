"""The predictions of a sweep's run beside the labels, on one scale. Never loads torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import RunDir, read_predictions
from cxrlt_cli.commands.opening import column, open_dataset, open_link, open_run, split_rows, without_link
from cxrlt_cli.decisions import cross_fitted, read_decisions
from cxrlt_cli.errors import RunError
from cxrlt_cli.events import Emit
from cxrlt_cli.posterior import posterior_of


@dataclass(frozen=True, slots=True)
class Predicted:
    """N images, C classes.

    Attributes:
        classes: C names.
        prevalence: (C,) share of positives in training.
        image_id: N strings, in the order of the dataset.
        patient_id: N strings.
        labels: (N, C): 1, 0, -1.
        logits: (N, C).
        posteriors: (N, C).
        decisions: (N, C), the run's default decisions.
    """

    classes: tuple[str, ...]
    prevalence: npt.NDArray[np.float64]
    image_id: list[str]
    patient_id: list[str]
    labels: npt.NDArray[np.int8]
    logits: npt.NDArray[np.float32]
    posteriors: npt.NDArray[np.float64]
    decisions: npt.NDArray[np.bool_]


def read_scored(run: RunDir, split: str, tta: str | None, emit: Emit) -> Predicted:
    """Labels and predictions of a split of the run's dataset.

    Decisions are the run's own where they were fitted on other images than these, and cross-fitted by patient on dev.

    Raises:
        RunError: the predictions are not those of the split.
    """
    opened = open_run(run.path)
    prepared = open_dataset(opened, None, emit)
    rows = split_rows(opened, prepared, split, emit)
    order = [prepared.classes.index(name) for name in opened.card.classes]
    labels = prepared.labels[rows][:, order]
    image_id, patient_id = (column(prepared.frame, name, rows) for name in ("image_id", "patient_id"))
    path = opened.predictions(prepared, split, tta)
    kept = read_predictions(path)
    place = {name: row for row, name in enumerate(kept.image_id)}
    if set(place) != set(image_id) or set(kept.classes) != set(opened.card.classes):
        raise RunError("are not predictions of this split", where=str(path), cure="Make them again: `cxrlt predict`.")
    columns = [kept.classes.index(name) for name in opened.card.classes]
    logits = kept.logits[[place[name] for name in image_id]][:, columns]
    link = open_link(opened)
    if link is None:
        emit(without_link(opened))
    prevalence = np.asarray(opened.card.stats.share, dtype=np.float64)
    log_odds = logits.astype(np.float64) if link is None else link.log_odds_of(logits)
    if split == "dev":
        decisions = cross_fitted(labels, log_odds, patient_id, prevalence=opened.card.stats.prevalence).decisions
    elif run.decisions.exists():
        own = read_decisions(run.decisions)
        decisions = own.decide(own.calibrated(log_odds))
    else:
        decisions = posterior_of(link, logits) >= 0.5
    return Predicted(
        classes=opened.card.classes,
        prevalence=prevalence,
        image_id=image_id,
        patient_id=patient_id,
        labels=labels,
        logits=logits,
        posteriors=posterior_of(link, logits),
        decisions=decisions,
    )
