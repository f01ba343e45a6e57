"""The machine's book under agents that run at the same time, and that are killed between any two system calls.

Real files, real locks. Each agent runs in a thread, which stops before each system call on the book or on the agent's
own ledger. Hypothesis chooses which agent goes on, and which one is killed. The processes alone are pretended.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import MachineShare
from roost.launchers.machine_book import promise as promises
from roost.launchers.machine_book.book import Conflict, MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import Keeper
from roost.launchers.protocol.messages import KernelProcess, Lease, Owner, Reserve
from roost.placement.model import Device, Request

DEVICES = ("0",)
CPUS = 2.0
AGENTS = 2
SHARES = (0.5, 1.0)
AT = st.integers(0, AGENTS - 1)
HOW_FAR = st.sampled_from([0, 1, 2, 4, 5, 6, 8, 1000, 1000, 1000, 1000])
"""How many system calls to make at once; 1000: all."""


class Killed(BaseException):
    """The error that ends a killed thread at its next system call."""


class Steps(threading.local):
    """The step of this thread, if it is an agent's."""

    step: Step | None = None


_THREAD = Steps()
_EVENTS = frozenset({"open", "os.listdir", "os.rename", "os.remove", "fcntl.flock"})


def _stop_before(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and _THREAD.step is not None:
        _THREAD.step.pause()


sys.addaudithook(_stop_before)


class Step:
    """Work in a thread that stops before each system call, until `go_on`."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.is_over = False
        self._is_killed = False
        self._may_go_on, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._has_stopped.acquire()

    def pause(self) -> None:
        if not self._is_killed:
            self._has_stopped.release()
            self._may_go_on.acquire()
        if self._is_killed:
            raise Killed

    def go_on(self) -> None:
        """Make one system call, and run up to the next one."""
        self._may_go_on.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """End the thread here: none of its further system calls has an effect."""
        self._is_killed = True
        if not self.is_over:
            self._may_go_on.release()
            self._thread.join()

    def _run(self) -> None:
        _THREAD.step = self
        try:
            self._work()
        except Killed:
            pass
        except BaseException as problem:  # noqa: BLE001 - it is raised in the test
            self._error = problem
        finally:
            _THREAD.step = None
            self.is_over = True
            self._has_stopped.release()


class Processes:
    """The processes of the machine, by pid. A kernel leads a session."""

    def __init__(self) -> None:
        self.now = 100.0
        self.alive: dict[int, float] = {}
        self.kernels: dict[int, Lease] = {}

    def begin(self) -> Keeper:
        self.now += 1.0
        pid = int(self.now)
        self.alive[pid] = self.now
        return Keeper(pid=pid, started_at=self.now)

    def end(self, pid: int) -> None:
        self.alive.pop(pid, None)
        self.kernels.pop(pid, None)


class Agent:
    """An agent: its ledger and its part of the book. `held` are the leases that somebody has been told of."""

    def __init__(self, folder: Path, book_folder: Path, processes: Processes) -> None:
        self.processes = processes
        self.process = processes.begin()
        self.folder = folder
        devices = [Device(id=each) for each in DEVICES]
        self.ledger = LeaseLedger(folder, cpus=CPUS, memory_bytes=100, devices=devices)
        self.book = MachineBook(
            str(folder),
            cpus=CPUS,
            memory_bytes=100,
            find=lambda: Place(book_folder, "chosen"),
            deadline_s=0.0,
        )
        self.book._agent = self.process
        self.share = MachineShare(self.ledger, self.book)
        self.held: dict[str, Lease] = {entry.lease.id: entry.lease for entry in self.ledger.entries()}
        self.step: Step | None = None
        running = {
            lease.id: KernelProcess(
                kernel_id=lease.kernel_id, launch_id="", lease_id=lease.id, pid=pid,
                process_started_at=processes.alive[pid], connection=None, how="forked", launched_at=0.0,
            )
            for pid, lease in processes.kernels.items()
            if lease.id in self.ledger
        }  # fmt: skip
        for lease_id in asyncio.run(self.share.adopt(running)):
            self.release(lease_id)

    def reserve(self, lease: Lease) -> None:
        async def ask() -> None:
            self.held[lease.id] = await self.share.reserve(Reserve(lease=lease), self.ledger.reserve)

        with suppress(Conflict):
            asyncio.run(ask())

    def launch(self, lease: Lease) -> None:
        self.book.begin_launch(lease.id)
        process = self.processes.begin()
        self.processes.kernels[process.pid] = lease
        self.book.keep_by(lease.id, process)

    @property
    def is_alive(self) -> bool:
        return self.process.pid in self.processes.alive

    def kill(self) -> None:
        """Do what SIGKILL does. May be repeated."""
        self.processes.end(self.process.pid)
        self.held = {}
        if self.step is not None:
            self.step.kill()
            self.step = None

    def release(self, lease_id: str) -> None:
        """End the kernel, then the promise, then the entry, as an agent does."""
        for pid in [pid for pid, lease in self.processes.kernels.items() if lease.id == lease_id]:
            self.processes.end(pid)
        self.held.pop(lease_id, None)
        self.share.give_back(lease_id)
        self.ledger.release(lease_id)


def build_lease(name: str, **amounts: float) -> Lease:
    request = Request(**amounts)  # type: ignore[arg-type]
    return Lease(id=name, kernel_id=name, owner=Owner(user="ada"), request=request, state="held")


class Machine(RuleBasedStateMachine):
    """Agents that reserve, launch, release and are killed, in any order of their system calls."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="roost-book-"))
        self.processes = Processes()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(promises, "is_running", lambda pid, _: pid in self.processes.alive)
        for module in ("book", "promise"):
            name = f"roost.launchers.machine_book.{module}.current_start_time"
            self.patch.setattr(name, lambda: self.processes.now)
        (self.folder / "book").mkdir()
        self.number = 0
        self.agents = [self.start(number) for number in range(AGENTS)]

    def start(self, number: int) -> Agent:
        return Agent(self.folder / f"agent-{number}", self.folder / "book", self.processes)

    def work(self, at: int, steps: int, work: Callable[[Agent], None]) -> None:
        """Begin work of an agent that is idle, and make this many of its system calls."""
        agent = self.agents[at]
        if agent.is_alive and agent.step is None:
            agent.step = Step(lambda: work(agent))
            self.tidy(agent)
            self.go_on(agent, steps)

    def go_on(self, agent: Agent, steps: int) -> None:
        for _ in range(steps):
            if agent.step is not None:
                agent.step.go_on()
                self.tidy(agent)

    def tidy(self, agent: Agent) -> None:
        if agent.step is not None and agent.step.is_over:
            agent.step = None
        self.check()

    @rule(at=AT, gpus=st.sampled_from(SHARES), cpus=st.sampled_from([0.0, 1.0]), steps=HOW_FAR)
    def reserve(self, at: int, gpus: float, cpus: float, steps: int) -> None:
        self.number += 1
        lease = build_lease(f"{self.number}", gpus=gpus, cpus=cpus)
        self.work(at, steps, lambda agent: agent.reserve(lease))

    @rule(at=AT, which=st.integers(0, 5), steps=HOW_FAR)
    def launch(self, at: int, which: int, steps: int) -> None:
        if held := list(self.agents[at].held.values()):
            self.work(at, steps, lambda agent: agent.launch(held[which % len(held)]))

    @rule(at=AT, which=st.integers(0, 5), steps=HOW_FAR)
    def release(self, at: int, which: int, steps: int) -> None:
        if held := list(self.agents[at].held):
            self.work(at, steps, lambda agent: agent.release(held[which % len(held)]))

    @rule(at=AT, steps=HOW_FAR)
    def time_passes(self, at: int, steps: int) -> None:
        self.go_on(self.agents[at], steps)

    @precondition(lambda self: self.processes.kernels)
    @rule(which=st.integers(0, 5))
    def kernel_dies(self, which: int) -> None:
        pids = list(self.processes.kernels)
        self.processes.end(pids[which % len(pids)])

    @rule(at=AT)
    def agent_is_killed(self, at: int) -> None:
        self.agents[at].kill()
        self.check()

    @rule(at=AT)
    def agent_starts(self, at: int) -> None:
        if not self.agents[at].is_alive:
            self.agents[at] = self.start(at)
            self.check()

    def check(self) -> None:
        """No device and no CPU is given twice: neither to kernels that live, nor by agents that live."""
        held = {
            id(agent): dict(agent.held) for agent in self.agents if agent.process.pid in self.processes.alive
        }
        leases = {lease.id: lease for of_agent in held.values() for lease in of_agent.values()}
        leases |= {lease.id: lease for lease in self.processes.kernels.values()}
        shares, cpus = Counter[str](), Fraction(0)
        for lease in leases.values():
            cpus += Fraction(lease.request.cpus)
            for device_id in lease.device_ids:
                shares[device_id] += Fraction(lease.request.gpu_share)
        assert max(shares.values(), default=0) <= 1, leases
        assert cpus <= CPUS, leases

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            for agent in self.agents:
                self.go_on(agent, 1000)
                agent.kill()
            for pid in list(self.processes.kernels):
                self.processes.end(pid)
            self.processes.now += 1000  # launches are over
            last = self.start(AGENTS)
            last.reserve(build_lease("all", gpus=len(DEVICES), cpus=CPUS))
            assert "all" in last.held, "a promise outlives all its processes"
            last.kill()
            for number in (*range(AGENTS), AGENTS):
                agent = self.start(number)
                for entry in agent.ledger.entries():
                    agent.release(entry.lease.id)
                agent.kill()
            assert sorted((self.folder / "book").iterdir()) == []
        finally:
            for agent in self.agents:
                agent.kill()
            self.patch.undo()
            shutil.rmtree(self.folder)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    machine.begin()
    yield machine
    machine.teardown()


@pytest.mark.parametrize("calls", range(9))
def test_a_kernel_keeps_its_device_if_its_agent_dies_during_the_launch(machine: Machine, calls: int) -> None:
    machine.reserve(at=0, gpus=1.0, cpus=0.0, steps=1000)
    machine.launch(at=0, which=0, steps=calls)
    machine.agent_is_killed(at=0)
    machine.reserve(at=1, gpus=1.0, cpus=0.0, steps=1000)
    assert not (machine.agents[1].held and machine.processes.kernels)
    machine.processes.now += 0 if machine.processes.kernels else 1000
    machine.reserve(at=1, gpus=1.0, cpus=0.0, steps=1000)
    assert bool(machine.agents[1].held) != bool(machine.processes.kernels)


def test_a_lease_without_a_kernel_is_given_back_if_its_device_was_taken_meanwhile(machine: Machine) -> None:
    machine.reserve(at=0, gpus=1.0, cpus=0.0, steps=1000)
    machine.agent_is_killed(at=0)
    machine.reserve(at=1, gpus=1.0, cpus=0.0, steps=1000)
    assert machine.agents[1].held
    machine.agent_starts(at=0)
    assert not machine.agents[0].held


def test_nothing_is_promised_twice_whoever_is_killed_when() -> None:
    """`ROOST_ROUNDS=100` tries a hundred times as many cases, and others each time."""
    rounds = int(os.environ.get("ROOST_ROUNDS", "0"))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=200 * max(1, rounds),
            derandomize=not rounds,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
