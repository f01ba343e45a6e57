"""The messages of the agent's protocol: answers, events, and the requests that are kept or have many fields.

Every message crosses a socket as JSON (`json_codec`). CPUs and GPUs are in units (0.25 is a quarter), memory is in
bytes, durations are in seconds. Fields named `*_at` are seconds since the epoch (UTC), for people and never for
waiting. The start times of processes are from `process.start_time` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from roost.placement.model import Node, Request

from .rpc import ClientKeys, ServerKeys
from .shared_values import LAST_LINE as LAST_LINE
from .shared_values import PORT_NAMES as PORT_NAMES
from .shared_values import Connection as Connection
from .shared_values import JournalEntry as JournalEntry
from .shared_values import JournalLimits as JournalLimits
from .shared_values import JournalPage as JournalPage
from .shared_values import KernelProcess as KernelProcess
from .shared_values import KernelUse as KernelUse
from .shared_values import Nothing as Nothing
from .shared_values import Owner as Owner

PROTOCOL = 12
"""The version of this protocol. An agent and a client must have the same version.

A new field in an answer or event needs no new version, because older clients ignore the field. A new field in a request
needs a new version, because older agents refuse the field. A changed default needs a new version too, because fields
with their default are not sent.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The claim on a slice of a node, held in the cluster manager's own accounting.

    `id` is `roost:<kernel id>:<scheduler>/<launch id>`, of the launch that took the lease. `node_id` and
    `device_ids` may differ from the placement. `reason` says why a lease is `pending` (a sentence) or `lost`.
    The `node_id` of a pending lease may be empty. `is_final`: another claim for the same request cannot
    succeed either. `asked_at` is the time of the start's request, 0 if the manager does not keep it.
    """

    id: str
    kernel_id: str
    owner: Owner
    request: Request
    node_id: str = ""
    device_ids: tuple[str, ...] = ()
    state: Literal["pending", "held", "lost"] = "held"
    reason: str = ""
    is_final: bool = False
    asked_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """The endpoint on which an agent listens, and the keys with which a client connects to that agent."""

    endpoint: str
    keys: ClientKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """A request for a lease from the agent's ledger. A repeated request with the same lease id gets the same answer.

    The ledger prefers `lease.device_ids`. If a manager has granted the lease (`is_granted`), the ledger records these
    devices unchanged. `linger_s`: how long the lease outlives a kernel that ended by itself, so that Jupyter can
    restart that kernel. The agent begins `launch` as soon as the ledger has the lease. `AgentClient.await_launch`, and
    `AgentClient.launch` with the same launch, get that launch's answer.
    """

    lease: Lease
    is_granted: bool = False
    linger_s: float = 10.0
    launch: Launch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """A daemon of the cluster manager on the agent's node, which the agent watches."""

    name: str
    """The manager's name, for people."""
    pid: int
    """The daemon's process on this node."""
    process_started_at: float
    """The start time of that process, from `process.start_time`."""
    address: str
    """The address (`host:port`) of the manager itself."""
    grace_s: float = 300.0
    """If the manager is away when its last daemon on the node ends, the leases are kept for this time."""
    is_gone: bool = False
    """True if the manager has ended, even if another one answers at `address`."""
    has_left: bool = False
    """True if the daemon has ended, but its process goes on, as in a Dask LocalCluster."""
    cluster_id: str = ""
    """The id of the agent's cluster; empty: not known."""
    probe: tuple[str, ...] = ()
    """A command that prints the id of the cluster at `address`.

    If that id is not `cluster_id`, another cluster has taken the address, and the agent's cluster has ended.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A request to start a kernel in a lease.

    A repeated launch with the same `launch_id` gets the first one's answer. `argv` is the kernelspec's, including
    `{connection_file}`. `env` is the kernel's whole environment, apart from the changes that `AgentSettings` lists.
    Without a `umask`, the kernel has the agent's.
    """

    launch_id: str
    lease_id: str
    kernel_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    connection: Connection
    may_fork: bool = True
    umask: int | None = None
    deadline_s: float = 60.0
    journal: JournalLimits = field(default_factory=JournalLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodKernel:
    """A kernel that the first process of a pod forked before becoming the agent. The kernel may have ended.

    `started_at` is as in `KernelProcess.process_started_at`.
    """

    launch_id: str
    pid: int
    started_at: float
    ip: str
    ports: Mapping[str, int]
    spawned_ms: float
    listening_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The first work of an agent: its keys, the lease to record, and the launch to begin.

    `report_to`: the endpoint where the pod reports its kernel, or its agent's address once the agent listens. The agent
    accepts one client: the server at `report_to`, by its public key.
    """

    keys: ServerKeys
    reserve: Reserve
    report_to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    leases: tuple[Lease, ...] = ()
    kernels: tuple[KernelProcess, ...] = ()

    def by_lease(self) -> dict[str, KernelProcess | None]:
        """Return the kernel process of each lease by lease id, or None for a lease without a kernel."""
        return {lease.id: None for lease in self.leases} | {each.lease_id: each for each in self.kernels}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """An event, which goes to all subscribers."""

    kind: Literal["launched", "exited", "reserved", "released", "lost", "warned", "status", "leaving"]
    """`launched` and `exited` are about `kernel`. `reserved`, `released`, `lost` and `warned` are about a lease.

    `lost` with a `lease_id`: this lease is lost for `reason`, and its kernel ends next. `lost` without one: the cluster
    manager's last daemon on this node has ended. `warned`: the kernel of this lease will soon be killed. `status`: the
    real use of `node` has changed, or a minute has passed. A new subscriber gets it at once. `leaving`: the agent is
    about to leave. Its kernels stay.
    """
    lease_id: str = ""
    """The lease that the event is about, if it is about one."""
    reason: str = ""
    """Why: a clause."""
    kernel: KernelProcess | None = None
    """The kernel that was launched or has exited."""
    node: Node | None = None
    """The status of the node, in a `status`."""
