"""The CPU and memory that kernels use. All processes in a kernel's session count."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

import psutil

from roost.launchers.protocol.messages import KernelUse

_MIN_INTERVAL_S = 1.0
"""How long a measurement counts. CPU use over a shorter time is noise."""


class UsageMeter:
    """A meter that measures on demand. A measurement costs one system call per process of the machine."""

    def __init__(self) -> None:
        self._read_at = 0.0
        self._known: dict[int, KernelUse] = {}

    def read(self, kernels: Mapping[int, str]) -> tuple[KernelUse, ...]:
        """Return the use of each kernel. `kernels` has the ids of the running kernels by pid."""
        now = time.monotonic()
        elapsed_s = now - self._read_at
        if elapsed_s >= _MIN_INTERVAL_S or kernels.keys() != self._known.keys():
            self._known = self._measure(kernels, elapsed_s)
            self._read_at = now
        return tuple(self._known.values())

    def _measure(self, kernels: Mapping[int, str], elapsed_s: float) -> dict[int, KernelUse]:
        processes, rss_bytes = dict.fromkeys(kernels, 0), dict.fromkeys(kernels, 0)
        cpu_s, age_s = dict.fromkeys(kernels, 0.0), dict.fromkeys(kernels, 0.0)
        for pid in psutil.pids() if kernels else ():
            with contextlib.suppress(OSError, psutil.Error):
                session = os.getsid(pid)
                if session not in kernels:
                    continue
                process = psutil.Process(pid)
                processes[session] += 1
                with process.oneshot():
                    times = process.cpu_times()
                    cpu_s[session] += times.user + times.system
                    rss_bytes[session] += process.memory_info().rss
                    if pid == session:
                        age_s[session] = time.time() - process.create_time()
        found = {}
        for pid, kernel_id in kernels.items():
            before = self._known.get(pid)
            used_s = cpu_s[pid] - (before.cpu_s if before else 0.0)
            over_s = elapsed_s if before else age_s[pid]
            found[pid] = KernelUse(
                kernel_id=kernel_id,
                processes=processes[pid],
                cpu_s=cpu_s[pid],
                cpu_percent=max(0.0, 100 * used_s / over_s) if over_s > 0 else 0.0,
                rss_bytes=rss_bytes[pid],
            )
        return found
