"""Images a second drawn by the phantom source, on one process and on two. Prints one JSON line.

    python benchmarks/phantom_speed.py [--size 128] [--images 400] [--processes 2]

The goal is 150 images/s at 128 px on two cores. A shared machine is noisy, so the best of three rounds counts, CPU time
a picture is given beside the wall clock, and the load average says how busy the machine was.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial

from cxrlt_cli.contracts import PrepareRequest
from cxrlt_plugins.datasets.phantom import PhantomSource, build


def draw_all(source: PhantomSource, indices: range) -> float:
    """Draw ``indices``; returns the CPU seconds it took."""
    start = time.process_time()
    for index in indices:
        source.draw(index)
    return time.process_time() - start


def alone(source: PhantomSource, images: int) -> tuple[float, float]:
    """(images/s, CPU milliseconds an image) on this process."""
    start = time.perf_counter()
    cpu = draw_all(source, range(images))
    return images / (time.perf_counter() - start), 1000.0 * cpu / images


def together(source: PhantomSource, images: int, processes: int) -> float:
    """Images/s on ``processes`` processes that have drawn before."""
    with ProcessPoolExecutor(processes) as pool:
        parts = [range(k, images, processes) for k in range(processes)]
        list(pool.map(partial(draw_all, source), [range(8)] * processes))
        start = time.perf_counter()
        list(pool.map(partial(draw_all, source), parts))
        return images / (time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--images", type=int, default=400)
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    source = build(PrepareRequest(None, None, chosen.size, 0))
    draw_all(source, range(8))
    singles = [alone(source, chosen.images) for _ in range(3)]
    several = [together(source, chosen.images, chosen.processes) for _ in range(3)]
    result = {
        "benchmark": "phantom_speed",
        "date": date.today().isoformat(),
        "size": chosen.size,
        "images": chosen.images,
        "images_per_s_one_process": round(max(rate for rate, _ in singles), 1),
        "cpu_ms_per_image": round(min(cpu for _, cpu in singles), 2),
        "processes": chosen.processes,
        "images_per_s": round(max(several), 1),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
