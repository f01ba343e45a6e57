"""The GPUs and the memory that programs outside roost use on this machine, for `roost doctor`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import psutil

from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.agent.machine.node_metrics import find_cgroups, find_memory_limit, measure_used_memory
from roost.launchers.daemon.process import describe_process
from roost.launchers.machine_book.folder_reader import Held
from roost.placement.model.format import format_bytes, format_count
from roost.scheduler.messages import Finding, format_names

_NVML_S = 3.0
"""How long NVML may take."""
_COUNTS = "it counts as used, not as promised"


def find_outside_use(counted: Sequence[Held]) -> list[Finding]:
    """Return findings about programs outside roost that use this machine beside these promises."""
    named = {
        process.pid
        for held in counted
        for process in (held.promise.agent, *held.promise.processes)
        if held.promise.pid_namespace
    }
    outside = Outside(named)
    reader = DeviceReader(first_wait_s=_NVML_S)
    reader.close()
    found = describe_gpu_use(outside.choose(reader.memory_by_pid), reader.memory_by_pid)
    total, limited_by = find_memory_limit(find_cgroups())
    promised = sum(held.promise.memory_bytes for held in counted)
    of_roost = _measure(pid for pid in psutil.pids() if outside.is_roost(pid))
    used = max(0, measure_used_memory(limited_by) - of_roost)
    return found + describe_memory_use(promised, used, total)


def describe_gpu_use(pids: Sequence[int], memory_by_pid: Mapping[int, int]) -> list[Finding]:
    if not pids:
        return []
    used = sum(memory_by_pid[pid] for pid in pids)
    amount = f"{format_bytes(used)} of their memory" if used else "unknown how much of their memory"
    who = format_names([describe_process(pid) for pid in pids])
    verb = "uses" if len(pids) == 1 else "use"
    what = f"{format_count(len(pids), 'program')} outside roost {verb} GPUs, {amount}: {who}"
    return [{"level": "warning", "what": what, "do": f"look whether kernels find enough there: {_COUNTS}"}]


def describe_memory_use(promised: int, used: int, total: int) -> list[Finding]:
    """Return a warning if the promised memory and that of programs outside roost are more than there is."""
    if promised == 0 or promised + used <= total:
        return []
    what = (
        f"{format_bytes(promised)} of memory are promised to kernels, and programs outside roost use about "
        f"{format_bytes(used)}: there are {format_bytes(total)}"
    )
    return [{"level": "warning", "what": what, "do": f"end programs, or raise the reserve: {_COUNTS}"}]


class Outside:
    """Tells the processes of roost's agents and kernels from others, by their session and their ancestors."""

    def __init__(self, named: set[int]) -> None:
        self._named = named
        self._known: dict[int, bool] = {}

    def choose(self, pids: Iterable[int]) -> list[int]:
        """Return those of the pids that are processes of this machine, and not roost's."""
        return sorted(pid for pid in pids if psutil.pid_exists(pid) and not self.is_roost(pid))

    def is_roost(self, pid: int) -> bool:
        if pid not in self._known:
            self._known[pid] = False  # a process is not its own ancestor
            self._known[pid] = self._find(pid)
        return self._known[pid]

    def _find(self, pid: int) -> bool:
        if pid in self._named:
            return True
        try:
            if os.getsid(pid) in self._named:
                return True
            parent = psutil.Process(pid).ppid()
        except (OSError, psutil.Error):
            return False
        return parent > 1 and self.is_roost(parent)


def _measure(pids: Iterable[int]) -> int:
    """Return the bytes of memory that processes have for themselves."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:  # proc(5): size, resident, shared, in pages
                _, resident, shared = map(int, file.read().split()[:3])
        except (OSError, ValueError):
            continue
        total += (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return total
