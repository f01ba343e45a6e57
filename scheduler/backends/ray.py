"""The nodes of a Ray cluster. Leases are Ray's placement groups, kernels belong to an agent on each node.

The driver is this process, which Ray ends a minute after its head is gone. So nothing is kept here that is not in Ray
or with the agents, but where these listen (`ray_agents`): the next service serves the kernels that live while Ray is
away, and takes their leases again when the same cluster is back.

One reading of Ray's state (0.4 ms) brings the picture up to date: twice a second, and before a placement.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from roost.launchers.messages import AgentEvent, Owner, Reservation, Reserve
from roost.launchers.node import AgentSettings
from roost.launchers.rpc import ClientKeys
from roost.launchers.wire import decode
from roost.placement import Placement, Request, Snapshot
from roost.scheduler.agents import Agents
from roost.scheduler.config import Settings
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel

from . import ray_groups, ray_host, ray_state
from .base import AgentAddress, Backend, BackendEvent, Lease
from .ray_agents import Host, RayAgents
from .ray_driver import RayDriver
from .ray_groups import Group
from .ray_state import RayNode

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S = 0.5
"""So often Ray's state is read: joins, deaths and lost leases are seen within a second."""
_FRESH_S = 0.05
"""A placement is made on a picture that is no older."""
_STATUS_S = 5.0
"""So often the agents that are connected are asked what is really used."""
_START_AGENT_S = 45.0
_PROBE_S = 30.0
_CONFIRM_S = 1.2
"""What was freed shows to Ray's GCS up to a second late: so long a refusal is doubted."""
_REJOIN_S = 3.0
_MISSES = 3
"""A group that Ray's state does not show so often in a row is looked up, and lost if there is none."""


class RayBackend(Backend):
    """`folder` is for `agents.json`; `address` of the cluster, else of the settings, else the one of this machine."""

    name = "ray"

    def __init__(self, settings: Settings, agents: Agents, *, folder: Path) -> None:
        self._settings = settings
        self._agents = agents
        self._hosts = RayAgents(folder / "agents.json", agents, self._bring_up)
        self._ray = RayDriver(self._on_nodes)
        self._leases: dict[str, Lease] = {}
        self._group_ids: dict[str, str] = {}
        self._misses: dict[str, int] = {}
        self._expected: dict[str, float] = {}  # nodes that may come back after an outage, and until when
        self._claims: dict[str, asyncio.Task[Group]] = {}  # by name, groups that Ray was asked for
        self._anchors: dict[str, Any] = {}  # by Ray's id of the node
        self._picture = Snapshot.of([])
        self._taken_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: asyncio.Queue[BackendEvent | None] = asyncio.Queue()

    async def open(self) -> None:
        self._agents.listen(self._on_agent)
        try:
            await self._join()
        except BackendUnavailable as problem:
            if not self._hosts:
                raise
            log.warning("Ray is away, its kernels are served all the same: %s", problem)
        self._spawn(self._keep_up())

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self._hosts.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ray.close()
        self._events.put_nowait(None)

    async def snapshot(self) -> Snapshot:
        if self._ray.away:
            raise BackendUnavailable(f"the Ray cluster is away: {self._ray.away}")
        await self._ray.read(max_age_s=_FRESH_S)
        return self._picture.aged(time.monotonic() - self._taken_at)

    async def watch(self) -> AsyncIterator[BackendEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def lease(
        self, request: Request, placement: Placement, *, lease_id: str, kernel_id: str, owner: Owner
    ) -> Lease:
        node = self._ray.nodes.get(placement.node_id)
        if node is None:
            raise LeaseConflict(f"there is no node {placement.node_id} any more")
        name = ray_groups.group_name(lease_id, owner.user)
        host = _watched(self._hosts.address(node.id))  # while Ray decides, and finds its devices
        claim = self._claims[name] = _watched(self._claim(name, request, node))
        try:
            group = await asyncio.shield(claim)  # Ray's answer comes in any case: `release` waits for it
            self._group_ids[lease_id] = group.id
            device_ids = await self._device_ids(name, request, node)
            await host
            reserve = Reserve(
                lease_id=lease_id,
                kernel_id=kernel_id,
                owner=owner,
                cpus=request.cpus,
                memory_bytes=request.memory_bytes,
                gpus=request.gpus,
                gpu_models=request.gpu_models,
                device_ids=device_ids,
                resources=request.resources,
                is_granted=True,
                linger_s=self._settings.restart_grace_s,
            )
            reservation = await self._hosts.call(node.id, lambda agent: agent.reserve(reserve))
        except LeaseConflict:
            self._ray.forget_reading()
            raise
        finally:
            host.cancel()
            claim.add_done_callback(lambda _: self._claims.pop(name, None))
        lease = _lease(reservation, node.id)
        self._note(lease)
        return lease

    async def release(self, lease: Lease) -> None:
        self._leases.pop(lease.id, None)
        name = ray_groups.group_name(lease.id, lease.owner.user)
        if name in self._claims:
            await asyncio.wait([self._claims[name]])
        try:
            await self._hosts.call(lease.node_id, lambda agent: agent.release(lease.id))
        except BackendUnavailable:
            if self._ray.away or lease.node_id in self._ray.nodes:
                self._leases[lease.id] = lease
                raise
        self._forget(lease.id)
        if not self._ray.away:  # else it is gone with the cluster, or found when that is back
            await self._ray.ask(ray_groups.remove, name)
        self._draw([lease.node_id])
        self._events.put_nowait(BackendEvent(kind="nodes"))

    async def adopt(self, lease: Lease, owner: Owner) -> Lease:
        await self._hosts.call(lease.node_id, lambda agent: agent.adopt(lease.id, owner))
        adopted = replace(lease, owner=owner)
        if lease.id in self._leases:
            self._leases[lease.id] = adopted
        return adopted

    async def leases(self) -> list[Lease]:
        groups = [] if self._ray.away else await self._ray.ask(ray_groups.groups)
        by_ray_id = {node.ray_id: node.id for node in self._ray.nodes.values()}
        places = {group.lease_id: by_ray_id.get(group.node, "") for group in groups}
        node_ids = {*filter(None, places.values()), *(self._hosts if self._ray.away else self._expected)}
        found: dict[str, Lease] = {}
        for held in await asyncio.gather(*map(self._held_on, node_ids)):
            found.update({lease.id: lease for lease in held})
        for group in groups:
            self._group_ids[group.lease_id] = group.id
            if group.lease_id not in found:
                bare = _bare_lease(group, places[group.lease_id])
                found[bare.id] = self._leases.get(bare.id, bare) if bare.node_id else bare
        if not self._ray.away:
            found = {
                lease_id: lease
                for lease_id, lease in found.items()
                if lease_id in places or lease.node_id in self._expected
            }
        self._leases = {lease_id: lease for lease_id, lease in found.items() if lease.node_id}
        self._draw(list(self._ray.nodes))
        return list(found.values())

    async def agent(self, lease: Lease) -> AgentAddress:
        if not self._ray.away and lease.node_id not in {*self._ray.nodes, *self._expected}:
            raise UnknownKernel(
                f"its node {lease.node_id} has left the Ray cluster", kernel_id=lease.kernel_id
            )
        return await self._hosts.address(lease.node_id)

    async def up(self) -> int:
        await self.snapshot()
        calls = [self._hosts.call(node_id, lambda agent: agent.status()) for node_id in self._ray.nodes]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await self._ask_agents()  # they are connected now: what is really used on their nodes is known
        problems = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if problems:
            raise problems[0]
        return len(outcomes)

    def environment(self, lease: Lease) -> Mapping[str, str]:
        group = ray_groups.group_name(lease.id, lease.owner.user)
        return {
            "RAY_ADDRESS": self._hosts.cluster,
            "RAY_NAMESPACE": ray_groups.NAMESPACE,
            "ROOST_PLACEMENT_GROUP": group,
        }

    # The cluster

    async def _join(self) -> None:
        address = self._settings.ray.address or os.environ.get("RAY_ADDRESS") or self._hosts.cluster
        self._hosts.cluster = await self._ray.join(address)
        await self._take_again(self._hosts)

    async def _keep_up(self) -> None:
        """Bring the picture up to date for as long as the backend is open."""
        asked_at = 0.0
        while True:
            await asyncio.sleep(_REJOIN_S if self._ray.away else _LOOK_S)
            try:
                if self._ray.away:
                    await self._join()
                    self._events.put_nowait(BackendEvent(kind="resync"))
                else:
                    await self._ray.read()
                    if back := self._expected.keys() & self._ray.nodes.keys():
                        await self._take_again(back)
                        for node_id in back:
                            del self._expected[node_id]
                    await self._find_lost()
                if time.monotonic() - asked_at > _STATUS_S:
                    asked_at = time.monotonic()
                    await self._ask_agents()
            except RoostError as problem:
                log.debug("Ray is away: %s", problem)
            except Exception:
                log.exception("the picture of the Ray cluster cannot be brought up to date")

    async def _ask_agents(self) -> None:
        await self._hosts.ask_status()
        self._taken_at = time.monotonic()
        self._draw(list(self._hosts.status))

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        for node_id in changed:
            self._hosts.check(self._ray.nodes[node_id])
        for ray_id in self._anchors.keys() - {node.ray_id for node in self._ray.nodes.values()}:
            del self._anchors[ray_id]
        self._picture = self._picture.apply([], removed=[name for name in gone if name in self._picture])
        self._draw(changed)
        self._events.put_nowait(BackendEvent(kind="nodes"))

    async def _find_lost(self) -> None:
        """Tell of leases whose node or group is gone, though nobody here has given them back."""
        for lease in list(self._leases.values()):
            if time.monotonic() < self._expected.get(lease.node_id, 0.0):
                continue
            node, group_id = self._ray.nodes.get(lease.node_id), self._group_ids.get(lease.id)
            if node is not None and (node.groups is None or group_id is None or group_id in node.groups):
                self._misses.pop(lease.id, None)
                continue
            self._misses[lease.id] = self._misses.get(lease.id, 0) + 1
            if self._misses[lease.id] < _MISSES:
                continue
            del self._misses[lease.id]
            name = ray_groups.group_name(lease.id, lease.owner.user)
            if node is None and lease in await self._held_on(lease.node_id):
                self._expect(lease.node_id)  # its agent lives, and waits for the cluster to come back
            elif node is None:
                await self._ray.ask(
                    ray_groups.remove, name
                )  # or it would wait for a node, an autoscaler's too
                self._lost(lease.id, f"its node {lease.node_id} has left the Ray cluster")
            elif await self._ray.ask(ray_groups.find, name) is None:
                self._lost(lease.id, "its placement group was removed")

    def _expect(self, node_id: str) -> None:
        self._expected.setdefault(node_id, time.monotonic() + self._settings.ray.manager_grace_s)

    async def _take_again(self, node_ids: Iterable[str]) -> None:
        """After Ray was away: claim again what kernels that live hold, on those of these nodes that are back.

        For the others this is tried when they come. Whose slice somebody else has now, or on other devices, has lost
        its lease.
        """
        groups = await self._ray.ask(ray_groups.groups)
        holders = {group.lease_id: group.is_created for group in groups}
        held = [lease for leases in await asyncio.gather(*map(self._held_on, node_ids)) for lease in leases]
        for lease in sorted(
            held, key=lambda lease: lease.device_ids
        ):  # as Ray gives them: the first that is free
            self._leases[lease.id] = lease
            node = self._ray.nodes.get(lease.node_id)
            if node is None:
                self._expected.setdefault(
                    lease.node_id, time.monotonic() + self._settings.ray.manager_grace_s
                )
            elif not holders.get(lease.id):
                await self._take_one_again(lease, node, is_waiting=lease.id in holders)

    async def _take_one_again(self, lease: Lease, node: RayNode, *, is_waiting: bool) -> None:
        name = ray_groups.group_name(lease.id, lease.owner.user)
        try:
            if is_waiting:  # for a raylet that is gone
                await self._ray.ask(ray_groups.remove, name)
            group = await self._ray.ask(ray_groups.create, name, lease.request, node)
            self._group_ids[lease.id] = group.id
            device_ids = await self._device_ids(name, lease.request, node)
            if device_ids != lease.device_ids:
                await self._ray.ask(ray_groups.remove, name)
                raise LeaseConflict(f"Ray gave it other devices ({', '.join(device_ids)})")
        except LeaseConflict as problem:
            self._lost(lease.id, f"the Ray cluster came back without room for it: {problem}")

    async def _claim(self, name: str, request: Request, node: RayNode) -> Group:
        """The placement group. A refusal is doubted where Ray's own state says that there is room."""
        try:
            return await self._ray.ask(ray_groups.create, name, request, node)
        except LeaseConflict:
            await self._ray.read()
            if len(self._claims) > 1 or not self._has_room(node.id, request):
                raise
        return await self._ray.ask(ray_groups.create, name, request, node, patience_s=_CONFIRM_S)

    def _has_room(self, node_id: str, request: Request) -> bool:
        if node_id not in self._ray.nodes:
            return False
        node = self._picture.node(node_id)
        has_devices = len(node.fitting(request)) >= request.gpu_count and node.gpus_free >= request.gpus
        is_enough = node.cpus_free >= request.cpus and node.memory_free_bytes >= request.memory_bytes
        has_rest = all(node.resource_free(name) >= asked for name, asked in request.resources.items())
        return is_enough and has_rest and (has_devices or not request.gpus)

    async def _device_ids(self, name: str, request: Request, node: RayNode) -> tuple[str, ...]:
        if not request.gpus:
            return ()
        anchor = self._anchors.get(node.ray_id)
        if anchor is None:
            anchor = self._anchors[node.ray_id] = await self._ray.ask(ray_groups.anchor, node)
        try:
            reference = await self._ray.ask(ray_groups.device_ids, name, request.gpus, anchor)
            return tuple(await self._ray.answer(reference, _PROBE_S, "to say which devices it has given"))
        except BackendUnavailable:
            self._anchors.pop(node.ray_id, None)  # it may have been for that
            raise

    # The agents

    async def _bring_up(self, node_id: str) -> Host:
        node = self._ray.nodes.get(node_id)
        if self._ray.away or node is None:
            raise BackendUnavailable(
                f"there is no agent on {node_id}: {self._ray.away or 'no such node in Ray'}"
            )
        settings = AgentSettings(
            cpus=node.total.get("CPU", 0.0),
            memory_bytes=int(node.total.get("memory", 0)),
            idle_exit_s=self._settings.ray.agent_idle_exit_s,
            preload=self._settings.ray.preload,
            address=node.address,
        )
        reference = await self._ray.ask(
            ray_host.agent_on,
            node,
            settings,
            cluster_address=self._hosts.cluster,
            grace_s=self._settings.ray.manager_grace_s,
            python=self._settings.ray.python,
        )
        answer = await self._ray.answer(reference, _START_AGENT_S, f"to start roost's agent on {node_id}")
        if "problem" in answer:
            raise BackendUnavailable(f"no agent on {node_id}: {answer['problem']}")
        address = AgentAddress(endpoint=answer["endpoint"], keys=decode(ClientKeys, answer["keys"]))
        return Host(address=address, ray_id=node.ray_id)

    async def _held_on(self, node_id: str) -> list[Lease]:
        return [_lease(reservation, node_id) for reservation in await self._hosts.reservations(node_id)]

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        node_id = self._hosts.node_at(endpoint)
        if event is None:
            self._hosts.status.pop(node_id, None)
        elif event.kind == "lost":
            self._lost(event.lease_id, event.reason)
        elif event.kind == "released":
            lease = self._leases.get(event.lease_id)
            if lease is not None:  # by the agent's own rules
                self._spawn(self._let_go(lease))
        elif event.kind == "reserved" and event.lease_id not in self._leases:
            self._spawn(self._learn(node_id))

    async def _let_go(self, lease: Lease) -> None:
        try:
            await self.release(lease)
        except RoostError as problem:
            log.warning("lease=%s its placement group is not removed yet: %s", lease.id, problem)

    async def _learn(self, node_id: str) -> None:
        """What others hold on a node, so that its devices' shares are right."""
        for lease in await self._held_on(node_id):
            self._leases.setdefault(lease.id, lease)
        self._draw([node_id])

    # The picture

    def _note(self, lease: Lease) -> None:
        self._leases[lease.id] = lease
        self._ray.forget_reading()
        self._draw([lease.node_id])

    def _forget(self, lease_id: str) -> None:
        self._leases.pop(lease_id, None)
        self._group_ids.pop(lease_id, None)
        self._misses.pop(lease_id, None)

    def _lost(self, lease_id: str, reason: str) -> None:
        self._forget(lease_id)
        self._events.put_nowait(BackendEvent(kind="lease_lost", lease_id=lease_id, reason=reason))

    def _draw(self, node_ids: Collection[str]) -> None:
        """Draw these nodes again."""
        wanted = {name for name in node_ids if name in self._ray.nodes}
        leases: dict[str, list[Lease]] = {name: [] for name in wanted}
        for lease in self._leases.values():
            if lease.node_id in wanted:
                leases[lease.node_id].append(lease)
        nodes = []
        for name in wanted:
            status, at = self._hosts.status.get(name, (None, 0.0))
            age_s = None
            if status is not None and status.metrics_age_s is not None:
                age_s = status.metrics_age_s + max(0.0, self._taken_at - at)
            nodes.append(ray_state.as_node(self._ray.nodes[name], leases[name], status, age_s))
        if nodes:
            self._picture = self._picture.apply(nodes)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a task failed: %s", task.exception())


def _watched(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose error is nobody's where nobody waits for it any more."""
    task = asyncio.get_running_loop().create_task(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


def _lease(reservation: Reservation, node_id: str) -> Lease:
    held = reservation.request
    return Lease(
        id=held.lease_id,
        kernel_id=held.kernel_id,
        node_id=node_id,
        device_ids=held.device_ids,
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


def _bare_lease(group: Group, node_id: str) -> Lease:
    """What a group alone says of a lease in which no agent holds anything yet, or any more."""
    amounts = group.amounts
    request = Request(
        cpus=amounts.get("CPU", 0.0),
        memory_bytes=int(amounts.get("memory", 0)),
        gpus=amounts.get("GPU", 0.0),
        resources={name: amounts[name] for name in ray_state.custom(amounts)},
        owner=group.user,
    )
    return Lease(
        id=group.lease_id,
        kernel_id=group.kernel_id,
        node_id=node_id,
        device_ids=(),
        request=request,
        owner=Owner(user=group.user),
    )
