"""Memory that training keeps resident with ten times as many images. Prints one JSON line.

    python benchmarks/memory.py [--few 2000] [--many 20000] [--size 64] [--rounds 1] [--quick]

Every training is a process of its own, and both see as many images and take as many steps: one epoch over many, ten
over few, evaluations included. The largest resident set of the process is compared; the page cache is not in it. The
goal is at most 1.05. ``images_mib`` is what the further images would take if they were kept in memory: where that is
less than a twentieth of the resident set, the test could not fail, and ``--size`` is too small. The network sees the
images at 16 px, so that hundreds of steps take seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import phantoms, report

if TYPE_CHECKING:
    from cxrlt_cli.data.manifest import Prepared

MIB = 2**20


def repeated(base: Prepared, folder: Path, times: int) -> Path:
    """A prepared dataset that holds every image of ``base`` so many times, each time of other patients."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cxrlt_cli.artifacts import write_json
    from cxrlt_cli.data.manifest import content_hash, write_table
    from cxrlt_cli.data.shards import Reader, ShardWriter, allocate, finish, plan_layout

    count = len(base) * times
    layout = plan_layout(folder / "images", base.size, count)
    allocate(layout)
    pixels = np.empty((len(base), base.size, base.size), np.uint8)
    Reader(base).read(np.arange(len(base)), pixels)
    with ShardWriter(layout) as writer:
        for index in range(count):
            writer.write(index, pixels[index % len(base)])
    finish(layout)
    table = pa.concat_tables([pq.read_table(base.path / "manifest.parquet")] * times).combine_chunks()
    copy = np.arange(count) // len(base)
    columns: dict[str, Any] = {
        "shard": np.arange(count) // layout.per_shard,
        "row": np.arange(count) % layout.per_shard,
        **{name: [f"{k}-{v}" for k, v in zip(copy, table[name].to_pylist(), strict=True)] for name in _NAMES},
    }
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    write_table(folder / "manifest.parquet", table)
    info = {**base.info, "images": count}
    write_json(folder / "dataset.json", {**info, "content_hash": content_hash(table, info)})
    return folder


#: Identifiers, which must not repeat.
_NAMES = ("image_id", "patient_id", "study_id")


def train(data: Path, epochs: int, batch: int) -> dict[str, float]:
    """Train in this process; its largest resident set, and what of it was not mapped from files, in MiB."""
    import torch

    from cxrlt_cli.artifacts import RunDir
    from cxrlt_cli.data.manifest import load_prepared
    from cxrlt_cli.engine.distributed import World
    from cxrlt_cli.engine.fit import fit
    from cxrlt_cli.engine.parts import Job
    from cxrlt_cli.events import Advanced, Event
    from cxrlt_cli.recipe.schema import Recipe

    recipe = Recipe.model_validate(
        {
            "name": "memory",
            "data": {"path": str(data), "size": 16},
            "model": {"backbone": {"name": "timm", "model": "test_resnet", "pretrained": False}, "in_chans": 1},
            "train": {"epochs": epochs, "batch_size": batch},
        }
    )
    anonymous = 0.0
    steps = 0

    def emit(event: Event) -> None:
        nonlocal anonymous, steps
        if isinstance(event, Advanced):
            anonymous = max(anonymous, resident("RssAnon"))
            steps += event.stage.startswith("epoch")

    with tempfile.TemporaryDirectory(prefix="cxrlt-run-") as run:
        fit(Job(recipe, load_prepared(data), RunDir(Path(run)), torch.device("cpu"), World()), None, emit)
    return {"peak": resident("VmHWM"), "anonymous": anonymous, "steps": steps}


def resident(key: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / MIB


def trained(data: Path, epochs: int, batch: int) -> dict[str, float]:
    """What ``train`` returns in a process of its own."""
    arguments = ["--train", str(data), "--epochs", str(epochs), "--batch", str(batch)]
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    values: dict[str, float] = json.loads(done.stdout)
    return values


def measure(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train on few and on many, by turns."""
    from cxrlt_cli.data.manifest import load_prepared

    base = load_prepared(phantoms(folder / "base", chosen.few // 4, chosen.size))
    few = repeated(base, folder / "few", 4)
    many = repeated(base, folder / "many", 4 * chosen.many // chosen.few)
    pairs = [
        (trained(few, chosen.many // chosen.few, chosen.batch), trained(many, 1, chosen.batch))
        for _ in range(chosen.rounds)
    ]

    few_side, many_side = (_median([pair[side] for pair in pairs]) for side in (0, 1))
    further = chosen.many - chosen.few
    return {
        "ratio": round(many_side["peak"] / few_side["peak"], 4),
        "ratio_anonymous": round(many_side["anonymous"] / few_side["anonymous"], 4),
        "peak_mib_few": round(few_side["peak"], 1),
        "peak_mib_many": round(many_side["peak"], 1),
        "anonymous_mib_few": round(few_side["anonymous"], 1),
        "anonymous_mib_many": round(many_side["anonymous"], 1),
        "images_mib": round(further * chosen.size**2 / MIB, 1),
        "bytes_per_further_image": round((many_side["peak"] - few_side["peak"]) * MIB / further),
        "steps": [int(few_side["steps"]), int(many_side["steps"])],
        "rounds": chosen.rounds,
    }


def _median(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--few", type=int, default=2000)
    options.add_argument("--many", type=int, default=20000, help="a multiple of few")
    options.add_argument("--size", type=int, default=64, help="side of the prepared images in pixels")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--quick", action="store_true", help="a tenth of the images: a test that it works")
    options.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.train:
        print(json.dumps(train(chosen.train, chosen.epochs, chosen.batch)))
        return
    if chosen.quick:
        chosen.few, chosen.many = 400, 1200
    with tempfile.TemporaryDirectory(prefix="cxrlt-memory-") as folder:
        figures = measure(chosen, Path(folder))
    setting = {key: getattr(chosen, key) for key in ("few", "many", "size", "batch")}
    report("memory", "ratio <= 1.05", figures, {"model": "test_resnet", **setting, "threads": os.cpu_count()})


if __name__ == "__main__":
    main()
