"""How a slice of a Dask machine is claimed: by the plugin in Dask's scheduler."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from roost.launchers.protocol.messages import Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_node.claims import Claim, Claims
from roost.scheduler.backends.base import Lease
from roost.scheduler.errors import LeaseConflict

from .driver import DaskDriver
from .nodes import DaskNode

_LEASE_S = 15.0
_WAIT_S = 0.3
"""So long a lease waits for Dask's tasks to end, before the queue has it ask again."""


class DaskClaims(Claims[DaskNode]):
    called = "lease in Dask's scheduler"

    def __init__(self, dask: DaskDriver) -> None:
        self._dask = dask

    async def take(self, lease: Lease, node: DaskNode) -> tuple[str, ...]:
        return await self._take(lease, again=False)

    async def take_again(self, lease: Lease, node: DaskNode) -> None:
        await self._take(lease, again=True)

    async def give_back(self, lease: Lease) -> None:
        await self._dask.ask("roost_release", lease_id=lease.id)

    async def all(self) -> Collection[Claim]:
        return [Claim(lease=_bare_lease(held)) for held in await self._dask.ask("roost_leases")]

    def shows(self, lease: Lease, node: DaskNode) -> bool:
        return lease.id in node.leases

    async def find(self, lease: Lease) -> bool:
        return any(claim.lease.id == lease.id for claim in await self.all())

    async def _take(self, lease: Lease, *, again: bool) -> tuple[str, ...]:
        request = lease.request
        held = {
            "lease_id": lease.id,
            "kernel_id": lease.kernel_id,
            "user": lease.owner.user,
            "machine": lease.node_id,
            "cpus": request.cpus,
            "memory_bytes": request.memory_bytes,
            "gpus": request.gpus,
            "resources": dict(request.resources),
        }
        answer = await self._dask.ask(
            "roost_lease",
            _LEASE_S,
            held=held,
            device_ids=list(lease.device_ids),
            again=again,
            wait_s=_WAIT_S,
        )
        if "refused" in answer:
            raise LeaseConflict(answer["refused"])
        return tuple(answer["device_ids"])


def _bare_lease(held: Mapping[str, Any]) -> Lease:
    """What the plugin in Dask's scheduler knows of a lease."""
    return Lease(
        id=held["lease_id"],
        kernel_id=held["kernel_id"],
        node_id=held["machine"],
        device_ids=tuple(held["device_ids"]),
        request=Request(
            cpus=held["cpus"],
            memory_bytes=held["memory_bytes"],
            gpus=held["gpus"],
            resources=dict(held["resources"]),
            owner=held["user"],
        ),
        owner=Owner(user=held["user"]),
    )
