"""The CPU and memory that kernels use. All processes in a kernel's session count."""

from __future__ import annotations

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
        self._cpu_s: dict[int, float] = {}
        self._known: dict[int, KernelUse] = {}

    def read(self, kernels: Mapping[int, str]) -> tuple[KernelUse, ...]:
        """Return the use of each kernel. `kernels` has the ids of the running kernels by pid."""
        now = time.monotonic()
        elapsed_s = now - self._read_at
        if elapsed_s >= _MIN_INTERVAL_S or kernels.keys() != self._known.keys():
            self._measure(kernels, elapsed_s)
            self._read_at = now
        return tuple(self._known.values())

    def _measure(self, kernels: Mapping[int, str], elapsed_s: float) -> None:
        before, self._cpu_s, self._known = self._cpu_s, {}, {}
        found = _processes(kernels)
        for pid, kernel_id in kernels.items():
            cpu_s, rss_bytes, started_s = 0.0, 0, 0.0
            for process in found[pid]:
                try:
                    with process.oneshot():
                        times = process.cpu_times()
                        cpu_s += times.user + times.system
                        rss_bytes += process.memory_info().rss
                        if process.pid == pid:
                            started_s = time.time() - process.create_time()
                except psutil.Error:
                    continue
            self._cpu_s[pid] = cpu_s
            used_s, over_s = (cpu_s - before[pid], elapsed_s) if pid in before else (cpu_s, started_s)
            self._known[pid] = KernelUse(
                kernel_id=kernel_id,
                processes=len(found[pid]),
                cpu_s=cpu_s,
                cpu_percent=max(0.0, 100 * used_s / over_s) if over_s > 0 else 0.0,
                rss_bytes=rss_bytes,
            )


def _processes(kernels: Mapping[int, str]) -> dict[int, list[psutil.Process]]:
    """Return the processes in each kernel's session, by the kernel's pid."""
    found: dict[int, list[psutil.Process]] = {pid: [] for pid in kernels}
    for pid in psutil.pids() if kernels else ():
        try:
            session = os.getsid(pid)
            if session in found:
                found[session].append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return found
