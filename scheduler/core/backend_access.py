"""A backend and its agents as the scheduler uses them: snapshots with drained nodes, and calls to agents.

A call is repeated if its agent is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from roost.launchers.daemon.file_input import take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import KernelProcess, Owner
from roost.placement import Snapshot
from roost.scheduler.backends.agent_calls import AgentCaller, Agents
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.errors import BackendUnavailable, LaunchError, UnknownKernel

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_S = 5.0
"""How long one agent may take to list its kernels or their use. Callers go on without a slower agent's list."""
IN_TIME_S = 15.0
"""How long a client's call to an agent may take. Clients give up after `CALL_DEADLINE_S` of `client.py`."""


class BackendAccess:
    """A backend with the nodes that the operator drains (`draining`), which the file `drained` keeps."""

    def __init__(self, backend: Backend, agents: Agents, drained: Path | None = None) -> None:
        self.backend = backend
        self.agents = agents
        self._drained = drained
        known = take_json(drained, log, list) if drained else None
        self.draining = {name for name in known or () if isinstance(name, str)}

    def drain(self, node_id: str, on: bool) -> None:
        """Drain a node, or end its drain; raises `LaunchError` if the file cannot be written."""
        draining = self.draining | {node_id} if on else self.draining - {node_id}
        try:
            if self._drained is not None:
                write_private_json(self._drained, sorted(draining))
        except OSError as problem:
            raise LaunchError(f"{self._drained} cannot be written: {problem.strerror}.") from None
        self.draining = draining

    async def snapshot(self) -> Snapshot:
        snapshot = await self.backend.snapshot()
        growth = self.backend.growth
        node_types = growth.list_types(snapshot)
        may_grow = growth.may_grow or self.backend.is_still_reading
        if node_types or may_grow:
            snapshot = snapshot.with_node_types(node_types, may_grow=may_grow)
        draining = [snapshot.node(node_id) for node_id in self.draining if node_id in snapshot]
        if not draining:
            return snapshot
        return snapshot.apply([replace(node, is_draining=True) for node in draining])

    async def call(self, lease: Lease, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Call the lease's agent. Repeat the call if the connection is lost. Raises as `AgentCaller.call` does."""
        caller = AgentCaller(
            self.agents,
            partial(self.backend.agent, lease),
            name=f"the agent on {lease.node_id}",
            on_lost=lambda _: self.backend.snapshot(),  # raises if the manager is away too
        )
        return await caller.call(call)

    async def transfer(self, lease: Lease, owner: Owner) -> None:
        """Give a held lease to another owner: its agent notes it, and the book shows it. May be repeated."""
        await self.call(lease, lambda agent: agent.transfer(lease.id, owner))
        self.backend.book.show(replace(self.backend.book.get(lease.id) or lease, owner=owner))

    async def find_agents(self, leases: Sequence[Lease]) -> tuple[dict[str, list[Lease]], set[str]]:
        """Return the held leases by their agent's endpoint, and a set of lease ids.

        The set has the ids of held leases whose agent cannot be found in time.
        """
        held = [lease for lease in leases if lease.state == "held"]
        addresses = await asyncio.gather(*(_try(partial(self.backend.agent, lease)) for lease in held))
        agents: dict[str, list[Lease]] = {}
        for lease, address in zip(held, addresses, strict=True):
            agents.setdefault(address.endpoint if address else "", []).append(lease)
        return agents, {lease.id for lease in agents.pop("", ())}

    async def ask_agent(self, lease: Lease, call: Callable[[AgentClient], Awaitable[T]]) -> T | None:
        """Return the agent's answer; None if it is late, unreachable, or does not know the kernel."""
        return await _try(partial(self.call, lease, call))

    async def call_in_time(self, lease: Lease, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Call the lease's agent for a client that waits. Raise `BackendUnavailable` before the client gives up."""
        return await in_time(self.call(lease, call), lease, IN_TIME_S)

    async def end_process(self, lease: Lease, grace_s: float) -> KernelProcess | None:
        """End the kernel's process in a lease, and return how it ended; None if there is no process.

        The lease stays.
        """
        try:
            return await self.call(lease, lambda agent: agent.stop(lease.kernel_id, grace_s))
        except UnknownKernel:
            return None


async def in_time(work: Awaitable[T], lease: Lease, within_s: float) -> T:
    """Return the result of a call to the lease's agent. After `within_s`, cancel it and raise `BackendUnavailable`."""
    try:
        return await asyncio.wait_for(work, within_s)
    except asyncio.TimeoutError:
        problem = f"the agent on {lease.node_id or 'its node'} has not answered within {within_s:g} s"
        raise BackendUnavailable(f"{problem}.", kernel_id=lease.kernel_id) from None


async def _try(ask: Callable[[], Awaitable[T]]) -> T | None:
    """Return an agent's answer, or None if it is late, or if the agent is unreachable or does not know the kernel."""
    # `ask` is a function, because a coroutine that is cancelled before its first step is reported as never awaited.
    try:
        return await asyncio.wait_for(ask(), _ANSWER_S)
    except (BackendUnavailable, UnknownKernel, asyncio.TimeoutError):
        return None
