"""The settings of an agent, which its backend gives it at the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Forking:
    """How zygotes prepare kernels."""

    preload: tuple[str, ...] = ()
    """Modules that zygotes import."""
    preload_by_python: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Modules for some Pythons alone, by a pattern for the path of the interpreter."""
    immortal_preloads: bool = True
    """True if references to these modules are not counted, where that is possible."""

    def choose_preloads(self, python: str) -> list[str]:
        """Return the modules for zygotes of the interpreter with this path."""
        patterns = [pattern for pattern in self.preload_by_python if fnmatchcase(python, pattern)]
        chosen = [*self.preload, *(name for each in patterns for name in self.preload_by_python[each])]
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Enforcement:
    """How an agent limits kernels to their requests."""

    enforce: Literal["auto", "required", "never"] = "auto"
    """`auto`: by the best way that the machine has. `required`: only by control groups. `never`: not at all."""
    cpu_ceiling: float = 0.0
    """A kernel gets at most this many times the CPUs of its request, 1 or more; 0: all idle CPUs."""
    end_detached: bool = True
    """True if a kernel's detached processes end with its lease. This needs control groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """The amounts that an operator declares for a machine (None: as measured), and how its agent behaves."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_model: str = ""
    """The model of the declared GPUs."""
    idle_exit_s: float = 600.0
    """The agent leaves after this time without leases."""
    forking: Forking = Forking()
    enforcement: Enforcement = Enforcement()
    address: str = ""
    """The IP address where the agent and its kernels listen, instead of loopback."""
    is_remote: bool = False
    """True if the application may be on another machine.

    A kernel's environment is then added to the agent's own. A kernel starts in the home folder if its working folder
    does not exist on this machine.
    """
    divides_machine: bool = False
    """True if no cluster manager divides the machine: then its agents do, through the machine's book."""
    gpu_visibility: Literal["bus", "manager", "inherit", "locks"] = "bus"
    """How a kernel's environment names its devices.

    `bus`: only the granted devices, in PCI order. `manager`: CUDA_VISIBLE_DEVICES with the cluster manager's names.
    `inherit`: left alone, as in a pod. `locks`: as `inherit` if no more devices are visible than were granted, else the
    agent chooses and locks some (`gpu_locks`).
    """
    is_per_kernel: bool = False
    """True if the agent is the first process of a pod or container, for one kernel.

    That kernel is never forked from a zygote, and ends with the agent. The agent ends with its lease.
    """
    shares_session: bool = False
    """True if that kernel stays in the session and process group of the agent.

    The container's manager ends that group alone.
    """
    ports: tuple[int, ...] = ()
    """The agent listens on the first free port of these; if empty, on any free port."""
    kernel_ports: tuple[int, ...] = ()
    """The lowest and the highest port of kernels, and of the agent if `ports` is empty; empty: any free port."""
    daemon_address: str = ""
    """The address (`host:port`) of a daemon of the cluster manager on this node; empty: there is none to watch."""
    daemon_name: str = ""
    """That daemon's name, for people."""
    daemon_grace_s: float = 660.0
    """If that daemon does not answer for this time, the leases are lost."""
    python: str = ""
    """The interpreter that the operator has chosen for the agent on a node; empty: the cluster manager's.

    Nothing reads it but the comparison with the settings of an agent that runs.
    """
    node: str = ""
    """A name that tells nodes on the same machine apart."""
    unit: str = "pod or container"
    """The cluster manager's word for the agent's pod or container, in messages to users."""
