"""The settings of an agent, which its backend gives it at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Forking:
    """How zygotes prepare kernels, and what happens to the memory of these kernels.

    `preload`: modules that zygotes import. `preload_by_python`: modules for some Pythons alone, by a pattern for the
    path of the interpreter. `learn_preloads`: also import what most kernels of a Python have imported lately.
    `immortal_preloads`: count no references to these modules, where that is possible.
    `page_out_after_s`: after this time without work, a kernel's memory goes to the swap, if any; 0: never.
    `merge_memory`: the system may merge equal pages of kernels (KSM).
    """

    preload: tuple[str, ...] = ()
    preload_by_python: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    learn_preloads: bool = False
    immortal_preloads: bool = True
    page_out_after_s: float = 0.0
    merge_memory: bool = False

    def choose_preloads(self, python: str) -> list[str]:
        """Return the modules for zygotes of the interpreter with this path."""
        patterns = [pattern for pattern in self.preload_by_python if fnmatchcase(python, pattern)]
        chosen = [*self.preload, *(name for each in patterns for name in self.preload_by_python[each])]
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """How an agent limits kernels to their requests.

    `enforce`: `auto` by the best way that the machine has, `required` only by control groups, or `never`.
    `cpu_ceiling`: a kernel gets at most this many times the CPUs of its request, 1 or more; 0: all idle CPUs.
    `end_detached`: a kernel's detached processes end with its lease. This needs control groups.
    """

    enforce: Literal["auto", "required", "never"] = "auto"
    cpu_ceiling: float = 0.0
    end_detached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The amounts that an operator declares for a machine (None: as measured), and how its agent behaves.

    `address`: the IP address where the agent and its kernels listen, instead of loopback.
    `is_remote`: the application may be on another machine. A kernel's environment is then added to the agent's own. A
    kernel starts in the home folder if its working folder does not exist on this machine.
    `gpu_visibility`: how a kernel's environment names its devices. `bus`: only the granted devices, in PCI order.
    `manager`: CUDA_VISIBLE_DEVICES with the cluster manager's names. `inherit`: left alone, as in a pod. `locks`: as
    `inherit` if no more devices are visible than were granted, else the agent chooses and locks some (`gpu_locks`).
    `is_per_kernel`: the agent is the first process of a pod or container, for one kernel. That kernel is never
    forked from a zygote, and ends with the agent. The agent ends with its lease.
    `shares_session`: that kernel stays in the session and process group of the agent, because its container's
    manager ends that group alone.
    `ports`: the agent listens on the first free port of these; if empty, on any free port.
    `daemon_address` (`host:port`): a daemon of the cluster manager on this node, called `daemon_name`. If it
    does not answer for `daemon_grace_s`, the leases are lost.
    `node` tells nodes on the same machine apart.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_model: str = ""
    idle_exit_s: float = 600.0
    forking: Forking = Forking()
    enforcement: Enforcement = Enforcement()
    address: str = ""
    is_remote: bool = False
    gpu_visibility: Literal["bus", "manager", "inherit", "locks"] = "bus"
    is_per_kernel: bool = False
    shares_session: bool = False
    ports: tuple[int, ...] = ()
    daemon_address: str = ""
    daemon_name: str = ""
    daemon_grace_s: float = 660.0
    node: str = ""
