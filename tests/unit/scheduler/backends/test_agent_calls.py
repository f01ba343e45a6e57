"""Calls to agents: they are repeated if an agent is lost, and its errors become exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import AgentAddress
from roost.scheduler.backends.agent_calls import AgentCaller, Agents, LeaseGone
from roost.scheduler.errors import (
    BackendUnavailable,
    KernelDied,
    LaunchError,
    LaunchTimeout,
    LeaseConflict,
    UnknownKernel,
)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(tmp_path)
    yield agent
    await agent.close()


class Caller:
    """An `AgentCaller` for one agent. `lost` has the addresses that `on_lost` received."""

    def __init__(self, agent: FakeAgent) -> None:
        self.lost: list[AgentAddress | None] = []
        self.problem: Exception | None = None
        self.address = agent.address
        self.agents = Agents()
        self.caller = AgentCaller(
            self.agents, self._resolve, name="the agent", on_lost=self._on_lost, pauses_s=(0.0, 0.01)
        )

    async def read_name(self) -> str:
        return (await self.caller.call(lambda client: client.status())).id

    async def _resolve(self) -> AgentAddress:
        if self.problem is not None:
            raise self.problem
        return self.address

    async def _on_lost(self, address: AgentAddress | None) -> None:
        self.lost.append(address)


@pytest.fixture
async def caller(agent: FakeAgent) -> AsyncIterator[Caller]:
    caller = Caller(agent)
    yield caller
    await caller.agents.close()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("conflict", LeaseConflict),
        ("kernel_died", KernelDied),
        ("launch_timeout", LaunchTimeout),
        ("no_lease", LeaseGone),
        ("unknown_kernel", UnknownKernel),
        ("no_space", LaunchError),
    ],
)
async def test_an_error_of_the_agent_has_a_type_and_is_not_repeated(
    agent: FakeAgent, caller: Caller, kind: str, error: type[Exception]
) -> None:
    agent.fail("status", kind)
    with pytest.raises(error, match="status fails") as raised:
        await caller.read_name()
    assert type(raised.value) is error
    assert agent.calls.count("status") == 1


async def test_a_call_is_repeated_when_the_agent_cannot_be_started_at_first(caller: Caller) -> None:
    caller.problem = BackendUnavailable("it is leaving")

    async def forget(address: AgentAddress | None) -> None:
        caller.lost.append(address)
        caller.problem = None

    again = AgentCaller(caller.agents, caller._resolve, name="the agent", on_lost=forget)
    assert (await again.call(lambda client: client.status())).id == "here"
    assert caller.lost == [None]


async def test_a_call_ends_after_the_last_attempt(caller: Caller) -> None:
    caller.problem = BackendUnavailable("it is leaving")
    with pytest.raises(BackendUnavailable, match="the agent cannot be reached: it is leaving"):
        await caller.read_name()
    assert caller.lost == [None, None]


async def test_a_call_is_repeated_on_the_next_agent_when_the_connection_is_lost(
    agent: FakeAgent, caller: Caller
) -> None:
    assert await caller.read_name() == "here"
    before = agent.address
    await agent.restart()

    async def find(address: AgentAddress | None) -> None:
        caller.lost.append(address)
        caller.address = agent.address

    again = AgentCaller(caller.agents, caller._resolve, name="the agent", on_lost=find)
    assert (await again.call(lambda client: client.status())).id == "here"
    assert caller.lost == [before]


async def test_an_error_of_the_hook_ends_the_call(caller: Caller) -> None:
    caller.problem = BackendUnavailable("it is leaving")

    async def give_up(_: AgentAddress | None) -> None:
        raise BackendUnavailable("the manager is away")

    with pytest.raises(BackendUnavailable, match="the manager is away"):
        await AgentCaller(caller.agents, caller._resolve, name="the agent", on_lost=give_up).call(
            lambda client: client.status()
        )
