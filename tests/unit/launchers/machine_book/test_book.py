"""Two agents share a book: what the promises of one leave to the other."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import MachineShare
from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.agent.machine.node_metrics import NodeMetrics
from roost.launchers.daemon.process import current_start_time, start_time
from roost.launchers.machine_book.book import Conflict, MachineBook, Room
from roost.launchers.machine_book.lock import find_holders, open_lock, take
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import Keeper
from roost.launchers.machine_book.rules import Amounts, BadRules, MachineRules
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.placement.model import Device, Node, Request
from roost.placement.model.json_codec import encode
from roost.testing.deadlines import allow_s

DEAD = Keeper(pid=4_000_000, started_at=1.0)


class Agent:
    """An agent's ledger over its part of the book."""

    def __init__(
        self,
        folder: Path,
        name: str,
        rules: Callable[[], MachineRules],
        devices: tuple[str, ...],
        parents: dict[str, str],
        find: Callable[[], Place],
    ) -> None:
        self.ledger = LeaseLedger(
            folder / name, cpus=4, memory_bytes=100, devices=[Device(id=each) for each in devices]
        )
        self.devices = devices
        self.book = MachineBook(
            name,
            cpus=4,
            memory_bytes=100,
            parents=parents,
            find=find,
            read=rules,
            deadline_s=60.0,
        )
        self.share = MachineShare(self.ledger, self.book)

    async def reserve(self, name: str, **amounts: Any) -> tuple[str, ...]:
        """Grant a lease, and return its devices."""
        lease = Lease(
            id=name, kernel_id=name, owner=Owner(user="ada"), request=Request(**amounts), state="held"
        )
        return (await self.share.reserve(Reserve(lease=lease), self.ledger.reserve)).device_ids

    def status(self) -> Node:
        """Return the node as the agent's user sees it."""
        reader = DeviceReader(len(self.devices))
        settings = AgentSettings(cpus=4, memory_bytes=100)
        return NodeMetrics(settings, devices=reader, cgroups=()).status(self.ledger, self.share.look())

    def release(self, name: str) -> None:
        self.share.give_back(name)
        self.ledger.release(name)


class Machine:
    """A machine with a book. Its agents have GPUs 0 and 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = folder / "book"
        self.book.mkdir()
        self.place = Place(self.book, "chosen")
        self.rules = MachineRules()
        self.problem = ""

    def agent(
        self, name: str, devices: tuple[str, ...] = ("0", "1"), parents: dict[str, str] | None = None
    ) -> Agent:
        return Agent(self.folder, name, self._read_rules, devices, parents or {}, lambda: self.place)

    def _read_rules(self) -> MachineRules:
        if self.problem:
            raise BadRules(self.problem)
        return self.rules


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def end(machine: Machine, agent: Agent) -> Path:
    """Let the agent have ended, as far as its file shows. Return the file."""
    path = machine.book / agent.book._name
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "agent": encode(DEAD)}))
    agent.book._mine.clear()
    return path


async def test_what_one_has_the_other_has_not(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    assert await one.reserve("a", gpus=1, cpus=3, memory_bytes=60) == ("0",)
    assert await other.reserve("b", gpus=1) == ("1",)
    with pytest.raises(Conflict, match="1 GPUs asked for, 0 devices have that much free"):
        await other.reserve("c", gpus=1)
    with pytest.raises(Conflict, match="2 CPUs asked for, 1 free"):
        await other.reserve("d", cpus=2)
    with pytest.raises(Conflict, match="50 bytes of memory asked for, 40 free"):
        await other.reserve("e", memory_bytes=50)
    one.release("a")
    assert await other.reserve("c", gpus=1, cpus=4, memory_bytes=100) == ("0",)


async def test_shares_of_several_users_fill_one_device_first(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    assert await one.reserve("a", gpus=0.25) == ("0",)
    assert await other.reserve("b", gpus=0.5) == ("0",)
    assert await one.reserve("c", gpus=0.5) == ("1",)
    assert await other.reserve("d", gpus=0.25) == ("0",)


async def test_a_request_without_amounts_is_no_promise(machine: Machine) -> None:
    await machine.agent("one").reserve("a")
    assert list(machine.book.iterdir()) == []


async def test_a_repeated_request_gets_the_same_answer(machine: Machine) -> None:
    one = machine.agent("one")
    assert await one.reserve("a", gpus=1) == await one.reserve("a", gpus=1) == ("0",)
    assert len(list(machine.book.iterdir())) == 1


async def test_a_slice_and_its_gpu_exclude_each_other(machine: Machine) -> None:
    """The second agent began before the GPU was split."""
    sliced = machine.agent("sliced", ("MIG-a", "MIG-b"), {"MIG-a": "GPU", "MIG-b": "GPU"})
    whole = machine.agent("whole", ("GPU",))
    assert await whole.reserve("w", gpus=0.5) == ("GPU",)
    with pytest.raises(Conflict):
        await sliced.reserve("s", gpus=1)
    whole.release("w")
    assert await sliced.reserve("s", gpus=1) == ("MIG-a",)
    with pytest.raises(Conflict):
        await whole.reserve("w", gpus=0.1)
    assert await sliced.reserve("t", gpus=1) == ("MIG-b",)


async def test_to_a_user_with_limits_the_machine_is_as_large_as_the_limits(machine: Machine) -> None:
    machine.rules = MachineRules(users={"*": Amounts(cpus=1, memory=30, gpus=1)})
    one = machine.agent("one")
    node = one.status()
    assert (node.cpus, node.memory_bytes, len(node.devices)) == (1, 30, 1)
    assert (node.cpus_promised, node.memory_promised_bytes, node.devices[0].promised) == (0, 0, 0)
    await one.reserve("a", gpus=0.5, cpus=0.5, memory_bytes=10)
    node = one.status()
    assert (node.cpus_promised, node.memory_promised_bytes) == (0.5, 10)
    assert [device.promised for device in node.devices] == [0.5]
    assert await one.reserve("b", gpus=0.5) == ("0",)
    assert [device.promised for device in one.status().devices] == [1.0]


async def test_what_others_hold_is_no_part_of_ones_own_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others hold as much as each may, and half of the machine is free."""
    other = machine.agent("other")
    await other.reserve("a", gpus=1, cpus=2, memory_bytes=50)
    view = machine.agent("one").book.look()
    limited = replace(
        view,
        rooms={
            "cpus": Room(most=2, left=2),
            "memory": Room(most=50, left=50),
            "gpus": Room(most=1, left=1),
        },
    )
    one = machine.agent("one")
    monkeypatch.setattr(one.share, "look", lambda: limited)
    node = one.status()
    assert (node.cpus, node.cpus_promised) == (2, 0)
    assert (node.memory_bytes, node.memory_promised_bytes) == (50, 0)
    assert [(device.id, device.promised) for device in node.devices] == [("1", 0.0)]


async def test_a_promise_shows_since_when_it_holds_also_after_its_agent(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    before = time.time()
    await one.reserve("a", cpus=1)
    (held,) = other.share.look().others
    assert before <= held.promise.since <= time.time()
    again = machine.agent("one")
    assert await again.share.adopt({}) == []
    assert other.share.look().others == (held,)


async def test_the_totals_are_roots(machine: Machine) -> None:
    machine.rules = MachineRules(cpus=2, memory=70)
    one = machine.agent("one")
    with pytest.raises(
        Conflict, match="3 CPUs asked for, all users of this machine hold 0 of at most 2 CPUs"
    ):
        await one.reserve("a", cpus=3)
    await machine.agent("other").reserve("b", cpus=2, memory_bytes=70)
    with pytest.raises(
        Conflict, match="all users of this machine hold 70 bytes of at most 70 bytes of memory"
    ):
        await one.reserve("c", memory_bytes=1)


async def test_the_limit_of_a_user_is_for_all_agents_of_the_user(machine: Machine) -> None:
    machine.rules = MachineRules(users={"*": Amounts(gpus=1)})
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=0.5)
    await other.reserve("b", gpus=0.5)
    with pytest.raises(Conflict, match=r"0\.25 GPU asked for, you hold 1 of at most 1 GPU"):
        await one.reserve("c", gpus=0.25)


async def test_while_the_rules_are_wrong_nothing_is_promised(machine: Machine) -> None:
    one = machine.agent("one")
    machine.problem = "machine.toml: it is wrong"
    with pytest.raises(Conflict, match=r"machine\.toml: it is wrong"):
        await one.reserve("a", cpus=1)
    await one.reserve("b")
    one.share.look()
    assert one.share.problems() == ("machine.toml: it is wrong",)


async def test_who_waits_for_the_lock_may_be_told_to_give_up(machine: Machine) -> None:
    one = machine.agent("one")
    with open_lock(machine.book) as lock:
        assert await take(lock, 0.0)
        waiting = asyncio.ensure_future(one.reserve("a", cpus=1))
        await asyncio.sleep(0)
        one.share.withdraw("a")
    with pytest.raises(Conflict, match="given back while it waited"):
        await asyncio.wait_for(waiting, allow_s(60))
    assert list(machine.book.iterdir()) == []
    await one.reserve("a", cpus=1)


async def test_while_another_holds_the_lock_nothing_is_promised_and_the_holder_is_named(
    machine: Machine,
) -> None:
    one = machine.agent("one")
    one.book._deadline_s = 0.0
    with open_lock(machine.book) as lock:
        assert await take(lock, 0.0)
        (holder,) = find_holders(machine.book)
        assert holder.startswith(f"process {os.getpid()} ")
        with pytest.raises(
            Conflict, match=f"the lock on .*/book is held for more than .* by process {os.getpid()} "
        ):
            await one.reserve("a", cpus=1)
    assert list(machine.book.iterdir()) == []
    assert await one.reserve("a", gpus=1) == ("0",)


async def test_promises_move_into_the_folder_that_root_makes(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=1)
    better = machine.folder / "better"
    better.mkdir()
    machine.place = Place(better, "installed")
    one.share.look()
    assert await other.reserve("b", gpus=1) == ("1",)
    assert [len(list(folder.iterdir())) for folder in (machine.book, better)] == [0, 2]
    one.release("a")
    other.release("b")
    assert list(better.iterdir()) == []


async def test_a_promise_is_written_again_if_somebody_removes_it(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=1)
    (path,) = machine.book.iterdir()
    path.unlink()
    one.share.look()
    assert path.exists()
    assert await other.reserve("b", gpus=1) == ("1",)


async def test_a_new_agent_removes_what_ended_agents_of_its_user_have_left(machine: Machine) -> None:
    """After its folder was deleted, the next agent has another name."""
    one = machine.agent("one")
    await one.reserve("a", cpus=1)
    (path,) = machine.book.iterdir()
    assert await machine.agent("two").share.adopt({}) == []
    assert path.exists(), "its agent lives"
    end(machine, one)
    assert await machine.agent("three").share.adopt({}) == []
    assert not path.exists()


async def test_a_promise_outlives_its_agent_with_its_kernel(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=2)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as kernel:  # noqa: ASYNC220
        one.book.begin_launch("a")
        one.book.keep_by("a", Keeper(pid=kernel.pid, started_at=start_time(kernel.pid)))
        end(machine, one)
        with pytest.raises(Conflict):
            await other.reserve("b", gpus=1)
        kernel.kill()
    assert await other.reserve("b", gpus=1) == ("0",)


async def test_a_promise_outlives_an_agent_that_dies_during_a_launch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may run, and nobody has noted its process."""
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=2)
    one.book.begin_launch("a")
    end(machine, one)
    with pytest.raises(Conflict):
        await other.reserve("b", gpus=1)
    later = current_start_time() + 121
    monkeypatch.setattr("roost.launchers.machine_book.promise.current_start_time", lambda: later)
    assert await other.reserve("b", gpus=1) == ("0",)


async def test_a_promise_of_another_boot_is_over(machine: Machine) -> None:
    one, other = machine.agent("one"), machine.agent("other")
    await one.reserve("a", gpus=2)
    path = end(machine, one)
    content = json.loads(path.read_text())
    agent = Keeper(pid=os.getpid(), started_at=start_time(os.getpid()) + 1e9)
    path.write_text(json.dumps({**content, "agent": encode(agent)}))
    assert await other.reserve("b", gpus=1) == ("0",)


async def test_a_promise_that_cannot_be_written_is_none(machine: Machine) -> None:
    one = machine.agent("one")
    (machine.book / one.book._name).mkdir()  # no file can replace a folder
    with pytest.raises(OSError, match=str(machine.book)):
        await one.reserve("a", cpus=1)
    assert one.ledger.is_empty
    (machine.book / one.book._name).rmdir()
    await one.reserve("b", cpus=1)
    (held,) = machine.agent("other").share.look().others
    assert held.promise.cpus == 1


async def test_all_users_may_read_a_promise_and_nobody_may_change_it(machine: Machine) -> None:
    before = os.umask(0o077)
    try:
        await machine.agent("one").reserve("a", gpus=1)
    finally:
        os.umask(before)
    (path,) = machine.book.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644
    content = path.read_text()
    assert "ada" not in content, "it names no user"
    assert '"a"' not in content, "nor the lease"
    (promise,) = json.loads(content)["promises"].values()
    assert promise["since"] <= time.time()


async def test_where_nobody_shares_a_book_an_agent_has_the_machine_alone(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.place = Place(None, "nobody", "/tmp is private to this user or service")
    one = machine.agent("one")
    assert await one.reserve("a", gpus=2) == ("0", "1")
    assert await one.reserve("b") == ()
    assert caplog.text.count("nobody divides this machine between its users: /tmp is private") == 1
    one.release("a")
    assert one.share.look().others == ()
