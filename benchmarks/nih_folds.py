"""Five folds by patient of the NIH recipe for several losses: every fold, as a Markdown table and one JSON line.

    python benchmarks/nih_folds.py DATA [--weights FILE] [--out DIR] [--folds 0,1,2,3,4]

``DATA`` is the prepared dataset of recipes/nih_lite0.yaml. Runs that are finished are not repeated; an interrupted one
continues. The score is the macro AUROC (and AP) over the classes with at least ten positives in the whole set, of the
epoch with the best dev macro AP, on the fold that was left out: an optimistic choice, the same for every loss.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from cxrlt_cli.artifacts import RunDir, read_predictions
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.metrics import auroc, average_precision

DRW = "reweight={scheme: effective, beta: 0.9999, start: 0.5, apply_to: positives, relative_to: head}"
LOSSES = {
    "bce": [],
    "ldam-drw": ["loss=ldam", "model.head={name: cosine}", DRW],
    "asl": ["loss=asl"],
}


def train(data: Path, out: Path, fold: int, settings: list[str], weights: str | None) -> RunDir:
    """Train or continue one fold through the command line."""
    fixed = [f"data.path={data}", f"data.fold={fold}"]
    if weights:
        fixed.append(f"model.backbone.pretrained={weights}")
    options = [part for setting in [*fixed, *settings] for part in ("--set", setting)]
    command = ["cxrlt", "train", "recipes/nih_lite0.yaml", "--out", str(out), *options]
    subprocess.run([str(Path(sys.executable).with_name("cxrlt")), *command[1:]], check=True, stdout=subprocess.DEVNULL)
    return RunDir(out)


def score(run: RunDir, data: Path) -> dict[str, float]:
    """Macro AUROC and AP of a fold, over the classes with ten positives or more."""
    prepared = load_prepared(data)
    predictions = read_predictions(run.predictions("dev"))
    rows = prepared.frame.reset_index().set_index("image_id")["index"].loc[predictions.image_id].to_numpy()
    labels = prepared.labels[rows]
    chosen = (prepared.labels == 1).sum(0) >= 10
    return {
        "auroc": float(np.nanmean(auroc(labels, predictions.logits)[chosen])),
        "ap": float(np.nanmean(average_precision(labels, predictions.logits)[chosen])),
        "classes": int(chosen.sum()),
        "seconds": run.info()["seconds"],
    }


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=Path("runs/nih"))
    parser.add_argument("--folds", default="0,1,2,3,4")
    options = parser.parse_args()
    folds = [int(fold) for fold in options.folds.split(",")]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in LOSSES}
    for fold in folds:
        for name, settings in LOSSES.items():
            run = train(options.data, options.out / f"{name}-{fold}", fold, settings, options.weights)
            scores[name].append(score(run, options.data))
            print(f"{name} fold {fold}: {scores[name][-1]}", file=sys.stderr)
    print("| loss | " + " | ".join(f"fold {fold}" for fold in folds) + " | mean AUROC | mean AP |")
    print("|---" * (len(folds) + 3) + "|")
    for name, rows in scores.items():
        cells = [f"{row['auroc']:.3f}" for row in rows]
        means = [f"{np.mean([row[key] for row in rows]):.3f}" for key in ("auroc", "ap")]
        print(f"| {name} | " + " | ".join([*cells, *means]) + " |")
    print(json.dumps({"benchmark": "nih_folds", "folds": folds, "scores": scores}))


if __name__ == "__main__":
    main()
