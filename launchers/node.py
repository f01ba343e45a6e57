"""What this machine has and how busy it is: CPUs and memory from psutil and cgroup limits, GPUs from `devices`."""

from __future__ import annotations

import math
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from .devices import Devices
from .ledger import Ledger
from .messages import NodeStatus

_METRICS_MAX_AGE_S = 1.0
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What an operator may declare of a machine, and how its agent behaves. None: as measured."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_model: str = ""
    idle_exit_s: float = 600.0
    preload: tuple[str, ...] = ()


class Measured:
    """Reads the machine on demand, at most once a second; nothing runs in between."""

    def __init__(self, settings: AgentSettings) -> None:
        self.devices = Devices(settings.gpus, settings.gpu_model)
        self.cpus = settings.cpus if settings.cpus is not None else available_cpus()
        self.memory_bytes = settings.memory_bytes if settings.memory_bytes is not None else available_memory()
        self.hostname = socket.gethostname()
        self._read_at = -math.inf
        self._cpus_used: float | None = None
        self._memory_used = 0
        self._device_status = self.devices.read()
        psutil.cpu_percent()  # the first call only sets the point from which the next one measures

    def status(self, ledger: Ledger, *, kernels: int) -> NodeStatus:
        """The node now, with what `ledger` has promised of it."""
        self._read()
        promised = ledger.promised_by_device()
        return NodeStatus(
            hostname=self.hostname,
            cpus=self.cpus,
            memory_bytes=self.memory_bytes,
            devices=tuple(
                replace(device, promised=min(1.0, promised.get(device.id, 0.0)))
                for device in self._device_status
            ),
            cpus_promised=ledger.cpus_promised,
            memory_promised_bytes=ledger.memory_promised_bytes,
            gpus_promised=ledger.gpus_promised,
            cpus_used=self._cpus_used,
            memory_used_bytes=self._memory_used,
            kernels=kernels,
            metrics_age_s=max(0.0, time.monotonic() - self._read_at),
            ledger_version=ledger.version,
        )

    def _read(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _METRICS_MAX_AGE_S:
            return
        self._read_at = now
        # The machine's use, in CPUs; a container sees its share of it at most.
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        self._cpus_used = min(busy, self.cpus)
        memory = psutil.virtual_memory()
        self._memory_used = min(memory.total - memory.available, self.memory_bytes)
        self._device_status = self.devices.read()


def available_cpus() -> float:
    """CPUs that this process may use: its affinity, bounded by its cgroup's quota."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        count = float(os.cpu_count() or 1)
    for folder in _own_cgroups():
        quota = _numbers(folder / "cpu.max")  # cgroup v2: "<quota> <period>" or "max <period>"
        if len(quota) == 2 and quota[1] > 0:
            count = min(count, quota[0] / quota[1])
    return count


def available_memory() -> int:
    """Bytes of memory that this process may use: the machine's, bounded by its cgroup's limit."""
    total = int(psutil.virtual_memory().total)
    for folder in _own_cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2, v1
            limit = _numbers(folder / name)
            if limit and 0 < limit[0] < total:
                total = int(limit[0])
    return total


def _own_cgroups() -> list[Path]:
    """The folders of this process's cgroup and all above it (v2), and of v1's memory controller."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = _CGROUP if not controllers else _CGROUP / controllers
        if controllers in ("", "memory"):
            own = base / path.lstrip("/")
            found += [own, *(parent for parent in own.parents if parent.is_relative_to(base))]
    return found


def _numbers(path: Path) -> list[float]:
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return [float(word) for word in words] if all(word.isdigit() for word in words) else []
