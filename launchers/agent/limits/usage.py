"""The use of each kernel: CPUs, memory, and memory of GPUs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from roost.launchers.agent.machine.sessions import OwnSession, Session
from roost.launchers.protocol.messages import KernelUse

from .confinement import Confinement, GroupConfinement

_MAX_AGE_S = 1.0  # CPU use over a shorter time is noise
_MOST_BUSY = 0.01
"""At most this share of a CPU is spent on measurements.

After a slow measurement, the next one comes later.
"""
_QUIET_CPUS = 0.02
"""A kernel that uses less than this share of a CPU between two readings is quiet."""
_LARGE_BYTES = 1 << 30
"""A process above this size is measured with shared pages in full, because reading their shares takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningKernel:
    """A kernel to measure. `held` has its limits. `is_on_busy_gpu` is true if one of its GPUs is busy."""

    kernel_id: str
    held: Confinement | None = None
    is_on_busy_gpu: bool = False


@dataclass(slots=True)
class _Sums:
    """The sums over the processes of one kernel. `spent_s` is CPU time, also of children that have ended."""

    processes: int = 0
    cpu_s: float = 0.0
    spent_s: float = 0.0
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    age_s: float = 0.0


@dataclass(slots=True)
class _Reading:
    sums: _Sums
    use: KernelUse
    read_at: float
    busy_at: float


class UsageMeter:
    """A meter of the kernels' use. All processes of a kernel's session count."""

    def __init__(
        self, session: Session | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session or OwnSession()
        self._clock = clock
        self._readings: dict[int, _Reading] = {}
        self._next_at = 0.0

    def read(
        self, kernels: Mapping[int, RunningKernel], gpu_memory: Mapping[int, int] | None = None
    ) -> tuple[KernelUse, ...]:
        """Return the use of each kernel, measured now or a short time ago.

        `kernels` has the running kernels by pid. `gpu_memory` has the bytes of GPU memory of each process by
        pid.
        """
        now = self._clock()
        self._readings = {pid: reading for pid, reading in self._readings.items() if pid in kernels}
        is_due = now >= self._next_at
        wanted = {pid: kernels[pid] for pid in kernels if is_due or pid not in self._readings}
        if wanted:
            started = time.thread_time()
            for pid, sums in self._sum(wanted, gpu_memory or {}).items():
                self._note(pid, wanted[pid], sums, now)
            if is_due:
                self._next_at = now + max(_MAX_AGE_S, (time.thread_time() - started) / _MOST_BUSY)
        return tuple(self._readings[pid].use for pid in kernels)

    def _sum(self, kernels: Mapping[int, RunningKernel], gpu_memory: Mapping[int, int]) -> dict[int, _Sums]:
        found = {pid: _Sums() for pid in kernels}
        for pid, kernel in self._session.find_members(kernels):
            sums = found[kernel]
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    rss_bytes = process.memory_info().rss
                    if pid == kernel:
                        sums.age_s = time.time() - process.create_time()
                sums.processes += 1
                sums.cpu_s += times.user + times.system
                sums.spent_s += sum(times[:4])
                sums.gpu_memory_bytes += gpu_memory.get(pid, 0)
                if not isinstance(kernels[kernel].held, GroupConfinement):
                    sums.memory_bytes += (
                        rss_bytes if rss_bytes > _LARGE_BYTES else _read_pss(pid) or rss_bytes
                    )
            with contextlib.suppress(psutil.Error):  # some systems refuse only this
                disk = psutil.Process(pid).io_counters()
                sums.read_bytes += disk.read_bytes
                sums.written_bytes += disk.write_bytes
        for pid, kernel_to_measure in kernels.items():
            held = kernel_to_measure.held
            if isinstance(held, GroupConfinement):
                found[pid].memory_bytes = held.measure()
        return found

    def _note(self, pid: int, kernel: RunningKernel, sums: _Sums, now: float) -> None:
        before = self._readings.get(pid)
        over_s = now - before.read_at if before else sums.age_s
        used_s = sums.cpu_s - (before.sums.cpu_s if before else 0.0)
        spent_s = sums.spent_s - (before.sums.spent_s if before else 0.0)
        is_busy = before is None or kernel.is_on_busy_gpu or spent_s > _QUIET_CPUS * over_s
        busy_at = now if before is None or is_busy else before.busy_at
        use = KernelUse(
            kernel_id=kernel.kernel_id,
            processes=sums.processes,
            cpu_s=sums.cpu_s,
            cpu_percent=max(0.0, 100 * used_s / over_s) if over_s > 0 else 0.0,
            memory_bytes=sums.memory_bytes,
            gpu_memory_bytes=sums.gpu_memory_bytes,
            read_bytes=sums.read_bytes,
            written_bytes=sums.written_bytes,
            quiet_s=now - busy_at,
        )
        self._readings[pid] = _Reading(sums, use, now, busy_at)


def _read_pss(pid: int) -> int:
    """Return the bytes of memory of a process, with its share of each shared page; 0 if it is not known."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
