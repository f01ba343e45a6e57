"""The interface that every backend implements. It knows nothing about Jupyter.

A backend is a folder with one entry point (group `roost.backends`) that names its `BackendSpec`. The spec is cheap to
import. The backend itself, with its cluster library, is imported in the scheduler's service only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from roost.launchers.protocol.messages import AgentAddress as AgentAddress
from roost.launchers.protocol.messages import KernelProcess
from roost.launchers.protocol.messages import Launch as Launch
from roost.launchers.protocol.messages import Lease as Lease
from roost.launchers.protocol.messages import Owner as Owner
from roost.placement import NodeType, Request, Snapshot
from roost.scheduler.messages import Finding as Finding

from .lease_book import LeaseBook

if TYPE_CHECKING:
    from .agent_calls import Agents


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """The objects and settings that the service gives to a backend, besides the backend's own settings."""

    agents: Agents
    """The scheduler's connections to agents."""
    folder: Path
    """The service's folder, in which the backend may write. The next service with the same options gets the same."""
    restart_grace_s: float
    """The scheduler's setting: how long a lease outlives a kernel that ended by itself."""
    idle_exit_s: float
    """The scheduler's setting: how long an agent stays without a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEvent:
    """A change in the cluster. What changes about a lease itself is in the `LeaseBook`."""

    kind: Literal["nodes", "lease_warned", "prospect", "resync"]
    """`nodes`: the next snapshot differs. `lease_warned`: the manager will take the lease `lease_id` back soon.

    `prospect`: `reason` says what becomes of the lease's kernel if nothing changes; empty: it is safe again.
    `resync`: events may be missing, so all leases must be read again.
    """
    lease_id: str = ""
    """The lease that the event is about, if it is about one."""
    reason: str = ""
    """Why the lease will be taken back, or the prospect: a clause without a full stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReading:
    """All leases that roost holds on a cluster, and the agents that could not be asked."""

    leases: tuple[Lease, ...]
    """All leases of this user's services, pending and lost ones included."""
    unreachable: frozenset[str] = field(default_factory=frozenset)
    """Names for people: of nodes whose agents do not answer, or of a manager that is away.

    Kernels may run there although `leases` does not have their leases.
    """
    processes: Mapping[str, KernelProcess | None] = field(default_factory=dict)
    """The kernel process of each lease id, as far as the agents have reported it (None: no kernel runs).

    The scheduler asks the agents of all held leases that `processes` lacks.
    """
    unanswered: frozenset[str] = field(default_factory=frozenset)
    """The ids of pending leases in which a kernel may run, because the agent there does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """The known state of a node's agent. Nobody asks or starts the agent for it."""

    has_run: bool = False
    """True if the latest attempt to find or start the agent has succeeded, or if an earlier agent is connected."""
    problem: str = ""
    """Why that attempt has failed, as a clause; empty if `has_run`, or without an attempt."""


class Growth:
    """What a cluster may add to its nodes. The defaults are those of a cluster that keeps the nodes that it has."""

    after_s: float = 0.0
    """How long a request waits in roost's queue for a node that could hold it, before it is claimed without a node.

    It is claimed then only if a new node would help. 0: it is claimed at once, and waits in the manager's queue.
    """
    start_timeout_s: float = 0.0
    """How long a claim without a node may wait, if that is longer than the time of its start."""

    @property
    def adds_nodes(self) -> bool:
        """True if the manager has a queue of its own, which keeps claims that no node can take now.

        roost then claims each request for which it finds no node, and leaves `node_id` empty. Such a claim waits in
        the manager's queue instead of roost's. The manager may also add a node for it.
        """
        return False

    @property
    def may_grow(self) -> bool:
        """True if nodes may come of kinds that `list_types` lacks. Then no request is refused for good."""
        return self.adds_nodes

    def list_types(self, snapshot: Snapshot) -> Sequence[NodeType]:
        """Return the kinds of nodes that the cluster could start, as far as they are known.

        `snapshot` has the nodes that are there. Cheap: each start calls it.
        """
        return ()

    def why_not(self, request: Request) -> str:
        """Return why the manager cannot be asked for a new node for this request, as a clause; empty if it can."""
        return ""


class Backend(ABC):
    """The adapter to one cluster. All methods run on the scheduler's event loop and never block it.

    A method that needs the cluster raises `BackendUnavailable` within seconds if the cluster cannot be reached.
    `claim` and `release` first write into `book` what the scheduler wants. The backend also writes there what the
    cluster shows of each lease: before `claim` and `release` return, and whenever it learns of a change.
    """

    name: str
    address: str = ""
    """The cluster's address, for people. Empty if it is not known yet, or if there is nothing to show."""
    growth: Growth = Growth()
    """What the cluster may add to its nodes."""
    other_holders: str = ""
    """The other holders of what the nodes have, to complete "held by": "Ray actors and tasks that roost did not start".

    Empty if roost cannot tell their amounts from those of its own leases.
    """

    @cached_property
    def book(self) -> LeaseBook:
        """The leases of the cluster, as far as this service knows them."""
        return LeaseBook()

    @property
    def is_still_reading(self) -> bool:
        """True while snapshots may lack nodes or kinds of them, because roost has not read all of these yet.

        Until then no request is refused for good.
        """
        return False

    @abstractmethod
    async def open(self) -> None:
        """Join the cluster. Called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the cluster; leases and kernels stay. May be repeated."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """Return all nodes as they are now. Cheap: each start calls it, and each change wakes the starts that wait.

        After a `LeaseConflict` and after a `release`, the next snapshot is as new as that.
        """

    @abstractmethod
    def events(self) -> AsyncIterator[BackendEvent]:
        """Yield changes as they happen, until the backend is closed."""

    @abstractmethod
    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        """Claim the slice that `lease` describes; return the lease held or pending.

        `lease.node_id` is the chosen node (empty: any, see `Growth`), and `lease.device_ids` are the preferred
        devices. The result names the node and the devices that the manager granted. Raises `LeaseConflict` as soon as
        the manager refuses, or lets the claim wait for room on that node: another node may be free. Any other error,
        such as `NoNodeEver`, ends the start. May be repeated with the same lease id: the answer is the same, until
        `release`. `launch` is the launch that will follow: a backend may send it along with the claim.
        """

    @abstractmethod
    async def release(self, lease: Lease) -> None:
        """Give a lease back (or cancel it while pending) and end its kernel.

        May be repeated, also for a lease that was never claimed. Afterwards `leases` does not list it, and the same
        lease id may be claimed again.
        """

    @abstractmethod
    async def leases(self) -> LeaseReading:
        """Read all leases of roost on this cluster, pending ones included, whichever process claimed them."""

    @abstractmethod
    async def agent(self, lease: Lease) -> AgentAddress:
        """Return the address of the lease's agent, which is started if need be.

        The scheduler groups leases by this address. Raises `UnknownKernel` if the lease's node has left the cluster,
        because then no kernel can run there.
        """

    @abstractmethod
    async def warm_up(self) -> int:
        """Start the agents of all nodes before they are needed; return their number (0 for an agent per kernel)."""

    async def explain_loss(self, lease: Lease) -> str:
        """Return why the manager ends this lease, as a clause; empty if it does not say.

        Called after the lease's agent has reported that it is being ended. The agent does not know the cause. The
        scheduler waits for 3 s at most.
        """
        return ""

    async def environment(self, lease: Lease) -> Mapping[str, str]:
        """Return the variables that this backend adds to the environment of a kernel in this lease, which is held.

        Called before each launch, so it may also prepare the launch. A restart has no `claim` before it. Raises
        `LaunchError` if no such kernel can start, and `BackendUnavailable`.
        """
        return {}

    def note_caller(self) -> None:
        """Note that a client has connected, or is about to start a kernel: a person may have mended a problem.

        May be called during `open`.
        """
        return

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for values of `request.options` that this cluster cannot serve.

        Called before a request queues. The service has already checked the names and types by the `BackendSpec`.
        """
        return

    def to_placement(self, request: Request) -> Request:
        """Return the request with labels and tolerated taints for its options. Called after `check_request`.

        A feature of the manager that has no value is a label with the value `yes`.
        """
        return request

    def report_agent(self, node_id: str) -> AgentReport:
        """Return the known state of this node's agent. With an agent per kernel, nothing is known."""
        return AgentReport()

    def left_nodes(self) -> Mapping[str, float]:
        """Return the nodes that have left the cluster lately, and for how many seconds they have been gone."""
        return {}

    async def diagnose(self) -> list[Finding]:
        """Return what `roost doctor` should say about this cluster. Raises `BackendUnavailable`."""
        return []
