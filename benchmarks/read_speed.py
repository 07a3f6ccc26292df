"""Reading a prepared dataset against a DataLoader that decodes the original PNG files. Prints one JSON line.

    python benchmarks/read_speed.py [--size 512] [--images 256] [--batch 32] [--workers 2] [--quick]

Both sides yield uint8 batches (n, 1, size, size) of the same images in random order, with the files in the page cache.
The other side opens 8-bit PNGs of 1024 px with Pillow and resizes them, in a DataLoader whose workers are running
before the clock starts. The goal is 10 times its speed. The files are the radiographs in ``data/nih-png-1024`` of
$CXRLT_SHARED, or of the folder ``shared`` beside the checkout; without them, phantoms enlarged to 1024 px, with noise.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import Cost, Stopwatch, in_turns, phantoms, ratios, report

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from cxrlt_cli.data.manifest import Prepared

ORIGINAL = 1024
#: Seconds our side reads for; one pass over the images would be over too soon to be measured.
AT_LEAST = 0.3


def originals(folder: Path, wanted: int) -> tuple[str, list[Path]]:
    """What the PNG files are, and their paths: ``wanted`` of them, in ``folder``, repeated where there are fewer."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    real = sorted((Path(os.environ.get("CXRLT_SHARED") or beside) / "data" / "nih-png-1024").glob("*.png"))
    files = real[:wanted] or draw(folder / "drawn", min(30, wanted))
    copies = folder / "png"
    copies.mkdir()
    paths = [copies / f"{index:04d}.png" for index in range(wanted)]
    for index, path in enumerate(paths):
        path.write_bytes(files[index % len(files)].read_bytes())
    return "radiographs" if real else "enlarged phantoms", paths


def draw(folder: Path, count: int) -> list[Path]:
    """Phantoms as PNG files of 1024 px. The noise keeps them from being packed, and unpacked, too easily."""
    import numpy as np
    from PIL import Image

    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.data.shards import Reader

    prepared = load_prepared(phantoms(folder, max(60, count), 128))
    pixels = np.empty((count, 128, 128), np.uint8)
    Reader(prepared).read(np.arange(count), pixels)
    random = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path, image in zip(paths, pixels, strict=True):
        large = np.asarray(Image.fromarray(image).resize((ORIGINAL, ORIGINAL), Image.Resampling.BICUBIC), np.float32)
        noisy = (large + random.normal(0, 1.5, large.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path)
    return paths


def prepared_from(paths: Sequence[Path], folder: Path, size: int) -> Prepared:
    """The dataset ``cxrlt prepare csv`` makes of the files."""
    from cxrlt_cli.commands import prepare
    from cxrlt_cli.data.manifest import load_prepared

    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        rows = [(path.name, f"patient {index % 30}", index % 2) for index, path in enumerate(paths)]
        csv.writer(file).writerows([("image_id", "patient_id", "finding"), *rows])
    prepare.run("csv", folder / "data", images=paths[0].parent, labels=table, size=size)
    return load_prepared(folder / "data")


class Files:
    """What a DataLoader reads: PNG files, opened, resized, as tensors."""

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        import numpy as np
        import torch
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            small = image.convert("L").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small))[None]


def decoding(loader: DataLoader[Tensor]) -> Cost:
    """The cost of one epoch of the DataLoader; its CPU time is spent elsewhere and not counted."""
    watch = Stopwatch()
    for _ in loader:
        pass
    return watch.read()


def reading(prepared: Prepared, batch: int) -> Cost:
    """The cost of one epoch of ours, from as many as take ``AT_LEAST`` seconds, in random order."""
    import numpy as np

    from cxrlt_cli.data.batches import batches
    from cxrlt_cli.data.shards import Reader

    random, watch, epochs = np.random.default_rng(0), Stopwatch(), 0
    reader = Reader(prepared)
    while watch.read().wall < AT_LEAST:
        order = random.permutation(len(prepared))
        for _ in batches(reader, [order[start : start + batch] for start in range(0, len(order), batch)]):
            pass
        epochs += 1
    reader.close()
    cost = watch.read()
    return Cost(cost.wall / epochs, cost.cpu / epochs)


def measure(chosen: argparse.Namespace, paths: Sequence[Path], prepared: Prepared) -> dict[str, Any]:
    """Both sides by turns."""
    from torch.utils.data import DataLoader

    loader: DataLoader[Tensor] = DataLoader(
        Files(paths, chosen.size),  # type: ignore[arg-type]  # it need not inherit from Dataset
        chosen.batch,
        shuffle=True,
        num_workers=chosen.workers,
        persistent_workers=True,
    )
    ours, theirs = in_turns(lambda: reading(prepared, chosen.batch), lambda: decoding(loader), chosen.rounds)
    by_wall = ratios([cost.wall for cost in ours], [cost.wall for cost in theirs])
    return {
        "ratio": round(statistics.median(by_wall), 1),
        "ratio_range": [round(min(by_wall), 1), round(max(by_wall), 1)],
        "images_per_s": round(len(paths) / statistics.median(cost.wall for cost in ours), 1),
        "images_per_s_bare": round(len(paths) / statistics.median(cost.wall for cost in theirs), 1),
        "rounds": chosen.rounds,
    }


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--size", type=int, default=512, help="side of the prepared images in pixels")
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    options.add_argument("--quick", action="store_true", help="few images, one round: a test that it works")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.images, chosen.batch, chosen.rounds = 24, 4, 1
    with tempfile.TemporaryDirectory(prefix="cxrlt-read-speed-") as name:
        folder = Path(name)
        kind, paths = originals(folder, chosen.images)
        figures = measure(chosen, paths, prepared_from(paths, folder, chosen.size))
    setting = {key: getattr(chosen, key) for key in ("size", "batch", "images", "workers")}
    report("read_speed", "ratio >= 10", figures, {**setting, "originals": kind})


if __name__ == "__main__":
    main()
