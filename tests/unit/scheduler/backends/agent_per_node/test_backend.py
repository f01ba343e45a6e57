"""The backend of agents per node, over a fake cluster manager and fake agents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.cluster_manager import FakeManager
from kit.fakes.scheduler import FakeAgent
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.agent_per_node import backend as module
from roost.scheduler.backends.agent_per_node.backend import AgentPerNodeBackend
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.scheduler.backends.agent_per_node.settings import AgentPerNodeSettings
from roost.scheduler.backends.base import AgentReport, BackendContext, BackendEvent
from roost.scheduler.errors import BackendUnavailable, LeaseConflict
from roost.testing import deadlines
from roost.testing.deadlines import allow_s

LEASE = Lease(
    id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1), node_id="here"
)


class Opened:
    """An open backend, with its manager and the one agent."""

    def __init__(self, folder: Path, agent: FakeAgent, manager: FakeManager, **settings: Any) -> None:
        self.agent = agent
        self.manager = manager
        self.agents = Agents()
        context = BackendContext(agents=self.agents, folder=folder, restart_grace_s=10.0, idle_exit_s=60.0)
        own = AgentPerNodeSettings(manager_grace_s=60.0, **settings)
        self.backend = AgentPerNodeBackend(
            "fake", manager, own.agent_settings(), context, grace_s=own.manager_grace_s
        )
        self._shown: list[Lease] = []
        self.backend.book.listen(self._shown.append)

    async def event(self, kind: str) -> BackendEvent:
        """Return the next event of this kind, and skip all others."""
        events = self.backend.events()
        while True:
            event = await asyncio.wait_for(anext(events), allow_s(60))
            if event.kind == kind:
                return event

    async def lost(self) -> Lease:
        """Wait until a lease is lost, and return it."""
        await until(lambda: any(lease.state == "lost" for lease in self._shown))
        return next(lease for lease in self._shown if lease.state == "lost")

    async def close(self) -> None:
        await self.backend.close()
        await self.agents.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REJOIN_S", 0.01)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent(tmp_path / "agent")
    yield agent
    await agent.close()


@pytest.fixture
async def opened(tmp_path: Path, agent: FakeAgent) -> AsyncIterator[Opened]:
    opened = Opened(tmp_path, agent, FakeManager(agent))
    await opened.backend.open()
    yield opened
    await opened.close()


async def until(holds: Callable[[], bool]) -> None:
    await deadlines.until(holds, "the backend reaches its next state", 60, 0.01)


async def test_a_release_wakes_who_waits_although_no_snapshot_shows_a_change(opened: Opened) -> None:
    """The agent tells of its release first, and a manager that is read twice a second may never show the lease."""
    held = await opened.backend.claim(LEASE)
    assert (await opened.backend.snapshot()).node("here").cpus_promised == 1
    with suppress(asyncio.TimeoutError):
        while True:  # what the claim has reported
            await asyncio.wait_for(opened.event("nodes"), 0.3)
    opened.agent.ledger.release(LEASE.id)
    opened.agent.report_status()
    await until(lambda: opened.backend._table.snapshot().node("here").cpus_promised == 0)
    await opened.backend.release(held)
    await opened.event("nodes")


async def test_the_claim_of_a_lease_that_its_agent_let_go_is_released_without_another_call(
    opened: Opened,
) -> None:
    await opened.backend.claim(LEASE)
    opened.agent.calls.clear()
    opened.agent.give_back(LEASE.id)
    await until(lambda: not opened.manager.granted)
    assert "release" not in opened.agent.calls


@pytest.mark.parametrize(
    ("silent", "who_says_so"),
    [
        ("claim", "manager"),
        ("claim", "agent"),
        ("reserve", "manager"),
        ("reserve", "agent"),
        ("start", "manager"),
    ],
)
async def test_a_claim_is_refused_as_soon_as_its_node_ends(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, silent: str, who_says_so: str
) -> None:
    """Ray shows a killed raylet for half a minute, and answers nothing about it."""

    async def start_agent(node_id: str) -> StartedAgent:
        if node_id in opened.manager.left:
            raise BackendUnavailable("no such node")
        return await asyncio.Future()

    if silent == "start":
        monkeypatch.setattr(opened.manager, "start_agent", start_agent)
    else:
        await opened.backend.warm_up()
        (opened.manager if silent == "claim" else opened.agent).hold(silent)
    claiming = asyncio.create_task(opened.backend.claim(LEASE))
    await asyncio.sleep(0.1)
    assert not claiming.done()
    if who_says_so == "agent":
        opened.agent.cut_off(time.time() + 60)
    else:
        opened.manager.left.add("here")
    with pytest.raises(LeaseConflict, match="its daemon has ended"):
        await asyncio.wait_for(claiming, allow_s(10))
    await opened.backend.release(LEASE)


async def test_a_lease_whose_node_left_is_read_as_lost(opened: Opened) -> None:
    opened.manager.granted[LEASE.id] = replace(LEASE, node_id="gone")
    opened.manager.left.add("gone")
    reading = await opened.backend.leases()
    assert reading.leases == (replace(LEASE, node_id="", state="lost", reason="it left"),)
    assert not reading.unreachable


async def test_a_lease_whose_agent_lives_is_held_although_the_manager_lost_its_node(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    opened.manager.left.add("here")
    assert (await opened.backend.leases()).leases == (LEASE,)


async def test_a_lease_is_lost_when_its_agent_gave_it_back_and_nobody_heard_of_it(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    opened.agent.ledger.release(LEASE.id)  # its connection broke, and took the event with it
    (lost,) = (await opened.backend.leases()).leases
    assert (lost.state, lost.reason) == ("lost", "its agent has given it back")


async def test_a_claim_that_its_agent_has_not_noted_yet_is_pending(opened: Opened) -> None:
    """Another service has just made it, or an earlier one died before it told the agent."""
    opened.manager.granted[LEASE.id] = LEASE
    for _ in range(2):
        reading = await opened.backend.leases()
        assert reading.leases == (replace(LEASE, state="pending"),)
        assert reading.processes == {LEASE.id: None}


async def test_a_lease_is_lost_when_its_node_left_and_its_agent_does_not_hold_it(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    opened.agent.ledger.release(LEASE.id)
    opened.manager.left.add("here")
    lost = await opened.lost()
    assert (lost.id, lost.reason) == (LEASE.id, "its node here has left the Fake cluster")
    assert opened.manager.granted == {}


async def test_the_time_at_which_kernels_end_is_the_agents(
    opened: Opened, tmp_path: Path, agent: FakeAgent
) -> None:
    """This service and the next one say the same, however long they have known of the outage."""

    async def refusal(opened: Opened) -> str:
        with pytest.raises(BackendUnavailable) as caught:
            await opened.backend.snapshot()
        return str(caught.value)

    opened.manager.problem = "it is being upgraded"
    await until(lambda: bool(opened.manager.membership.away))
    assert "is away: it is being" in await refusal(opened), "there are no kernels"
    opened.manager.problem = ""
    await opened.event("resync")
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is being upgraded"
    await until(lambda: bool(opened.manager.membership.away))
    assert "is away, and its kernels live on: it is being" in await refusal(opened)
    ends_at = time.time() + 1000
    agent.cut_off(ends_at)
    known = time.strftime(
        "its kernels end at %H:%M:%S if it is not back by then: it", time.localtime(ends_at)
    )
    await until(lambda: "here" in opened.backend._pool.ends)
    assert known in await refusal(opened)
    await opened.backend.close()  # which saves the agents' addresses
    manager = FakeManager(agent)
    manager.problem = "it is being upgraded"
    later = Opened(tmp_path, agent, manager)
    try:
        await later.backend.open()
        await later.backend.leases()
        assert known in await refusal(later)
        agent.cut_off(time.time() - 1)
        await until(lambda: later.backend._pool.ends["here"] < time.time())
        assert "its kernels were to end at" in await refusal(later)
        opened.manager.granted.clear()
        manager.problem = ""
        agent.ends_at = None
        await later.event("resync")
        assert not later.backend._pool.ends
    finally:
        await later.close()


async def test_each_kernel_has_an_prospect_while_the_manager_is_away(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is being upgraded"
    first = await opened.event("prospect")
    assert (first.lease_id, first.reason) == (LEASE.id, "the Fake cluster is away; this kernel lives on")
    ends_at = time.time() + 1000
    opened.agent.cut_off(ends_at)
    at = time.strftime("%H:%M:%S", time.localtime(ends_at))
    second = await opened.event("prospect")
    assert second.reason == f"the Fake cluster is away; this kernel ends at {at} if it is not back by then"
    opened.agent.ends_at = None
    opened.manager.problem = ""
    assert (await opened.event("prospect")).reason == ""


async def test_doctor_says_when_kernels_end_on_a_node_that_is_not_back(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    ends_at = time.time() + 1000
    opened.agent.cut_off(ends_at)
    await until(lambda: "here" in opened.backend._pool.ends)
    assert await opened.backend.diagnose() == [], "the node is there"
    opened.manager.left.add("here")
    await opened.backend._membership.read()
    (finding,) = await opened.backend.diagnose()
    what = "node here is not back in the Fake cluster: what runs there ends at %H:%M:%S"
    assert finding["what"] == time.strftime(what, time.localtime(ends_at))


async def test_starts_that_wait_hear_that_the_manager_is_away(opened: Opened) -> None:
    with suppress(asyncio.TimeoutError):
        while True:  # what the opening has reported
            await asyncio.wait_for(opened.event("nodes"), 0.2)
    opened.manager.problem = "it is being upgraded"
    await opened.event("nodes")
    assert opened.backend._membership.away


@pytest.mark.parametrize("moment", ["claims", "claim again"])
async def test_no_lease_is_missing_while_an_outage_is_being_repaired(opened: Opened, moment: str) -> None:
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is being upgraded"
    await until(lambda: bool(opened.manager.membership.away))
    opened.manager.granted.clear()
    opened.manager.calls.clear()
    goes_on = opened.manager.hold(moment)
    opened.manager.problem = ""
    await until(lambda: moment in opened.manager.calls)
    opened.manager.held.clear()  # for the reading here
    reading = await opened.backend.leases()
    assert reading.leases == (LEASE,)
    goes_on.set()
    await opened.event("resync")
    assert opened.manager.granted == {LEASE.id: LEASE}


async def test_no_start_takes_the_slice_of_a_live_kernel_when_the_manager_is_back(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is being upgraded"
    await until(lambda: bool(opened.manager.membership.away))
    opened.manager.granted.clear()
    goes_on = opened.manager.hold("claim again")
    opened.manager.problem = ""
    await until(lambda: "claim again" in opened.manager.calls)
    other = replace(LEASE, id="roost:other:s/1", kernel_id="other")
    with pytest.raises(LeaseConflict, match="claim their slices again"):
        await opened.backend.claim(other)
    goes_on.set()
    await opened.event("resync")
    await opened.backend.claim(other)
    assert opened.manager.granted.keys() == {LEASE.id, other.id}


async def test_a_lease_whose_slice_was_taken_in_an_outage_is_lost_and_its_kernel_ended(
    opened: Opened,
) -> None:
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is being upgraded"
    await until(lambda: bool(opened.manager.membership.away))
    opened.manager.granted.clear()
    opened.manager.problem, opened.manager.refusal = "", "it is full"
    lost = await opened.lost()
    assert lost.reason == "the Fake cluster came back without room for it: it is full"
    await until(lambda: not opened.agent.held_leases())


async def test_the_next_service_serves_live_kernels_while_the_manager_is_away(
    tmp_path: Path, opened: Opened
) -> None:
    await opened.backend.claim(LEASE)
    away = FakeManager(opened.agent)
    away.problem = "it is away"
    second = Opened(tmp_path, opened.agent, away)
    await second.backend.open()
    try:
        assert second.backend.address == "fake:1"
        assert (await second.backend.leases()).leases == (LEASE,)
        assert await second.backend.agent(LEASE) == opened.agent.address
    finally:
        await second.close()


async def test_the_next_service_takes_no_claim_for_empty_while_its_agent_does_not_answer(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.agent_per_node.agents._ANSWER_S", 0.05)
    await opened.backend.claim(LEASE)
    opened.agent.hold("list")
    second = Opened(tmp_path, opened.agent, opened.manager)
    await second.backend.open()
    try:
        pending = replace(LEASE, state="pending", reason="the agent of node here does not answer")
        for _ in range(3):
            reading = await second.backend.leases()
            assert reading.leases == (pending,)
            assert (dict(reading.processes), reading.unanswered) == ({}, {LEASE.id})
            second.backend.book.show(pending)  # as the scheduler does
        monkeypatch.setattr("roost.scheduler.backends.agent_per_node.agents._ANSWER_S", allow_s(10))
        opened.agent.held["list"].set()
        reading = await second.backend.leases()
        assert (reading.leases, reading.unanswered) == ((LEASE,), set())
    finally:
        await second.close()


async def test_an_agent_that_does_not_answer_is_unreachable_and_its_lease_stays(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.agent_per_node.agents._ANSWER_S", 0.05)
    await opened.backend.claim(LEASE)
    opened.manager.problem = "it is away"
    await until(lambda: bool(opened.manager.membership.away))
    opened.agent.hold("list")
    reading = await opened.backend.leases()
    assert (reading.leases, reading.unreachable) == ((LEASE,), {"here"})
    opened.agent.held["list"].set()


async def test_agents_report_the_real_use_and_are_not_asked_for_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_METRICS_S", 0.01)
    node = (await opened.backend.snapshot()).node("here")
    assert (node.cpus_used, node.metrics_age_s) == (None, None), "no agent is connected yet"
    await opened.backend.claim(LEASE)
    await until_used(opened, 0.0)
    began = time.monotonic()
    opened.agent.cpus_used = 3.0
    opened.agent.report_status()
    node = await until_used(opened, 3.0)
    assert node.cpus_promised == 1

    async def is_new() -> bool:  # the age counts from the reading before the report until the next reading
        age_s = (await opened.backend.snapshot()).node("here").metrics_age_s
        assert age_s is not None
        return age_s <= time.monotonic() - began

    await deadlines.until(is_new, "the metrics are read again", 60, 0.01)
    assert "status" not in opened.agent.calls


async def test_the_real_use_of_a_node_is_unknown_while_its_agent_is_unreachable(opened: Opened) -> None:
    await opened.backend.claim(LEASE)
    await until_used(opened, 0.0)
    await opened.agent.restart()
    assert (await until_used(opened, None)).metrics_age_s is None
    opened.agent.cpus_used = 1.0
    await opened.backend.leases()  # connects with the agent
    await until_used(opened, 1.0)


async def test_doctor_says_what_the_manager_says(opened: Opened) -> None:
    assert await opened.backend.diagnose() == []
    opened.manager.findings = [{"level": "warning", "what": "it is old", "do": "renew it"}]
    assert await opened.backend.diagnose() == opened.manager.findings


async def test_doctor_names_the_nodes_on_which_no_agent_starts(opened: Opened) -> None:
    """A Python without ipykernel is reported from the first attempt until an attempt succeeds."""
    assert opened.backend.report_agent("here") == AgentReport()
    opened.manager.broken = "no agent on here: python3 on that node cannot run roost's agent"
    with pytest.raises(BackendUnavailable):
        await opened.backend.warm_up()
    (found,) = await opened.backend.diagnose()
    assert found["level"] == "error"
    assert found["what"] == "no agent of roost starts on here: python3 on that node cannot run roost's agent"
    assert "`roost up`" in found["do"]
    assert opened.backend.report_agent("here") == AgentReport(problem=opened.manager.broken)
    opened.manager.broken = ""
    assert await opened.backend.warm_up() == 1
    assert await opened.backend.diagnose() == []
    assert opened.backend.report_agent("here") == AgentReport(has_run=True)


async def test_an_earlier_agent_serves_its_node_while_no_new_one_starts(
    tmp_path: Path, agent: FakeAgent
) -> None:
    """The settings have changed, and no agent can start with them. Kernels start on the earlier agent."""
    first = Opened(tmp_path, agent, FakeManager(agent))
    await first.backend.open()
    await first.backend.warm_up()
    await first.close()
    later = Opened(tmp_path, agent, FakeManager(agent), agent_idle_exit_s=1.0)
    later.manager.broken = "no agent on here: python3 on that node cannot run roost's agent"
    await later.backend.open()
    try:
        assert await later.backend.warm_up() == 1
        await later.backend.claim(LEASE)
        (found,) = await later.backend.diagnose()
        assert found["level"] == "warning"
        assert found["what"].startswith("earlier agents serve here, with their own settings, because no new")
        assert "python3 on that node cannot run" in found["what"]
        assert later.backend.report_agent("here") == AgentReport(has_run=True)
        await agent.close()
        await until(lambda: later.backend.report_agent("here") == AgentReport(problem=later.manager.broken))
        (found,) = await later.backend.diagnose()
        assert found["level"] == "error"
    finally:
        await later.close()


async def test_an_agent_that_is_lost_and_cannot_be_started_is_not_tried_again(
    opened: Opened, agent: FakeAgent
) -> None:
    """A machine that is down lets each attempt take many seconds. The reason is the one why no agent starts."""
    await opened.backend.warm_up()
    await agent.close()
    opened.manager.broken = "the machine is down"
    with pytest.raises(BackendUnavailable, match=r"the agent on here cannot be reached: the machine is down"):
        await opened.backend.claim(LEASE)


async def until_used(opened: Opened, cpus_used: float | None) -> Node:
    """Wait until the snapshot has this use of CPUs. Return the node."""

    async def find() -> Node | None:
        node = (await opened.backend.snapshot()).node("here")
        return node if node.cpus_used == cpus_used else None

    return await deadlines.until(find, f"the node uses {cpus_used} CPUs", 60, 0.01)


async def test_agents_are_found_again_after_a_change_of_their_settings(
    tmp_path: Path, agent: FakeAgent
) -> None:
    """The manager starts an agent with the new settings in place of one without kernels."""

    async def count_starts(broken: str = "", **settings: Any) -> int:
        manager = FakeManager(agent)
        manager.broken = broken
        opened = Opened(tmp_path, agent, manager, **settings)
        try:
            await opened.backend.open()
            assert await opened.backend.warm_up() == 1
        finally:
            await opened.close()
        return len(manager.started)

    assert await count_starts() == 1
    assert await count_starts() == 0
    assert await count_starts(python="/opt/python") == 1
    assert await count_starts(python="/opt/python") == 0
    assert await count_starts(broken="no such program", preload=["pandas"]) == 0
    assert await count_starts(preload=["pandas"]) == 1
    assert await count_starts(preload=["pandas"]) == 0
