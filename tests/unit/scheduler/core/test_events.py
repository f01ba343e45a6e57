"""The stream of events: history, log, listeners."""

from __future__ import annotations

import logging

import pytest

from roost.launchers.protocol.messages import Connection, KernelProcess, Owner
from roost.placement.model import Request
from roost.scheduler.core.events import HISTORY, EventStream
from roost.scheduler.messages import Event, Kernel

KERNEL = Kernel(
    id="k",
    launch_id="1",
    state="running",
    owner=Owner(user="ada"),
    request=Request(),
    node_id="here",
    process=KernelProcess(
        kernel_id="k",
        launch_id="1",
        lease_id="",
        pid=7,
        process_started_at=0.0,
        how="exec",
        connection=Connection(key="hush"),
        launched_at=0.0,
    ),
    decision={"reason": "best"},
)


def test_the_log_leaves_out_what_a_kernel_wrote(caplog: pytest.LogCaptureFixture) -> None:
    stream = EventStream()
    heard: list[Event] = []
    stream.listen(heard.append)
    with caplog.at_level(logging.INFO, "roost.scheduler.core.events"):
        stream.publish("failed", KERNEL, "the kernel died; its last line: password is hush")
    assert heard[0].detail.endswith("hush"), "its owner reads it"
    assert caplog.messages == ["kernel=k node=here failed the kernel died"]


def test_an_event_goes_to_history_log_and_listeners(caplog: pytest.LogCaptureFixture) -> None:
    stream = EventStream(clock=lambda: 7.0)
    heard: list[Event] = []
    stop = stream.listen(heard.append)
    with caplog.at_level(logging.INFO, "roost.scheduler.core.events"):
        stream.publish("running", KERNEL, "at last")
        stream.publish("failed", KERNEL)
    assert stream.recent(10) == heard
    assert heard[0].at == 7.0
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
    assert caplog.records[0].getMessage() == "kernel=k node=here running at last"
    stop()
    stop()
    stream.publish("nodes")
    assert len(heard) == 2


def test_only_placed_carries_the_decision_and_none_the_connection() -> None:
    stream = EventStream()
    stream.publish("placed", KERNEL)
    stream.publish("running", KERNEL)
    placed, running = (event.kernel for event in stream.recent(2))
    assert placed is not None
    assert running is not None
    assert (placed.decision, running.decision) == ({"reason": "best"}, None)
    assert "hush" not in repr(stream.recent(2)) + str(placed.connection)


def test_history_is_bounded() -> None:
    stream = EventStream()
    for number in range(HISTORY + 5):
        stream.publish("nodes", detail=str(number))
    assert len(stream.recent(10 * HISTORY)) == HISTORY
    assert [event.detail for event in stream.recent(2)] == [str(HISTORY + 3), str(HISTORY + 4)]
    assert stream.recent(0) == []
