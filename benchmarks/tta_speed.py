"""What views cost: k plain passes over one pass with k views. Prints one JSON line.

    python benchmarks/tta_speed.py [--tta medium] [--model convnext_atto] [--size 96] [--batch 32] [--quick]

Both sides read the prepared dataset and return logits; ours reads each image once and makes k views of it, the other
side makes k passes over the plain images. They take turns in one process. k views may cost 1.05 k plain passes, so the
goal is 1 / 1.05.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from timing import compared, in_turns, phantoms, report, timed


def measure(chosen: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Inference over the whole dataset with k views, and k times without, by turns."""
    import numpy as np
    import torch

    from cxrlt_cli import registry
    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.infer import Setting, infer
    from cxrlt_cli.model import build_classifier
    from cxrlt_cli.recipe.schema import Model

    prepared = load_prepared(data)
    rows, reader = np.arange(len(prepared)), Reader(prepared)
    backbone = {"name": "timm", "model": chosen.model, "pretrained": False}
    device = torch.device(chosen.device)
    network = build_classifier(
        Model.model_validate({"backbone": backbone, "in_chans": 1}), prepared.stats(rows), chosen.size
    ).to(device)
    views = registry.build("tta", chosen.tta).views
    setting = Setting(device, chosen.size, chosen.batch, chosen.precision)

    def plain() -> None:
        for _ in views:
            infer(network, reader, rows, setting)

    costs = in_turns(
        lambda: timed(lambda: infer(network, reader, rows, setting, views=views)), lambda: timed(plain), chosen.rounds
    )
    passes = len(rows) * len(views)
    return {**compared(*costs, passes), "images": len(rows), "views": len(views)}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--tta", default="medium", help="name of the strategy")
    options.add_argument("--model", default="convnext_atto", help="timm name")
    options.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--images", type=int, default=96)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cpu")
    options.add_argument("--precision", default="fp32", help="fp32, bf16 or fp16")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--quick", action="store_true", help="a small network, few rounds: a test that it works")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.model, chosen.size, chosen.images, chosen.rounds = "test_convnext", 32, 64, 2
    with tempfile.TemporaryDirectory(prefix="cxrlt-tta-speed-") as folder:
        data = phantoms(Path(folder) / "data", chosen.images, chosen.size)
        import torch

        torch.set_num_threads(chosen.threads)
        figures = measure(chosen, data)
    setting = {key: getattr(chosen, key) for key in ("tta", "model", "size", "batch", "device", "precision", "threads")}
    report("tta_speed", "ratio >= 0.952", figures, setting)


if __name__ == "__main__":
    main()
