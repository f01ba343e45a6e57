"""Creates the containers of leases. The engine has no accounting, so services of all users take turns to add up.

A claim is a container with the name `CLAIM_NAME`, which only one container of the engine can have. If there is room, it
gets its own name: from then on it counts. Its archive comes next, and then its start. Nothing is orphaned if the
service ends in between. Its next service removes the claim, and any other one does after `_STALE_S`. A container that
was never started counts as lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import zmq

from roost.launchers.protocol.messages import Assignment, Launch, Lease, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.placement import Node
from roost.scheduler.backends.agent_per_kernel import AGENT_PORT, Pod, shorten_id
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable, LaunchError, LeaseConflict

from .container_end import explain_container
from .container_spec import build_archive, build_container, find_image, find_place
from .container_state import (
    ENDED,
    build_lost,
    build_pod,
    find_ip,
    has_lost_creator,
    has_started,
    holds_room,
    is_claim,
    is_of,
    read_lease,
    shorten,
)
from .engine import Engine, EngineError, JsonObject
from .images import find_user
from .mounts import find_mounts
from .names import CLAIM_NAME, ID_LABEL, LEASE_LABEL, SERVICE_LABEL, name_container
from .settings import RoostDockerBackend

_TURN_S = 20.0
"""How long a claim waits for its turn."""
_LOOK_S = 0.25
"""How long a claim waits for the engine's event before it tries again."""
_STALE_S = 10.0
"""The service of an older claim has ended."""
_EPSILON = 1e-9


class ContainerCreator:
    """Creates, reads and removes containers.

    `key_pair` returns the service's keys, and `node` the engine's machine without kernels. `turn_ended` is set by the
    reader of the engine's events when a claim has ended.
    """

    def __init__(
        self,
        engine: Engine,
        settings: RoostDockerBackend,
        key_pair: Callable[[], KeyPair],
        node: Callable[[], Node],
    ) -> None:
        self.engine_folder = ""
        """The folder with the engine's files, once the engine has named it."""
        self._engine, self._settings = engine, settings
        self._key_pair, self._node = key_pair, node
        self._lock = asyncio.Lock()
        self.turn_ended = asyncio.Event()

    async def create(self, lease: Lease, launch: Launch | None) -> tuple[Pod, str]:
        """Create and start the container of a lease, or find it. Return it with its id.

        Raises `LeaseConflict`, `LaunchError` and `BackendUnavailable`.
        """
        image = find_image(lease.request, self._settings)
        user = await find_user(self._engine, image, self._settings)
        mounts = await find_mounts(lease.request, self._settings, self._engine, self.engine_folder)
        for listed in await self.find(lease.id):
            if has_started(listed):
                return await self.inspect(listed["Id"])
            await self.remove(listed["Id"])
        public, secret = (key.decode() for key in zmq.curve_keypair())
        container_id, granted = await self._claim(lease, image, public, mounts)
        try:
            reserve = Reserve(lease=granted, is_granted=True, launch=launch)
            clients = frozenset([self._key_pair().public])
            assignment = Assignment(
                keys=ServerKeys(public=public, secret=secret, clients=clients), reserve=reserve
            )
            archive = build_archive(assignment, self._settings, user)
            place = find_place(self._settings)
            await self._engine.call(lambda client: client.put_archive(container_id, place, archive))
            await self._engine.call(lambda client: client.start(container_id))
            return await self.inspect(container_id)
        except BaseException as problem:
            await asyncio.shield(self.remove(container_id))
            if isinstance(problem, EngineError):
                raise LaunchError(f"Docker cannot start {image}: {shorten(problem.message)}.") from None
            raise

    async def read_all(self, *labels: str) -> list[JsonObject]:
        """Return all containers of roost's with these labels, of all services, running or not."""
        filters = {"label": [LEASE_LABEL, *labels]}
        return await self._ask(lambda client: client.containers(all=True, filters=filters))

    async def find(self, lease_id: str) -> list[JsonObject]:
        """Return the containers of a lease of this service, but no claims."""
        found = await self.read_all(
            f"{ID_LABEL}={shorten_id(lease_id)}", f"{SERVICE_LABEL}={self._key_pair().label}"
        )
        return [listed for listed in found if not is_claim(listed)]

    async def inspect(self, container_id: str) -> tuple[Pod, str]:
        """Return a container of this service with its id. Raises `LeaseConflict` if it is gone."""
        try:
            found = await self._engine.call(lambda client: client.inspect_container(container_id))
        except EngineError as problem:
            raise LeaseConflict(f"its container is gone: {problem.message}") from None
        labels = found["Config"]["Labels"]
        lease = read_lease(labels)
        assert lease is not None
        if found["State"]["Status"] in ENDED:
            return build_lost(lease, await explain_container(self._engine, container_id)), container_id
        return build_pod(lease, labels, find_ip(found), self._key_pair(), AGENT_PORT), container_id

    async def remove(self, container_id: str) -> None:
        """Kill and remove a container with its anonymous volumes. May be repeated."""
        try:
            await self._engine.call(lambda client: client.remove_container(container_id, v=True, force=True))
        except EngineError as problem:
            if problem.status not in (404, 409):  # 409: somebody else removes it
                raise BackendUnavailable(f"Docker does not remove a container: {problem.message}") from None

    async def remove_left_claim(self) -> None:
        """Remove the claim that an earlier service has left, if any, as soon as it is stale."""
        if await self.remove_stale_claim():
            await asyncio.sleep(_STALE_S + 1.0)
            await self.remove_stale_claim()

    async def remove_stale_claim(self) -> bool:
        """Remove a claim whose service has ended. Return True if there is a newer claim."""
        is_newer = False
        for listed in filter(is_claim, await self.read_all()):
            is_lost = self.is_ours(listed) and has_lost_creator(listed["Labels"])
            if is_lost or time.time() - listed["Created"] > _STALE_S:
                await self.remove(listed["Id"])
            else:
                is_newer = True
        return is_newer

    def fill(self, listed: Sequence[JsonObject]) -> Node:
        """Return the engine's machine with the kernels of these containers."""
        node, now = self._node(), time.time()
        for each in listed:
            lease = read_lease(each["Labels"])
            if lease is not None and holds_room(each, now):
                node = node.with_kernel(lease.request, lease.device_ids)
        return node

    def is_ours(self, listed: JsonObject) -> bool:
        """True if this service has created a listed container."""
        return is_of(listed["Labels"], self._key_pair())

    async def _claim(
        self, lease: Lease, image: str, agent_public: str, mounts: Sequence[JsonObject]
    ) -> tuple[str, Lease]:
        """Create a container that counts, and return its id and its lease as granted."""
        until = time.monotonic() + _TURN_S
        name = name_container(lease.owner.user, lease.id)
        async with self._lock:
            while True:
                self.turn_ended.clear()
                granted = self._grant(lease, await self.read_all())
                content = build_container(
                    granted, image, self._settings, self._key_pair().label, agent_public, mounts
                )
                container_id = await self._take_turn(content, image)
                if not container_id:
                    if time.monotonic() > until:
                        raise LeaseConflict("other services claim all the time")
                    await self.remove_stale_claim()
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self.turn_ended.wait(), _LOOK_S)
                    continue
                try:
                    if self._grant(granted, await self.read_all()) == granted:
                        await self._rename(container_id, name)
                        return container_id, granted
                except EngineError as problem:
                    await self.remove(container_id)
                    raise LeaseConflict(f"its claim was lost: {problem.message}") from None
                except BaseException:
                    await asyncio.shield(self.remove(container_id))
                    raise
                await self.remove(container_id)  # others have taken its devices meanwhile: choose again

    async def _rename(self, container_id: str, name: str) -> None:
        await self._engine.call(lambda client: client.rename(container_id, name))

    async def _take_turn(self, content: JsonObject, image: str) -> str:
        """Create a container as a claim and return its id; empty if another claim is under way."""
        try:
            answer = await self._engine.call(
                lambda client: client.create_container_from_config(content, CLAIM_NAME)
            )
        except EngineError as problem:
            if problem.is_name_taken:
                return ""
            raise LaunchError(f"Docker cannot make a container of {image}: {problem.message}.") from None
        return str(answer["Id"])

    def _grant(self, lease: Lease, listed: Sequence[JsonObject]) -> Lease:
        """Return the lease with its node and free devices, its own ones first. Raises `LeaseConflict`."""
        request, node = lease.request, self.fill(listed)
        free = [device.id for device in node.fitting_devices(request)] if request.gpus else []
        chosen = sorted(free, key=lambda device: device not in lease.device_ids)[: request.gpu_count]
        if (
            len(chosen) < request.gpu_count
            or node.cpus_free < request.cpus - _EPSILON
            or node.memory_free_bytes < request.memory_bytes
        ):
            raise LeaseConflict(f"other kernels have taken the room on {node.id}")
        return replace(lease, node_id=node.id, device_ids=tuple(sorted(chosen)), state="held", reason="")

    async def _ask(self, work: Callable[..., list[JsonObject]]) -> list[JsonObject]:
        try:
            return await self._engine.call(work)
        except EngineError as problem:
            raise BackendUnavailable(f"Docker does not list its containers: {problem.message}") from None
