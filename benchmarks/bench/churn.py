"""`roost bench churn`: starts and stops kernels for a stated time, and counts the processes and files left after them.

starts              kernels per second that were started, answered and were stopped again
start               start_kernel() called → first reply
left                processes, files and descriptors of roost on this machine at the end, minus those at the beginning
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import psutil

from .kernel import BenchKernel, NoAnswer
from .report import Report, show_time
from .sides import Side
from .world import RUNTIME, processes

_WARM_UP = 10
_QUIET_S = 10.0
"""How long roost may take to end what a stopped kernel leaves behind."""


async def measure(report: Report, side: Side, *, for_s: float, at_once: int) -> None:
    """Start and stop kernels for `for_s`, `at_once` at the same time, and add the figures to the report."""
    await side.take_turn()
    for _ in range(_WARM_UP):
        async with BenchKernel(side):
            pass
    before = await _settle()
    began = time.monotonic()
    done = 0

    async def run() -> None:
        nonlocal done
        while time.monotonic() - began < for_s:
            kernel = BenchKernel(side)
            try:
                report.add(f"start/{side.name}", (await kernel.start())["start"], "ms")
                done += 1
            except NoAnswer as problem:
                report.count_failure(side.name, str(problem))
            finally:
                await kernel.stop()

    await show_time("churn", [run() for _ in range(at_once)], for_s)
    report.add(f"starts/{side.name}", done / (time.monotonic() - began), "kernels/s")
    after = await _settle()
    for name in sorted(before | after):
        report.add(f"left {name}/{side.name}", after[name] - before[name], "")
    grown = {name: after[name] - before[name] for name in after if after[name] > before[name]}
    if grown:
        listed = ", ".join(f"{count} {name}" for name, count in grown.items())
        report.notes.append(f"After {done} kernels there are more than before: {listed}.")
    else:
        report.notes.append(f"{done} kernels have left nothing behind on this machine.")


async def _settle() -> Counter[str]:
    """Return the numbers of roost's files, descriptors and processes, once they do not change for a second.

    After `_QUIET_S`, return them in any case.
    """
    until = time.monotonic() + _QUIET_S
    found = _count()
    while time.monotonic() < until:
        await asyncio.sleep(1)
        if (again := _count()) == found:
            break
        found = again
    return found


def _count() -> Counter[str]:
    folder = os.environ[RUNTIME]
    counts = Counter({"files": sum(1 for path in Path(folder).rglob("*") if path.is_file())})
    for process in processes(folder):
        try:
            counts["descriptors"] += process.num_fds()
            counts["processes"] += 1
        except psutil.Error:  # it has just ended
            continue
    return counts
