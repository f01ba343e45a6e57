"""Waits in `roost bench density` until Linux has merged the equal pages of kernels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from .report import Report

_SCANS, _MERGED_S = 2, 120.0
"""The number of memory scans in which Linux merges equal pages, and how long to wait for them in seconds."""
_SCAN_COUNT = Path("/sys/kernel/mm/ksm/full_scans")


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
