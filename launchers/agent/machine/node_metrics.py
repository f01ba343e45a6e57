"""The size and the use of this machine: CPUs, memory and, from `gpus`, GPUs."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.machine_book.book import ALONE, MachineBook, Room, View
from roost.launchers.machine_book.rules import Amounts, BadRules, MachineRules, read_rules
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.placement.model import Device, Node
from roost.placement.model.visible_gpus import list_visible_gpus

from .gpus import DeviceReader

_METRICS_MAX_AGE_S = 1.0  # CPU use over a shorter time is noise


class NodeMetrics:
    """A reader of the machine's size and use. It measures on demand, at most once per `max_age_s`."""

    def __init__(
        self,
        settings: AgentSettings,
        *,
        devices: DeviceReader | None = None,
        cgroups: Sequence[Path] | None = None,
        max_age_s: float = _METRICS_MAX_AGE_S,
    ) -> None:
        rules = _read_rules() if settings.divides_machine else MachineRules()
        self.devices = devices or _open_devices(settings, rules)
        cgroups = find_cgroups() if cgroups is None else cgroups
        self.measured_cpus = count_cpus(cgroups)
        self.measured_bytes, self._limited_by = find_memory_limit(cgroups)
        totals = rules.find_totals(Amounts(cpus=self.measured_cpus, memory=self.measured_bytes))
        self.cpus = _lower(totals.cpus or 0.0, settings.cpus, rules.is_given)
        self.memory_bytes = int(_lower(totals.memory_bytes or 0, settings.memory_bytes, rules.is_given))
        self._max_age_s = max_age_s
        self.hostname = socket.gethostname()
        self._read_at = -math.inf
        self._cpus_used, self._memory_used = 0.0, 0
        self._device_status = self.devices.read()
        psutil.cpu_percent()  # the first call starts the interval that the next call measures

    def open_book(self, owner: str) -> MachineBook:
        """Return the book of this machine, for the agent that `owner` names."""
        return MachineBook(
            owner,
            cpus=self.measured_cpus,
            memory_bytes=self.measured_bytes,
            parents=self.devices.parents,
        )

    def status(self, ledger: LeaseLedger, view: View = ALONE) -> Node:
        """Return the machine, with the promises of the ledger and of others in the `view` of the machine."""
        self._measure()
        promised = ledger.promised_by_device()
        seen = [
            replace(
                device, promised=min(1.0, promised.get(device.id, 0.0) + view.devices.get(device.id, 0.0))
            )
            for device in self._device_status
            if device.id in ledger.models  # a device that appeared later cannot be granted
        ]
        by_others = sum(view.devices.get(device.id, 0.0) for device in seen)
        cpus, cpus_promised = _limit(self.cpus, ledger.cpus_promised + view.cpus, view.room("cpus"))
        memory_bytes, memory_promised = _limit(
            self.memory_bytes, ledger.memory_promised_bytes + view.memory_bytes, view.room("memory")
        )
        seen = _limit_devices(seen, view.room("gpus"))
        unseen = [Device(id=name, promised=min(1.0, share)) for name, share in ledger.list_unseen().items()]
        return Node(
            id=self.hostname,
            cpus=cpus,
            memory_bytes=int(memory_bytes),
            devices=(*seen, *unseen),
            cpus_promised=cpus_promised,
            memory_promised_bytes=int(memory_promised),
            gpus_promised=ledger.gpus_promised + by_others,
            resources_promised=ledger.resources_promised,
            cpus_used=self._cpus_used,
            memory_used_bytes=self._memory_used,
            kernels=len(ledger.entries()),
            owners=ledger.count_by_user(),
            metrics_age_s=max(0.0, time.monotonic() - min(self._read_at, self.devices.read_at)),
        )

    def find_free_memory(self, ledger: LeaseLedger, view: View = ALONE) -> int:
        """Return the bytes of memory that are not promised, and were not in use when the machine was last measured."""
        return self.memory_bytes - max(ledger.memory_promised_bytes + view.memory_bytes, self._memory_used)

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._read_at >= self._max_age_s:
            self._read_at = now
            # psutil reports the whole machine, in percent. In a container, that is limited to the container's size.
            busy = psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)
            self._cpus_used = min(busy, self.cpus)
            self._memory_used = min(measure_used_memory(self._limited_by), self.memory_bytes)
            self._device_status = self.devices.read()


def _read_rules() -> MachineRules:
    try:
        return read_rules()
    except BadRules:  # nothing is granted until they are mended
        return MachineRules()


def _open_devices(settings: AgentSettings, rules: MachineRules) -> DeviceReader:
    # An agent on another machine than the application chooses among the GPUs that its own environment names.
    chooses = settings.is_remote and settings.gpu_visibility in ("bus", "locks")
    visible = list_visible_gpus(os.environ) if chooses else None
    if not settings.divides_machine:
        return DeviceReader(settings.gpus, settings.gpu_model, visible=visible)
    model = rules.gpu_model or settings.gpu_model
    return DeviceReader(settings.gpus, model, ids=rules.gpu_ids, is_shared=True, visible=visible)


def _lower(total: float, own: float | None, is_ruled: bool) -> float:
    """Return a total with the user's own setting for it, which can only lower a total of root's."""
    if own is None:
        return total
    return min(own, total) if is_ruled else own


def _limit(total: float, promised: float, room: Room) -> tuple[float, float]:
    """Return a total and what is promised of it, as they are for a user with this room."""
    if room == Room():
        return total, promised
    most = min(total, room.most)
    return most, max(0.0, most - min(total - promised, room.left))


def _limit_devices(devices: list[Device], room: Room) -> list[Device]:
    """Return the devices as they are for a user with this room: no more than the user may hold, the freest ones."""
    if room == Room():
        return devices
    shown = [replace(device, promised=min(1.0, max(device.promised, 1.0 - room.left))) for device in devices]
    if len(shown) <= room.most:
        return shown
    freest = sorted(shown, key=lambda device: device.promised)[: math.ceil(room.most)]
    return [device for device in shown if device in freest]


def count_cpus(cgroups: Sequence[Path]) -> float:
    """Return the CPUs that this process may use: its affinity, limited by the quotas of its cgroups."""
    try:
        count = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        count = float(os.cpu_count() or 1)
    for folder in cgroups:
        quota = _numbers(folder / "cpu.max")  # cgroup v2: "<quota> <period>" or "max <period>"
        if not quota:  # cgroup v1: a quota of -1 means none
            quota = _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[1] > 0:
            count = min(count, quota[0] / quota[1])
    return count


def find_memory_limit(cgroups: Sequence[Path]) -> tuple[int, Path | None]:
    """Return the bytes of memory that this process may use, and the cgroup that sets this limit, if any."""
    total, limited_by = int(psutil.virtual_memory().total), None
    for folder in cgroups:
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2, v1
            limit = _numbers(folder / name)
            if limit and 0 < limit[0] < total:
                total, limited_by = int(limit[0]), folder
    return total, limited_by


def measure_used_memory(limited_by: Path | None) -> int:
    """Return the bytes of memory in use in a cgroup, or on the machine, without caches that can be dropped."""
    names = (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file"))  # v2, v1
    for used, cache in names:
        if limited_by is not None and (size := _numbers(limited_by / used)):
            lines = _read_lines(limited_by / "memory.stat")
            cached = next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
            return max(0, int(size[0]) - cached)
    memory = psutil.virtual_memory()
    return int(memory.total - memory.available)


def find_cgroups(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return the folders of this process's cgroups and of all their parents, for cgroup v2 and v1."""
    found: list[Path] = []
    for line in _read_lines(own):
        _, controllers, path = line.split(":", 2)
        for controller in {"", "cpu", "memory"}.intersection(controllers.split(",")):
            base = root / controller  # "" is v2
            folder = base / path.lstrip("/")
            found += [folder, *(parent for parent in folder.parents if parent.is_relative_to(base))]
    return found


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _numbers(path: Path) -> list[float]:
    words = " ".join(_read_lines(path)).split()
    return [float(word) for word in words] if all(word.isdigit() for word in words) else []
