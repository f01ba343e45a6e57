"""`roost bench start`: from nothing to the first reply, one kernel after the other and several at once.

start               start_kernel() called → first reply, with five channels open
start_kernel returned    the same → start_kernel() returned
stage ...           what roost's scheduler timed: queued, placed, leased, granted, launched
again               a second start, at once after `start`
interrupt           interrupt_kernel() called → the reply of the cell that slept
restart             restart_kernel() called → first reply, while the channels stay open
stop                shutdown_kernel(now=True) called → returned
start by roost.start_kernel    the program's call → the result of its first code. Only for sides of roost
at once             N starts at once: kernels per second until all have replied
first start         a start in a new process, without a service; see first_start.py. Only for sides of roost
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from roost import start_kernel
from roost.launchers.daemon.tasks import cancel_all

from .first_start import measure_first
from .kernel import BenchKernel, NoAnswer
from .peer_process import open_processes, serve
from .report import Report, take_turns
from .sides import Side
from .world import RUNTIME, elapsed_ms

REST_S = 0.3
"""The pause before each kernel, so that the end of the last kernel does not slow down this one."""
OF_PROGRAM = "start by roost.start_kernel"
STAGES = ("start", "again", "interrupt", "restart", "stop")
_MODULE = "roost.bench.starts"
MOST_FIRST = 5
"""At most this many first starts of each side."""


async def measure(report: Report, sides: Sequence[Side], *, rounds: int, at_once: int) -> None:
    """Run all sides in turn, and add their figures to the report."""
    await measure_lives(report, sides, rounds=rounds)
    by_name = {side.name: side for side in sides}
    if at_once > 1:
        async with open_processes(sides, _MODULE) as processes:
            for name, is_warm in take_turns(f"{at_once} at once", list(by_name), rounds=rounds):
                if name in processes:
                    rate = await processes[name].run(report, "at once", at_once)
                else:
                    rate = await _measure_rate(report, by_name[name], at_once)
                if is_warm:
                    report.add(f"{at_once} at once/{name}", rate, "kernels/s")
        report.compare(f"{at_once} at once", list(by_name))
    of_roost = [side.name for side in sides if side.is_roost]
    for name, _ in take_turns("first start", of_roost, rounds=min(rounds, MOST_FIRST), warm_up=0):
        with tempfile.TemporaryDirectory(prefix="u-", dir=Path(os.environ[RUNTIME]).parent) as folder:
            await add_first(report, by_name[name], Path(folder))


async def measure_lives(report: Report, sides: Sequence[Side], *, rounds: int, restarts: bool = True) -> None:
    """Run kernels of all sides in turn, each from its start to its end, and add their figures to the report.

    Without `restarts`, no kernel is restarted.
    """
    by_name = {side.name: side for side in sides}
    async with open_processes(sides, _MODULE) as processes:
        for name, is_warm in take_turns("start", list(by_name), rounds=rounds, warm_up=2):
            if name in processes:
                took = await processes[name].run(report, "life", restarts)
            else:
                took = await _run_life(report, by_name[name], restarts)
            for stage, value in took.items():
                if is_warm:
                    report.add(f"{stage}/{name}", value, "ms")
    for stage in STAGES:
        report.compare(stage, list(by_name))
    for name, side in by_name.items():
        for other in by_name.values():
            if side.is_roost and not other.is_roost:
                report.ratio(
                    f"{OF_PROGRAM}: {name} ÷ {other.name}", f"{OF_PROGRAM}/{name}", f"start/{other.name}"
                )


async def add_first(report: Report, side: Side, runtime_dir: Path) -> None:
    """Add the figures of one first start to the report. A kernel that does not answer is counted instead."""
    try:
        for stage, value in (await measure_first(side, runtime_dir)).items():
            report.add(f"{stage}/{side.name}", value, "ms")
    except NoAnswer as problem:
        report.count_failure(side.name, str(problem))


async def _run_life(report: Report, side: Side, restarts: bool) -> dict[str, float]:
    """Run one kernel, and start a second one at once. Return milliseconds by stage.

    A kernel that does not answer is counted, and both are run again.
    """
    while True:
        await side.take_turn()
        await asyncio.sleep(REST_S)
        kernel, second = BenchKernel(side), BenchKernel(side)
        try:
            took = await kernel.start()
            if side.is_roost:
                found = await side.connect().kernel(kernel.manager.kernel_id)
                took |= {f"stage {stage}": value for stage, value in found.timing_ms.items()}
            took["again"] = (await second.start())["start"]
            took["interrupt"] = await kernel.interrupt()
            if restarts:
                took["restart"] = await kernel.restart()
        except NoAnswer as problem:
            report.count_failure(side.name, str(problem))
            continue
        finally:
            took_ms = await kernel.stop()
            await second.stop()
        if side.is_roost:
            took[OF_PROGRAM] = await _start_of_program(side)
        return {**took, "stop": took_ms}


async def _start_of_program(side: Side) -> float:
    """Start a kernel with `roost.start_kernel`. Return milliseconds until the result of its first code."""
    await asyncio.sleep(REST_S)
    began = time.perf_counter()
    async with start_kernel(side.kernelspec, backend_options=side.options) as kernel:
        await kernel.execute("1+1", check=True)
        return elapsed_ms(began)


async def _measure_rate(report: Report, side: Side, count: int) -> float:
    """Start this many kernels at once, and stop them. Return kernels per second."""
    async with run_at_once(report, side, count) as rate:
        return rate


@asynccontextmanager
async def run_at_once(report: Report, side: Side, count: int) -> AsyncIterator[float]:
    """Start this many kernels at once, and yield kernels per second. All of them are stopped at the end."""
    while True:
        await asyncio.sleep(REST_S)
        await side.take_turn()
        kernels = [BenchKernel(side) for _ in range(count)]
        began = time.perf_counter()
        starts = {asyncio.create_task(kernel.start()) for kernel in kernels}
        try:
            try:
                await asyncio.gather(*starts)
            except NoAnswer as problem:
                report.count_failure(side.name, str(problem))
                continue
            yield count / (time.perf_counter() - began)
            return
        finally:
            await cancel_all(starts)
            await asyncio.gather(*(kernel.stop() for kernel in kernels))


if __name__ == "__main__":
    serve(Side(**json.loads(sys.argv[1])), {"life": _run_life, "at once": _measure_rate})
