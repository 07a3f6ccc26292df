"""Does ``evaluate --gap`` foretell the test score? On phantoms, whose truth is known, over many seeds.

Each seed draws a cohort of its own and trains a small network on it::

    python benchmarks/gap_phantom.py OUT [--seeds 20] [--jobs 1]

- The labels of all splits carry report noise; the truth is in the columns ``true:CLASS``. The test images are scored
  against the truth, and ``--gap`` sees it for dev and, as prevalence only, for test.
- The best of six epochs is kept. Training and test have about 960 images each, dev 480, of different patients.
- Every second normal study of test is left out, so that findings are more frequent there, as in a test set for which
  patients with findings were picked. Negatives then are sicker than dev's: the correction's assumption is bent, as it
  would be.

A seed that is done is not made again: its line is in ``OUT/lines.jsonl``. Lines go to stdout, the summary to stderr:
how often the 95 % prediction interval holds the test score, and the mean error of the dev score and of the corrected
one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cxrlt_cli.artifacts import read_predictions
from cxrlt_cli.commands.evaluate.gap_exact import EXACT
from cxrlt_cli.commands.evaluate.gap_inputs import Gathered, Sought, gathered
from cxrlt_cli.commands.opening import column, open_run
from cxrlt_cli.contracts import UNKNOWN
from cxrlt_cli.data.manifest import load_prepared
from cxrlt_cli.events import silent
from cxrlt_cli.gap import COMPONENTS, FIGURES, Dev, Judged, Target, gap, point
from cxrlt_cli.metrics import mean_defined

RECIPE = """\
data: {{path: {data}}}
model: {{backbone: {{name: timm, model: test_resnet, pretrained: false}}, head: linear, in_chans: 1}}
loss: bce
optim: {{lr: 2e-3}}
train: {{epochs: {epochs}, batch_size: 16, precision: fp32, seed: {seed}}}
"""
#: Labels are noisier and rare findings more frequent than by default, so that most classes can be judged.
COHORT = ("--miss", "0.2", "--spurious", "0.1", "--floor", "0.02")


def main() -> None:
    """Measure every seed that is not done, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory of what is made")
    parser.add_argument("--seeds", type=int, default=20, help="how many (default 20)")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time (default 1)")
    parser.add_argument("--count", type=int, default=2400, help="phantoms a seed (default 2400)")
    parser.add_argument("--size", type=int, default=32, help="pixels (default 32)")
    parser.add_argument("--epochs", type=int, default=6, help="of training (default 6)")
    parser.add_argument("--keep", action="store_true", help="keep datasets and runs")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lines.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    missing = sorted(set(range(given.seeds)) - {line["seed"] for line in lines})
    with ThreadPoolExecutor(given.jobs) as pool:
        for line in pool.map(lambda seed: measure(seed, given), missing):
            lines.append(line)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            print(summary(lines), file=sys.stderr, flush=True)
    print(summary(lines), file=sys.stderr)


def measure(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Draw, train, predict, compare."""
    place = given.out / f"seed-{seed:02d}"
    data, run = place / "data", place / "run"
    place.mkdir(parents=True, exist_ok=True)
    if not (data / "dataset.json").exists():
        drawn = ("--count", given.count, "--size", given.size, "--seed", seed, "--dev", 0, "--test", 0, "--jobs", 1)
        cxrlt("prepare", "phantom", data, *drawn, "--split", "dev=0.2,test=0.4", *COHORT)
    recipe = place / "recipe.yaml"
    recipe.write_text(RECIPE.format(data=data, epochs=given.epochs, seed=seed))
    if not (run / "predictions" / "test.parquet").exists():
        cxrlt("train", recipe, "--out", run)
        cxrlt("predict", run, "--split", "test")
    line = {"seed": seed, **compared(run, seed)}
    if not given.keep:
        shutil.rmtree(place)
    return line


def cxrlt(*arguments: object) -> None:
    """Run a command quietly; stop where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "cxrlt_cli", *map(str, arguments)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"cxrlt {' '.join(map(str, arguments))}\n{done.stderr[-4000:]}")


def compared(path: Path, seed: int) -> dict[str, Any]:
    """What was foretold from dev, and what test shows."""
    run = open_run(path)
    known = gathered(run, Sought(), silent)
    assert known.real is not None
    picked = sicker(known.real, seed)
    truth, scores = known.real.labels[picked], known.real.scores[picked]
    views = test_views(path, known)[picked]
    names, counts = np.unique(views, return_counts=True)
    shares = dict(zip(names.tolist(), (counts / len(views)).tolist(), strict=True))
    target = Target(len(truth), (truth == 1).mean(axis=0), shares, known.target.why)
    found = gap(known.dev, target, resamples=1000, seed=seed)
    chosen = np.isin(np.array(known.real.classes), found.classes)
    decided = (side[picked][:, chosen] for side in known.real.honest)
    real = point(Judged(truth[:, chosen], scores[:, chosen], *decided))
    return {
        "epoch": run.card.epoch,
        "dev_images": len(known.dev.labels),
        "test_images": len(truth),
        "classes": len(found.classes),
        "noisy_dev": float((known.dev.labels != known.dev.exact).any(axis=1).mean()),
        "not_estimated": {step.name: step.why for step in found.waterfalls["macro_ap"].steps if step.change is None},
        "figures": {
            name: {
                "dev": one.start,
                "steps": {step.name: step.change for step in one.steps},
                "expected": one.expected,
                "confidence": one.confidence,
                "prediction": one.prediction,
                "test": float(mean_defined(real[name])),
            }
            for name, one in found.waterfalls.items()
        },
    }


def sicker(real: Dev, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The test images without every second patient whose images are all normal."""
    normal = real.labels[:, list(real.classes).index("Normal")] == 1
    codes = real.codes
    healthy = np.bincount(codes, weights=~normal) == 0
    out = healthy & (np.random.default_rng(seed).random(len(healthy)) < 0.5)
    return np.flatnonzero(~out[codes])


def test_views(path: Path, known: Gathered) -> np.ndarray[Any, np.dtype[np.str_]]:
    """The view of each test image, in the order of the dataset."""
    prepared = load_prepared(path.parent / "data")
    rows = prepared.rows("test")
    assert known.real is not None
    assert len(rows) == len(known.real.labels)
    assert EXACT + known.real.classes[0] in prepared.frame
    assert (known.real.labels != UNKNOWN).all()
    assert set(read_predictions(path / "predictions" / "test.parquet").image_id) == set(
        column(prepared.frame, "image_id", rows)
    )
    return np.array(column(prepared.frame, "view", rows))


def summary(lines: list[dict[str, Any]]) -> str:
    """Coverage and errors for people."""
    shown = [f"{len(lines)} seeds"]
    shown.append(f"{'':12}{'inside':>10}{'dev - test':>22}{'expected - test':>22}{'width':>10}")
    for name in FIGURES:
        each = [line["figures"][name] for line in lines]
        if not each:
            continue
        inside = sum(one["prediction"][0] <= one["test"] <= one["prediction"][1] for one in each)
        plain = np.array([one["dev"] - one["test"] for one in each])
        corrected = np.array([one["expected"] - one["test"] for one in each])
        width = np.mean([one["prediction"][1] - one["prediction"][0] for one in each])
        cells = [f"{side.mean():+.4f} (s.d. {side.std(ddof=min(1, len(each) - 1)):.4f})" for side in (plain, corrected)]
        shown.append(f"{name:12}{f'{inside}/{len(each)}':>10}{cells[0]:>22}{cells[1]:>22}{width:>10.4f}")
    changes = [line["figures"]["macro_ap"]["steps"] for line in lines]
    if changes:
        means = (f"{part} {np.mean([one[part] or 0.0 for one in changes]):+.4f}" for part in COMPONENTS)
        shown.append(f"mAP, mean change: {', '.join(means)}")
    return "\n".join(shown)


if __name__ == "__main__":
    main()
