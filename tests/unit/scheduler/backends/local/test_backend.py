"""The real use of this machine in the snapshots of the local backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import BackendEvent
from roost.scheduler.backends.local import backend as module
from roost.scheduler.backends.local.backend import LocalBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import LeaseConflict
from roost.testing import deadlines
from roost.testing.fake_agent import Promised
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

    async def find() -> Node | None:
        node = (await backend.snapshot()).node("here")
        return node if holds(node) else None

    return await deadlines.until(find, "the node is as expected", 60, 0.01)


async def test_the_agent_reports_the_use_and_is_not_asked_for_it(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    agent.calls.clear()
    agent.cpus_used = 3.0
    agent.warm = ("python3",)
    agent.report_status()
    assert (await until(backend, lambda node: node.cpus_used == 3.0)).warm == ("python3",)
    assert agent.calls == []


async def test_the_promises_are_known_when_a_call_returns_and_nobody_asks_for_them(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    agent.calls.clear()
    held = await backend.claim(LEASE)
    node = (await backend.snapshot()).node("here")
    assert (node.kernels, node.owners, node.devices[0].promised) == (1, {"ada": 1}, 0.5)
    await backend.release(held)
    node = (await backend.snapshot()).node("here")
    assert (node.kernels, node.owners, node.devices[0].promised) == (0, {}, 0.0)
    assert agent.calls == ["reserve", "release"]


async def test_a_report_is_not_replaced_by_an_older_answer(backend: LocalBackend, agent: FakeAgent) -> None:
    """The answer to a question may be read after a report that the agent has sent later."""
    goes_on = agent.hold("status")
    agent.calls.clear()
    with pytest.raises(LeaseConflict):
        await backend.claim(replace(LEASE, request=Request(gpus=2)))  # so that the agent is asked
    asking = asyncio.ensure_future(backend.snapshot())
    await agent.called("status")
    agent.held.clear()
    held = await backend.claim(LEASE)
    agent.ledger.release(held.id)  # silently: the answer would not have it
    goes_on.set()
    await asking
    assert (await backend.snapshot()).node("here").kernels == 1


async def test_the_use_does_not_grow_old_while_the_agent_reports_changes(
    backend: LocalBackend, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.report_status()
    monkeypatch.setattr(module, "_REPORTED_S", 0.01)
    await asyncio.sleep(0.02)
    age_s = (await backend.snapshot()).node("here").metrics_age_s
    assert age_s is not None
    assert age_s <= 0.01


async def test_starts_that_wait_are_woken_when_others_hold_less(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    """They are not woken when others hold more, or when only the use changes."""
    others = (Promised(devices={"0": 0.5}), Promised(cpus=2.0), Promised(memory_bytes=1 << 30))
    for number, held in enumerate((others, others, others[1:], others[2:], ())):
        agent.others, agent.cpus_used = held, 1.0 + number
        agent.report_status()
        await until(backend, lambda node, used=agent.cpus_used: node.cpus_used == used)  # type: ignore[misc]
    await backend.close()
    assert [event async for event in backend.events()] == [BackendEvent(kind="nodes")] * 3


async def test_after_a_lost_connection_the_next_agent_is_asked(
    backend: LocalBackend, agent: FakeAgent
) -> None:
    agent.cpus_used = 2.0
    await agent.restart()
    await until(backend, lambda node: node.cpus_used == 2.0)
