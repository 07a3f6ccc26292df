"""Ten epochs of classifier re-training: on cached features, and with the backbone run anew each epoch.

    python benchmarks/retrain_speed.py [--model convnext_atto] [--size 96] [--images 1000] [--rounds 3] [--device cpu]
        [--quick]

Prints one JSON line. The other side is the published way, as a plain PyTorch loop: images already in memory, the
backbone frozen and in evaluation mode without gradients, head, loss, batch size,
steps and optimiser as on our side. Neither augments. Ours also scores dev after every epoch; the other side does not.

``ratio`` is with the features there already (a second head, another seed, another loss); ``ratio_first`` is with
computing them, the dev images' too, and cannot exceed the number of epochs by much. The goal of 30 is for ``ratio``.
``feature_error`` is the largest error of a cached feature, as a share of the largest feature; float16 rounds to 0.0005.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Cost, in_turns, phantoms, ratios, report, timed

if TYPE_CHECKING:
    import torch

    from cxrlt_cli.data.manifest import Prepared
    from cxrlt_cli.engine.features import Frozen, Wanted
    from cxrlt_cli.model import Classifier


def network(chosen: argparse.Namespace, prepared: Prepared) -> Classifier:
    """A classifier with random weights, ready to be used."""
    import torch

    from cxrlt_cli.model import build_classifier
    from cxrlt_cli.recipe.schema import Model

    backbone = {"name": "timm", "model": chosen.model, "pretrained": False}
    torch.manual_seed(0)
    config = Model.model_validate({"backbone": backbone, "in_chans": 1})
    return build_classifier(config, prepared.stats(prepared.rows("train")), chosen.size).to(chosen.device).eval()


def published(chosen: argparse.Namespace, model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Every epoch: every batch through the frozen backbone, then a step of a fresh head."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as bce

    backbone: Any = model.backbone
    head = torch.nn.Linear(backbone.width, labels.shape[1]).to(chosen.device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, fused=True)
    steps = len(images) // chosen.batch
    for _ in range(chosen.epochs):
        order = torch.randperm(len(images), device=images.device)
        for items in order[: steps * chosen.batch].view(steps, chosen.batch):
            with torch.no_grad():
                features = backbone(model.normalise(images[items]))
            optimizer.zero_grad(set_to_none=True)
            bce(head(features), labels[items]).backward()
            optimizer.step()
    if chosen.device.startswith("cuda"):
        torch.cuda.synchronize()


def cached(chosen: argparse.Namespace, prepared: Prepared, frozen: Frozen, wanted: tuple[Wanted, Wanted]) -> None:
    """The same on features, which are computed where they are not there."""
    from cxrlt_cli.engine.features import features_of
    from cxrlt_cli.engine.head_fit import retrain
    from cxrlt_cli.engine.head_job import Cohort, HeadJob, Joint, head_logits
    from cxrlt_cli.engine.signals import StopRequest
    from cxrlt_cli.events import silent
    from cxrlt_cli.recipe.retrain import Retrain
    from cxrlt_cli.recipe.schema import PluginRef

    settings = {"name": "speed", "method": "crt", "train": {"epochs": chosen.epochs, "batch_size": chosen.batch}}
    train, dev = (features_of(frozen, each, StopRequest(), silent) for each in wanted)
    labels, patients = (
        [values[each.rows] for each in wanted]
        for values in (prepared.labels, prepared.frame["patient_id"].to_numpy(object))
    )
    stats = prepared.stats(wanted[0].rows)
    cohort = Cohort(stats, labels[0], patients[0].tolist(), (train,), labels[1], patients[1].tolist(), dev)
    head, device = frozen.model.head, frozen.setting.device
    joint = Joint(head, PluginRef(name="linear"), PluginRef(name="bce"), None, head_logits(head, dev, device))
    width = int(train.shape[1])
    retrain(HeadJob(Retrain.model_validate(settings), cohort, joint, width, device, StopRequest(), silent))


def measure(chosen: argparse.Namespace, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Ours with features to compute, once, then both sides by turns."""
    import numpy as np
    import torch

    from cxrlt_cli.data.shards import Reader
    from cxrlt_cli.engine.features import Frozen, Wanted, backbone_hash, place_of
    from cxrlt_cli.engine.infer import Setting

    model, reader = network(chosen, prepared), Reader(prepared)
    rows = prepared.rows("train")
    setting = Setting(torch.device(chosen.device), chosen.size, chosen.batch)
    pixels = torch.empty(len(rows), 1, chosen.size, chosen.size, dtype=torch.uint8)
    reader.read(rows, pixels[:, 0].numpy())
    images = (pixels.float() / 255).to(chosen.device)
    labels = torch.from_numpy(prepared.labels[rows]).float().to(chosen.device)
    wanted = Wanted("train", rows), Wanted("dev", prepared.rows("dev"), "float32")

    def ours(place: str) -> Cost:
        frozen = Frozen(model, backbone_hash(model), reader, prepared.content_hash, setting, folder / place)
        return timed(lambda: cached(chosen, prepared, frozen, wanted))

    def bare() -> Cost:
        return timed(lambda: published(chosen, model, images, labels))

    ours("warm")
    first = ours("kept")
    again, theirs = in_turns(lambda: ours("kept"), bare, chosen.rounds)
    frozen = Frozen(model, backbone_hash(model), reader, prepared.content_hash, setting, folder / "kept")
    found = np.load(place_of(frozen, wanted[0]) / "features.npy")
    with torch.no_grad():
        backbone: Any = model.backbone
        parts = [backbone(model.normalise(part)).float().cpu() for part in images.split(chosen.batch)]
    direct = torch.cat(parts).numpy()
    walls, cpus = ([getattr(cost, name) for cost in theirs] for name in ("wall", "cpu"))
    by_wall, by_cpu = ratios([cost.wall for cost in again], walls), ratios([cost.cpu for cost in again], cpus)
    return {
        "ratio": round(statistics.median(by_wall), 2),
        "ratio_range": [round(min(by_wall), 2), round(max(by_wall), 2)],
        "ratio_cpu": round(statistics.median(by_cpu), 2),
        "ratio_first": round(statistics.median(walls) / first.wall, 2),
        "ratio_first_cpu": round(statistics.median(cpus) / first.cpu, 2),
        "seconds": round(statistics.median(cost.wall for cost in again), 3),
        "seconds_first": round(first.wall, 3),
        "seconds_bare": round(statistics.median(walls), 3),
        "feature_error": float(np.abs(found.astype(np.float32) - direct).max() / np.abs(direct).max()),
        "rounds": chosen.rounds,
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--model", default="convnext_atto", help="timm name")
    options.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    options.add_argument("--batch", type=int, default=32, help="images a step, on both sides")
    options.add_argument("--images", type=int, default=1000, help="phantoms drawn; eight in ten of them are trained on")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="cpu")
    options.add_argument("--quick", action="store_true", help="a small network, few images: a test that it works")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.model, chosen.size, chosen.batch, chosen.images, chosen.rounds = "test_convnext", 32, 16, 80, 1
    with tempfile.TemporaryDirectory(prefix="cxrlt-retrain-speed-") as folder:
        data = phantoms(Path(folder) / "data", chosen.images, chosen.size)
        from cxrlt_cli.data.manifest import load_prepared

        figures = measure(chosen, load_prepared(data), Path(folder) / "features")
    setting = {key: getattr(chosen, key) for key in ("model", "size", "batch", "images", "epochs", "device")}
    report("retrain_speed", "ratio >= 30 once the features are there", figures, setting)


if __name__ == "__main__":
    main()
