"""A backend and its agents as the scheduler uses them: pictures with what drains, calls that outlast an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import KernelProcess
from roost.launchers.protocol.rpc import Disconnected, RemoteError, RpcError
from roost.placement import Snapshot
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.errors import BackendUnavailable, KernelDied, LaunchError, LaunchTimeout, UnknownKernel

from .agent_calls import Agents

T = TypeVar("T")

_TRIES = 4
_KINDS = {"kernel_died": KernelDied, "launch_timeout": LaunchTimeout, "unknown_kernel": UnknownKernel}


class LeaseGone(Exception):
    """The agent does not know the lease: it was given up, or the agent's files are gone."""


class Cluster:
    """`draining` are the nodes on which nothing is placed: an operator's wish, which the file `drained` remembers."""

    def __init__(self, backend: Backend, agents: Agents, drained: Path | None = None) -> None:
        self.backend = backend
        self.agents = agents
        self._drained = drained
        known = read_json(drained) if drained else None
        self.draining = {str(name) for name in known} if isinstance(known, list) else set[str]()

    def drain(self, node_id: str, on: bool) -> None:
        """Stop or resume placing on a node; raises `LaunchError` where that cannot be written down."""
        draining = self.draining | {node_id} if on else self.draining - {node_id}
        try:
            if self._drained is not None:
                write_private_json(self._drained, sorted(draining))
        except OSError as problem:
            raise LaunchError(f"{self._drained} cannot be written: {problem.strerror}.") from None
        self.draining = draining

    async def snapshot(self) -> Snapshot:
        """The backend's, with the nodes that drain marked."""
        snapshot = await self.backend.snapshot()
        draining = [snapshot.node(node_id) for node_id in self.draining if node_id in snapshot]
        return (
            snapshot.apply([replace(node, is_draining=True) for node in draining]) if draining else snapshot
        )

    async def call(self, lease: Lease, call: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Call the lease's agent, again where the connection is lost; raises `RoostError` or `LeaseGone`."""
        problem: Exception | None = None
        for _ in range(_TRIES):
            try:
                return await call(await self.agents.client(await self.backend.agent(lease)))
            except (Disconnected, BackendUnavailable) as lost:
                problem = lost
                await self.backend.snapshot()  # until an agent answers again; raises if none does
            except RemoteError as refusal:
                if refusal.kind == "no_lease":
                    raise LeaseGone from None
                raise _KINDS.get(refusal.kind, LaunchError)(refusal.message, **refusal.fields) from None
            except (RpcError, asyncio.TimeoutError) as late:
                raise BackendUnavailable(f"the agent on {lease.node_id} does not answer: {late}") from late
        raise BackendUnavailable(f"the agent on {lease.node_id} cannot be reached: {problem}") from problem

    async def end_process(self, lease: Lease, grace_s: float) -> KernelProcess | None:
        """End what runs in a lease and say how it ended; None when there is nothing. The lease stays."""
        try:
            return await self.call(lease, lambda agent: agent.stop(lease.kernel_id, grace_s))
        except UnknownKernel:
            return None
