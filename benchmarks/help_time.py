"""Seconds until ``cxrlt --help`` is done, over those of ``python -c "import typer"``. Prints one JSON line.

    python benchmarks/help_time.py [--rounds 15] [--quick]

Processes of both kinds are started by turns, after a first one that leaves compiled bytecode behind. The goal is at
most 2.5.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from timing import Cost, in_turns, ratios, report


def command() -> list[str]:
    """``cxrlt`` of this environment."""
    script = Path(sys.executable).with_name("cxrlt")
    return [str(script)] if script.exists() else [sys.executable, "-m", "cxrlt_cli"]


def started(arguments: Sequence[str]) -> Cost:
    """The cost of a process, from its start to its end.

    Raises:
        RuntimeError: it failed.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    begun = time.perf_counter()
    process = os.posix_spawn(arguments[0], list(arguments), environment, file_actions=silence)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ended with the status {status}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--quick", action="store_true", help="two rounds: a test that it works")
    chosen = options.parse_args()
    rounds = 2 if chosen.quick else chosen.rounds
    ours = [*command(), "--help"]
    bare = [sys.executable, "-c", "import typer"]
    our_costs, their_costs = in_turns(lambda: started(ours), lambda: started(bare), rounds)
    by_wall = [1 / value for value in ratios([c.wall for c in our_costs], [c.wall for c in their_costs])]
    by_cpu = [1 / value for value in ratios([c.cpu for c in our_costs], [c.cpu for c in their_costs])]
    figures = {
        "ratio": round(statistics.median(by_wall), 3),
        "ratio_range": [round(min(by_wall), 3), round(max(by_wall), 3)],
        "ratio_cpu": round(statistics.median(by_cpu), 3),
        "seconds": round(statistics.median(cost.wall for cost in our_costs), 4),
        "seconds_bare": round(statistics.median(cost.wall for cost in their_costs), 4),
        "rounds": rounds,
    }
    report("help_time", "ratio <= 2.5", figures, {"python": ".".join(map(str, sys.version_info[:3]))})


if __name__ == "__main__":
    main()
