"""The messages of the agent's protocol: answers, events, and the requests that are kept or have many fields.

Every message crosses a socket as JSON (`json_codec`). CPUs and GPUs are in units (0.25 is a quarter), memory is in
bytes, durations are in seconds. Fields named `*_at` are seconds since the epoch (UTC), for people and never for
waiting. The start times of processes are from `process.start_time` instead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from roost.placement.model import Node, Request

from .execution import Execution as Execution
from .process_context import ProcessContext as ProcessContext
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
from .shared_values import name_connection_file as name_connection_file

PROTOCOL = 16
"""The version of this protocol. An agent and a client must have the same version.

A new field in an answer or event needs no new version, because older clients ignore the field. A new field in a request
needs a new version, because older agents refuse the field. A changed default needs a new version too, because fields
with their default are not sent.
"""

FOLDER_OPTION = "cwd"
"""The option of a request that names a folder of the node, where the kernel starts. It must exist there.

A backend with agents that start kernels may offer it (`BackendSpec.request_options`).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The claim on a slice of a node, held in the cluster manager's own accounting."""

    id: str
    """`roost:<kernel id>:<scheduler>/<launch id>`, of the launch that took the lease.

    It usually has about 110 characters, and may have 600. `shorten_id` makes a name for files and jobs of it.
    """
    kernel_id: str
    """The kernel for which the lease was taken: any printable text, usually a UUID."""
    owner: Owner
    """The user and the application that hold the kernel. Only the lease's agent knows a later owner than the first."""
    request: Request
    """The resources and conditions that the kernel asked for, with the backend's own `options`."""
    node_id: str = ""
    """In a claim, the node that roost has chosen; else the node that the manager has granted.

    Empty in a claim for any node, and in a pending lease that has no node yet.
    """
    device_ids: tuple[str, ...] = ()
    """In a claim, the devices that roost prefers; else the devices that the manager has granted."""
    state: Literal["pending", "held", "lost"] = "held"
    """`pending`: accepted, but not granted yet. `held`: granted. `lost`: taken back. In a claim it means nothing."""
    reason: str = ""
    """Why the lease is pending or lost: a clause without a full stop. Empty in a held lease."""
    is_final: bool = False
    """True in a lost lease if another claim for the same request cannot succeed either. The start then fails."""
    asked_at: float = 0.0
    """The time of the start's request; 0 if the manager does not keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """The endpoint on which an agent listens, and the keys with which a client connects to that agent."""

    endpoint: str
    """A ZeroMQ endpoint that the service can reach, such as `tcp://10.0.0.7:41000`."""
    keys: ClientKeys
    """The agent's public key, and a key pair that the agent accepts. It is secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """A request for a lease from the agent's ledger. A repeated request with the same lease id gets the same answer."""

    lease: Lease
    """The lease. The ledger prefers its devices."""
    is_granted: bool = False
    """True if a manager has granted the lease. The ledger then records its devices unchanged."""
    linger_s: float = 10.0
    """How long the lease outlives a kernel that ended by itself, so that Jupyter can restart that kernel."""
    grace_s: float = 0.0
    """The least time for which the lease outlives the manager and its daemons. A longer `Manager.grace_s` counts."""
    launch: Launch | None = None
    """The launch that the agent begins as soon as the ledger has the lease. `AgentClient.launch` then joins it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonCommand:
    """By what an agent knows another daemon of its manager's kind on its node."""

    name: str
    """The name of the process."""
    node: str
    """The argument that names the node."""
    cluster: str
    """The argument that names the cluster."""


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
    """If the manager is away when its last daemon on the node ends, the leases are kept for this time.

    With a `command`, this time begins when another daemon of the same cluster runs on the node.
    """
    command: DaemonCommand | None = None
    """Known if the agent can see which daemons begin: the leases are kept until one does."""
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
class Launch(Execution):
    """A request to start a kernel in a lease."""

    lease_id: str
    """The lease in which the kernel runs."""
    deadline_s: float = 60.0
    """How long the kernel may take to listen on its ports."""
    journal: JournalLimits = field(default_factory=JournalLimits)
    """How much of the kernel's output the agent keeps."""

    def build_process(
        self,
        pid: int,
        started_at: float,
        connection: Connection,
        *,
        timing_ms: Mapping[str, float],
        device_ids: tuple[str, ...],
        why_not_forked: str = "",
    ) -> KernelProcess:
        """Return the process that this launch has just started."""
        return KernelProcess(
            kernel_id=self.kernel_id,
            launch_id=self.launch_id,
            lease_id=self.lease_id,
            pid=pid,
            process_started_at=started_at,
            how="exec" if why_not_forked else "forked",
            why_not_forked=why_not_forked,
            connection=connection,
            launched_at=time.time(),
            timing_ms=timing_ms,
            device_ids=device_ids,
            cwd=self.cwd,
            journal=self.journal,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The first work of an agent: its keys, the lease to record, and the launch to begin."""

    keys: ServerKeys
    """The agent's own key pair, and the public key of the service, which alone may connect. It is secret."""
    reserve: Reserve
    """The lease, granted, with the launch to begin."""
    report_to: str = ""
    """The service's endpoint where the agent reports its address. Empty: it reports nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    leases: tuple[Lease, ...] = ()
    kernels: tuple[KernelProcess, ...] = ()
    ends_at: float | None = None
    """When these leases are lost if the cluster manager stays away, as `time.time`; None while a daemon is here."""

    def by_lease(self) -> dict[str, KernelProcess | None]:
        """Return the kernel process of each lease by lease id, or None for a lease without a kernel."""
        return {lease.id: None for lease in self.leases} | {each.lease_id: each for each in self.kernels}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """An event, which goes to all subscribers."""

    kind: Literal["launched", "exited", "reserved", "released", "lost", "warned", "status", "leaving"]
    """`launched` and `exited` are about `kernel`. `reserved`, `released`, `lost` and `warned` are about a lease.

    `lost` with a `lease_id`: this lease is lost for `reason`, and its kernel ends next. `lost` without one: the cluster
    manager's last daemon on this node has ended, and `ends_at` is set. `warned`: the kernel of this lease will soon be
    killed. `status`: the real use of `node` has changed, or a minute has passed. A new subscriber gets it at once.
    `leaving`: the agent is about to leave. Its kernels stay.
    """
    lease_id: str = ""
    """The lease that the event is about, if it is about one."""
    reason: str = ""
    """Why: a clause."""
    kernel: KernelProcess | None = None
    """The kernel that was launched or has exited."""
    ends_at: float | None = None
    """As in `Holdings`."""
    node: Node | None = None
    """The node with its real use and its promises, in a `status`, and where leases are `reserved` and `released`.

    The agent of one kernel does not know its node.
    """
