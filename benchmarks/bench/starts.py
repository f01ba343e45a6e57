"""`roost bench start`: from nothing to the first reply, one kernel after the other and several at once.

start               start_kernel() called → first reply, with five channels open
start_kernel returned    the same → start_kernel() returned
stage ...           what roost's scheduler timed: queued, placed, leased, granted, launched
again               a start at once after the one before
restart             restart_kernel() called → first reply, while the channels stay open
stop                shutdown_kernel(now=True) called → returned
at once             N starts at once: kernels per second until all have replied
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from roost.launchers.daemon.tasks import cancel_all

from .kernel import BenchKernel, NoAnswer
from .report import Report, take_turns
from .sides import Side

REST_S = 0.3
"""Before each kernel, so that the end of the last one does not count."""


async def measure(report: Report, sides: Sequence[Side], *, rounds: int, at_once: int) -> None:
    """Run all sides in turn, and add their figures to the report."""
    by_name = {side.name: side for side in sides}
    for name, is_warm in take_turns("start", list(by_name), rounds=rounds, warm_up=2):
        for stage, value in (await _run_life(report, by_name[name])).items():
            if is_warm:
                report.add(f"{stage}/{name}", value, "ms")
    if at_once > 1:
        for name, is_warm in take_turns(f"{at_once} at once", list(by_name), rounds=rounds):
            rate = await _run_burst(report, by_name[name], at_once)
            if is_warm:
                report.add(f"{at_once} at once/{name}", rate, "kernels/s")
    for stage in ("start", "again", "restart", "stop", f"{at_once} at once"):
        report.compare(stage, [side.name for side in sides])


async def _run_life(report: Report, side: Side) -> dict[str, float]:
    """Run one kernel, and a second one at once after it. A kernel that does not answer is counted, and run again."""
    while True:
        await asyncio.sleep(REST_S)
        kernel, second = BenchKernel(side), BenchKernel(side)
        try:
            took = await kernel.start()
            if side.is_roost:
                found = await side.connect().kernel(kernel.manager.kernel_id)
                took |= {f"stage {stage}": value for stage, value in found.timing_ms.items()}
            took["again"] = (await second.start())["start"]
            took["restart"] = await kernel.restart()
        except NoAnswer as problem:
            report.count_failure(side.name, str(problem))
            continue
        finally:
            took_ms = await kernel.stop()
            await second.stop()
        return {**took, "stop": took_ms}


async def _run_burst(report: Report, side: Side, at_once: int) -> float:
    """Start this many kernels at once. Return kernels per second."""
    while True:
        await asyncio.sleep(REST_S)
        kernels = [BenchKernel(side) for _ in range(at_once)]
        began = time.perf_counter()
        starts = {asyncio.create_task(kernel.start()) for kernel in kernels}
        try:
            await asyncio.gather(*starts)
            return at_once / (time.perf_counter() - began)
        except NoAnswer as problem:
            report.count_failure(side.name, str(problem))
        finally:
            await cancel_all(starts)
            await asyncio.gather(*(kernel.stop() for kernel in kernels))
