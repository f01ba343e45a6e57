"""`DockerCluster`: the containers of one service on a Docker engine, for `AgentPerKernelBackend`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from typing import Any

from roost.launchers.daemon.tasks import cancel_all, spawn, wait_until_set
from roost.launchers.protocol.messages import Launch, Lease
from roost.placement import Device, Node, Request
from roost.scheduler.backends.agent_per_kernel import AGENT_PORT, Pod, PodChange, PodCluster
from roost.scheduler.backends.key_pair import KeyPair, load_key_pair
from roost.scheduler.errors import BackendUnavailable, ConfigError, LeaseConflict

from .container_end import explain_container
from .container_spec import check_request, find_image
from .container_state import (
    ABANDONED,
    STOPPED,
    STOPPING,
    End,
    build_lost,
    build_pod,
    find_ip,
    has_ended,
    has_lost_creator,
    has_started,
    is_claim,
    is_of,
    is_starting,
    read_lease,
)
from .creation import ContainerCreator
from .engine import Engine, EngineError, JsonObject
from .images import has_image
from .merging import OwnChanges
from .names import CLAIM_NAME, ID_LABEL, SERVICE_LABEL
from .pending import PendingLeases
from .settings import RoostDockerBackend
from .start_volumes import StartVolumes

log = logging.getLogger(__name__)

_STOPS = ("9", "15")
"""The signals with which `docker stop`, `kill` and `rm` end a container."""
_ENDS_S = 2.0
"""How long an ending container may take until the engine reports it: less than roost waits for `explain_end`."""
_STARTING = "its container is being started"


class DockerCluster(PodCluster):
    """Creates, removes and follows the containers whose label names this service's key pair, through `engine`."""

    name = "Docker"
    unit = "container"

    def __init__(self, settings: RoostDockerBackend, engine: Engine) -> None:
        self._settings, self._engine = settings, engine
        self._node = Node(id="docker")
        self._start_volumes = StartVolumes(engine, lambda: self._key_pair)
        self._creator = ContainerCreator(engine, settings, lambda: self._key_pair, lambda: self._node)
        self._pending = PendingLeases(engine, self._create, self._report)
        self._own_changes: OwnChanges[PodChange] = OwnChanges()
        """The changes of pending leases, until `changes` yields them."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped: set[str] = set()
        """The ids of the containers that somebody has stopped, until the engine has removed them."""
        self._died: set[str] = set()
        """The ids of the containers that have ended, until the engine has removed them."""
        self._end_noted = asyncio.Event()
        """Set when one of these two has a new id."""

    @cached_property
    def _key_pair(self) -> KeyPair:
        """The service's key pair. It is created only after the engine has answered."""
        return load_key_pair(self._settings.identity_file, name="docker", section="RoostDockerBackend")

    async def join(self) -> str:
        try:
            info = await self._engine.describe()
        except EngineError as problem:
            raise BackendUnavailable(f"the Docker engine refuses roost: {problem.message}") from None
        self._creator.engine_folder = str(info.get("DockerRootDir") or "")
        self._node = read_node(info, self._settings)
        self._stopped, self._died = set(), set()
        await cancel_all(self._tasks)
        spawn(self._creator.remove_left_claim(), self._tasks, log)
        return self._engine.address

    async def close(self) -> None:
        await self._pending.close()
        await cancel_all(self._tasks)
        self._engine.close()

    async def nodes(self) -> Sequence[Node]:
        others = [listed for listed in await self._creator.read_all() if not self._creator.is_ours(listed)]
        return [self._creator.fill(others)]

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for what this engine or its operator does not allow."""
        check_request(request, self._settings)

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        pending = self._pending.find(lease.id)
        if pending is not None and pending.lease.state != "lost":
            return pending
        await self._pending.drop(lease.id)
        image = find_image(lease.request, self._settings)
        if self._settings.pull == "missing" and not await has_image(self._engine, image):
            return self._pending.start(lease, launch, image)
        return await self._create(lease, launch)

    async def _create(self, lease: Lease, launch: Launch | None) -> Pod:
        pod, container_id = await self._creator.create(lease, launch)
        if container_id in self._died and pod.lease.state != "lost":  # its event came before this answer
            return build_lost(pod.lease, await self._explain(container_id))
        return pod

    async def delete(self, lease_id: str) -> None:
        await self._pending.drop(lease_id)
        for listed in await self._creator.find(lease_id):
            await self._creator.remove(listed["Id"])
        await self._start_volumes.remove(lease_id)

    async def pods(self) -> Sequence[Pod]:
        while True:
            pending = self._pending.ids()
            found = await self._read_pods()
            if pending <= self._pending.ids():  # no container was made after it was read
                return found

    async def _read_pods(self) -> list[Pod]:
        creating = set(self.creating)
        ours = await self._creator.read_all(f"{SERVICE_LABEL}={self._key_pair.label}")
        await self._start_volumes.remove_left({listed["Labels"][ID_LABEL] for listed in ours})
        found = [await self._read(listed) for listed in ours if not is_claim(listed)]
        creating |= set(self.creating)
        shown = self._pending.pods()
        shown += [pod for pod in found if pod is not None and not self._is_created(pod.lease.id, creating)]
        return sorted(shown, key=lambda pod: pod.lease.state != "lost")  # the last one of a lease counts

    async def changes(self) -> AsyncIterator[PodChange]:
        async with aclosing(self._own_changes.merge(self._engine.follow())) as events:
            async for event in events:
                if isinstance(event, PodChange):
                    change = self._pending.renew(event)
                else:
                    change = await self._read_event(event)
                if change is not None:
                    yield change

    async def explain_end(self, lease_id: str) -> str:
        listed = next(iter(await self._creator.find(lease_id)), None)
        if listed is None or listed["State"] == STOPPING or listed["Id"] in self._stopped:
            return STOPPED
        if not has_ended(listed) and not await self._await_end(listed["Id"]):
            return ""
        return (await self._explain(listed["Id"])).reason

    # Reading

    async def _read(self, listed: JsonObject) -> Pod | None:
        """Return a listed container of this service; None if it is being removed or has no lease."""
        lease = read_lease(listed["Labels"])
        if lease is None:
            return None
        if has_started(listed):
            return build_pod(lease, listed["Labels"], find_ip(listed), self._key_pair, AGENT_PORT)
        if is_starting(listed, time.time()) and not has_lost_creator(listed["Labels"]):
            return Pod(lease=replace(lease, state="pending", reason=_STARTING))
        if has_ended(listed):
            return build_lost(lease, await self._explain(listed["Id"]))
        return build_lost(lease, End(reason=ABANDONED)) if listed["State"] == "created" else None

    async def _read_event(self, event: JsonObject) -> PodChange | None:
        """Return the change that an event of one of roost's containers reports; None if there is none."""
        if not event:  # the first one
            return PodChange(kind="resync")
        action, container_id = str(event["Action"]), str(event["Actor"]["ID"])
        labels = event["Actor"]["Attributes"]
        names = {labels.get("name", ""), labels.get("oldName", "").lstrip("/")}
        if CLAIM_NAME in names and action in ("rename", "destroy"):
            self._creator.turn_ended.set()
        if labels.get("name") == CLAIM_NAME:  # it does not count yet
            return None
        if not is_of(labels, self._key_pair):
            return PodChange(kind="nodes") if action in ("rename", "die", "destroy") else None
        lease = read_lease(labels)
        if lease is None:
            return None
        if action == "kill" and labels.get("signal") in _STOPS:
            self._stopped.add(container_id)
            self._end_noted.set()
        elif action == "die":
            self._died.add(container_id)
            self._end_noted.set()
        elif action == "destroy":
            self._stopped.discard(container_id)
            self._died.discard(container_id)
            return PodChange(kind="nodes")
        if self._is_created(lease.id, self.creating):  # its creation reports it
            return None
        if action == "die":
            end = await self._explain(container_id)
            return PodChange(kind="pod", pod=build_lost(lease, end))
        if action == "start":  # by another process of this service
            try:
                pod, _ = await self._creator.inspect(container_id)
            except LeaseConflict:  # it is gone already
                return None
            return PodChange(kind="pod", pod=pod)
        return None

    async def _await_end(self, container_id: str) -> bool:
        """Wait until the engine reports that a container was stopped or has ended. Return False after `_ENDS_S`.

        The agent may report its end before the engine's event is read.
        """
        until = time.monotonic() + _ENDS_S
        while container_id not in self._stopped | self._died:
            self._end_noted.clear()
            if not await wait_until_set(self._end_noted, until - time.monotonic()):
                return False
        return True

    def _is_created(self, lease_id: str, creating: Collection[str]) -> bool:
        return lease_id in creating or lease_id in self._pending

    def _report(self, change: PodChange) -> None:
        """Let `changes` yield this."""
        self._own_changes.put(change)

    async def _explain(self, container_id: str) -> End:
        if container_id in self._stopped:
            return End(reason=STOPPED)
        return await explain_container(self._engine, container_id)


def read_node(info: JsonObject, settings: RoostDockerBackend) -> Node:
    """Return the engine's machine without kernels, from `Engine.describe`. Raises `ConfigError`."""
    if settings.gpus and info.get("Podman"):  # it takes the request, and starts the container without the GPU
        raise ConfigError(
            f"Podman {info['Podman']} gives no GPUs to containers that are made through Docker's interface: "
            "set c.RoostDockerBackend.gpus = 0."
        )
    labels = dict(label.split("=", 1) for label in info.get("Labels") or () if "=" in label)
    devices = tuple(Device(id=str(number), model=settings.gpu_model) for number in range(settings.gpus))
    return Node(
        id=str(info.get("Name") or "docker"),
        labels=labels,
        cpus=float(info.get("NCPU") or 0),
        memory_bytes=int(info.get("MemTotal") or 0),
        devices=devices,
        enforcement=f"cgroup v{info.get('CgroupVersion') or 1}" if info.get("MemoryLimit") else "",
    )
