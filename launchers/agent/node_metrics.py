"""What this machine has and how busy it is: CPUs and memory from psutil and cgroup limits, GPUs from `devices`."""

from __future__ import annotations

import math
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from roost.launchers.protocol.messages import NodeStatus

from .gpus import DeviceReader
from .ledger import Ledger

_METRICS_MAX_AGE_S = 1.0
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The amounts that an operator declares for a machine (None: as measured), and how its agent behaves.

    `address`: the IP address where the agent and its kernels listen. If empty, they listen on loopback.
    `is_remote`: the application may be on another machine. A kernel's environment is then added to the agent's own, and
    a kernel whose working folder does not exist on this machine starts in the home folder.
    `gpu_visibility`: how a kernel's environment names its devices. `bus`: only the granted devices, in PCI order.
    `manager`: CUDA_VISIBLE_DEVICES with the cluster manager's names. `inherit`: left alone, as in a pod.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_model: str = ""
    idle_exit_s: float = 600.0
    preload: tuple[str, ...] = ()
    address: str = ""
    is_remote: bool = False
    gpu_visibility: Literal["bus", "manager", "inherit"] = "bus"


class NodeMetrics:
    """Reads the machine on demand, at most once a second; nothing runs in between."""

    def __init__(self, settings: AgentSettings) -> None:
        self.devices = DeviceReader(settings.gpus, settings.gpu_model)
        self.cpus = settings.cpus if settings.cpus is not None else count_cpus()
        limit_bytes, self._limited_by = find_memory_limit()
        self.memory_bytes = settings.memory_bytes if settings.memory_bytes is not None else limit_bytes
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
                if device.id in ledger.models  # one that came later cannot be granted
            ),
            cpus_promised=ledger.cpus_promised,
            memory_promised_bytes=ledger.memory_promised_bytes,
            gpus_promised=ledger.gpus_promised,
            cpus_used=self._cpus_used,
            memory_used_bytes=self._memory_used,
            kernels=kernels,
            metrics_age_s=max(0.0, time.monotonic() - min(self._read_at, self.devices.read_at)),
        )

    def _read(self) -> None:
        now = time.monotonic()
        if now - self._read_at < _METRICS_MAX_AGE_S:
            return
        self._read_at = now
        # The machine's use, in CPUs; a container sees its share of it at most.
        busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
        self._cpus_used = min(busy, self.cpus)
        self._memory_used = min(measure_used_memory(self._limited_by), self.memory_bytes)
        self._device_status = self.devices.read()


def count_cpus() -> float:
    """CPUs that this process may use: its affinity, bounded by its cgroup's quota."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        count = float(os.cpu_count() or 1)
    for folder in _own_cgroups():
        quota = _numbers(folder / "cpu.max")  # cgroup v2: "<quota> <period>" or "max <period>"
        if not quota:  # v1; a quota of -1 is none
            quota = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[1] > 0:
            count = min(count, quota[0] / quota[1])
    return count


def find_memory_limit() -> tuple[int, Path | None]:
    """Bytes of memory that this process may use, and the folder of the cgroup that sets this limit, if one does."""
    total, limited_by = int(psutil.virtual_memory().total), None
    for folder in _own_cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2, v1
            limit = _numbers(folder / name)
            if limit and 0 < limit[0] < total:
                total, limited_by = int(limit[0]), folder
    return total, limited_by


def measure_used_memory(limited_by: Path | None) -> int:
    """Bytes of memory that are used in that cgroup, else on the machine; without caches that are given up at need."""
    if limited_by is not None:
        for used, cache in (
            ("memory.current", "inactive_file"),  # cgroup v2
            ("memory.usage_in_bytes", "total_inactive_file"),  # v1
        ):
            size = _numbers(limited_by / used)
            if size:
                return max(0, int(size[0]) - _statistic(limited_by / "memory.stat", cache))
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _own_cgroups() -> list[Path]:
    """The folders of this process's cgroup and all above it (v2), and of v1's CPU and memory controllers."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in {"", "cpu", "memory"}.intersection(controllers.split(",")):
            base = _CGROUP / controller  # "" is v2
            own = base / path.lstrip("/")
            found += [own, *(parent for parent in own.parents if parent.is_relative_to(base))]
    return found


def _numbers(path: Path) -> list[float]:
    try:
        words = path.read_text().split()
    except OSError:
        return []
    return [float(word) for word in words] if all(word.isdigit() for word in words) else []
