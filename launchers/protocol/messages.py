"""What agents are asked and what they answer: the agent's protocol as values.

Every message crosses a socket as JSON (`wire`). Amounts: CPUs and GPUs in units (0.25 is a quarter), memory
in bytes, times in seconds; `*_at` are seconds since the epoch, UTC, for people, and never used for waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from roost.placement.model import Device, Request

from .rpc import ClientKeys
from .shared_values import PORT_NAMES as PORT_NAMES
from .shared_values import Connection as Connection
from .shared_values import KernelProcess as KernelProcess
from .shared_values import KernelUse as KernelUse
from .shared_values import Logs as Logs
from .shared_values import Nothing as Nothing
from .shared_values import Owner as Owner
from .shared_values import Signal as Signal
from .shared_values import Stop as Stop

PROTOCOL = 4
"""Version of this protocol: an agent and a client talk only when they speak the same.

It does not change for a field added to an answer or an event, which an older client leaves out; it does for a
field added to a request, which an older agent refuses.
"""


LeaseState = Literal["pending", "held", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The claim on a slice of a node, held in the cluster manager's own accounting.

    `id` is `roost:<kernel id>:<scheduler>/<launch id>`, of the launch that took the lease. `node_id` and `device_ids`
    say where the lease really is, which may differ from the placement. A `pending` lease waits for `reason` (a
    sentence for people); its `node_id` is empty until it has a node. A `lost` lease was taken back, for `reason`.
    """

    id: str
    kernel_id: str
    owner: Owner
    request: Request
    node_id: str = ""
    device_ids: tuple[str, ...] = ()
    state: LeaseState = "held"
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """Where an agent listens, and the keys that it accepts."""

    endpoint: str
    keys: ClientKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Asks the agent's ledger for a lease. Repeated with the same lease id, it gives the same answer.

    `lease.device_ids` are preferred devices; the agent may grant others. If a cluster manager has granted the lease
    already (`is_granted`), the ledger records it unchanged. `linger_s`: how long the lease outlives a kernel that
    ended by itself, so that a restarter may start the kernel again.
    """

    lease: Lease
    is_granted: bool = False
    linger_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Gives a slice back, ending its kernel if one still runs. May be repeated."""

    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Gives a lease to another owner, if the agent has that lease. May be repeated."""

    lease_id: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """The cluster manager on whose node the agent runs: what it watches, and what follows from that.

    `pid` and `process_started_at` (as `process.start_time` gives it) name a daemon of the manager's on this node;
    `address` is `host:port` of the manager itself. Where the last daemon ends and the manager is still there, this
    node is no part of the cluster any more: all leases here are lost. Where both are gone they are kept for `grace_s`.
    `is_gone`: this daemon says that it is about to end because the manager is gone, whatever answers there now.
    `has_left`: it ends, or has ended, though its process goes on. `probe` is a command that prints the id of the
    cluster at `address`: where that is not `cluster_id`, another cluster is there now, and this one is gone.
    """

    name: str
    pid: int
    process_started_at: float
    address: str
    grace_s: float = 300.0
    is_gone: bool = False
    has_left: bool = False
    cluster_id: str = ""
    probe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Starts a kernel inside a reservation.

    `launch_id` names this one attempt: repeated with the same id, a launch answers what the first did. `argv`
    is the kernelspec's, with `{connection_file}` left in; the agent writes that file. `env` is the whole
    environment of the kernel, to which the agent adds the devices' visibility. `AgentSettings` says on which address
    the kernel listens, and which of `env` and `cwd` an agent on another machine supplements.
    """

    launch_id: str
    lease_id: str
    kernel_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    connection: Connection
    may_fork: bool = True
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Prepares a fast start for kernels of this `argv` in this environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The node as its agent sees it.

    `warm` are the interpreters (paths) that have a zygote ready. `is_cut_off`: the cluster manager's daemon on this
    node has ended.
    """

    hostname: str
    cpus: float
    memory_bytes: int
    devices: tuple[Device, ...] = ()
    cpus_promised: float = 0.0
    memory_promised_bytes: int = 0
    gpus_promised: float = 0.0
    cpus_used: float | None = None
    memory_used_bytes: int | None = None
    kernels: int = 0
    metrics_age_s: float | None = None
    warm: tuple[str, ...] = ()
    is_cut_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteStats:
    """A warm process that kernels are forked from; `files` are those that it depends on."""

    pid: int
    python: str
    files: int
    launches: int
    idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Answer to `stats`; the zygote used last comes first."""

    kernels: tuple[KernelUse, ...] = ()
    zygotes: tuple[ZygoteStats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Answer to `list`: all that this agent holds."""

    leases: tuple[Lease, ...] = ()
    kernels: tuple[KernelProcess, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """Pushed to subscribers.

    `launched` and `exited` carry the kernel; `reserved` and `released` the lease id; `lost` comes before the end of a
    lease that the manager has taken back, for `reason`, and without a lease id as soon as the manager's daemon here
    has ended; `leaving` means that the agent is about to go (an upgrade), its kernels stay.
    """

    kind: Literal["launched", "exited", "reserved", "released", "lost", "leaving"]
    lease_id: str = ""
    reason: str = ""
    kernel: KernelProcess | None = None
