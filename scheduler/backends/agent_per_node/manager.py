"""The interface of a cluster manager whose nodes have one agent each: all that Ray and Dask implement, and no more."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from roost.placement import Node, Request
from roost.scheduler.backends.base import AgentAddress, Lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable
from roost.scheduler.messages import Finding

from .membership import Membership, N

HasRoom = Callable[[str, Request], bool]
"""A function of a node's id and a request. It returns True if the request would fit on the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedAgent:
    """An agent, and the manager's daemon that started it (see `ManagedNode`)."""

    address: AgentAddress
    daemon: str


class ManagedNode(Protocol):
    """A node as its cluster manager describes it.

    `id` stays the same when the manager's daemon on the node is started again. `daemon` names that daemon.
    `started_agent` is the node's agent, if the manager reports it unasked.
    """

    @property
    def id(self) -> str: ...

    @property
    def daemon(self) -> str: ...

    @property
    def started_agent(self) -> StartedAgent | None: ...


class ClusterManager(Protocol[N]):
    """One cluster manager. Every coroutine raises `BackendUnavailable` if the manager does not answer."""

    name: str
    """The manager's name for people, such as "Ray"."""
    daemon: str
    """The manager's word for its process on a node, for messages to users."""
    claim_name: str
    """The manager's word for a lease, for messages to users."""
    other_holders: str
    """The other holders of the cluster's GPUs, for messages to users: "Ray actors and tasks"."""
    holds_claims: bool
    """True if the manager grants and keeps the claims. If not, the agents alone decide on leases and keep them."""
    membership: Membership[N]
    """The nodes of the cluster, and the reader that reads them.

    Each placement uses a reading that is at most 0.05 s old. After a claim or a conflict, the nodes are read again.
    """

    async def close(self) -> None:
        """Leave the cluster."""

    async def wait_until_described(self) -> None:
        """Wait, for a few seconds at most, until all facts about the nodes are known. Called once, by `open`."""

    async def wait_for_change(self) -> None:
        """Wait until it is time to read the nodes again."""

    async def read_metrics(self) -> Collection[str]:
        """Read the resources that are really used; return the ids of nodes with such figures."""

    def build_node(self, node: N, status: Node | None) -> Node:
        """Return the node for placement, with the `status` that its agent has reported.

        It is None while the agent is not connected. It has the real use and the promises of all leases there, which
        may be newer than the manager's figures. Count them, and everything else that the manager has promised: tasks,
        and claims that no agent has noted. A feature that has no value is a label with the value `yes`.
        """

    async def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        """Return the variables with which a kernel finds the cluster at `address`. Called before each launch."""

    async def claim(
        self, lease: Lease, node: N, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        """Claim the slice on exactly this node, or find it claimed; return the ids of its devices.

        Raises `LeaseConflict` as soon as the manager refuses, or lets the claim wait for room. The manager may grant
        other devices than the lease prefers. `again`: the claim is repeated after an outage, for a live kernel that has
        the slice. It then gets exactly the lease's devices, or conflicts.
        """

    def can_take_on(self, node: N) -> bool:
        """True unless the manager refuses all claims on this node for now, including claims after an outage."""

    async def release(self, lease: Lease) -> None:
        """Give the claim back, also while it is being made. May be repeated, also without a claim.

        The agent has ended the kernel before, unless it does not answer.
        """

    async def claims(self) -> Sequence[Lease]:
        """Return all claims of this user's services, whichever process made them.

        A claim is `lost` if no live daemon holds it. Called at the start, when the connection to an agent has ended,
        every 5 s while an agent is out of reach, and before a lease counts as lost because its claim is gone. Asks the
        manager now, instead of using the last reading.
        """

    def unclaimed(self, leases: Sequence[Lease], node: N) -> Sequence[Lease]:
        """Return those of the `leases` on this node whose claims are gone, by the last reading of the node."""

    async def start_agent(self, node_id: str) -> StartedAgent:
        """Start or find the agent of that node."""

    async def diagnose(self) -> list[Finding]:
        """Return what `roost doctor` should say about this cluster."""


async def has_claim(manager: ClusterManager[N], lease: Lease) -> bool:
    """True if the manager has the claim now, or keeps no claims. Raises `BackendUnavailable`."""
    return not manager.holds_claims or any(claim.id == lease.id for claim in await manager.claims())


def shorten_error(error: Exception) -> str:
    """Return the last line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def decode_agent(answer: Mapping[str, Any], node_id: str, daemon: str, key_pair: KeyPair) -> StartedAgent:
    """Return the agent that an answer of `node_archive.bring_up` describes. It accepts the service with this key pair.

    Raises `BackendUnavailable` if the answer has a problem.
    """
    if "problem" in answer:
        raise BackendUnavailable(f"no agent on {node_id}: {answer['problem']}")
    keys = key_pair.keys_for(str(answer["public"]))
    address = AgentAddress(endpoint=str(answer["endpoint"]), keys=keys)
    return StartedAgent(address=address, daemon=daemon)
