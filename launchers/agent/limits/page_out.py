"""Makes idle kernels move their memory to the swap, if the machine has swap and memory is not short.

A kernel is idle if it has used almost no CPU for some time, whatever it waits for. Only forked kernels can page
themselves out (`zygote.page_out`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.agent.machine.node_metrics import find_cgroups

log = logging.getLogger(__name__)

SIGNAL = signal.SIGURG
"""The signal that makes a kernel page itself out; the same as in `zygote.page_out`, which pods do not have."""
_IDLE_CPU_S = 0.05
"""A kernel that uses no more CPU time than this within `after_s` is idle."""
_RETURNED_BYTES = 1 << 20
"""If more memory than this has come back from the swap, a kernel was at work, however short."""
_CHECKS, _MOST_S = 4, 60.0
"""How many times each kernel is checked within `after_s`, and the longest pause between two checks."""
_PAUSE_S = 0.02
"""The pause between two kernels, so that many idle kernels do not occupy the disk at once."""
_FULL = 0.1
"""With less than this part of the swap free, no kernel is paged out."""
_PRESSURE_PERCENT = 10.0
"""If processes have waited for memory for more than this part of the last ten seconds, no kernel is paged out."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class _Seen:
    """A kernel as it was last seen."""

    cpu_s: float
    """Its CPU time when it was last seen at work."""
    since: float
    """The time of that check."""
    is_out: bool = False
    """True if the kernel was paged out after that."""
    left_bytes: float = math.inf
    """The least memory that it has had outside the swap since it was paged out."""


class PageOut:
    """A task that pages out forked kernels once they have used almost no CPU time for `after_s`.

    `list_pids` returns the pids of the forked kernels.
    """

    def __init__(
        self,
        after_s: float,
        list_pids: Callable[[], Collection[int]],
        *,
        proc: Path = Path("/proc"),
        cgroups: Iterable[Path] | None = None,
    ) -> None:
        self._after_s = after_s
        self._list_pids = list_pids
        self._proc = proc
        self._cgroups = tuple(find_cgroups() if cgroups is None else cgroups)
        self._seen: dict[int, _Seen] = {}
        self._reason = ""

    async def run(self) -> None:
        """Page out idle kernels until cancelled."""
        while True:
            await asyncio.sleep(min(self._after_s / _CHECKS, _MOST_S))
            for pid in self.find_idle(time.monotonic()):
                if self._is_refused():
                    break
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, SIGNAL)
                    self._seen[pid].is_out = True
                await asyncio.sleep(_PAUSE_S)

    def find_idle(self, now: float) -> list[int]:
        """Return the pids of the kernels that have been idle for `after_s`, and are not paged out already."""
        used = {pid: cpu_s for pid in self._list_pids() if (cpu_s := self._read_cpu_s(pid)) is not None}
        for pid, cpu_s in used.items():
            seen = self._seen.get(pid)
            if seen is None or abs(cpu_s - seen.cpu_s) > _IDLE_CPU_S or self._has_returned(pid, seen):
                self._seen[pid] = _Seen(cpu_s, now)
        self._seen = {pid: seen for pid, seen in self._seen.items() if pid in used}
        return [
            pid for pid, seen in self._seen.items() if not seen.is_out and now - seen.since >= self._after_s
        ]

    def problems(self) -> list[str]:
        """Return the reason why idle kernels are not paged out now, as a clause in a list; empty if they are."""
        reason = self.why_not()
        return [f"idle kernels are not paged out: {reason}"] if reason else []

    def why_not(self) -> str:
        """Return the reason why no kernel can be paged out now, as a clause; empty if kernels can."""
        sizes = dict(line.split(":", 1) for line in self._read("meminfo").splitlines() if ":" in line)
        total, free = (int(sizes.get(name, "0").split()[0]) for name in ("SwapTotal", "SwapFree"))
        if not total:
            return "this machine has no swap"
        for folder in self._cgroups:
            with contextlib.suppress(OSError):
                if (folder / "memory.swap.max").read_text().strip() == "0":
                    return "this container may not use the swap"
        if free < _FULL * total:
            return "the swap is almost full"
        pressure = self._read("pressure/memory")  # some avg10=0.00 avg60=0.00 avg300=0.00 total=0
        if pressure and float(pressure.split()[1].removeprefix("avg10=")) > _PRESSURE_PERCENT:
            return "memory is short"
        return ""

    def _is_refused(self) -> bool:
        reason = self.why_not()
        if reason != self._reason:
            self._reason = reason
            log.info("idle kernels are %s", f"not paged out: {reason}" if reason else "paged out again")
        return bool(reason)

    def _has_returned(self, pid: int, seen: _Seen) -> bool:
        """True if a kernel has been paged out, but much of its memory has come back since."""
        if not seen.is_out or not (pages := self._read(f"{pid}/statm").split()):
            return False
        own_bytes = (int(pages[1]) - int(pages[2])) * _PAGE_BYTES  # proc(5): resident pages, those of files
        seen.left_bytes = min(seen.left_bytes, own_bytes)
        return own_bytes > seen.left_bytes + _RETURNED_BYTES

    def _read_cpu_s(self, pid: int) -> float | None:
        # proc(5): the fields 14 and 15 of `stat` are the ticks of CPU time; the second field may have spaces
        fields = self._read(f"{pid}/stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / _TICKS if fields else None

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text()
        except OSError:
            return ""
