"""The queue: order, positions and reasons. Some requests hold up others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from kit.machine.manual_clock import ManualClock
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Launch, Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.queue import Queue
from roost.scheduler.errors import Cancelled


def positions(w: FakeWorld) -> dict[str, int]:
    return {kernel.id: kernel.position for kernel in w.scheduler.kernels() if kernel.position is not None}


async def test_one_line_is_served_in_order_and_positions_move_up(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1) as w:
        starts = {f"k{i}": w.start(f"k{i}", gpus=0.5) for i in range(6)}
        await asyncio.gather(starts["k0"], starts["k1"])
        await w.told("queued", "k5")
        assert positions(w) == {"k2": 1, "k3": 2, "k4": 3, "k5": 4}
        waiting = w.kernel("k5")
        assert "no node has room now for 0.5 GPU" in waiting.waits_for
        await w.scheduler.stop("k0", 0)
        assert (await starts["k2"]).state == "running"
        assert positions(w) == {"k3": 1, "k4": 2, "k5": 3}
        await w.told("queued", "k5", times=2)
        for i in range(1, 4):
            await w.scheduler.stop(f"k{i}", 0)
        await asyncio.gather(starts["k4"], starts["k5"], starts["k3"], return_exceptions=True)
        assert len(w.leases()) <= 2


async def test_who_waits_for_a_gpu_holds_up_nobody_who_wants_a_cpu(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1, cpus=4) as w:
        await w.start("gpu", gpus=1)
        waiting = w.start("waits", gpus=0.25)
        await w.told("queued", "waits")
        assert (await w.start("cpu", cpus=1)).state == "running"
        await w.scheduler.cancel("waits")
        with pytest.raises(Cancelled):
            await waiting


async def test_a_queued_start_is_taken_back_by_stop_too(tmp_path: Path) -> None:
    async with fake_world(tmp_path, cpus=1) as w:
        await w.start("first", cpus=1)
        second, third = w.start("second", cpus=1), w.start("third", cpus=1)
        await w.told("queued", "third")
        assert (await w.scheduler.stop("second", 0)).state == "exited"
        with pytest.raises(Cancelled):
            await second
        assert positions(w) == {"third": 1}
        await w.scheduler.stop("first", 0)
        assert (await third).state == "running"


async def test_the_limit_of_the_queue_does_not_shorten_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent begins the launch with the claim, and keeps to the limit that the claim has."""
    limits_s: dict[str, float] = {}
    async with fake_world(tmp_path, gpus=1) as w:
        claim = w.backend.claim

        async def note(lease: Lease, launch: Launch | None = None) -> Lease:
            assert launch is not None
            limits_s[lease.kernel_id] = launch.deadline_s
            return await claim(lease, launch)

        monkeypatch.setattr(w.backend, "claim", note)
        await w.start("both", gpus=1, launch_timeout_s=600.0)
        waiting = w.start("waiting", gpus=1, launch_timeout_s=600.0, queue_timeout_s=60.0)
        await w.told("queued", "waiting")
        await w.scheduler.stop("both", 0)
        await waiting
    assert 540 < limits_s["both"] < 600, "queue and launch together"
    assert limits_s["waiting"] == 600


async def test_never_more_than_fit_hold_a_share_and_none_is_lost(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=2, cpus=100) as w:
        starts = [w.start(f"k{i}", gpus=0.25, user=f"u{i % 4}") for i in range(40)]
        most = 0

        async def end_when_running(start: asyncio.Task[object], kernel_id: str) -> None:
            nonlocal most
            await start
            most = max(most, len(w.leases()))
            await w.scheduler.stop(kernel_id, 0)

        await asyncio.gather(*(end_when_running(start, f"k{i}") for i, start in enumerate(starts)))
        assert 1 <= most <= 8
        assert w.leases() == []


async def test_a_stream_of_small_ones_cannot_starve_a_large_one(tmp_path: Path) -> None:
    settings = Settings(reserve_after_s=0.0)
    async with fake_world(tmp_path, gpus=1, cpus=100, settings=settings) as w:
        await asyncio.gather(*(w.start(f"small{i}", gpus=0.5) for i in range(2)))
        large = w.start("large", gpus=1)
        await w.told("queued", "large")
        await w.scheduler.stop("small0", 0)
        late = w.start("late", gpus=0.5)
        await w.told("queued", "late")
        assert "here: reserved for a kernel that has waited longer" in w.kernel("late").waits_for
        assert (await w.start("cpu", cpus=1)).state == "running"
        await w.scheduler.stop("small1", 0)
        assert (await large).state == "running"
        await w.scheduler.stop("large", 0)
        assert (await late).state == "running"


async def test_small_ones_pass_a_large_one_that_has_just_come(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1, cpus=100) as w:
        await w.start("small", gpus=0.5)
        large = w.start("large", gpus=1)
        await w.told("queued", "large")
        assert (await w.start("other", gpus=0.5)).state == "running"
        for kernel_id in ("small", "other"):
            await w.scheduler.stop(kernel_id, 0)
        assert (await large).state == "running"


async def test_the_first_of_a_line_tries_only_when_something_changed() -> None:
    now = 0.0
    queue = Queue(on_moved=lambda _: None, clock=lambda: now, timers=Timers())
    first, second = queue.join("a", "line"), queue.join("b", "line")
    await queue.turn(first, 1.0)
    with pytest.raises(asyncio.TimeoutError):
        await queue.turn(first, 0.01)
    queue.wake()
    await queue.turn(first, 1.0)
    assert not second.event.is_set()
    queue.leave(first)
    queue.leave(first)
    await queue.turn(second, 1.0)
    assert [ticket.kernel_id for ticket in queue.heads()] == ["b"]


async def test_a_start_of_an_ended_service_has_its_place_again() -> None:
    now = 100.0
    queue = Queue(on_moved=lambda _: None, clock=lambda: now, timers=Timers())
    for kernel_id, waited_s in (("third", 0.0), ("first", 30.0), ("second", 20.0), ("fourth", 0.0)):
        queue.join(kernel_id, "line", waited_s)
    old = queue.join("oldest", "another line", 60.0)
    assert [ticket.kernel_id for ticket in queue.heads()] == ["oldest", "first"]
    for kernel_id in ("first", "second", "third", "fourth"):
        head = queue.heads()[1]
        assert head.kernel_id == kernel_id
        assert head.event.is_set()
        assert queue.place(head)[0] == 1
        queue.leave(head)
    assert queue.heads() == [old]


async def test_changes_are_reported_together_and_once() -> None:
    reported: list[str] = []
    clock = ManualClock()
    queue = Queue(on_moved=reported.append, clock=clock.time, timers=Timers(clock))
    tickets = [queue.join(str(i), "line") for i in range(3)]
    queue.explain(tickets[0], "room")
    clock.advance(0.15)
    assert reported == ["0", "1", "2"]
    queue.explain(tickets[0], "room")
    queue.leave(tickets[2])
    clock.advance(0.15)
    assert reported == ["0", "1", "2"]


async def test_the_next_in_line_waits_for_what_the_one_before_did_until_it_has_looked() -> None:
    queue = Queue(on_moved=lambda _: None, clock=lambda: 0.0, timers=Timers())
    first, second = queue.join("a", "line"), queue.join("b", "line")
    queue.explain(first, "no node has room now")
    queue.leave(first)
    assert queue.place(second) == (1, "no node has room now")


async def test_far_places_are_reported_when_they_have_moved_by_a_tenth() -> None:
    reported: list[str] = []
    clock = ManualClock()
    queue = Queue(on_moved=reported.append, clock=clock.time, timers=Timers(clock))
    tickets = [queue.join(str(i), "line") for i in range(1000)]
    clock.advance(0.15)
    assert len(reported) < 1000, "calls are answered meanwhile"
    clock.advance(0.5)
    assert len(reported) == 1000, "each is told its place once"
    reported.clear()
    for ticket in tickets[:500]:
        queue.leave(ticket)
        clock.advance(0.15)
    assert queue.place(tickets[999])[0] == 500
    assert 5 <= reported.count("999") <= 10
    assert len(reported) < 500 * 100


async def test_many_lines_are_woken_bit_by_bit_and_none_is_forgotten() -> None:
    clock = ManualClock()
    queue = Queue(on_moved=lambda _: None, clock=clock.time, timers=Timers(clock))
    tickets = [queue.join(str(i), i) for i in range(1000)]
    for ticket in tickets:
        ticket.event.clear()
    queue.wake()
    queue.wake()  # the cluster has changed again, while they are woken
    assert sum(ticket.event.is_set() for ticket in tickets) == 10
    queue.leave(tickets[0])
    tickets[1].event.clear()  # it has looked before the second change
    for _ in range(300):
        clock.advance(0.01)
    assert all(ticket.event.is_set() for ticket in tickets)
