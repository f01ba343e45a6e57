"""The real use of this machine in the snapshots of the local backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.local import backend as module
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.config.settings import Settings
from roost.testing.deadlines import allow_s
from roost.testing.fake_backends import local_backend

LEASE = Lease(id="l", kernel_id="k", owner=Owner(user="ada"), request=Request(gpus=0.5), node_id="here")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent", gpus=1)
    yield agent
    await agent.close()


@pytest.fixture
async def backend(agent: FakeAgent) -> AsyncIterator[LocalBackend]:
    agents = Agents()
    backend = local_backend(agent, Settings(), agents)
    await backend.open()
    yield backend
    await backend.close()
    await agents.close()


async def until(backend: LocalBackend, holds: Callable[[Node], bool]) -> Node:
    """Wait until this machine's node in the snapshot is as expected, and return it."""
    deadline = time.monotonic() + allow_s(60)
    while not holds(node := (await backend.snapshot()).node("here")):
        assert time.monotonic() < deadline, node
        await asyncio.sleep(0.01)
    return node


async def test_the_agent_reports_the_use_and_is_not_asked_for_it(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    agent.calls.clear()
    agent.cpus_used = 3.0
    agent.warm = ("python3",)
    agent.report_status()
    assert (await until(backend, lambda node: node.cpus_used == 3.0)).warm == ("python3",)
    assert agent.calls == []


async def test_a_report_of_the_use_changes_no_promise(backend: LocalBackend, agent: FakeAgent) -> None:
    """The report may have left the agent before a lease, or after it."""
    held = await backend.claim(LEASE)
    (device,) = (await until(backend, lambda node: node.kernels == 1)).devices
    assert device.promised == 0.5
    agent.ledger.release(held.id)
    agent.cpus_used = 1.0
    agent.report_status()
    node = await until(backend, lambda node: node.cpus_used == 1.0)
    assert [each.promised for each in node.devices] == [0.5]


async def test_the_use_does_not_grow_old_while_the_agent_reports_changes(
    backend: LocalBackend, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.report_status()
    monkeypatch.setattr(module, "_REPORTED_S", 0.01)
    await asyncio.sleep(0.02)
    age_s = (await backend.snapshot()).node("here").metrics_age_s
    assert age_s is not None
    assert age_s <= 0.01


async def test_after_a_lost_connection_the_next_agent_is_asked(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    agent.cpus_used = 2.0
    await agent.restart()
    await until(backend, lambda node: node.cpus_used == 2.0)
