"""`roost bench latency`: round trips of a running kernel.

execute             a cell of `1+1` → its reply
execute, busy       the same while every core of this machine computes
complete, first     the first completion in a kernel → its reply
complete            a later completion → its reply
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .kernel import BenchKernel
from .report import Report, take_turns
from .sides import Side

ROUND_TRIPS = 30


async def measure(report: Report, sides: Sequence[Side], *, rounds: int) -> None:
    """Run all sides in turn, and add their figures to the report. Each round has kernels of its own."""
    by_name = {side.name: side for side in sides}
    for name, is_warm in take_turns("latency", list(by_name), rounds=rounds):
        await by_name[name].take_turn()
        async with BenchKernel(by_name[name]) as kernel:
            took = {"execute": await _median(kernel)}
            took["complete, first"] = await kernel.complete()
            took["complete"] = statistics.median([await kernel.complete() for _ in range(ROUND_TRIPS)])
            with busy_cores():
                await asyncio.sleep(0.2)
                took["execute, busy"] = await _median(kernel)
        if is_warm:
            for stage, value in took.items():
                report.add(f"{stage}/{name}", value, "ms")
    for stage in ("execute", "execute, busy", "complete, first", "complete"):
        report.compare(stage, [side.name for side in sides])


async def _median(kernel: BenchKernel) -> float:
    return statistics.median([await kernel.execute("1+1") for _ in range(ROUND_TRIPS)])


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep all cores of this machine busy, at the usual priority."""
    command = [sys.executable, "-S", "-c", "while True: pass"]
    spinning = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()
