"""The interface behind which every cluster manager stands. It knows nothing about Jupyter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal

from roost.launchers.protocol.messages import Owner, Reservation, Reserve
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Placement, Request, Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The claim on a slice of a node, held in the cluster manager's own accounting.

    `id` is `roost:<kernel id>:<scheduler>/<launch id>`, of the launch that took it. `node_id` and `device_ids` say
    where it really is, which may differ from what was placed; no `node_id`: on no node, since its own has left.
    """

    id: str
    kernel_id: str
    node_id: str
    device_ids: tuple[str, ...]
    request: Request
    owner: Owner

    @classmethod
    def of(cls, reservation: Reservation, node_id: str) -> Lease:
        """The lease that the agent of that node has noted."""
        held = reservation.request
        return cls(
            id=held.lease_id,
            kernel_id=held.kernel_id,
            node_id=node_id,
            device_ids=held.device_ids if held.gpus else (),
            request=Request(
                cpus=held.cpus,
                memory_bytes=held.memory_bytes,
                gpus=held.gpus,
                gpu_models=held.gpu_models,
                resources=held.resources,
                owner=held.owner.user,
            ),
            owner=held.owner,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAddress:
    """Where an agent listens, and the keys that it lets in."""

    endpoint: str
    keys: ClientKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEvent:
    """`nodes`: the next snapshot differs. `lease_lost`: the manager took `lease_id` back, for `reason`. `resync`: more
    may have changed than was told, and all leases are to be read again."""

    kind: Literal["nodes", "lease_lost", "resync"]
    lease_id: str = ""
    reason: str = ""


def reserve(
    lease: Lease, *, linger_s: float, gpu_models: tuple[str, ...] | None = None, is_granted: bool = False
) -> Reserve:
    """What a node's agent is asked to note of a lease; `gpu_models` where they are not the request's."""
    request = lease.request
    return Reserve(
        lease_id=lease.id,
        kernel_id=lease.kernel_id,
        owner=lease.owner,
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        gpus=request.gpus,
        gpu_models=request.gpu_models if gpu_models is None else gpu_models,
        device_ids=lease.device_ids,
        resources=request.resources,
        is_granted=is_granted,
        linger_s=linger_s,
    )


class Backend(ABC):
    """One cluster. All methods run on the scheduler's event loop and never block it.

    Errors: `BackendUnavailable` wherever the cluster cannot be reached, within seconds.
    """

    name: str
    address: str = ""
    """Where the cluster is, for people; empty before `open`, and where there is nothing to say."""
    silent: frozenset[str] = frozenset()
    """Nodes of which the last `leases` could not learn what is held there: kernels may live on them unknown."""

    @abstractmethod
    async def open(self) -> None:
        """Join the cluster. Called once, before anything else."""

    @abstractmethod
    async def close(self) -> None:
        """Leave the cluster; leases and kernels stay. May be repeated."""

    @abstractmethod
    async def snapshot(self) -> Snapshot:
        """All nodes as they are now."""

    @abstractmethod
    def watch(self) -> AsyncIterator[BackendEvent]:
        """Changes, as they happen. Ends when the backend is closed."""

    @abstractmethod
    async def lease(
        self, request: Request, placement: Placement, *, lease_id: str, kernel_id: str, owner: Owner
    ) -> Lease:
        """Claim the placed slice atomically; raises `LeaseConflict` in well under a second.

        May be repeated with the same `lease_id`: the same answer. After a conflict the next snapshot is a fresh one.
        """

    @abstractmethod
    async def release(self, lease: Lease) -> None:
        """Give the slice back, ending what still runs in it. May be repeated, also where nothing was claimed."""

    @abstractmethod
    async def adopt(self, lease: Lease, owner: Owner) -> Lease:
        """The same lease, held for another owner from now on. May be repeated, also where it is gone."""

    @abstractmethod
    async def leases(self) -> list[Lease]:
        """All leases that roost holds on this cluster, whoever made them."""

    @abstractmethod
    async def agent(self, lease: Lease) -> AgentAddress:
        """Where the agent for that lease listens; brought up if need be.

        Raises `UnknownKernel` where its node is no part of the cluster any more: nothing of it can run.
        """

    @abstractmethod
    async def up(self) -> int:
        """Bring up the agents of all nodes, before they are needed; their number."""

    def environment(self, lease: Lease) -> Mapping[str, str]:
        """What a kernel in that lease finds in its environment besides what its launch says."""
        return {}
