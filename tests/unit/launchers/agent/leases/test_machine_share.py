"""How an agent learns that others hold more or less of its machine. The book is real."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.launchers.agent.leases.ledger import LeaseLedger
from roost.launchers.agent.leases.machine_share import MachineShare
from roost.launchers.machine_book import others
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.places import Place
from roost.launchers.machine_book.rules import Amounts, MachineRules, RulesReader
from roost.testing.deadlines import allow_s


class Rules(RulesReader):
    """Rules that change when a test says so."""

    rules = MachineRules()

    def current(self) -> MachineRules:
        return self.rules


class Agent:
    """An agent that reports each change of the others' promises."""

    def __init__(self, folder: Path, name: str) -> None:
        place = Place(folder / "book", "chosen")
        self.rules = Rules()
        self.book = MachineBook(
            name,
            cpus=4,
            memory_bytes=100,
            find=lambda: place,
            list_folders=lambda: (folder / "book",),
            rules=self.rules,
        )
        ledger = LeaseLedger(folder / name, cpus=4, memory_bytes=100, devices=[])
        self.share = MachineShare(ledger, self.book)
        self.reports: list[float] = []
        self._changed = asyncio.Event()

    def report(self) -> None:
        self.reports.append(float(self.share.look().cpus))
        self._changed.set()

    async def until(self, reports: list[float]) -> None:
        while self.reports != reports:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), allow_s(30))

    def promise(self, cpus: float) -> None:
        self.book.promise("lease", cpus=cpus, memory_bytes=0, devices={})


@pytest.fixture
async def mine(tmp_path: Path) -> AsyncIterator[Agent]:
    (tmp_path / "book").mkdir()
    agent = Agent(tmp_path, "mine")
    yield agent
    agent.share.close()


@pytest.fixture
async def other(mine: Agent, tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path, "other")
    yield agent
    agent.share.close()


async def test_each_change_of_what_others_hold_is_reported(mine: Agent, other: Agent) -> None:
    mine.share.watch(mine.report)
    mine.share.look()
    other.promise(1)
    assert mine.share.look().cpus == 1, "a new promise is found by the next look"
    await mine.until([1])
    other.promise(3)
    await mine.until([1, 3])
    other.book.give_back("lease")
    await mine.until([1, 3, 0])


async def test_a_change_that_another_look_finds_first_is_reported_too(mine: Agent, other: Agent) -> None:
    """Between an event and the look that follows it, the agent may look for another reason."""
    other.promise(1)
    mine.share.look()
    mine.share.watch(mine.report)
    other.book.give_back("lease")
    assert mine.share.look().cpus == 0
    await mine.until([0])


async def test_other_rules_of_the_machine_are_reported(mine: Agent) -> None:
    mine.share.watch(mine.report)
    mine.share.look()
    mine.rules.rules = MachineRules(is_given=True, totals=Amounts(cpus=2))
    assert mine.share.look().room("cpus").most == 2
    await mine.until([0])


async def test_own_promises_and_processes_of_kernels_are_no_change(mine: Agent, other: Agent) -> None:
    other.promise(1)
    mine.share.look()
    mine.share.watch(mine.report)
    mine.promise(2)
    other.book.begin_launch("lease")
    mine.share.look()
    assert mine.reports == []
    other.book.give_back("lease")
    await mine.until([0])


async def test_without_subscribers_nothing_is_reported(mine: Agent, other: Agent) -> None:
    other.promise(1)
    mine.share.look()
    mine.share.watch(mine.report)
    other.book.give_back("lease")
    assert mine.share.look().cpus == 0
    mine.share.unwatch()  # before the report, which is due now
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert mine.reports == []
    mine.share.watch(mine.report)
    other.promise(2)
    mine.share.look()
    await mine.until([2])


async def test_an_agent_without_a_book_watches_nothing(tmp_path: Path) -> None:
    share = MachineShare(LeaseLedger(tmp_path, cpus=4, memory_bytes=100, devices=[]), None)
    share.watch(pytest.fail)
    assert share.look().others == ()
    share.unwatch()
    share.close()


async def test_a_stranger_who_changes_a_promise_all_the_time_causes_few_reports(
    mine: Agent, other: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look finds another amount, and at each second look the promise is gone."""
    changes = itertools.count(1)

    def report_and_change() -> None:
        mine.report()
        if (change := next(changes)) % 2:
            other.book.give_back("lease")
        else:
            other.promise(change)
        mine.share.look()

    monkeypatch.setattr(others, "_PAUSE_S", 1e6)
    mine.share.watch(report_and_change)
    other.promise(1)
    mine.share.look()
    await mine.until([1])
    for _ in range(100):
        await asyncio.sleep(0)
    assert mine.reports == [1]
