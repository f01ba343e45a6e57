"""Waits in `roost bench density` until idle kernels are paged out, or until Linux has merged their equal pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .kernel import BenchKernel, Memory, read_memory_of
from .report import Report
from .sides import Side

PAGE_OUT = "page-out"
_PAGED_OUT_S = 60.0
"""How long to wait for page-out beyond `page_out_after_s`."""
_LEFT = 0.3
"""A kernel counts as paged out when less than this share of its memory is outside the swap."""
_SETTLE_S, _SETTLED = 1.0, 0.98
"""Paged-out memory is read once it has kept this share of its size for this long."""
_SCANS, _MERGED_S = 2, 120.0
"""The number of memory scans in which Linux merges equal pages, and how long to wait for them in seconds."""
_SCAN_COUNT = Path("/sys/kernel/mm/ksm/full_scans")


async def page_out(
    report: Report, side: Side, kernels: Sequence[BenchKernel], after_s: float
) -> list[Memory]:
    """Wait until the kernels are paged out. Return their memory, and report the times of their next answers.

    If they are not paged out in time, return an empty list and add a note to the report.
    """
    client = side.connect()
    found = [(await client.kernel(each.manager.kernel_id)).process for each in kernels]
    pids = [process.pid for process in found if process is not None]
    try:

        def are_out() -> bool:
            memory = map(read_memory_of, pids)
            return all(each.pss < _LEFT * (each.pss + each.swap) for each in memory)

        if not await _until(are_out, after_s + _PAGED_OUT_S):
            report.notes.append(
                f"{side.name}: kernels were not paged out in time. The agent's log may say why."
            )
            return []
        memory = await _read_settled(pids)
    except OSError:
        report.notes.append(f"{side.name}: page-out is measured on this machine only.")
        return []
    for kernel in kernels:
        report.add(f"first answer after {PAGE_OUT}/{side.name}", await kernel.execute("1+1"), "ms")
        report.add(f"the answer after that/{side.name}", await kernel.execute("1+1"), "ms")
    return memory


async def _read_settled(pids: Sequence[int]) -> list[Memory]:
    """Return the memory of these processes once it no longer shrinks. Raise `OSError` if one has ended."""
    memory = [read_memory_of(pid) for pid in pids]
    while True:
        await asyncio.sleep(_SETTLE_S)
        earlier, memory = memory, [read_memory_of(pid) for pid in pids]
        if sum(each.pss for each in memory) >= _SETTLED * sum(each.pss for each in earlier):
            return memory


async def wait_for_merging(report: Report) -> None:
    """Wait until Linux has scanned for equal pages twice. If it does not, add a note to the report."""
    try:
        wanted = int(_SCAN_COUNT.read_text()) + _SCANS
        if await _until(lambda: int(_SCAN_COUNT.read_text()) >= wanted, _MERGED_S):
            return
    except OSError:  # this system knows no merging
        pass
    report.notes.append(f"Linux has not merged pages within {_MERGED_S:g} s: is /sys/kernel/mm/ksm/run 1?")


async def _until(is_true: Callable[[], bool], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.5)
    return True
