"""What decisions are worth: F1 and calibration errors on test, before and after link, calibration and thresholds.

For runs on phantoms, whose training labels are noisy and whose dev and test labels are true. Calibration and thresholds
are fitted on dev, everything is scored on test, with patient-clustered bootstrap intervals::

    python benchmarks/decisions_phantom.py RUN [RUN ...]

Four stages of the same logits:

- sigmoid: the plain sigmoid of the logit, decisions at 0.5;
- link: the posterior through the link, decisions at 0.5;
- default: calibrated posteriors and thresholds as `cxrlt predict` gives them (with another recipe, that recipe's);
- ceiling: what no one can have: the best threshold of each class searched on test, and Platt's map fitted on test.

One JSON line a run goes to stdout, a table to stderr. Predictions of test are made where there are none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxrlt_cli.artifacts import read_predictions
from cxrlt_cli.bootstrap import Resampled, paired, replicates
from cxrlt_cli.calibration import fit_calibration
from cxrlt_cli.commands.opening import OpenRun, column, open_dataset, open_link, open_run, split_rows
from cxrlt_cli.commands.run_decisions import decisions_of
from cxrlt_cli.events import Event, Notice
from cxrlt_cli.logistic import sigmoid
from cxrlt_cli.metrics import ece, evaluate, flat_ece
from cxrlt_cli.thresholds import searched_f1

Array = npt.NDArray[np.float64]
Stage = tuple[Array, npt.NDArray[np.bool_]]

#: Heading -> name of the figure.
FIGURES = {"F1": "macro_f1", "class ECE": "macro_ece", "flat ECE": "ece"}
#: Draws of labels from posteriors, for the calibration error that right posteriors would have.
DRAWS = 50


def main() -> None:
    """Measure every run, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    given = parser.parse_args()
    for path in given.runs:
        line = measure(path, given.resamples, given.seed)
        print(json.dumps(line), flush=True)
        print(table(line), file=sys.stderr, flush=True)


def measure(path: Path, resamples: int, seed: int) -> dict[str, Any]:
    """The figures of one run."""
    run = open_run(path)
    labels, logits, patients = test_split(run)
    made = stages(run, labels, logits)
    prevalence = run.card.stats.share
    point, drawn = {}, {}
    for name, (posteriors, decisions) in made.items():
        evaluation = evaluate(labels, logits, posteriors, run.card.classes, prevalence, decisions=decisions)
        point[name] = evaluation.overall
        drawn[name] = replicates(
            labels, logits, patients, posteriors=posteriors, decisions=decisions, resamples=resamples, seed=seed
        ).overall
    return {
        "run": str(path),
        "loss": run.card.loss.get("name"),
        "images": len(labels),
        "patients": len(set(patients)),
        "resamples": resamples,
        "macro_ap": point["default"]["macro_ap"],
        "stages": {
            name: {figure: with_interval(point[name][figure], drawn[name][figure]) for figure in FIGURES.values()}
            for name in made
        },
        "gain": {
            f"{after} - {before}": {
                figure: difference(*(side[name][figure] for side in (point, drawn) for name in (after, before)))
                for figure in FIGURES.values()
            }
            for before, after in (("sigmoid", "default"), ("link", "default"), ("default", "ceiling"))
        },
        "ece_of_right_posteriors": right_posteriors(labels, made["default"][0], seed),
    }


def test_split(run: OpenRun) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], list[str]]:
    """Labels (N, C), logits (N, C) and patients of test, in the order of the dataset and of the run's classes."""
    prepared = open_dataset(run, None, tell)
    path = run.predictions(prepared, "test")
    if not path.exists():
        from cxrlt_cli.commands import predict

        predict.run(run.dir.path, [], split="test", emit=tell)
    kept = read_predictions(path)
    rows = split_rows(run, prepared, "test", tell)
    place = {name: row for row, name in enumerate(kept.image_id)}
    order = [place[name] for name in column(prepared.frame, "image_id", rows)]
    logits = kept.logits[order][:, [kept.classes.index(name) for name in run.card.classes]]
    labels = prepared.labels[rows][:, [prepared.classes.index(name) for name in run.card.classes]]
    return labels, logits, column(prepared.frame, "patient_id", rows)


def stages(run: OpenRun, labels: npt.NDArray[np.int8], logits: npt.NDArray[np.float32]) -> dict[str, Stage]:
    """Posteriors and decisions (N, C) of each stage."""
    link, own = open_link(run), decisions_of(run, emit=tell)
    if own is None:
        raise SystemExit(f"{run.dir.path} has no decisions, and none can be made")
    log_odds = link.log_odds_of(logits) if link is not None else logits.astype(np.float64)
    plain, linked, calibrated = sigmoid(logits), sigmoid(log_odds), own.calibrated(log_odds)
    best = sigmoid(fit_calibration(labels, log_odds, run.card.stats.prevalence)(log_odds))
    at = [
        searched_f1(truth == 1, p) if (truth == 1).any() else 1.0
        for truth, p in zip(labels.T, calibrated.T, strict=True)
    ]
    return {
        "sigmoid": (plain, plain >= 0.5),
        "link": (linked, linked >= 0.5),
        "default": (calibrated, own.decide(calibrated)),
        "ceiling": (best, calibrated >= np.array(at)),
    }


def with_interval(point: float, drawn: Resampled) -> list[float]:
    """Value, lower and upper end."""
    return [round(float(value), 5) for value in (point, *drawn.interval(point))]


def difference(after: float, before: float, after_drawn: Resampled, before_drawn: Resampled) -> list[float]:
    """The difference, lower and upper end of its interval, and the smallest one that could have been found."""
    found = paired(after, before, after_drawn, before_drawn)
    return [round(float(value), 5) for value in (found.value, found.low, found.high, found.detectable)]


def right_posteriors(labels: npt.NDArray[np.int8], posteriors: Array, seed: int) -> dict[str, float]:
    """Calibration errors on this many images if the default posteriors were exactly right: chance alone."""
    rng = np.random.default_rng(seed)
    drawn = [
        np.where(labels == -1, -1, rng.random(posteriors.shape) < posteriors).astype(np.int8) for _ in range(DRAWS)
    ]
    return {
        "macro_ece": round(float(np.mean([np.nanmean(ece(truth, posteriors)) for truth in drawn])), 5),
        "ece": round(float(np.mean([flat_ece(truth, posteriors) for truth in drawn])), 5),
    }


def table(line: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [f"{line['run']} ({line['loss']}), {line['images']} test images, mAP {line['macro_ap']:.4f}"]
    rows.append(" " * 10 + "".join(f"{name:>28}" for name in FIGURES))
    for name, figures in line["stages"].items():
        rows.append(f"{name:<10}" + "".join(f"{shown(figures[figure]):>28}" for figure in FIGURES.values()))
    right = line["ece_of_right_posteriors"]
    chance = "".join(f"{right[figure]:>28.4f}" if figure in right else " " * 28 for figure in FIGURES.values())
    return "\n".join([*rows, f"{'if right':<10}{chance}"])


def shown(figures: list[float]) -> str:
    """Value and interval."""
    return f"{figures[0]:.4f} [{figures[1]:.4f}, {figures[2]:.4f}]"


def tell(event: Event) -> None:
    """Messages go to stderr."""
    if isinstance(event, Notice):
        print(event.text, file=sys.stderr)


if __name__ == "__main__":
    main()
