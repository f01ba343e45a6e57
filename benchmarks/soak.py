"""Start–stop cycles through roost, to find anything that grows.

The benchmark samples file descriptors, memory (RSS) and threads of the service, the agent and the zygotes, and the
files in the runtime folder. A straight line through the second half of the samples shows how much each has grown.
If a series grows more than its tolerance, the exit status is 1. First, `WARM_UP` cycles fill the service's bounded
lists: events, decisions and latest requests.
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
from claims import Report, parser
from local_kernels import kernels
from page_tables import PageTable
from rich.console import Console
from rich.progress import track
from rich.table import Table

from roost.bench.world import (
    MIB,
    OWN_PARTS,
    ROOST,
    RUNTIME,
    execute,
    name_part,
    open_client,
    private_world,
    processes,
    wait_until_forked,
)

WARM_UP = 500
TOLERANCE = {"fds": 1.5, "threads": 0.75, "processes": 3.0, "files": 1.5, "RSS": 1.0}
"""Growth over the second half that counts as noise: a number, or MiB for RSS (see also RSS_SHARE)."""
RSS_SHARE = 0.02
"""For RSS, this share of its size counts as noise too, because allocators work in pages and arenas."""
TABLE = PageTable(
    name="soak",
    columns={"during the run": "{}", "growth over its second half": "growth of {}"},
    rows={
        **{f"memory of the {part} (RSS)": f"{part} RSS" for part in OWN_PARTS},
        **{f"descriptors of the {part}": f"{part} fds" for part in OWN_PARTS},
        "files in the runtime folder": "runtime folder files",
    },
)


def sample(runtime_dir: Path) -> dict[str, float]:
    """Return amounts by name: what the oldest process of each part uses, the number of its processes, and the files.

    A zygote's spares look like the zygote itself, but they are younger. Starts create spares and use them up.
    """
    found: dict[str, float] = {}
    for process in sorted(processes(str(runtime_dir)), key=find_start_time):
        try:
            if not (command := process.cmdline()):  # a kernel that is just ending
                continue
            name = name_part(command)
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


def find_start_time(process: psutil.Process) -> float:
    try:
        started: float = process.create_time()
    except psutil.Error:  # the process has just ended
        return math.inf
    return started


def measure_growth(samples: Sequence[float]) -> float:
    """Return the growth of a straight line through the second half of `samples`; 0 for a single sample."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return 0.0
    slope = statistics.linear_regression(range(len(half)), half).slope
    return slope * (len(half) - 1)


def find_tolerance(name: str, samples: Sequence[float]) -> float:
    """Return the growth of a series that counts as noise."""
    tolerance = TOLERANCE[name.rsplit(" ", 1)[1]]
    return max(tolerance, RSS_SHARE * statistics.fmean(samples)) if name.endswith("RSS") else tolerance


def is_growing(name: str, samples: Sequence[float]) -> bool:
    return measure_growth(samples) > find_tolerance(name, samples)


async def soak(report: Report, cycles: int, points: int, warm_up: int) -> None:
    """Start and stop `warm_up` kernels one after the other, then `cycles` more, with `points` samples."""
    every = max(1, cycles // points)
    runtime_dir = Path(os.environ[RUNTIME])
    for cycle in track(range(-warm_up, cycles), description="soak", console=Console(stderr=True)):
        began = time.perf_counter()
        async with kernels("roost", 1) as [manager], open_client(manager) as client:
            await execute(client)
        if cycle < 0:
            continue
        report.add("cycle", (time.perf_counter() - began) * 1000, "ms")
        if (cycle + 1) % every == 0:
            for name, value in sample(runtime_dir).items():
                report.add(name, value, "MiB" if name.endswith("RSS") else "")


def conclude(report: Report, console: Console) -> bool:
    """Claim that no series grows, and print its first, middle and last sample and growth; True if none grew."""
    table = Table("series", "first", "middle", "last", "growth over the second half", "")
    grew = False
    series = {name: values for name, values in report.samples.items() if name != "cycle"}
    for name, values in series.items():
        is_bad = is_growing(name, values)
        grew |= is_bad
        growth = measure_growth(values)
        report.add(f"growth of {name}", growth, report.units[name])
        report.claim(f"growth of {name}", at_most=find_tolerance(name, values))
        points = (values[0], values[len(values) // 2], values[-1], growth)
        table.add_row(
            name, *(f"{value:.1f}" for value in points), "[red]grows[/]" if is_bad else "[green]steady[/]"
        )
    console.print(table)
    return not grew


async def measure(arguments: Namespace) -> Report:
    cycles = arguments.cycles or (40 if arguments.quick else 500)
    report = Report("soak", cycles=cycles)
    if arguments.provisioner == ROOST and not await wait_until_forked("roost"):
        report.notes.append("No kernel was forked: kernels were started from their command.")
    await soak(report, cycles, points=min(cycles, 50), warm_up=0 if arguments.quick else WARM_UP)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--cycles", type=int, help="number of kernels to start and stop (default 500, quick 40)"
    )
    options.add_argument("--provisioner", default=ROOST, help="provisioner to use (default roost)")
    arguments = options.parse_args()
    with private_world({"roost": arguments.provisioner}):
        report = asyncio.run(measure(arguments))
    is_steady = conclude(report, Console())
    return report.finish(arguments) or int(not is_steady)


if __name__ == "__main__":
    sys.exit(main())
