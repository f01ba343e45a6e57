"""Starts the agents on the nodes of a cluster manager when they are needed, and calls them.

The file `agents.json` keeps their addresses. So the next service reaches live kernels while the manager is away.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, KeysView, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from roost.launchers.daemon.file_input import put_aside, take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.daemon.tasks import join_shared, start_shared
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import PROTOCOL, AgentEvent, Holdings, Lease
from roost.launchers.protocol.shared_values import VERSION
from roost.placement import Node
from roost.placement.model.json_codec import WireError, decode, encode
from roost.scheduler.backends.agent_calls import AgentCaller, Agents
from roost.scheduler.backends.base import AgentAddress
from roost.scheduler.errors import BackendUnavailable, RoostError

from .manager import ManagedNode, StartedAgent

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """The content of `agents.json`: the address of the cluster, and the agents by node."""

    cluster: str
    agents: Mapping[str, StartedAgent]
    settings: str
    """A digest of the settings that these agents were asked to have, and of the roost that has asked."""


def _digest(settings: AgentSettings, grace_s: float) -> str:
    text = json.dumps([encode(settings), grace_s, PROTOCOL, VERSION], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class AgentPool:
    """The agents of one cluster by node. `cluster` is the address of that cluster, empty if none was ever joined."""

    def __init__(
        self,
        file: Path,
        agents: Agents,
        start_agent: Callable[[str], Coroutine[Any, Any, StartedAgent]],
        settings: AgentSettings,
        grace_s: float = 0.0,
    ) -> None:
        self.cluster = ""
        self._settings = self._noted_settings = _digest(settings, grace_s)
        """The digest in the file. It stays until all agents were found again."""
        self._file = file
        self._agents = agents
        self._start_agent = start_agent
        self._known: dict[str, StartedAgent] = {}
        self._node_at: dict[str, str] = {}  # by endpoint, as it was once
        self._saving: asyncio.Handle | None = None
        self._status: dict[str, Node] = {}  # as connected agents last reported it
        self.ended_daemons: set[str] = set()  # as agents report, maybe seconds before the manager
        self.ends: dict[str, float] = {}
        """When the kernels of a node end if the cluster stays away (`time.time`), as agents that are cut off report."""
        self._doubted: set[str] = set()  # start or find these again before the next call
        self._outdated: set[str] = set()  # they may have the settings, or the version, of an earlier service
        self._unreachable: set[str] = set()
        self._left: dict[str, float] = {}  # nodes that are not in the cluster, and since when
        self.failures: dict[str, str] = {}
        """Why the latest attempt to start an agent has failed, by node. An attempt that succeeds removes the entry."""
        self._failed_at: dict[str, float] = {}
        self._starting: dict[str, asyncio.Task[StartedAgent]] = {}
        self._load()

    @property
    def nodes(self) -> KeysView[str]:
        """The ids of all nodes with a known agent, as a view that follows later changes."""
        return self._known.keys()

    @property
    def connected(self) -> KeysView[str]:
        """The ids of the nodes whose agents are connected and have reported, as a view that follows later changes."""
        return self._status.keys()

    def listen(self, listener: Callable[[str, AgentEvent | None], None]) -> None:
        """Call `listener` with a node's id and each event of its agent, or None when the connection to it is lost.

        The id is empty if the agent is unknown.
        """

        def on_agent(endpoint: str, event: AgentEvent | None) -> None:
            node_id = self._find_node(endpoint)
            if event is not None and event.node is not None and node_id:
                self.note_status(node_id, event.node)
            if event is None:
                self._doubt(node_id)
            elif event.kind == "lost" and not event.lease_id and node_id:
                self.ended_daemons.add(self._known[node_id].daemon)
                self._note_end(node_id, event.ends_at)
            listener(node_id, event)

        self._agents.listen(on_agent)

    def close(self) -> None:
        for task in self._starting.values():
            task.cancel()
        if self._saving is not None:
            self._saving.cancel()
            self._save()

    async def address(self, node_id: str) -> AgentAddress:
        """Return the address where the agent of this node listens, or last listened.

        Start or find the agent if no address is known, or if the known one may be out of date. Raises
        `BackendUnavailable` if no address is known and no agent can be started.
        """
        known = self._known.get(node_id)
        if known is not None and node_id not in self._doubted:
            return known.address
        task = self._starting.get(node_id)
        if task is None:
            task = self._starting[node_id] = start_shared(self._start(node_id))
        try:
            return (await join_shared(task)).address
        except BackendUnavailable:
            if known is None:
                raise
            return known.address

    async def call(self, node_id: str, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        began = time.monotonic()
        await self.address(node_id)  # an agent that cannot be started at all is not tried again
        name = f"the agent on {node_id}"

        async def on_lost(address: AgentAddress | None) -> None:
            await self._on_lost(address)
            # An agent that is lost and cannot be started is not tried again. On a machine that is down, each attempt
            # takes long.
            if self._failed_at.get(node_id, -math.inf) >= began:
                raise BackendUnavailable(f"{name} cannot be reached: {self.failures[node_id]}")

        caller = AgentCaller(self._agents, partial(self.address, node_id), name=name, on_lost=on_lost)
        return await caller.call(call)

    async def reach(self, node_id: str) -> None:
        """Connect to the agent of this node, and start it if need be. Raises `BackendUnavailable`."""

        async def do_nothing(agent: AgentClient) -> None: ...

        await self.call(node_id, do_nothing)

    async def held_on(self, node_id: str) -> Holdings | None:
        """Return the leases and kernels of a node's agent; None if the agent is unreachable."""
        try:
            call = self.call(node_id, lambda agent: agent.holdings())
            held = await asyncio.wait_for(call, _ANSWER_S)
            self._unreachable.discard(node_id)
            self._note_end(node_id, held.ends_at)
            return replace(held, leases=tuple(_put_on(node_id, lease) for lease in held.leases))
        except (RoostError, asyncio.TimeoutError) as problem:
            level = logging.DEBUG if node_id in self._unreachable else logging.WARNING
            log.log(level, "node=%s its agent is unreachable: %s", node_id, str(problem) or "it is slow")
            self._unreachable.add(node_id)
            return None

    def note_status(self, node_id: str, status: Node) -> None:
        """Keep the status that the node's agent reports."""
        self._status[node_id] = status
        if status.is_draining:
            self.ended_daemons.add(self._known[node_id].daemon)

    def _note_end(self, node_id: str, ends_at: float | None) -> None:
        self.ends.pop(node_id, None)
        if ends_at is not None:
            self.ends[node_id] = ends_at

    def status(self, node_id: str) -> Node | None:
        """Return the node's status; None if its agent is not connected, or has not reported it yet.

        The status does not grow old, because the agent reports each noticeable change within seconds.
        """
        return self._status.get(node_id)

    def check(self, node: ManagedNode) -> bool:
        """True if the manager has a new daemon on the node.

        The next call to the node's agent then finds the agent again, and reports the new daemon to it.
        """
        known = self._known.get(node.id)
        is_new = known is not None and known.daemon != node.daemon
        if is_new:
            self._doubted.add(node.id)
        return is_new

    def put(self, node_id: str, agent: StartedAgent) -> None:
        self._doubted.discard(node_id)
        self._outdated.discard(node_id)
        self.failures.pop(node_id, None)
        self._failed_at.pop(node_id, None)
        is_settled = self._noted_settings != self._settings and not self._outdated
        if is_settled or self._known.get(node_id) != agent:
            self._known[node_id] = agent
            if is_settled:
                self._noted_settings = self._settings
            if self._saving is None:  # many agents may come at once
                self._saving = asyncio.get_running_loop().call_soon(self._save)

    def forget_left(self, present: Collection[str], after_s: float, kept: Collection[str] = ()) -> None:
        """Forget the agents of nodes that have not been among `present` for `after_s`: they have left for good.

        Those among `kept` are not forgotten.
        """
        self.failures = {name: why for name, why in self.failures.items() if name in present}
        self._failed_at = {name: at for name, at in self._failed_at.items() if name in present}
        now = time.monotonic()
        self._left = {name: self._left.get(name, now) for name in self._known if name not in present}
        for node_id, left_at in self._left.items():
            if now - left_at > after_s and node_id not in kept:
                self.forget(node_id)

    def left(self) -> dict[str, float]:
        """Return the nodes with a known agent that have left, and for how many seconds they have been gone."""
        now = time.monotonic()
        return {node_id: now - left_at for node_id, left_at in self._left.items() if node_id in self._known}

    def forget(self, node_id: str) -> None:
        """Forget the agent of a node: it has left, and nobody will ask for it."""
        if self._known.pop(node_id, None) is not None:
            self._outdated.discard(node_id)
            self._doubted.discard(node_id)
            self._status.pop(node_id, None)
            self.ends.pop(node_id, None)
            self._save()

    def forget_others(self, cluster: str) -> None:
        if self.cluster not in ("", cluster):
            self._known.clear()
            self._outdated.clear()
            self.ends.clear()
        self.cluster = cluster

    def _find_node(self, endpoint: str) -> str:
        known = self._known.get(self._node_at.get(endpoint, ""))
        if known is None or known.address.endpoint != endpoint:
            self._node_at = {known.address.endpoint: name for name, known in self._known.items()}
        return self._node_at.get(endpoint, "")

    def _doubt(self, node_id: str) -> None:
        if node_id:
            self._doubted.add(node_id)
            self._status.pop(node_id, None)

    async def _on_lost(self, address: AgentAddress | None) -> None:
        if address is not None:
            self._doubt(self._find_node(address.endpoint))

    async def _start(self, node_id: str) -> StartedAgent:
        try:
            self.put(node_id, await self._start_agent(node_id))
            return self._known[node_id]
        except BackendUnavailable as problem:
            self.failures[node_id] = str(problem).rstrip(".")
            self._failed_at[node_id] = time.monotonic()
            raise
        finally:
            del self._starting[node_id]

    def _load(self) -> None:
        if (saved := take_json(self._file, log)) is None:
            return
        try:
            known = decode(_Saved, saved, ignore_unknown=True)
        except WireError as problem:
            put_aside(self._file, f"has no agents that can be read: {problem}", log)
        else:
            self._known.update(known.agents)
            self.cluster = known.cluster
            if known.settings and known.settings != self._settings:
                self._noted_settings = known.settings
                self._outdated.update(known.agents)
                self._doubted.update(known.agents)

    def _save(self) -> None:
        self._saving = None
        try:
            found = {"cluster": self.cluster, "agents": encode(self._known), "settings": self._noted_settings}
            write_private_json(self._file, found)
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._file, problem)


def _put_on(node_id: str, lease: Lease) -> Lease:
    return lease if lease.node_id == node_id else replace(lease, node_id=node_id)
