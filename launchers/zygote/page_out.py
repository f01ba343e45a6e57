"""How an idle kernel moves its memory to the swap. The agent decides when, and sends `SIGNAL`.

A process may do that to itself without privileges, but not to others. The system ignores `SIGNAL` by default, so a
process that does not handle it goes on.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Any

from .memory import find_madvise

SIGNAL = signal.SIGURG
_PAGE_OUT = 21
"""Advice for madvise, from Linux's mman.h (5.4). Older systems answer EINVAL."""


def page_out_on_signal() -> None:
    """Page this process out whenever `SIGNAL` comes. System calls of user code are not interrupted."""
    madvise = find_madvise()
    signal.signal(SIGNAL, lambda number, frame: page_out(madvise))
    signal.siginterrupt(SIGNAL, False)


def page_out(madvise: Any) -> None:
    """Move the pages that only this process has to the swap. Without swap, nothing happens."""
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps.read().splitlines():  # at once: reading on would bring pages back
            addresses, mode = line.split(maxsplit=2)[:2]
            if mode.startswith("rw-p"):
                start, stop = (int(address, 16) for address in addresses.split("-"))
                madvise(start, stop - start, _PAGE_OUT)
