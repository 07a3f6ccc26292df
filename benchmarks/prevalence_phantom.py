"""Does an estimated prevalence help? F1 and calibration errors on test: with none, and with priors of four strengths.

For runs on phantoms, with calibration and thresholds fitted on dev::

    python benchmarks/prevalence_phantom.py RUN [RUN ...]

Scored are all test images and four selections of them, in which findings have another prevalence: half of the images
without a finding left out; a third of those with a finding kept; a quarter kept of those that lack the second to fourth
most frequent class; a quarter kept of those with none of the classes after the fifteenth. One JSON line a run and
selection.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from decisions_phantom import test_split

from cxrlt_cli.commands.opening import open_link, open_run
from cxrlt_cli.commands.run_decisions import decisions_of
from cxrlt_cli.decisions import Decisions, estimate_prevalence
from cxrlt_cli.metrics import evaluate

Array = npt.NDArray[np.float64]

#: Positives the old prevalence is worth.
STRENGTHS = (1.0, 3.0, 10.0, 30.0)


def main() -> None:
    """Measure every run on every selection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--seed", type=int, default=0, help="of the selections (default 0)")
    given = parser.parse_args()
    for path in given.runs:
        run = open_run(path)
        labels, logits, _ = test_split(run)
        fitted = decisions_of(run)
        assert fitted is not None, "the run has no decisions"
        log_odds = open_link(run).log_odds_of(logits)
        for name, kept in selections(labels, run.card.classes, given.seed).items():
            figures = {
                how: figures_of(labels[kept], logits[kept], log_odds[kept], used, run.card.classes)
                for how, used in choices(fitted, log_odds[kept]).items()
            }
            line = {"run": str(path), "selection": name, "images": int(kept.sum()), "figures": figures}
            print(json.dumps(line), flush=True)


def selections(labels: npt.NDArray[np.int8], classes: tuple[str, ...], seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Name -> which of the images (N,) are in."""
    rng = np.random.default_rng(seed)
    finding = (np.delete(labels, classes.index("Normal"), axis=1) == 1).any(axis=1)
    order = np.argsort(-(labels == 1).sum(axis=0))
    frequent, rare = ((labels[:, part] == 1).any(axis=1) for part in (order[1:4], order[15:]))
    chance = rng.random((4, len(labels)))
    return {
        "all": np.ones(len(labels), bool),
        "half without a finding out": finding | (chance[0] < 0.5),
        "findings thinned to a third": ~finding | (chance[1] < 1 / 3),
        "three frequent ones enriched": frequent | (chance[2] < 0.25),
        "the rarest enriched": rare | (chance[3] < 0.25),
    }


def choices(fitted: Decisions, log_odds: Array) -> dict[str, Decisions]:
    """Decisions as they are, and moved to what is estimated with each strength."""
    moved = {
        f"{strength:g}": fitted.under(
            estimate_prevalence(fitted.log_odds(log_odds), fitted.prevalence, strength=strength)
        )
        for strength in STRENGTHS
    }
    return {"not estimated": fitted, **moved}


def figures_of(
    labels: npt.NDArray[np.int8], logits: Array, log_odds: Array, used: Decisions, classes: tuple[str, ...]
) -> dict[str, Any]:
    posteriors = used.calibrated(log_odds)
    found = evaluate(labels, logits, posteriors, classes, used.prevalence, decisions=used.decide(posteriors)).overall
    return {name: round(found[name], 4) for name in ("macro_f1", "ece", "macro_ece")}


if __name__ == "__main__":
    main()
