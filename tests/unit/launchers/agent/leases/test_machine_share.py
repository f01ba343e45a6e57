"""How an agent learns that others hold more or less of its machine. The book is real."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.machine.manual_clock import ManualClock
from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import LOOK_S, MachineShare
from roost.launchers.daemon.tasks import Timers
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.promise import Keeper, Promise
from roost.launchers.machine_book.rules import MachineRules


class Agent:
    """An agent that reports each change of the others' promises."""

    def __init__(self, folder: Path, name: str) -> None:
        place = Place(folder / "book", "chosen")
        self.rules = MachineRules()
        self.book = MachineBook(name, cpus=4, memory_bytes=100, find=lambda: place, read=lambda: self.rules)
        self.book.look()
        ledger = LeaseLedger(folder / name, cpus=4, memory_bytes=100, devices=[])
        self.clock = ManualClock()
        self.share = MachineShare(ledger, self.book, timers=Timers(self.clock))
        self.reports: list[float] = []

    def watch(self) -> None:
        self.share.watch(lambda: self.reports.append(float(self.share.look().cpus)))

    def promise(self, cpus: float) -> None:
        self.book.promise("lease", Promise(cpus=cpus))


@pytest.fixture
def mine(tmp_path: Path) -> Agent:
    (tmp_path / "book").mkdir()
    return Agent(tmp_path, "mine")


@pytest.fixture
def other(mine: Agent, tmp_path: Path) -> Agent:
    return Agent(tmp_path, "other")


def test_each_change_of_what_others_hold_is_reported_within_a_second(mine: Agent, other: Agent) -> None:
    mine.watch()
    other.promise(1)
    assert mine.share.look().cpus == 1, "a new promise is found by the next look"
    mine.clock.advance(LOOK_S)
    other.promise(3)
    mine.clock.advance(LOOK_S)
    other.book.give_back("lease")
    mine.clock.advance(LOOK_S)
    assert mine.reports == [1, 3, 0]


def test_the_end_of_another_agent_is_reported(mine: Agent, other: Agent) -> None:
    other.promise(1)
    mine.watch()
    other.book._agent = Keeper(pid=4_000_000, started_at=1.0)
    other.book.begin_launch("lease")
    other.book.keep_by("lease", other.book._agent)
    mine.clock.advance(LOOK_S)
    assert mine.reports == [0]


def test_a_change_that_another_look_finds_first_is_reported_too(mine: Agent, other: Agent) -> None:
    other.promise(1)
    mine.watch()
    other.book.give_back("lease")
    assert mine.share.look().cpus == 0
    mine.clock.advance(LOOK_S)
    assert mine.reports == [0]


def test_other_rules_of_the_machine_are_reported(mine: Agent) -> None:
    mine.watch()
    mine.rules = MachineRules(cpus=2)
    assert mine.share.look().room("cpus").most == 2
    mine.clock.advance(LOOK_S)
    assert mine.reports == [0]


def test_own_promises_and_processes_of_kernels_are_no_change(mine: Agent, other: Agent) -> None:
    other.promise(1)
    mine.watch()
    mine.promise(2)
    other.book.begin_launch("lease")
    mine.clock.advance(10 * LOOK_S)
    assert mine.reports == []


def test_nobody_looks_while_others_hold_nothing_or_nobody_subscribes(
    mine: Agent, other: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = mine.book.look
    monkeypatch.setattr(mine.book, "look", lambda: looks.append(mine.clock.time()) or look())
    mine.watch()
    mine.clock.advance(10 * LOOK_S)
    assert len(looks) == 1
    other.promise(1)
    mine.share.look()
    mine.clock.advance(10 * LOOK_S)
    assert len(looks) > 10
    mine.share.unwatch()
    looks.clear()
    mine.clock.advance(10 * LOOK_S)
    assert looks == []


def test_an_agent_without_a_book_watches_nothing(tmp_path: Path) -> None:
    share = MachineShare(LeaseLedger(tmp_path, cpus=4, memory_bytes=100, devices=[]), None)
    share.watch(pytest.fail)
    assert share.look().others == ()
    share.unwatch()
