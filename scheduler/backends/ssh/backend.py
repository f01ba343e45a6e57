"""The backend for SSH hosts: machines that a person can log in to, with an agent on each one that has kernels."""

from __future__ import annotations

import asyncio

from roost.launchers.daemon.tasks import start_shared
from roost.launchers.protocol.messages import AgentEvent, Launch
from roost.placement import Request, Snapshot
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.base import (
    AgentAddress,
    Backend,
    BackendContext,
    BackendEvent,
    Lease,
)
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.more_room import has_more_room
from roost.scheduler.errors import BackendUnavailable, LeaseConflict

from . import SPEC
from .host_memory import HostMemory
from .manager import SshManager, SshNode
from .open_ssh import HostProblem
from .options import PROLOGUE, check_options
from .settings import RoostSshBackend

_EXPECTED_S = 300.0
"""How long an unreachable host is asked again for the leases of its agent, without a start that needs it."""


def create(settings: RoostSshBackend, context: BackendContext) -> Backend:
    """Return the backend. `BackendSpec.create` names this function."""
    key_pair = load_key_pair("", name=SPEC.name, section=SPEC.section)
    agents = settings.agent_settings()
    manager = SshManager(settings, agents, key_pair, HostMemory(context.folder / "hosts.json"))
    return SshBackend(SPEC.name, manager, agents, context, grace_s=_EXPECTED_S)


class SshBackend(AgentPerNodeBackend[SshNode]):
    """A backend whose agents alone hold the leases."""

    _manager: SshManager

    @property
    def is_still_reading(self) -> bool:
        return self._manager.is_still_reading

    def note_caller(self) -> None:
        self._manager.note_caller()

    async def snapshot(self) -> Snapshot:
        self._manager.refresh(self._pool.connected)
        return await super().snapshot()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        agent: asyncio.Task[AgentAddress] | None = None
        try:
            if lease.request.options.get(PROLOGUE) and lease.node_id in self._membership.nodes:
                self.book.want(lease)
                agent = start_shared(self._pool.address(lease.node_id))  # starts while the prologue runs
                await self.environment(lease)
                await agent  # `claim` runs the prologue again if the host turns out to have started again
            await self._reach(lease)
            return await super().claim(lease, launch)
        except HostProblem as problem:  # the next snapshot shows it as unreachable
            raise LeaseConflict(f"{lease.node_id} is unreachable: {problem}") from None
        finally:
            if agent is not None:
                agent.cancel()

    async def _reach(self, lease: Lease) -> None:
        """Reach the agent that decides on a lease. Raises `LeaseConflict`, so that another host is taken.

        Nothing is asked of the agent yet. After a request without an answer, the kernel may run there.
        """
        if lease.node_id not in self._membership.nodes:
            return
        self.book.want(lease)
        try:
            await self._pool.reach(lease.node_id)
        except BackendUnavailable as problem:
            reason = self._pool.failures.get(lease.node_id, str(problem))
            raise LeaseConflict(f"{lease.node_id} is unreachable: {reason}") from None

    def check_request(self, request: Request) -> None:
        check_options(request.options)

    def _on_agent(self, node_id: str, event: AgentEvent | None) -> None:
        before = self._table.node(node_id)
        if event is None:
            self._manager.note_silence(node_id)
        elif event.node is not None:
            self._manager.note_status(node_id, event.node)
        super()._on_agent(node_id, event)
        after = self._table.node(node_id)
        # No claim is released next, as with a cluster manager.
        if before is not None and after is not None and has_more_room(before, after):
            self._events.put(BackendEvent(kind="nodes"))
        if event is not None and event.kind == "leaving" and not any(self.book.on(node_id)):
            self._pool.forget(node_id)  # it has been idle for long, so nobody asks for it at the next reading
