"""Images a second through the engine's inference, as a share of bare timm on tensors in memory. Prints one JSON line.

    python benchmarks/predict_speed.py [--model convnext_atto] [--size 96] [--batch 32] [--threads N] [--quick]

Our side reads a prepared dataset from disk and returns logits in one array; the other side passes normalised float
tensors through the same network and drops the result. They take turns in one process. The goal is 0.9.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from timing import compared, in_turns, phantoms, report, timed


def measure(chosen: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Inference over the whole dataset, ours and bare, by turns."""
    import numpy as np
    import timm
    import torch

    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.infer import Setting, infer
    from cxrlt_cli.model import build_classifier
    from cxrlt_cli.recipe.schema import Model

    prepared = load_prepared(data)
    rows, reader = np.arange(len(prepared)), Reader(prepared)
    backbone = {"name": "timm", "model": chosen.model, "pretrained": False}
    classifier = build_classifier(
        Model.model_validate({"backbone": backbone, "in_chans": 1}), prepared.stats(rows), chosen.size
    )
    network = timm.create_model(chosen.model, num_classes=len(prepared.classes), in_chans=1).eval()
    pixels = torch.empty(len(rows), 1, chosen.size, chosen.size, dtype=torch.uint8)
    reader.read(rows, pixels[:, 0].numpy())
    images = (pixels.float() / 255 - 0.45) / 0.225

    def bare() -> None:
        with torch.inference_mode():
            for batch in images.split(chosen.batch):
                network(batch)

    setting = Setting(torch.device("cpu"), chosen.size, chosen.batch)
    costs = in_turns(
        lambda: timed(lambda: infer(classifier, reader, rows, setting)), lambda: timed(bare), chosen.rounds
    )
    return {**compared(*costs, len(rows)), "images": len(rows)}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--model", default="convnext_atto", help="timm name")
    options.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--images", type=int, default=160)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--quick", action="store_true", help="a small network, few rounds: a test that it works")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.model, chosen.size, chosen.images, chosen.rounds = "test_convnext", 32, 64, 2
    with tempfile.TemporaryDirectory(prefix="cxrlt-predict-speed-") as folder:
        data = phantoms(Path(folder) / "data", chosen.images, chosen.size)
        import torch

        torch.set_num_threads(chosen.threads)
        figures = measure(chosen, data)
    setting = {key: getattr(chosen, key) for key in ("model", "size", "batch", "threads")}
    report("predict_speed", "ratio >= 0.9", figures, setting)


if __name__ == "__main__":
    main()
