"""`OwnerNotes`: the leases whose owner has changed. The labels of a container never change, but a volume can be new.

The volume is empty, and its labels have the lease. It is removed with the container. If a person has removed the
container, its volume with the start archive is removed too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

from roost.launchers.protocol.messages import Lease, Owner
from roost.scheduler.backends.agent_per_kernel import dump_lease, shorten_id
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable

from .container_state import read_lease
from .engine import Engine, EngineError, JsonObject
from .names import ID_LABEL, LEASE_LABEL, SERVICE_LABEL


class OwnerNotes:
    """The changed owners of one service's leases, as volumes of the engine."""

    def __init__(self, engine: Engine, key_pair: Callable[[], KeyPair]) -> None:
        self._engine, self._key_pair = engine, key_pair
        self._owners: dict[str, Owner] = {}
        """By `shorten_id` of the lease id, as they were read or written last."""

    def apply(self, lease: Lease) -> Lease:
        """Return the lease with its present owner."""
        owner = self._owners.get(shorten_id(lease.id))
        return lease if owner is None else replace(lease, owner=owner)

    async def read(self, known: Collection[str]) -> None:
        """Read all owners. Remove the volumes of leases whose `shorten_id` is not in `known`."""
        owners: dict[str, Owner] = {}
        for volume in await self._list():
            key, lease = volume["Labels"][ID_LABEL], read_lease(volume["Labels"])
            if key not in known:
                await self._remove(volume)
            elif lease is not None:
                owners[key] = lease.owner
        self._owners = owners

    async def write(self, lease: Lease) -> None:
        """Store the owner of this lease in place of the earlier one."""
        key = shorten_id(lease.id)
        earlier = await self._list(f"{ID_LABEL}={key}", LEASE_LABEL)
        labels = {LEASE_LABEL: dump_lease(lease), ID_LABEL: key, SERVICE_LABEL: self._key_pair().label}
        name = f"roost-owner-{key}-{time.time_ns():020d}"
        try:
            await self._engine.call(lambda client: client.create_volume(name, labels=labels))
        except EngineError as problem:
            raise BackendUnavailable(f"Docker does not make a volume: {problem.message}") from None
        self._owners[key] = lease.owner
        for volume in earlier:
            await self._remove(volume)

    async def remove(self, lease_id: str) -> None:
        """Forget the owner of a lease. May be repeated."""
        key = shorten_id(lease_id)
        self._owners.pop(key, None)
        for volume in await self._list(f"{ID_LABEL}={key}"):
            await self._remove(volume)

    async def _list(self, *labels: str) -> list[JsonObject]:
        """Return the volumes with these labels, the newest last."""
        filters = {"label": [f"{SERVICE_LABEL}={self._key_pair().label}", *labels]}
        try:
            answer = await self._engine.call(lambda client: client.volumes(filters=filters))
        except EngineError as problem:
            raise BackendUnavailable(f"Docker does not list its volumes: {problem.message}") from None
        return sorted(answer.get("Volumes") or (), key=lambda volume: str(volume["Name"]))

    async def _remove(self, volume: JsonObject) -> None:
        try:
            await self._engine.call(lambda client: client.remove_volume(volume["Name"]))
        except EngineError as problem:
            if problem.status not in (404, 409):
                raise BackendUnavailable(f"Docker does not remove a volume: {problem.message}") from None
