"""The rules of leases, on a real ledger and kernels that only pretend to run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.launchers.agent.leases import lease_rules
from roost.launchers.agent.leases.lease_rules import LeaseRules
from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model import Request
from roost.testing.deadlines import allow_s

NEVER_S = 3600.0


class World:
    """The rules with all that they call. `steps` has events, ends of kernels, cleared limits and the agent's exit."""

    def __init__(self, folder: Path, idle_exit_s: float, exit_after_release_s: float) -> None:
        self.ledger = LeaseLedger(folder / "leases", cpus=4, memory_bytes=100, devices=[])
        self.running: set[str] = set()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.steps: list[tuple[str, str]] = []
        self.changed = asyncio.Event()
        self.rules = LeaseRules(
            self.ledger,
            self,
            clear=self.clear,
            publish=lambda kind, lease_id, reason="": self.note(kind, lease_id),
            on_change=lambda: None,
            leave=lambda: self.note("leave", ""),
            idle_exit_s=idle_exit_s,
            exit_after_release_s=exit_after_release_s,
        )

    def note(self, step: str, lease_id: str) -> None:
        self.steps.append((step, lease_id))
        self.changed.set()

    def runs_in(self, lease: Lease) -> bool:
        return lease.id in self.running

    async def release(self, lease: Lease, grace_s: float) -> None:
        self.note("end", lease.id)
        await self.may_end.wait()
        self.running.discard(lease.id)

    async def clear(self, lease_id: str) -> None:
        self.note("clear", lease_id)

    def reserve(self, name: str, linger_s: float = NEVER_S) -> None:
        lease = Lease(id=name, kernel_id=f"kernel {name}", owner=Owner(user="ada"), request=Request())
        request = Reserve(lease=lease, linger_s=linger_s)
        self.ledger.reserve(request)
        self.rules.begin(request)

    async def until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), allow_s(10))


@asynccontextmanager
async def a_world(
    folder: Path, *, idle_exit_s: float = NEVER_S, exit_after_release_s: float = NEVER_S
) -> AsyncIterator[World]:
    world = World(folder, idle_exit_s, exit_after_release_s)
    yield world
    await world.rules.close()


async def test_a_lease_that_no_kernel_uses_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_rules, "UNUSED_LEASE_S", 0.0)
    async with a_world(tmp_path) as w:
        w.running.add("used")
        w.reserve("used", linger_s=0.0)
        w.reserve("unused", linger_s=0.0)
        await w.until(lambda: ("released", "unused") in w.steps)
        assert [entry.lease.id for entry in w.ledger.entries()] == ["used"]
        w.running.clear()
        w.rules.let_expire("used")  # its kernel has ended
        await w.until(lambda: w.ledger.is_empty)


async def test_a_restart_keeps_the_lease(tmp_path: Path) -> None:
    async with a_world(tmp_path) as w:
        w.reserve("a", linger_s=0.0)
        w.rules.let_expire("a")
        assert w.rules.occupy("a", "kernel a").id == "a"
        for _ in range(10):
            await asyncio.sleep(0)
        assert "a" in w.ledger


async def test_a_launch_needs_a_lease_of_its_kernel_that_is_not_being_released(tmp_path: Path) -> None:
    async with a_world(tmp_path) as w:
        w.reserve("a")
        for lease_id, kernel_id in (("b", "kernel a"), ("a", "kernel b")):
            with pytest.raises(RemoteError, match="there is no lease"):
                w.rules.occupy(lease_id, kernel_id)
        w.may_end.clear()
        releasing = asyncio.ensure_future(w.rules.release("a"))
        await w.until(lambda: ("end", "a") in w.steps)
        with pytest.raises(RemoteError, match="being released"):
            w.rules.occupy("a", "kernel a")
        w.may_end.set()
        await releasing


async def test_a_release_goes_on_if_a_caller_gives_up(tmp_path: Path) -> None:
    async with a_world(tmp_path) as w:
        w.reserve("a")
        w.may_end.clear()
        calls = [asyncio.ensure_future(w.rules.release("a")) for _ in range(2)]
        await w.until(lambda: ("end", "a") in w.steps)
        calls[0].cancel()
        await asyncio.wait(calls[:1])
        assert "a" in w.ledger, "the lease covers its kernel"
        w.may_end.set()
        await calls[1]
        assert w.steps == [("reserved", "a"), ("end", "a"), ("clear", "a"), ("released", "a")]
        await w.rules.release("a")
        assert w.steps[-1] == ("released", "a"), "a repeated release does nothing"


async def test_all_losses_are_reported_before_a_kernel_ends(tmp_path: Path) -> None:
    async with a_world(tmp_path) as w:
        w.reserve("a")
        w.reserve("b")
        w.steps.clear()
        await w.rules.lose_all("its node has left")
        assert w.steps[:2] == [("lost", "a"), ("lost", "b")]
        assert w.ledger.is_empty


async def test_an_agent_leaves_once_it_has_no_lease(tmp_path: Path) -> None:
    async with a_world(tmp_path, exit_after_release_s=0.0) as w:
        w.rules.adopt()
        w.reserve("a")
        w.reserve("b")
        await w.rules.release("a")
        for _ in range(10):
            await asyncio.sleep(0)
        assert ("leave", "") not in w.steps
        await w.rules.release("b")
        await w.until(lambda: w.steps[-2:] == [("released", "b"), ("leave", "")])


async def test_an_agent_that_never_gets_a_lease_leaves_when_it_is_idle(tmp_path: Path) -> None:
    async with a_world(tmp_path, idle_exit_s=0.0) as w:
        w.rules.adopt()
        await w.until(lambda: w.steps == [("leave", "")])


async def test_an_agent_with_outdated_devices_leaves_after_its_last_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_rules, "_OUTDATED_EXIT_S", 0.0)
    async with a_world(tmp_path) as w:
        w.running.add("used")
        w.reserve("used")
        w.rules.leave_when_empty()
        w.rules.leave_when_empty()
        await w.rules.release("used")
        await w.until(lambda: ("leave", "") in w.steps)
        assert w.steps.index(("leave", "")) > w.steps.index(("released", "used"))
