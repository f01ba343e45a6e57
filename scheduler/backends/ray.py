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
from typing import Any

from roost.launchers.messages import AgentEvent, Owner, Reserve
from roost.launchers.node import AgentSettings
from roost.launchers.rpc import ClientKeys
from roost.launchers.wire import decode
from roost.placement import Placement, Request, Snapshot
from roost.scheduler.agents import Agents
from roost.scheduler.config import Settings
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel

from . import ray_groups, ray_host
from .base import AgentAddress, Backend, BackendEvent, Lease
from .ray_agents import Host, RayAgents
from .ray_claims import RayClaims
from .ray_driver import RayDriver, watched
from .ray_picture import RayPicture, bare_lease

log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""So often Ray's state is read: joins, deaths and lost leases are seen within a second."""
_FRESH_S = 0.05
"""A placement is made on a picture that is no older."""
_STATUS_S = 5.0
"""So often the agents that are connected are asked what is really used."""
_START_AGENT_S = 45.0
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
        self._picture = RayPicture(self._hosts.status, self._hosts.ended)
        self._claims = RayClaims(self._ray, self._picture.has_room)
        self._misses: dict[str, int] = {}
        self._expected: dict[str, float] = {}  # nodes that may come back after an outage, and until when
        self._taking: set[str] = set()  # ids of leases
        self._released = 0  # how many agents have told of
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: asyncio.Queue[BackendEvent | None] = asyncio.Queue()

    async def open(self) -> None:
        self._agents.listen(self._on_agent)
        try:
            await self._join()
        except BackendUnavailable as problem:
            if not self._hosts:
                raise
            self._ray.away, self.address = str(problem), self._hosts.cluster
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
            at = f" at {self._hosts.cluster}" if self._hosts.cluster else ""
            raise BackendUnavailable(f"the Ray cluster{at} is away, its kernels live on: {self._ray.away}")
        await self._ray.read(max_age_s=_FRESH_S)
        return self._picture.snapshot()

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
        self._taking.add(lease_id)
        host = watched(self._hosts.address(node.id))  # while Ray decides, and finds its devices
        try:
            device_ids = await self._claims.take(lease_id, name, request, node)
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
            self._taking.discard(lease_id)
        lease = self._picture.leases[lease_id] = Lease.of(reservation, node.id)
        self._ray.forget_reading()
        self._tell_of([node.id])
        return lease

    async def release(self, lease: Lease) -> None:
        self._picture.leases.pop(lease.id, None)
        name = ray_groups.group_name(lease.id, lease.owner.user)
        await self._claims.settled(name)
        try:
            await self._hosts.call(lease.node_id, lambda agent: agent.release(lease.id))
        except BackendUnavailable:
            if self._ray.away or lease.node_id in self._ray.nodes:
                self._picture.leases[lease.id] = lease
                raise
        self._forget(lease.id)
        if not self._ray.away:  # else it is gone with the cluster, or found when that is back
            await self._ray.ask(ray_groups.remove, name)
        self._tell_of([lease.node_id])

    async def adopt(self, lease: Lease, owner: Owner) -> Lease:
        await self._hosts.call(lease.node_id, lambda agent: agent.adopt(lease.id, owner))
        adopted = replace(lease, owner=owner)
        if lease.id in self._picture.leases:
            self._picture.leases[lease.id] = adopted
        return adopted

    async def leases(self) -> list[Lease]:
        before = set(self._picture.leases)
        groups = [] if self._ray.away else await self._ray.ask(ray_groups.groups)
        by_ray_id = {node.ray_id: node.id for node in self._ray.nodes.values()}
        hosts = set(self._hosts)  # where no raylet is, an agent may know more than Ray
        others = hosts if self._ray.away else set(self._expected)
        places = {
            group.lease_id: by_ray_id.get(group.node, group.address if group.address in hosts else "")
            for group in groups
        }
        node_ids = sorted({*filter(None, places.values()), *others})
        found: dict[str, Lease] = {}
        silent = set[str]()
        answers = await asyncio.gather(*map(self._hosts.held_on, node_ids))
        for node_id, held in zip(node_ids, answers, strict=True):
            if held is None:
                silent.add(node_id)
                held = [lease for lease in self._picture.leases.values() if lease.node_id == node_id]
            found.update({lease.id: lease for lease in held})
        for group in groups:
            self._claims.group_ids[group.lease_id] = group.id
            if group.lease_id not in found:
                bare = bare_lease(group, places[group.lease_id])
                found[bare.id] = self._picture.leases.get(bare.id, bare) if bare.node_id else bare
        found = {name: lease for name, lease in found.items() if name in places or lease.node_id in others}
        self.silent = frozenset(silent & others)  # of all other nodes the groups tell
        taken_meanwhile = {name: lease for name, lease in self._picture.leases.items() if name not in before}
        on_nodes = {name: lease for name, lease in found.items() if lease.node_id}
        self._picture.leases = {**on_nodes, **taken_meanwhile}
        self._tell_of(list(self._ray.nodes))
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
        self.address = await self._ray.join(address)
        self._hosts.forget_others(self.address)
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
                    now = time.monotonic()
                    self._expected = {name: until for name, until in self._expected.items() if now < until}
                    if back := self._expected.keys() & self._ray.nodes.keys():
                        await self._take_again(back)
                        if back - self._expected.keys():
                            self._events.put_nowait(BackendEvent(kind="resync"))
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
        self._picture.draw_status(self._ray.nodes)

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        for node_id in changed:
            if self._hosts.check(self._ray.nodes[node_id]):
                self._expect(node_id)  # to be told of its new raylet, whether it holds anything or not
        self._hosts.ended &= (ray_ids := {node.ray_id for node in self._ray.nodes.values()})
        self._claims.keep_anchors(ray_ids)
        self._tell_of([*changed, *gone])

    def _tell_of(self, node_ids: Collection[str]) -> None:
        """Draw these nodes again, and tell if that changes the picture."""
        if self._picture.draw(self._ray.nodes, node_ids):
            self._events.put_nowait(BackendEvent(kind="nodes"))

    async def _find_lost(self) -> None:
        """Tell of leases whose node or group is gone, though nobody here has given them back."""
        for lease in list(self._picture.leases.values()):
            if lease.node_id in self._expected:
                continue
            node, group_id = self._ray.nodes.get(lease.node_id), self._claims.group_ids.get(lease.id)
            if node is not None and (node.groups is None or group_id is None or group_id in node.groups):
                self._misses.pop(lease.id, None)
                continue
            self._misses[lease.id] = self._misses.get(lease.id, 0) + 1
            if self._misses[lease.id] < _MISSES:
                continue
            del self._misses[lease.id]
            name = ray_groups.group_name(lease.id, lease.owner.user)
            if node is None and lease.id in {
                held.id for held in await self._hosts.held_on(lease.node_id) or ()
            }:
                self._expect(lease.node_id)  # its agent lives, and waits for the cluster to come back
            elif node is None:
                await self._ray.ask(ray_groups.remove, name)  # it would wait for a node, an autoscaler's too
                self._lost(lease.id, f"its node {lease.node_id} has left the Ray cluster")
            elif await self._ray.ask(ray_groups.find, name) is None:
                self._lost(lease.id, "its placement group was removed")

    def _expect(self, node_id: str) -> None:
        self._expected.setdefault(node_id, time.monotonic() + self._settings.ray.manager_grace_s)

    async def _take_again(self, node_ids: Iterable[str]) -> None:
        """After Ray was away: claim again what kernels that live hold, on those of these nodes that are back.

        For the others this is tried when they come. Whose slice somebody else has now has lost its lease.
        """
        raylets = {node.ray_id for node in self._ray.nodes.values()}
        groups = await self._ray.ask(ray_groups.groups)
        created = {group.lease_id for group in groups if group.is_created and group.node in raylets}
        node_ids = list(node_ids)
        for node_id, held in zip(
            node_ids, await asyncio.gather(*map(self._hosts.held_on, node_ids)), strict=True
        ):
            node = self._ray.nodes.get(node_id)
            node = None if node is None or node.is_held_up else node
            if held is None or (held and node is None):
                self._expect(node_id)
            else:
                self._expected.pop(node_id, None)
            # In the order in which Ray gives devices: the first that is free.
            for lease in sorted(held or (), key=lambda lease: lease.device_ids):
                self._picture.leases[lease.id] = lease
                if node is not None and lease.id not in created:
                    try:
                        await self._claims.take_again(lease, node)
                    except LeaseConflict as problem:
                        self._lost(lease.id, f"the Ray cluster came back without room for it: {problem}")

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

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        node_id = self._hosts.node_at(endpoint)
        if event is None:
            self._hosts.doubt(endpoint)
        elif event.kind == "lost" and not event.lease_id:
            self._hosts.cut_off(node_id)
            self._tell_of([node_id])
        elif event.kind == "lost":
            self._lost(event.lease_id, event.reason)
        elif event.kind == "released":
            self._released += 1
            lease = self._picture.leases.get(event.lease_id)
            if lease is not None:  # by the agent's own rules
                self._spawn(self._let_go(lease))
        elif event.kind == "reserved" and event.lease_id not in {*self._picture.leases, *self._taking}:
            self._spawn(self._learn(node_id))

    async def _let_go(self, lease: Lease) -> None:
        try:
            await self.release(lease)
        except RoostError as problem:
            log.warning("lease=%s its placement group is not removed yet: %s", lease.id, problem)

    async def _learn(self, node_id: str) -> None:
        """What others hold on a node, so that its devices' shares are right."""
        while True:
            released = self._released
            held = await self._hosts.held_on(node_id) or []
            if released == self._released:  # else it may be in the answer what was given back since
                break
        for lease in held:
            self._picture.leases.setdefault(lease.id, lease)
        self._tell_of([node_id])

    def _forget(self, lease_id: str) -> None:
        self._picture.leases.pop(lease_id, None)
        self._claims.group_ids.pop(lease_id, None)
        self._misses.pop(lease_id, None)

    def _lost(self, lease_id: str, reason: str) -> None:
        lease = self._picture.leases.get(lease_id)
        self._forget(lease_id)
        self._events.put_nowait(BackendEvent(kind="lease_lost", lease_id=lease_id, reason=reason))
        if lease is not None:
            self._tell_of([lease.node_id])

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = watched(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
