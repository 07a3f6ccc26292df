"""Training images a second, as a share of a bare PyTorch loop on tensors in memory. Prints one JSON line.

    python benchmarks/train_speed.py [--model convnext_atto] [--size 96] [--batch 32] [--threads N] [--quick]

Both sides train the same network with the same batch, threads, loss and optimiser settings, by turns, a step each, in
one process. The bare loop reads nothing and prepares nothing: its images are normalised float tensors. The goal is 0.95
with augmentation off, which is equal work. A second run with augmentation on says what that costs: its ratio is over
the same bare loop, which has none.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Cost, Stopwatch, compared, phantoms, report, timed

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.events import Event
    from cxrlt_cli.recipe.schema import Recipe

#: What a recipe for chest radiographs would change in the images.
AUGMENT = {"rotate": 7.0, "shift": 0.03, "scale": 0.05, "brightness": 0.05, "contrast": 0.1, "gamma": 0.1, "erase": 0.2}


def recipe(chosen: argparse.Namespace, data: Path, epochs: int, augment: dict[str, float]) -> Recipe:
    """The recipe of our side: an epoch to warm up, then ``epochs`` that count."""
    from cxrlt_cli.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "name": "speed",
            "data": {"path": str(data)},
            "model": {"backbone": {"name": "timm", "model": chosen.model, "pretrained": False}, "in_chans": 1},
            "augment": augment,
            "train": {"epochs": epochs + 1, "batch_size": chosen.batch},
        }
    )


def bare_step(settings: Recipe, prepared: Prepared) -> Callable[[], None]:
    """The next step of the bare loop, again and again through the training images, ready to be called."""
    import timm
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    from cxrlt_cli.data.shards import Reader

    optim, name = settings.optim, settings.model.backbone.options["model"]
    network = timm.create_model(name, num_classes=len(prepared.classes), in_chans=1).train()
    betas = optim.betas[0], optim.betas[1]
    optimizer = torch.optim.AdamW(network.parameters(), optim.lr, betas, weight_decay=optim.weight_decay, fused=True)
    rows = prepared.rows("train")
    pixels = torch.empty(len(rows), 1, prepared.size, prepared.size, dtype=torch.uint8)
    Reader(prepared).read(rows, pixels[:, 0].numpy())
    images = (pixels.float() / 255 - 0.45) / 0.225
    labels = torch.from_numpy(prepared.labels[rows]).float()
    whole = len(rows) // settings.train.batch_size
    parts = [tensor.split(settings.train.batch_size)[:whole] for tensor in (images, labels)]
    upcoming = cycle(zip(*parts, strict=True))

    def step() -> None:
        some, targets = next(upcoming)
        optimizer.zero_grad(set_to_none=True)
        bce(network(some), targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), optim.clip or 1.0)
        optimizer.step()

    return step


def measure(chosen: argparse.Namespace, data: Path, epochs: int, augment: dict[str, float]) -> dict[str, Any]:
    """Train with ``engine.fit``, and take a step of the bare loop after each of its steps.

    Our clock runs from where the engine gets the control until it reports the step. It starts before the thread that
    reads ahead does: that reads the three batches of an epoch of three steps while the clock runs.
    """
    import torch

    from cxrlt_cli.artifacts import RunDir
    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.engine.distributed import World
    from cxrlt_cli.engine.fit import fit
    from cxrlt_cli.engine.parts import Job
    from cxrlt_cli.events import Advanced, Started

    settings, prepared = recipe(chosen, data, epochs, augment), load_prepared(data)
    step = bare_step(settings, prepared)
    ours: list[Cost] = []
    theirs: list[Cost] = []
    watch = Stopwatch()

    def emit(event: Event) -> None:
        nonlocal watch
        if not isinstance(event, (Started, Advanced)) or not event.stage.startswith("epoch"):
            return
        if isinstance(event, Advanced):
            ours.append(watch.read())
            theirs.append(timed(step))
        watch = Stopwatch()

    with tempfile.TemporaryDirectory(prefix="cxrlt-run-") as run:
        fit(Job(settings, prepared, RunDir(Path(run)), torch.device("cpu"), World()), None, emit)
    warm = len(ours) // (epochs + 1)
    return compared(ours[warm:], theirs[warm - 1 :], chosen.batch)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--model", default="convnext_atto", help="timm name")
    options.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--images", type=int, default=120, help="phantoms drawn; eight in ten of them are trained on")
    options.add_argument("--epochs", type=int, default=7, help="that count; half as many with augmentation")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--quick", action="store_true", help="a small network, few rounds: a test that it works")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.model, chosen.size, chosen.batch, chosen.epochs = "test_convnext", 32, 16, 2
    with tempfile.TemporaryDirectory(prefix="cxrlt-train-speed-") as folder:
        data = phantoms(Path(folder) / "data", chosen.images, chosen.size)
        import torch

        torch.set_num_threads(chosen.threads)
        plain = measure(chosen, data, chosen.epochs, {})
        augmented = measure(chosen, data, max(1, chosen.epochs // 2), AUGMENT)
    more = {f"{key}_augmented": augmented[key] for key in ("ratio", "ratio_cpu", "images_per_s")}
    setting = {key: getattr(chosen, key) for key in ("model", "size", "batch", "threads")}
    report("train_speed", "ratio >= 0.95", {**plain, **more}, setting)


if __name__ == "__main__":
    main()
