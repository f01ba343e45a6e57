"""The agents on the nodes of a cluster manager: brought up when they are needed, remembered, called.

Where they listen is remembered in a file (`agents.json`, 0600): with it the next service reaches the kernels that
live while the manager itself is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.json_codec import WireError, decode, encode
from roost.launchers.protocol.messages import NodeStatus
from roost.launchers.protocol.rpc import RpcError
from roost.scheduler.backends.base import AgentAddress, Lease
from roost.scheduler.core.agent_calls import AgentCaller, Agents
from roost.scheduler.errors import BackendUnavailable, RoostError

from .driver import ManagedNode, watched

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_S = 5.0

BringUp = Callable[[str], Coroutine[Any, Any, "Host"]]
"""Starts or finds the agent of the node of that id; raises `BackendUnavailable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An agent, and the manager's daemon that it was brought up by (see `ManagedNode`)."""

    address: AgentAddress
    daemon: str


class NodeAgents:
    """By node. `status` has what each connected agent has last said of its node, and when (monotonic).

    `ended` are daemons that have ended, as their agents say, maybe seconds before the manager does.
    """

    def __init__(self, file: Path, agents: Agents, bring_up: BringUp) -> None:
        self.cluster = ""
        self.status: dict[str, tuple[NodeStatus, float]] = {}
        self.ended: set[str] = set()
        self._file = file
        self._agents = agents
        self._bring_up = bring_up
        self._hosts: dict[str, Host] = {}
        self._doubted: set[str] = set()
        self._silent: set[str] = set()
        self._left: dict[str, float] = {}  # nodes that are not there, and since when
        self._coming: dict[str, asyncio.Task[Host]] = {}
        self._remember()

    def __bool__(self) -> bool:
        """Whether any agent is known."""
        return bool(self._hosts)

    def __iter__(self) -> Iterator[str]:
        """The ids of the nodes whose agents are known."""
        return iter(list(self._hosts))

    def close(self) -> None:
        for task in self._coming.values():
            task.cancel()

    async def address(self, node_id: str) -> AgentAddress:
        """Where the agent of that node listens; brought up, once for all who ask, if none is known for sure.

        Where it cannot be, as while the manager is away, what was known stands.
        """
        host = self._hosts.get(node_id)
        if host is not None and node_id not in self._doubted:
            return host.address
        task = self._coming.get(node_id)
        if task is None:
            task = self._coming[node_id] = watched(self._come(node_id))
        try:
            return (await asyncio.shield(task)).address
        except BackendUnavailable:
            if host is None:
                raise
            return host.address

    async def call(self, node_id: str, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Call a node's agent, again on a new one if that was lost: every operation may be repeated."""
        await self.address(node_id)  # an agent that cannot be started is not tried again
        name = f"the agent on {node_id}"
        caller = AgentCaller(self._agents, partial(self.address, node_id), name=name, on_lost=self._on_lost)
        return await caller.call(call)

    async def held_on(self, node_id: str) -> list[Lease] | None:
        """The leases that a node's agent has noted; None where it does not say so in time: unknown, not gone."""
        try:
            call = self.call(node_id, lambda agent: agent.holdings())
            leases = (await asyncio.wait_for(call, _ANSWER_S)).leases
            self._silent.discard(node_id)
            return [replace(lease, node_id=node_id) for lease in leases]
        except (RoostError, asyncio.TimeoutError) as problem:
            level = logging.DEBUG if node_id in self._silent else logging.WARNING
            log.log(level, "node=%s its agent does not answer: %s", node_id, str(problem) or "it is slow")
            self._silent.add(node_id)
            return None

    async def ask_status(self) -> None:
        """Ask all that are connected what is really used on their nodes."""

        async def ask(node_id: str, host: Host) -> None:
            client = self._agents.connected(host.address.endpoint)
            if client is not None:
                with contextlib.suppress(RpcError, asyncio.TimeoutError):
                    status = await client.status()
                    self.status[node_id] = status, time.monotonic()
                    if status.is_cut_off:
                        self.ended.add(host.daemon)

        await asyncio.gather(*(ask(node_id, host) for node_id, host in self._hosts.items()))

    def node_at(self, endpoint: str) -> str:
        """The id of the node whose agent listens there; empty for one that is not known."""
        return next((name for name, host in self._hosts.items() if host.address.endpoint == endpoint), "")

    def cut_off(self, node_id: str) -> None:
        """The agent of that node has said that the manager's daemon there has ended."""
        if node_id in self._hosts:
            self.ended.add(self._hosts[node_id].daemon)

    def check(self, node: ManagedNode) -> bool:
        """Doubt the agent of a node that was brought up by an earlier daemon; whether it has to be told of this one."""
        host = self._hosts.get(node.id)
        is_new = host is not None and host.daemon != node.daemon
        if is_new:
            self._doubted.add(node.id)
        return is_new

    def put(self, node_id: str, host: Host) -> None:
        """The manager has said where the agent of that node listens."""
        self._doubted.discard(node_id)
        if self._hosts.get(node_id) != host:
            self._hosts[node_id] = host
            self._write()

    def doubt(self, endpoint: str) -> None:
        """The agent that listens there was lost: it, or the next one, is to be brought up before it is called again."""
        node_id = self.node_at(endpoint)
        if node_id:
            self._doubted.add(node_id)
            self.status.pop(node_id, None)

    def forget_left(self, there: Collection[str], after_s: float) -> None:
        """Forget the agents of nodes that have not been there for so long: they have left for good."""
        now = time.monotonic()
        self._left = {name: self._left.get(name, now) for name in self._hosts if name not in there}
        for node_id, left_at in self._left.items():
            if now - left_at > after_s:
                del self._hosts[node_id]
                self.status.pop(node_id, None)
                self._write()

    def forget_others(self, cluster: str) -> None:
        """Forget the agents of another cluster than this."""
        if self.cluster not in ("", cluster):
            self._hosts.clear()
        self.cluster = cluster

    async def _on_lost(self, address: AgentAddress | None) -> None:
        if address is not None:
            self.doubt(address.endpoint)

    async def _come(self, node_id: str) -> Host:
        try:
            host = self._hosts[node_id] = await self._bring_up(node_id)
            self._doubted.discard(node_id)
            self._write()
            return host
        finally:
            del self._coming[node_id]

    def _remember(self) -> None:
        known = read_json(self._file)
        if not isinstance(known, dict) or not isinstance(known.get("agents"), dict):
            return
        self.cluster = str(known.get("cluster", ""))
        for node_id, host in known["agents"].items():
            try:
                self._hosts[node_id] = decode(Host, host, ignore_unknown=True)
            except WireError as problem:
                log.warning("%s: %s", self._file, problem)

    def _write(self) -> None:
        try:
            write_private_json(self._file, {"cluster": self.cluster, "agents": encode(self._hosts)})
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._file, problem)
