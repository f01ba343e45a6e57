"""Start–stop cycles through roost, watching whether anything grows.

Samples file descriptors, memory (RSS) and threads of the service, the agent and the zygotes, and the files
under the runtime folder. A straight line through the second half of the samples says how much each has grown
over that half; more than its tolerance is growth, and the exit status 1. Before, `WARM_UP` cycles fill what remembers
a bounded number of things: the service's events, decisions and latest requests.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import psutil
from harness import Report, parser
from memory import MIB, part
from place import ROOST, RUNTIME, client_of, execute, kernels, private_world, processes, until_forked
from rich.console import Console
from rich.progress import track
from rich.table import Table

WARM_UP = 500
TOLERANCE = {"fds": 1.5, "threads": 0.75, "processes": 3.0, "files": 1.5, "RSS": 1.0}
"""Growth over the second half that is taken for noise: in units, MiB for RSS (see also RSS_SHARE)."""
RSS_SHARE = 0.02
"""Or this share of its size: allocators move by pages and arenas."""


def sample(runtime_dir: Path) -> dict[str, float]:
    """Name → amount, now, with no kernel alive: the oldest process of each part, and how many there are.

    A zygote's spare children look like itself; they come and go with each start.
    """
    found: dict[str, float] = {}
    for process in sorted(processes(str(runtime_dir)), key=born):
        try:
            if not (command := process.cmdline()):  # a kernel's last moments
                continue
            name = part(command)
            with process.oneshot():
                found.setdefault(f"{name} fds", process.num_fds())
                found.setdefault(f"{name} threads", process.num_threads())
                found.setdefault(f"{name} RSS", process.memory_info().rss / MIB)
        except psutil.Error:
            continue
        found[f"{name} processes"] = found.get(f"{name} processes", 0) + 1
    found["runtime folder files"] = sum(1 for _ in runtime_dir.rglob("*"))
    found["this client fds"] = psutil.Process().num_fds()
    return found


def born(process: psutil.Process) -> float:
    try:
        started: float = process.create_time()
    except psutil.Error:  # it has just ended
        return math.inf
    return started


def growth(samples: Sequence[float]) -> float:
    """What a straight line through the second half of `samples` gains over it; 0 if that is one sample."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    slope = statistics.linear_regression(range(len(half)), half).slope
    return slope * (len(half) - 1)


def is_growing(name: str, samples: Sequence[float]) -> bool:
    tolerance = TOLERANCE[name.rsplit(" ", 1)[1]]
    if name.endswith("RSS"):
        tolerance = max(tolerance, RSS_SHARE * statistics.fmean(samples))
    return growth(samples) > tolerance


async def soak(report: Report, cycles: int, points: int, warm_up: int) -> None:
    """`warm_up` kernels one after the other, then `cycles` more, sampled `points` times."""
    every = max(1, cycles // points)
    runtime_dir = Path(os.environ[RUNTIME])
    for cycle in track(range(-warm_up, cycles), description="soak", console=Console(stderr=True)):
        began = time.perf_counter()
        async with kernels("roost", 1) as [manager], client_of(manager) as client:
            await execute(client)
        if cycle < 0:
            continue
        report.add("cycle", (time.perf_counter() - began) * 1000, "ms")
        if (cycle + 1) % every == 0:
            for name, value in sample(runtime_dir).items():
                report.add(name, value, "MiB" if name.endswith("RSS") else "")


def conclude(report: Report, console: Console) -> bool:
    """Print first, middle and last of each series and its growth; True if none grew."""
    table = Table("what", "first", "middle", "last", "growth over the second half", "")
    grew = False
    for name, values in report.samples.items():
        if name == "cycle":
            continue
        is_bad = is_growing(name, values)
        grew |= is_bad
        points = (values[0], values[len(values) // 2], values[-1], growth(values))
        table.add_row(
            name, *(f"{value:.1f}" for value in points), "[red]grows[/]" if is_bad else "[green]steady[/]"
        )
    console.print(table)
    return not grew


async def measure(arguments: Namespace) -> Report:
    cycles = arguments.cycles or (40 if arguments.quick else 500)
    report = Report("soak", cycles=cycles)
    if arguments.provisioner == ROOST and not await until_forked("roost"):
        report.notes.append("No kernel was forked: this is the exec path.")
    await soak(report, cycles, points=min(cycles, 50), warm_up=0 if arguments.quick else WARM_UP)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--cycles", type=int, help="kernels to start and stop (default 500, quick 40)")
    options.add_argument("--provisioner", default=ROOST, help="entry point to use (default roost)")
    arguments = options.parse_args()
    with private_world({"roost": arguments.provisioner}):
        report = asyncio.run(measure(arguments))
    is_steady = conclude(report, Console())
    return report.finish(arguments) or int(not is_steady)


if __name__ == "__main__":
    sys.exit(main())
