"""The backend for the machine that roost itself runs on: one node. The ledger of its agent holds the leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from roost.launchers.agent.find_or_start import find_or_start_agent
from roost.launchers.daemon.daemon import DaemonError
from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import AgentEvent, Launch, Reserve
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Node, Snapshot
from roost.scheduler.backends.agent_calls import AgentCaller
from roost.scheduler.backends.base import (
    AgentAddress,
    AgentReport,
    Backend,
    BackendContext,
    BackendEvent,
    Lease,
    LeaseReading,
)
from roost.scheduler.backends.event_queue import EventQueue
from roost.scheduler.backends.more_room import has_more_room
from roost.scheduler.config.shared_sections import parse_port_range
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import SPEC
from .settings import RoostLocalBackend

_REPORTED_S = 5.0
"""The age of the measured use in a snapshot is at most this: the agent reports each noticeable change by then."""
_PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # an agent that is leaving still holds its folder for a moment
_GIVE_UP_S = 10.0  # an attempt that cannot start the agent may take longer than all pauses


def create(settings: RoostLocalBackend, context: BackendContext) -> LocalBackend:
    return LocalBackend(settings, context)


class LocalBackend(Backend):
    """A backend with one node, this machine.

    Events of its agent keep the snapshot up to date, so that a placement need not ask the agent.
    """

    name = SPEC.name
    other_holders = "other kernels of this machine"

    def __init__(
        self,
        settings: RoostLocalBackend,
        context: BackendContext,
        *,
        find_agent: Callable[[AgentSettings], Awaitable[tuple[str, ClientKeys]]] = find_or_start_agent,
    ) -> None:
        self._settings = settings
        self._context = context
        self._find_agent = find_agent
        self._finding: asyncio.Task[AgentAddress] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._snapshot = Snapshot.of([])
        self._taken_at = 0.0
        self._is_stale = True
        self._endpoint = ""
        self._pushes = 0
        """How many times the agent has reported the node."""
        self._events = EventQueue()
        self._caller = AgentCaller(
            context.agents,
            self._address,
            name="the agent of this machine",
            on_lost=self._forget_address,
            pauses_s=_PAUSES_S,
            give_up_s=_GIVE_UP_S,
        )

    async def open(self) -> None:
        self._context.agents.listen(self._on_agent)
        await self.snapshot()

    async def close(self) -> None:
        for task in (self._finding, self._refreshing):
            if task is not None:
                task.cancel()
        self._events.close()

    async def snapshot(self) -> Snapshot:
        if self._is_stale:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = start_shared(self._refresh())
            await join_shared(self._refreshing)
        return self._snapshot.older_by(min(time.monotonic() - self._taken_at, _REPORTED_S))

    def events(self) -> AsyncIterator[BackendEvent]:
        return self._events.read()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        self.book.want(lease)
        if lease.node_id not in self._snapshot:
            raise LeaseConflict(f"there is no node {lease.node_id} any more")
        reserve = Reserve(
            lease=replace(lease, state="held"), linger_s=self._context.restart_grace_s, launch=launch
        )
        try:
            held = await self._caller.call(lambda agent: agent.reserve(reserve))
        except BaseException:
            self._is_stale = True
            raise
        self.book.show(held)
        return held

    async def release(self, lease: Lease) -> None:
        self.book.release(lease.id)
        await self._caller.call(lambda agent: agent.release(lease.id))
        self.book.miss(lease.id)

    async def leases(self) -> LeaseReading:
        holdings = await self._caller.call(lambda agent: agent.holdings())
        node_id = (await self.snapshot()).nodes[0]
        return LeaseReading(
            leases=tuple(replace(lease, node_id=node_id) for lease in holdings.leases),
            processes=holdings.by_lease(),
        )

    async def agent(self, lease: Lease) -> AgentAddress:
        return await self._address()

    def report_agent(self, node_id: str) -> AgentReport:
        return AgentReport(has_run=True)  # its agent reports the node itself

    async def warm_up(self) -> int:
        await self._address()
        return 1

    async def _address(self) -> AgentAddress:
        if self._finding is None or (self._finding.done() and self._finding.exception() is not None):
            self._finding = start_shared(self._find())
        return await join_shared(self._finding)

    async def _forget_address(self, _: AgentAddress | None) -> None:
        self._finding = None

    async def _find(self) -> AgentAddress:
        settings = AgentSettings(
            cpus=self._settings.cpus,
            memory_bytes=self._settings.memory,
            gpus=self._settings.gpus,
            gpu_model=self._settings.gpu_model,
            idle_exit_s=self._context.idle_exit_s,
            forking=self._settings.forking(),
            enforcement=self._settings.enforcement(),
            kernel_ports=parse_port_range(self._settings.kernel_ports),
            divides_machine=True,
        )
        try:
            endpoint, keys = await self._find_agent(settings)
        except DaemonError as problem:
            raise BackendUnavailable(f"the agent of this machine cannot be started: {problem}") from problem
        self._endpoint = endpoint
        return AgentAddress(endpoint=endpoint, keys=keys)

    async def _refresh(self) -> None:
        pushes = self._pushes
        status = await self._caller.call(lambda agent: agent.status())
        # A report that came meanwhile is as new or newer.
        if pushes == self._pushes and self._take(status):
            self._events.put(BackendEvent(kind="nodes"))

    def _take(self, status: Node) -> bool:
        """Note what the agent reports. Return True if a start that waits may have room now."""
        node = replace(status, labels=self._settings.labels, taints=tuple(self._settings.taints))
        known = self._snapshot.node(node.id) if node.id in self._snapshot else None
        self._snapshot = self._snapshot.apply([node], removed=set(self._snapshot.nodes) - {node.id})
        self._taken_at, self._is_stale = time.monotonic(), False
        return known is not None and has_more_room(known, node)

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        """Follow an agent's event. `event` is None if the connection to the agent is lost."""
        if endpoint != self._endpoint:
            return
        if event is None:
            self._is_stale, self._finding = True, None
            self._events.put(BackendEvent(kind="nodes"))
            return
        has_room = event.kind == "released"
        if event.node is not None:
            self._pushes += 1
            has_room |= self._take(event.node)
        if event.kind == "released":
            self.book.release(event.lease_id)  # by the rules that the scheduler has given to the agent
            self.book.miss(event.lease_id)
        if has_room:
            self._events.put(BackendEvent(kind="nodes"))
