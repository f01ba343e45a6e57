"""`StartVolumes`: the volumes with start archives. The engine removes one with its container, unless a person did."""

from __future__ import annotations

from collections.abc import Callable, Collection

from roost.scheduler.backends.agent_per_kernel import shorten_id
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable

from .engine import Engine, EngineError, JsonObject
from .names import ID_LABEL, SERVICE_LABEL


class StartVolumes:
    """The volumes of one service's containers, which have secrets of their kernels."""

    def __init__(self, engine: Engine, key_pair: Callable[[], KeyPair]) -> None:
        self._engine, self._key_pair = engine, key_pair

    async def remove_left(self, known: Collection[str]) -> None:
        """Remove the volumes of leases whose `shorten_id` is not in `known`."""
        for volume in await self._list():
            if volume["Labels"][ID_LABEL] not in known:
                await self._remove(volume)

    async def remove(self, lease_id: str) -> None:
        """Remove the volumes of a lease. May be repeated."""
        for volume in await self._list(f"{ID_LABEL}={shorten_id(lease_id)}"):
            await self._remove(volume)

    async def _list(self, *labels: str) -> list[JsonObject]:
        filters = {"label": [f"{SERVICE_LABEL}={self._key_pair().label}", *labels]}
        try:
            answer = await self._engine.call(lambda client: client.volumes(filters=filters))
        except EngineError as problem:
            raise BackendUnavailable(f"Docker does not list its volumes: {problem.message}") from None
        return list(answer.get("Volumes") or ())

    async def _remove(self, volume: JsonObject) -> None:
        try:
            await self._engine.call(lambda client: client.remove_volume(volume["Name"]))
        except EngineError as problem:
            if problem.status not in (404, 409):
                raise BackendUnavailable(f"Docker does not remove a volume: {problem.message}") from None
