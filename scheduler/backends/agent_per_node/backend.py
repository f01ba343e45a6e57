"""What backends of cluster managers share: leases in the manager's own accounting, and an agent on each node.

Nothing is kept here that is not in the manager or with the agents, but where these listen (`node_agents`): the next
service serves the kernels that live while the manager is away, and takes their leases again when the same cluster is
back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic

from roost.launchers.protocol.messages import AgentEvent, NodeStatus, Owner, Reserve
from roost.placement import Node, Snapshot
from roost.scheduler.backends.base import AgentAddress, Backend, BackendEvent, Lease, LeaseReading
from roost.scheduler.config.settings import ManagedSettings, Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel

from .agents import Host, NodeAgents
from .claims import Claims
from .driver import Driver, N, watched
from .node_table import Picture

log = logging.getLogger(__name__)

_FRESH_S = 0.05
"""A placement is made on a picture that is no older."""
_STATUS_S = 5.0
"""So often the agents that are connected are asked what is really used."""
_REJOIN_S = 1.0
_FORGET_S = 60.0
"""So long after the grace for its kernels the agent of a node that left is not asked any more."""
_MISSES = 3
"""A lease that the manager does not show so often in a row is looked up, and lost if there is none."""


class ManagedBackend(Backend, Generic[N]):
    """`folder` is for `agents.json`. What a manager does in its own way is below, under *The manager*."""

    def __init__(self, settings: Settings, options: ManagedSettings, agents: Agents, folder: Path) -> None:
        self._settings = settings
        self._options = options
        self._agents = agents
        self._hosts = NodeAgents(folder / "agents.json", agents, self._bring_up)
        self.address = self._hosts.cluster
        self._driver = self._connect()
        self._picture: Picture[N] = Picture(self._drawn, self._hosts.status)
        self._claims = self._claim()
        self._misses: dict[str, int] = {}
        self._expected: dict[str, float] = {}  # nodes that may come back after an outage, and until when
        self._taking: set[str] = set()  # ids of leases
        self._released = 0  # how many agents have told of
        self._is_open = True
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events: asyncio.Queue[BackendEvent | None] = asyncio.Queue()

    # The manager

    @abstractmethod
    def _connect(self) -> Driver[N]:
        """The driver, which calls `_on_nodes`."""

    @abstractmethod
    def _claim(self) -> Claims[N]:
        """How leases are claimed by that driver."""

    @abstractmethod
    def _as_node(
        self, node: N, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
    ) -> Node:
        """The node as placement sees it; see `picture.AsNode`."""

    @abstractmethod
    async def _bring_up(self, node_id: str) -> Host:
        """Start or find the agent of that node; raises `BackendUnavailable`."""

    async def _ask_metrics(self) -> Collection[str]:
        """Ask the manager what is really used; the nodes of which it knows."""
        return ()

    def _drawn(
        self, node: N, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
    ) -> Node:
        """Of a node whose daemon has ended its agent tells before the manager: it gets nothing new."""
        drawn = self._as_node(node, leases, status, metrics_age_s)
        if node.daemon not in self._hosts.ended:
            return drawn
        return replace(drawn, is_draining=True, drains_because=f"its {self._driver.daemon} has ended")

    # The backend

    async def open(self) -> None:
        self._agents.listen(self._on_agent)
        try:
            await self._join()
        except BackendUnavailable as problem:
            if not self._hosts:
                raise
            self._driver.away = str(problem)
            log.warning("%s is away, its kernels are served all the same: %s", self._driver.manager, problem)
        self._spawn(self._keep_up())

    async def close(self) -> None:
        self._is_open = False
        for task in list(self._tasks):
            task.cancel()
        self._hosts.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._driver.close()
        self._events.put_nowait(None)

    async def snapshot(self) -> Snapshot:
        if self._driver.away:
            at = f" at {self.address}" if self.address else ""
            raise BackendUnavailable(
                f"the {self._driver.manager} cluster{at} is away, its kernels live on: {self._driver.away}"
            )
        await self._driver.read(max_age_s=_FRESH_S)
        return self._picture.snapshot()

    async def events(self) -> AsyncIterator[BackendEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def claim(self, lease: Lease) -> Lease:
        node = self._driver.nodes.get(lease.node_id)
        if node is None:
            raise LeaseConflict(f"there is no node {lease.node_id} any more")
        self._taking.add(lease.id)
        host = watched(self._hosts.address(node.id))  # while the manager decides
        try:
            granted = replace(lease, device_ids=await self._claims.take(lease, node))
            await host
            asked = Reserve(lease=granted, linger_s=self._settings.restart_grace_s, is_granted=True)
            held = await self._hosts.call(node.id, lambda agent: agent.reserve(asked))
        except LeaseConflict:
            self._driver.forget_reading()
            raise
        finally:
            host.cancel()
            self._taking.discard(lease.id)
        self._picture.leases[held.id] = held
        self._driver.forget_reading()
        self._tell_of([node.id])
        return held

    async def release(self, lease: Lease) -> None:
        self._picture.leases.pop(lease.id, None)
        await self._claims.settled(lease)
        try:
            await self._hosts.call(lease.node_id, lambda agent: agent.release(lease.id))
        except BackendUnavailable:
            is_there = self._driver.away or lease.node_id in self._driver.nodes
            if is_there and lease.node_id in set(
                self._hosts
            ):  # where no agent ever was, nothing is to be ended
                self._picture.leases[lease.id] = lease
                raise
        self._forget(lease.id)
        if not self._driver.away:  # else it is gone with the cluster, or found when that is back
            await self._claims.give_back(lease)
            self._driver.forget_reading()
        self._tell_of([lease.node_id])

    async def transfer(self, lease: Lease, owner: Owner) -> Lease:
        await self._hosts.call(lease.node_id, lambda agent: agent.transfer(lease.id, owner))
        adopted = replace(lease, owner=owner)
        if lease.id in self._picture.leases:
            self._picture.leases[lease.id] = adopted
        return adopted

    async def leases(self) -> LeaseReading:
        before = set(self._picture.leases)
        known = [] if self._driver.away else await self._claims.all()
        claims = {claim.lease.id: claim.lease for claim in known}
        others = set(self._hosts if self._driver.away else self._expected)
        node_ids = sorted({*(lease.node_id for lease in claims.values() if lease.node_id), *others})
        found: dict[str, Lease] = {}
        silent = set[str]()
        for node_id, held in zip(
            node_ids, await asyncio.gather(*map(self._hosts.held_on, node_ids)), strict=True
        ):
            if held is None:
                silent.add(node_id)
                held = [lease for lease in self._picture.leases.values() if lease.node_id == node_id]
            found.update({lease.id: lease for lease in held})
        for bare in claims.values():
            if bare.id not in found:
                found[bare.id] = self._picture.leases.get(bare.id, bare) if bare.node_id else bare
        found = {name: lease for name, lease in found.items() if name in claims or lease.node_id in others}
        taken_meanwhile = {name: lease for name, lease in self._picture.leases.items() if name not in before}
        on_nodes = {name: lease for name, lease in found.items() if lease.node_id}
        self._picture.leases = {**on_nodes, **taken_meanwhile}
        self._tell_of(list(self._driver.nodes))
        # Of all other nodes the claims are complete.
        return LeaseReading(leases=tuple(found.values()), unreachable=frozenset(silent & others))

    async def agent(self, lease: Lease) -> AgentAddress:
        places = {*self._driver.nodes, *self._expected}
        if not self._driver.away and lease.node_id not in places and lease.id not in self._picture.leases:
            raise UnknownKernel(
                f"its node {lease.node_id} has left the {self._driver.manager} cluster",
                kernel_id=lease.kernel_id,
            )
        return await self._hosts.address(lease.node_id)

    async def warm_up(self) -> int:
        await self.snapshot()
        calls = [self._hosts.call(node_id, lambda agent: agent.status()) for node_id in self._driver.nodes]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await self._ask_agents()  # they are connected now: what is really used on their nodes is known
        problems = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if problems:
            raise problems[0]
        return len(outcomes)

    # The cluster

    async def _join(self) -> None:
        self.address = await self._driver.join(self.address)
        self._hosts.forget_others(self.address)
        await self._take_again(self._hosts)

    async def _keep_up(self) -> None:
        """Bring the picture up to date for as long as the backend is open."""
        asked_at = 0.0
        while self._is_open:  # up to Python 3.11 `wait_for` loses a cancellation that comes with its answer
            try:
                if self._driver.away:
                    await asyncio.sleep(_REJOIN_S)
                    await self._join()
                    self._events.put_nowait(BackendEvent(kind="resync"))
                else:
                    await self._driver.look()
                    await self._driver.read()
                    now = time.monotonic()
                    self._hosts.forget_left(self._driver.nodes, self._options.manager_grace_s + _FORGET_S)
                    self._expected = {name: until for name, until in self._expected.items() if now < until}
                    if back := self._expected.keys() & self._driver.nodes.keys():
                        await self._take_again(back)
                        if back - self._expected.keys():
                            self._events.put_nowait(BackendEvent(kind="resync"))
                    await self._find_lost()
                if time.monotonic() - asked_at > _STATUS_S:
                    asked_at = time.monotonic()
                    await self._ask_agents()
            except RoostError as problem:
                log.debug("%s is away: %s", self._driver.manager, problem)
            except Exception:
                log.exception(
                    "the picture of the %s cluster cannot be brought up to date", self._driver.manager
                )
                await asyncio.sleep(_REJOIN_S)

    async def _ask_agents(self) -> None:
        await self._hosts.ask_status()
        known = () if self._driver.away else await self._ask_metrics()
        self._picture.draw_status(self._driver.nodes, {*self._hosts.status, *known})

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        for node_id in changed:
            if self._hosts.check(self._driver.nodes[node_id]):
                self._expect(node_id)  # to be told of its new daemon, whether it holds anything or not
        self._hosts.ended &= {node.daemon for node in self._driver.nodes.values()}
        self._tell_of([*changed, *gone])

    def _tell_of(self, node_ids: Collection[str]) -> None:
        """Draw these nodes again, and tell if that changes the picture."""
        if self._picture.draw(self._driver.nodes, node_ids):
            self._events.put_nowait(BackendEvent(kind="nodes"))

    async def _find_lost(self) -> None:
        """Tell of leases whose node or claim is gone, though nobody here has given them back."""
        for lease in list(self._picture.leases.values()):
            if lease.node_id in self._expected:
                continue
            node = self._driver.nodes.get(lease.node_id)
            if node is not None and self._claims.shows(lease, node):
                self._misses.pop(lease.id, None)
                continue
            self._misses[lease.id] = self._misses.get(lease.id, 0) + 1
            if self._misses[lease.id] < _MISSES:
                continue
            del self._misses[lease.id]
            if node is None and lease.id in {
                held.id for held in await self._hosts.held_on(lease.node_id) or ()
            }:
                self._expect(lease.node_id)  # its agent lives, and waits for the cluster to come back
            elif node is None:
                await self._claims.give_back(lease)  # it would wait for a node, an autoscaler's too
                self._lost(lease.id, f"its node {lease.node_id} has left the {self._driver.manager} cluster")
            elif not await self._claims.find(lease):
                self._lost(lease.id, f"its {self._claims.called} was removed")

    def _expect(self, node_id: str) -> None:
        self._expected.setdefault(node_id, time.monotonic() + self._options.manager_grace_s)

    async def _take_again(self, node_ids: Iterable[str]) -> None:
        """After the manager was away: claim again what kernels that live hold, on those of these nodes that are back.

        For the others this is tried when they come. Whose slice somebody else has now has lost its lease.
        """
        claimed = {claim.lease.id for claim in await self._claims.all() if claim.is_held}
        node_ids = list(node_ids)
        for node_id, held in zip(
            node_ids, await asyncio.gather(*map(self._hosts.held_on, node_ids)), strict=True
        ):
            node = self._driver.nodes.get(node_id)
            node = None if node is None or not self._claims.can_take_on(node) else node
            if held is None or (held and node is None):
                self._expect(node_id)
            else:
                self._expected.pop(node_id, None)
            # In the order in which a manager gives devices: the first that is free.
            for lease in sorted(held or (), key=lambda lease: lease.device_ids):
                self._picture.leases[lease.id] = lease
                if node is not None and lease.id not in claimed:
                    try:
                        await self._claims.take_again(lease, node)
                    except LeaseConflict as problem:
                        back = f"the {self._driver.manager} cluster came back"
                        self._lost(lease.id, f"{back} without room for it: {problem}")
                        self._spawn(self._end(lease))  # it may be of a kernel that nobody knows of yet

    # The agents

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

    async def _end(self, lease: Lease) -> None:
        await self._hosts.call(lease.node_id, lambda agent: agent.release(lease.id))

    async def _let_go(self, lease: Lease) -> None:
        try:
            await self.release(lease)
        except RoostError as problem:
            log.warning("lease=%s its claim is not given back yet: %s", lease.id, problem)

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
        self._claims.forget(lease_id)
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
