"""What the benchmarks share: two things measured in turns, the machine they ran on, and data to run them on.

On a shared machine the speed changes from second to second. So the two sides of a ratio take turns, each pass of ours
is compared with the passes of the other side just before and just after it, and the median of these ratios counts. CPU
time says the same thing with less noise where both sides work in one process; it is given beside the wall clock.

Import this before torch: threads that wait by spinning would slow down everything else, and ``cxrlt`` does the same.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True, slots=True)
class Cost:
    """What some work cost.

    Attributes:
        wall: seconds on the clock.
        cpu: seconds of CPU time over all threads.
    """

    wall: float
    cpu: float


class Stopwatch:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Cost:
        """The cost of this process since then."""
        return Cost(time.perf_counter() - self._wall, time.process_time() - self._cpu)


def timed(work: Callable[[], object]) -> Cost:
    """The cost of calling ``work`` once."""
    watch = Stopwatch()
    work()
    return watch.read()


def in_turns(ours: Callable[[], Cost], theirs: Callable[[], Cost], rounds: int) -> tuple[list[Cost], list[Cost]]:
    """Costs of ``rounds`` passes of ours, and of the ``rounds + 1`` passes of theirs around them, after one of each."""
    theirs()
    ours()
    our_costs, their_costs = [], [theirs()]
    for _ in range(rounds):
        our_costs.append(ours())
        their_costs.append(theirs())
    return our_costs, their_costs


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Theirs over ours: how many times as fast ours was, pass by pass.

    Args:
        ours: n seconds.
        theirs: n + 1 seconds, before, between and after.
    """
    around = [(before + after) / 2 for before, after in pairwise(theirs)]
    return [their / our for our, their in zip(ours, around, strict=True)]


def compared(ours: Sequence[Cost], theirs: Sequence[Cost], images: int) -> dict[str, Any]:
    """Speed as a ratio, and the figures it comes from, for passes over ``images`` images."""
    by_wall = ratios([cost.wall for cost in ours], [cost.wall for cost in theirs])
    by_cpu = ratios([cost.cpu for cost in ours], [cost.cpu for cost in theirs])
    return {
        "ratio": round(statistics.median(by_wall), 3),
        "ratio_range": [round(min(by_wall), 3), round(max(by_wall), 3)],
        "ratio_cpu": round(statistics.median(by_cpu), 3),
        "images_per_s": round(images / statistics.median(cost.wall for cost in ours), 1),
        "images_per_s_bare": round(images / statistics.median(cost.wall for cost in theirs), 1),
        "rounds": len(ours),
    }


def report(benchmark: str, goal: str, figures: dict[str, Any], setting: dict[str, Any]) -> None:
    """Print the one JSON line of a benchmark, with the machine it ran on."""
    machine = {
        "torch": version("torch"),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    head = {"benchmark": benchmark, "date": date.today().isoformat(), "goal": goal}
    print(json.dumps({**head, **figures, **setting, **machine}))


def phantoms(folder: Path, count: int, size: int) -> Path:
    """Prepare ``count`` phantoms of ``size`` px in ``folder``, which is returned."""
    from cxrlt_cli.commands import prepare

    prepare.run("phantom", folder, size=size, options={"count": count})
    return folder
