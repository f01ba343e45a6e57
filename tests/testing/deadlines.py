"""Deadlines of tests. They grow with the load of the machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

_MOST = 10.0
"""At most how many times longer a deadline gets. A hang must still end the test."""


def allow_s(seconds: float) -> float:
    """Return how many seconds a test allows for what takes less than `seconds` on a quiet machine.

    With two threads for each CPU, everything may take twice as long. The load is the mean of the last minute.
    """
    return seconds * min(_MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


async def looks(seconds: float, pause_s: float = 0.05) -> AsyncIterator[None]:
    """Yield at each look at something that happens within `seconds` on a quiet machine. Pause between two looks.

    The deadline grows with the load at the last look.
    """
    began = time.monotonic()
    while True:
        yield
        if time.monotonic() - began >= allow_s(seconds):
            return
        await asyncio.sleep(pause_s)
