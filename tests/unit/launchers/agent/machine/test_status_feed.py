"""The node's status is reported when somebody subscribes, after a noticeable change, and every minute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kit.machine.manual_clock import ManualClock
from roost.launchers.agent.machine.status_feed import LOOK_S, StatusFeed
from roost.launchers.daemon.tasks import Timers
from roost.placement import Device, Node

GIB = 1 << 30
GPU = Device(id="0", model="T4", memory_bytes=16 * GIB, used=0.5, memory_used_bytes=GIB)
NODE = Node(id="a", cpus=8, memory_bytes=100 * GIB, cpus_used=2.0, memory_used_bytes=10 * GIB, devices=(GPU,))
ODD_USE = {"cpus_used": 2.1, "memory_used_bytes": 10 * GIB + GIB // 2, "devices": (replace(GPU, used=0.54),)}


class Feed:
    """A feed of a node whose status a test changes, and the reports that it has sent."""

    def __init__(self) -> None:
        self.status = NODE
        self.problem: Exception | None = None
        self.has_subscribers = True
        self.reads = 0
        self.reports: list[Node] = []
        self.clock = ManualClock()
        self.feed = StatusFeed(self._read, self._report, Timers(self.clock))

    def _read(self) -> Node:
        self.reads += 1
        if self.problem is not None:
            raise self.problem
        return self.status

    def _report(self, status: Node) -> bool:
        self.reports.append(status)
        return self.has_subscribers


@pytest.fixture
def watched() -> Feed:
    feed = Feed()
    feed.feed.begin()
    assert feed.reports == [NODE]
    feed.reports.clear()
    return feed


@pytest.mark.parametrize(
    "changes",
    [
        {"cpus_used": 2.2},
        {"memory_used_bytes": 11 * GIB},
        {"devices": (replace(GPU, used=0.6),)},
        {"devices": (replace(GPU, used=None, memory_used_bytes=None),)},
        {"devices": (replace(GPU, memory_used_bytes=10 * GIB),)},
        {"devices": ()},
        {"warm": ("/usr/bin/python3",)},
        {"is_draining": True},
        {"enforcement": "never"},
    ],
    ids=str,
)
def test_a_noticeable_change_is_reported_within_seconds(watched: Feed, changes: dict[str, Any]) -> None:
    watched.status = replace(NODE, **changes)
    watched.clock.advance(LOOK_S)
    assert watched.reports == [watched.status]
    watched.clock.advance(LOOK_S)
    assert len(watched.reports) == 1


@pytest.mark.parametrize("changes", [{}, ODD_USE, {"cpus_promised": 4.0, "kernels": 3}], ids=str)
def test_other_changes_are_reported_after_a_minute(watched: Feed, changes: dict[str, Any]) -> None:
    watched.status = replace(NODE, **changes)
    watched.clock.advance(60 - LOOK_S)
    assert watched.reports == []
    watched.clock.advance(LOOK_S)
    assert watched.reports == [watched.status]


def test_small_changes_add_up(watched: Feed) -> None:
    for used in (2.1, 2.2):
        watched.status = replace(NODE, cpus_used=used)
        watched.clock.advance(LOOK_S)
    assert [status.cpus_used for status in watched.reports] == [2.2]


def test_each_new_subscriber_gets_a_report(watched: Feed) -> None:
    watched.feed.begin()
    assert watched.reports == [NODE]
    watched.status = replace(NODE, cpus_used=8.0)
    watched.clock.advance(LOOK_S)
    assert len(watched.reports) == 2, "there is one timer, not two"


def test_nothing_is_measured_without_subscribers(watched: Feed) -> None:
    watched.has_subscribers = False
    watched.clock.advance(60)
    reads = watched.reads
    watched.clock.advance(3600)
    assert (watched.reads, len(watched.reports)) == (reads, 1)
    watched.has_subscribers = True
    watched.feed.begin()
    watched.clock.advance(60)
    assert len(watched.reports) == 3


def test_a_failed_measurement_is_repeated(watched: Feed, caplog: pytest.LogCaptureFixture) -> None:
    watched.problem = OSError("the driver is away")
    watched.clock.advance(LOOK_S)
    assert "the driver is away" in caplog.text
    watched.problem = None
    watched.status = replace(NODE, cpus_used=8.0)
    watched.clock.advance(LOOK_S)
    assert watched.reports == [watched.status]
