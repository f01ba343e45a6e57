"""A new scheduler reads leases and kernels back after a kill, and ends kernels that nobody wants."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.scheduler import FakeAgent, FakeWorld, fake_world, scheduler_on
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.messages import AgentEvent, Holdings, Owner
from roost.placement import Request
from roost.scheduler.backends.base import Lease, LeaseReading
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import reconcile
from roost.scheduler.errors import BackendUnavailable, Cancelled, LeaseConflict, UnknownKernel
from roost.testing.deadlines import allow_s
from roost.testing.fake_backends import FakeBackend

SOON = Settings(claim_grace_s=0.05, owner_grace_s=0.05, orphan_after_s=0.3)


@pytest.fixture
def application() -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that owns kernels."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def owner_of(process: subprocess.Popen[bytes], *, can_adopt: bool = False) -> Owner:
    return Owner(
        user="ada",
        application="app",
        host=socket.gethostname(),
        pid=process.pid,
        process_started_at=start_time(process.pid),
        can_adopt=can_adopt,
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def test_a_successor_reads_kernels_back(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path, gpus=1)
    async with scheduler_on([agent]) as w:
        await w.start("k", gpus=0.5)
    async with scheduler_on([agent]) as w:
        kernel = w.kernel("k")
        assert (kernel.state, kernel.launch_id, kernel.request.gpus) == ("running", "1", 0.5)
        assert kernel.connection is not None
        assert (await w.start("k", gpus=0.5)).pid == kernel.pid
        assert len(agent.launched) == 1
        agent.end("k")
        await w.told("exited")
        assert (await w.start("k", "2")).state == "running"
        await w.scheduler.stop("k", 0)
        assert w.leases() == []
    await agent.close()


@pytest.mark.parametrize("tells", [True, False])
async def test_an_agent_that_told_its_processes_with_its_leases_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tells: bool
) -> None:
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", cpus=1)
        ask, asked = AgentClient.holdings, []
        leases = w.backend.leases

        async def note(client: AgentClient) -> Holdings:
            asked.append(client)
            return await ask(client)

        async def read() -> LeaseReading:
            reading = await leases()
            return reading if tells else LeaseReading(leases=reading.leases)

        monkeypatch.setattr(AgentClient, "holdings", note)
        monkeypatch.setattr(w.backend, "leases", read)
        reading = await w.scheduler.reconciler.read(only_own=True)
        assert [process.kernel_id for process in reading.processes.values()] == ["k"]
        assert len(asked) == (1 if tells else 2)
    await agent.close()


async def test_a_kernel_that_ends_while_it_is_read_back_is_not_taken_for_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", cpus=1)
    ask = AgentClient.holdings

    async def ask_before_the_end(client: AgentClient) -> Holdings:
        held = await ask(client)
        if all(kernel.is_running for kernel in held.kernels):
            agent.end("k")
            await client.status()  # the event arrives before this answer
        return held

    monkeypatch.setattr(AgentClient, "holdings", ask_before_the_end)
    async with scheduler_on([agent]) as w:
        assert w.kernel("k").state == "exited"
    await agent.close()


async def test_applications_ask_again_once_a_silent_agent_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then, they know only that their kernel may live there."""
    monkeypatch.setattr(reconcile, "RETRY_S", 0.01)
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        leases, silent = w.backend.leases, {"far"}

        async def read() -> LeaseReading:
            return replace(await leases(), unreachable=frozenset(silent))

        monkeypatch.setattr(w.backend, "leases", read)
        w.scheduler.reconciler.soon()
        await w.until_not(lambda: _knows_all(w))
        with pytest.raises(BackendUnavailable, match="may live where no agent answers now: on far"):
            w.kernel("k")
        with pytest.raises(BackendUnavailable, match="The kernel is stopped as soon as its agent answers"):
            await w.scheduler.stop("k")
        assert w.count("resync") == 0
        silent.clear()
        await w.told("resync")
        with pytest.raises(UnknownKernel):
            w.kernel("k")
    await agent.close()


async def test_a_kernel_whose_agent_is_silent_when_the_next_service_comes_is_unknown_and_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager shows its claim, and only the agent knows whether a kernel runs there."""
    monkeypatch.setattr(reconcile, "RETRY_S", 0.01)
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", cpus=1, memory_bytes=1 << 30, owner=Owner(user="ada", pid=1))
    leases, is_silent, asked = FakeBackend.leases, True, 0

    async def read(backend: FakeBackend) -> LeaseReading:
        nonlocal asked
        asked += 1
        reading = await leases(backend)
        if not is_silent:
            return reading
        shown = {"state": "pending", "request": Request(cpus=1), "owner": Owner(user="ada")}
        pending = tuple(replace(lease, **shown) for lease in reading.leases)
        ids = frozenset(lease.id for lease in pending)
        return LeaseReading(leases=pending, unanswered=ids)

    monkeypatch.setattr(FakeBackend, "leases", read)
    async with scheduler_on([agent], SOON) as w:
        await asyncio.sleep(3 * SOON.claim_grace_s)
        assert asked > 1
        assert w.kernel("k").state == "unknown"
        for call in (w.scheduler.signal("k", 2), w.scheduler.logs("k"), w.scheduler.journal("k")):
            with pytest.raises(BackendUnavailable, match="nobody knows whether kernel k still runs"):
                await call  # an application would take `UnknownKernel` for its end
        is_silent = False
        await w.told("running")
        kernel = w.kernel("k")
        assert (kernel.state, kernel.request.memory_bytes, kernel.owner.pid) == ("running", 1 << 30, 1)
    await agent.close()


@pytest.mark.parametrize("is_started_again", [False, True])
async def test_a_kernel_that_was_stopped_while_its_agent_was_silent_is_ended_once_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_started_again: bool
) -> None:
    monkeypatch.setattr(reconcile, "RETRY_S", 0.01)
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", cpus=1)
    leases, is_silent = FakeBackend.leases, True

    async def read(backend: FakeBackend) -> LeaseReading:
        return (
            LeaseReading(leases=tuple(backend.book), unreachable=frozenset({"here"}))
            if is_silent
            else await leases(backend)
        )

    monkeypatch.setattr(FakeBackend, "leases", read)
    async with scheduler_on([agent]) as w:
        with pytest.raises(BackendUnavailable, match="The kernel is stopped as soon as"):
            await w.scheduler.stop("k")
        if is_started_again:
            await w.start("k", cpus=1)
        is_silent = False
        if is_started_again:
            await w.told("resync")
            assert w.kernel("k").state == "running"
        else:
            await w.told("released")
            assert w.leases() == []
    await agent.close()


async def _knows_all(w: FakeWorld) -> bool:
    return not w.scheduler.reconciler.unreachable


@pytest.mark.parametrize("stage", ["reserve", "launch"])
async def test_a_start_that_is_repeated_after_a_kill_goes_on(tmp_path: Path, stage: str) -> None:
    agent = FakeAgent(tmp_path, cpus=1)
    async with scheduler_on([agent]) as w:
        agent.hold(stage)
        start = w.start("k", cpus=1)
        await agent.called(stage)
    with pytest.raises(asyncio.CancelledError):
        await start
    for held in agent.held.values():
        held.set()
    agent.held.clear()
    async with scheduler_on([agent]) as w:
        assert (await w.start("k", cpus=1)).state == "running"
        assert len(agent.launched) == 1
        assert w.leases() == ["roost:k:s/1"]
    await agent.close()


async def test_a_repeated_start_asks_for_all_that_it_asked_for_though_its_claim_shows_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager shows the amounts of a claim that no agent has noted, and neither its policy nor its owner's pid."""
    agent, owner = FakeAgent(tmp_path, cpus=1), Owner(user="ada")
    claim = Lease(
        id="roost:k:s/1", kernel_id="k", owner=owner, request=Request(cpus=1), node_id="here", state="pending"
    )
    leases = FakeBackend.leases

    async def read(backend: FakeBackend) -> LeaseReading:
        reading = await leases(backend)
        return reading if reading.leases else LeaseReading(leases=(claim,), processes={claim.id: None})

    monkeypatch.setattr(FakeBackend, "leases", read)
    async with scheduler_on([agent]) as w:
        kernel = await w.start("k", cpus=1, memory_bytes=1 << 30, options={"namespace": "team"})
        assert kernel.lease_id == claim.id
        (lease,) = w.backend.book
        for request in (kernel.request, lease.request):
            assert (request.memory_bytes, request.policy) == (1 << 30, "balanced")
            assert request.options == {"namespace": "team"}
    await agent.close()


async def test_a_repeated_start_goes_on_if_the_node_of_its_earlier_claim_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent(tmp_path, cpus=1)
    pending = Lease(
        id="roost:k:s/1",
        kernel_id="k",
        owner=Owner(user="ada"),
        request=Request(cpus=1),
        node_id="here",
        state="pending",
    )
    leases, claim, claims = FakeBackend.leases, FakeBackend.claim, list[Lease]()

    async def read(backend: FakeBackend) -> LeaseReading:
        reading = await leases(backend)
        return reading if claims else LeaseReading(leases=(pending,), processes={pending.id: None})

    async def claim_later(backend: FakeBackend, lease: Lease, *more: Any) -> Lease:
        claims.append(lease)
        if len(claims) == 1:
            raise LeaseConflict("its raylet has ended")
        return await claim(backend, lease, *more)

    monkeypatch.setattr(FakeBackend, "leases", read)
    monkeypatch.setattr(FakeBackend, "claim", claim_later)
    async with scheduler_on([agent]) as w:
        assert (await w.start("k", cpus=1)).state == "running"
        assert w.leases() == [pending.id]
    await agent.close()


async def test_the_owner_that_only_a_slow_agent_knows_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, application: subprocess.Popen[bytes]
) -> None:
    """Only the agent knows a kernel's owner. If the agent is too slow, a reading has the lease without its owner."""
    monkeypatch.setattr(reconcile, "RETRY_S", 0.01)
    owner = owner_of(application)
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1, owner=owner)
        (lease,) = (await w.backend.leases()).leases
        readings = iter([LeaseReading(leases=(replace(lease, owner=Owner(user="ada")),))])
        leases = w.backend.leases

        async def read() -> LeaseReading:
            return next(readings, None) or await leases()

        monkeypatch.setattr(w.backend, "leases", read)
        w.scheduler._table.records.clear()  # as for a successor
        await w.scheduler.reconciler._read_back()
        assert (w.kernel("k").state, w.kernel("k").owner.pid) == ("running", 0)

        async def is_unknown() -> bool:
            return w.kernel("k").owner != owner

        await w.until_not(is_unknown)


@pytest.mark.parametrize("is_told", [True, False], ids=["and_says_so", "without_a_word"])
async def test_the_reason_of_a_loss_is_awaited_also_when_the_lease_is_gone_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    monkeypatch.setattr(reconcile, "_REASON_S", allow_s(60))
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1)
        may_answer, asked, read = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def explain(lease: Lease) -> str:
            asked.set()
            await may_answer.wait()
            return "its pod was deleted"

        async def none() -> LeaseReading:
            read.set()
            return LeaseReading(leases=())

        monkeypatch.setattr(w.backend, "explain_loss", explain)
        monkeypatch.setattr(w.backend, "leases", none)
        w.agent.report(AgentEvent(kind="lost", lease_id="roost:k:s/1", reason="its pod was ended"))
        await asked.wait()
        if is_told:
            w.agent.end("k", -15)
            w.agent.give_back("roost:k:s/1")
        await w.scheduler.reconciler._read_back()
        assert read.is_set()
        assert w.kernel("k").state == "running"
        may_answer.set()
        await w.told("released")
        assert w.kernel("k").reason == "its lease is lost: its pod was deleted"


async def test_kernels_of_a_dead_owner_end_after_the_grace(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    async with fake_world(tmp_path, settings=SOON, cpus=1) as w:
        await w.start("k", cpus=1, owner=owner_of(application))
        queued = w.start("queued", cpus=1, owner=owner_of(application))
        await w.start("mine", cpus=0)
        await w.told("queued", "queued")
        kill(application)
        await w.told("released", "k")
        await asyncio.wait([queued])
        assert w.kernel("k").reason == "its owner app has ended"
        assert [kernel.id for kernel in w.scheduler.kernels()] == ["mine"]


async def test_kernels_of_an_owner_that_can_adopt_live_until_they_are_culled(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    agent, owner = FakeAgent(tmp_path), owner_of(application, can_adopt=True)
    async with scheduler_on([agent], SOON.with_values(orphan_after_s=60.0)) as w:
        await w.start("k", cpus=1, owner=owner)
        await w.start("left", cpus=1, owner=replace(owner, can_adopt=False))
        kill(application)
        await w.told("released", "left")  # the grace of owners that cannot adopt is over
        assert w.kernel("k").state == "running"
        assert "outlived app" in (await w.scheduler.doctor())[0]["what"]
    async with scheduler_on([agent], SOON) as w:
        await w.told("cull", "k")
        await w.told("released", "k")
        assert w.kernel("k").reason == "culled: nobody has come back for it for 0.3 s"
    await agent.close()


async def test_an_adopted_kernel_lives_and_ends_with_its_new_owner(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent], SOON) as w:
        await w.start("k", cpus=1)
        first = w.kernel("k").owner
        adopted = await w.scheduler.adopt("k", replace(owner_of(application), user="bob"))
        assert (adopted.owner.pid, adopted.owner.user) == (application.pid, first.user)
        assert adopted.connection is not None
        with pytest.raises(UnknownKernel):
            await w.scheduler.adopt("nobody", first)
    async with scheduler_on([agent], SOON) as w:  # the ledger has it
        assert w.kernel("k").owner == adopted.owner
        kill(application)
        await w.told("released", "k")
    await agent.close()


async def test_a_restart_by_another_application_is_its_own(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        await w.start("k", cpus=1, owner=owner_of(application))
        w.agent.end("k")
        await w.told("exited")
        await w.start("k", "2", cpus=1)
    kill(application)
    async with scheduler_on([agent], SOON) as w:
        assert w.kernel("k").owner.pid == 0
        await asyncio.sleep(0.15)  # beyond the grace of the first owner
        assert w.kernel("k").state == "running"
    await agent.close()


async def test_a_server_keeps_its_kernel_from_a_script_that_looks_in(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    async with fake_world(tmp_path) as w:
        server = Owner(user="ada", application="jupyter_server", can_adopt=True)
        await w.start("k", owner=server)
        assert (await w.scheduler.adopt("k", owner_of(application))).owner == server


async def test_a_kernel_that_ends_after_its_owner_keeps_no_lease(
    tmp_path: Path, application: subprocess.Popen[bytes]
) -> None:
    async with fake_world(tmp_path, settings=Settings()) as w:
        owner = owner_of(application, can_adopt=True)
        await w.start("k", cpus=1, owner=owner)
        kill(application)
        while w.scheduler.owners.is_alive(owner):
            await w.scheduler.doctor()  # a call to the agent and back: the loop has seen the pidfd by then
        with pytest.raises(Cancelled, match="its owner has ended"):
            await w.start("late", owner=owner)
        w.agent.end("k")
        await w.told("released", "k")
        assert w.leases() == []
