"""What a claim does when a host is out of reach. The hosts are pretended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, cast

import pytest

from kit.fakes.cluster_manager import FakeManager
from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import BackendContext
from roost.scheduler.backends.ssh.backend import SshBackend
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.scheduler.errors import LeaseConflict
from roost.testing.deadlines import until

LEASE = Lease(
    id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1), node_id="here"
)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent")
    yield agent
    await agent.close()


class FakeHosts(FakeManager):
    """A cluster manager that measures no host."""

    def refresh(self, connected: Collection[str]) -> None: ...

    def note_silence(self, node_id: str) -> None: ...

    def note_status(self, node_id: str, status: Node) -> None: ...


@pytest.fixture
async def manager(agent: FakeAgent) -> FakeHosts:
    return FakeHosts(agent)


@pytest.fixture
async def backend(tmp_path: Path, manager: FakeHosts) -> AsyncIterator[SshBackend]:
    agents = Agents()
    context = BackendContext(agents=agents, folder=tmp_path, restart_grace_s=10.0, idle_exit_s=60.0)
    settings = RoostSshBackend().agent_settings()
    backend = SshBackend("ssh", cast(Any, manager), settings, context, grace_s=60.0)
    await backend.open()
    yield backend
    await backend.close()
    await agents.close()


async def test_another_host_is_taken_if_the_agent_of_this_one_is_out_of_reach(
    backend: SshBackend, manager: FakeHosts, agent: FakeAgent
) -> None:
    """The host was switched off a moment ago. Its agent is known from before, and ssh does not reach it either."""
    await backend.warm_up()
    await agent.close()
    await until(lambda: not backend._pool.connected, "the agent is disconnected")
    manager.broken = "ssh cannot reach here: No route to host"
    with pytest.raises(LeaseConflict, match=r"here is unreachable: ssh cannot reach here: No route to host"):
        await backend.claim(LEASE)
