"""The machine that roost itself runs on: one node, whose agent's ledger holds the leases."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from roost.launchers.agent.find_or_start import find_or_start_agent
from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.daemon.daemon import DaemonError
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentEvent, NodeStatus, Owner, Reserve
from roost.launchers.protocol.rpc import ClientKeys, Disconnected, RemoteError, RpcError
from roost.placement import Node, Snapshot
from roost.scheduler.backends.base import AgentAddress, Backend, BackendEvent, Lease, LeaseReading
from roost.scheduler.config.settings import LocalSettings, Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.errors import BackendUnavailable, LaunchError, LeaseConflict

log = logging.getLogger(__name__)

T = TypeVar("T")

REFRESH_AFTER_S = 10.0
"""Real use is measured again for a snapshot when the last measurement is older than this."""
_RETRY_AFTER_S = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Waits between attempts to reach the agent: one that is leaving still holds its folder for a moment."""
_GIVE_UP_S = 10.0
"""No new attempt after this time: starting an agent may take long, where it fails."""

FindAgent = Callable[[AgentSettings], Awaitable[tuple[str, ClientKeys]]]


class LocalBackend(Backend):
    """The agent of this user and machine, brought up when needed.

    The snapshot is kept and brought up to date by the agent's events, so that placing asks nobody.
    """

    name = "local"

    def __init__(
        self, settings: Settings, agents: Agents, *, find_agent: FindAgent = find_or_start_agent
    ) -> None:
        self._settings = settings
        self._agents = agents
        self._find_agent = find_agent
        self._finding: asyncio.Task[AgentAddress] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._picture = Snapshot.of([])
        self._taken_at = 0.0
        self._is_stale = True
        self._changes = 0
        self._known: dict[str, Lease | None] = {}  # None: asked for, not answered yet
        self._events: asyncio.Queue[BackendEvent | None] = asyncio.Queue()

    async def open(self) -> None:
        self._agents.listen(self._on_agent)
        await self.snapshot()

    async def close(self) -> None:
        for task in (self._finding, self._refreshing):
            if task is not None:
                task.cancel()
        self._events.put_nowait(None)

    async def snapshot(self) -> Snapshot:
        if self._is_stale or time.monotonic() - self._taken_at > REFRESH_AFTER_S:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
            await asyncio.shield(self._refreshing)
        return self._picture.older_by(time.monotonic() - self._taken_at)

    async def events(self) -> AsyncIterator[BackendEvent]:
        while (event := await self._events.get()) is not None:
            yield event

    async def claim(self, lease: Lease) -> Lease:
        if lease.node_id not in self._picture:
            raise LeaseConflict(f"there is no node {lease.node_id} any more")
        asked = Reserve(lease=lease, linger_s=self._settings.restart_grace_s)
        self._known.setdefault(lease.id, None)
        try:
            held = await self._call(lambda agent: agent.reserve(asked))
        except BaseException:
            self._known.pop(lease.id, None)
            self._is_stale = True
            raise
        self._note(held)
        return held

    async def release(self, lease: Lease) -> None:
        await self._call(lambda agent: agent.release(lease.id))

    async def transfer(self, lease: Lease, owner: Owner) -> Lease:
        await self._call(lambda agent: agent.transfer(lease.id, owner))
        return replace(lease, owner=owner)

    async def leases(self) -> LeaseReading:
        holdings = await self._call(lambda agent: agent.holdings())
        node_id = (await self.snapshot()).nodes[0]
        return LeaseReading(leases=tuple(replace(lease, node_id=node_id) for lease in holdings.leases))

    async def agent(self, lease: Lease) -> AgentAddress:
        return await self._address()

    async def warm_up(self) -> int:
        await self._address()
        return 1

    async def _call(self, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Call the agent, again on a new one if that was lost: every operation may be repeated."""
        problem: Exception | None = None
        give_up_at = time.monotonic() + _GIVE_UP_S
        for wait_s in _RETRY_AFTER_S:
            if time.monotonic() > give_up_at:
                break
            if wait_s:
                await asyncio.sleep(wait_s)
            try:
                return await call(await self._agents.client(await self._address()))
            except (Disconnected, BackendUnavailable) as lost:
                problem = lost
                self._finding = None
            except RemoteError as refusal:
                if refusal.kind == "conflict":
                    raise LeaseConflict(refusal.message, **refusal.fields) from None
                raise LaunchError(refusal.message, **refusal.fields) from None
            except (RpcError, asyncio.TimeoutError) as late:
                raise BackendUnavailable(f"the agent of this machine does not answer: {late}") from late
        raise BackendUnavailable(f"the agent of this machine cannot be reached: {problem}") from problem

    async def _address(self) -> AgentAddress:
        if self._finding is None or (self._finding.done() and self._finding.exception() is not None):
            self._finding = asyncio.get_running_loop().create_task(self._find())
        return await asyncio.shield(self._finding)

    async def _find(self) -> AgentAddress:
        local = self._settings.local
        settings = AgentSettings(
            cpus=local.cpus,
            memory_bytes=local.memory_bytes,
            gpus=local.gpus,
            gpu_model=local.gpu_model,
            idle_exit_s=self._settings.idle_exit_s,
            preload=local.preload,
        )
        try:
            endpoint, keys = await self._find_agent(settings)
        except DaemonError as problem:
            raise BackendUnavailable(f"the agent of this machine cannot be started: {problem}") from problem
        return AgentAddress(endpoint=endpoint, keys=keys)

    async def _refresh(self) -> None:
        changes = self._changes
        status = await self._call(lambda agent: agent.status())
        gone = set(self._picture.nodes) - {status.hostname}
        self._picture = self._picture.apply([_node(status, self._settings.local)], removed=gone)
        self._taken_at = time.monotonic()
        self._is_stale = changes != self._changes

    def _on_agent(self, endpoint: str, event: AgentEvent | None) -> None:
        """Keep the picture right: our own leases by arithmetic, what others did by asking again."""
        if event is None:
            self._is_stale, self._finding = True, None
            self._known.clear()
        elif event.kind == "reserved":
            if event.lease_id not in self._known:
                self._changes += 1
                self._is_stale = True
        elif event.kind == "released":
            lease = self._known.pop(event.lease_id, None)
            self._changes += 1
            if lease is None or lease.node_id not in self._picture:
                self._is_stale = True
            else:
                node = self._picture.node(lease.node_id)
                self._picture = self._picture.apply([node.without_kernel(lease.request, lease.device_ids)])
        else:
            return
        self._events.put_nowait(BackendEvent(kind="nodes"))

    def _note(self, lease: Lease) -> None:
        if self._known.get(lease.id) is not None:
            return
        self._changes += 1
        self._known[lease.id] = lease
        if lease.node_id in self._picture:
            node = self._picture.node(lease.node_id)
            self._picture = self._picture.apply([node.with_kernel(lease.request, lease.device_ids)])


def _node(status: NodeStatus, local: LocalSettings) -> Node:
    return Node(
        id=status.hostname,
        labels=local.labels,
        cpus=status.cpus,
        memory_bytes=status.memory_bytes,
        devices=status.devices,
        cpus_promised=status.cpus_promised,
        memory_promised_bytes=status.memory_promised_bytes,
        gpus_promised=status.gpus_promised,
        cpus_used=status.cpus_used,
        memory_used_bytes=status.memory_used_bytes,
        kernels=status.kernels,
        taints=local.taints,
        warm=status.warm,
        metrics_age_s=status.metrics_age_s,
    )
