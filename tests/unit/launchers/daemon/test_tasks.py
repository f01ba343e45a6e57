"""Background tasks, daemon threads, pauses and timers."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import pytest

from kit.machine.manual_clock import ManualClock
from roost.launchers.daemon.tasks import (
    Timers,
    ask_all,
    backoff,
    cancel_all,
    in_thread,
    join_shared,
    spawn,
    start_shared,
    start_thread,
    wait_until_set,
)
from roost.testing.deadlines import allow_s

log = logging.getLogger("test")


async def _fail() -> None:
    raise ValueError("broken")


async def test_a_spawned_task_is_kept_until_it_ends() -> None:
    tasks: set[asyncio.Task[Any]] = set()
    event = asyncio.Event()
    task = spawn(event.wait(), tasks, log)
    assert tasks == {task}
    event.set()
    await task
    assert not tasks


async def test_the_error_of_a_spawned_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks: set[asyncio.Task[Any]] = set()
    await asyncio.wait([spawn(_fail(), tasks, log)])
    await asyncio.sleep(0)
    assert "broken" in caplog.text
    assert not tasks


async def test_a_task_that_loses_its_cancellation_is_cancelled_again() -> None:
    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_all({task}, again_s=0.01), allow_s(60))
    assert task.cancelled()


async def test_a_wait_for_an_event_ends_with_its_task_although_the_event_is_set_in_the_same_step() -> None:
    event = asyncio.Event()

    async def follow() -> None:
        while True:
            await wait_until_set(event, 60)
            event.clear()

    task = asyncio.ensure_future(follow())
    await asyncio.sleep(0.01)
    event.set()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=allow_s(5))
    assert task.cancelled()


async def test_a_wait_for_an_event_says_whether_it_was_set() -> None:
    event = asyncio.Event()
    assert not await wait_until_set(event, 0.001)
    event.set()
    assert await wait_until_set(event, 60)


async def test_cancel_all_waits_for_the_tasks_and_spares_the_current_one() -> None:
    tasks: set[asyncio.Task[Any]] = set()
    ends: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    async def close() -> None:
        await cancel_all(tasks)
        ends.append("closed")

    spawn(wait(), tasks, log)
    await asyncio.sleep(0)
    await spawn(close(), tasks, log)
    assert ends == ["cancelled", "closed"]


async def test_of_many_items_only_some_are_asked_at_the_same_time() -> None:
    asked, most = 0, 0

    async def ask(item: int) -> int:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0)
        asked -= 1
        return item * item

    assert await ask_all(ask, range(10), most=3) == [item * item for item in range(10)]
    assert (asked, most) == (0, 3)
    assert await ask_all(ask, []) == []


async def test_a_failed_item_ends_the_others() -> None:
    others = []

    async def ask(item: int) -> None:
        if item == 1:
            raise ValueError("no")
        try:
            await asyncio.Event().wait()
        finally:
            others.append(item)

    with pytest.raises(ValueError, match="no"):
        await ask_all(ask, range(3))
    assert sorted(others) == [0, 2]


async def test_asyncio_does_not_log_the_error_of_a_shared_task(caplog: pytest.LogCaptureFixture) -> None:
    task = start_shared(_fail())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    with pytest.raises(ValueError, match="broken"):
        await asyncio.shield(task)
    other = start_shared(_fail())
    await asyncio.wait([other])
    await asyncio.sleep(0)
    del other
    gc.collect()
    assert not caplog.records


async def test_work_in_a_thread_returns_and_raises() -> None:
    assert await in_thread(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("work", [lambda: None, lambda: 1 // 0])
async def test_work_in_a_thread_outlives_its_deadline(work: Callable[[], None]) -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def wait() -> None:
        may_end.wait(allow_s(10))
        has_ended.set()
        work()

    with pytest.raises(asyncio.TimeoutError):
        await in_thread(wait, deadline_s=0.01)
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(allow_s(60))


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_thread_undoes_cancelled_work(is_cancelled: bool) -> None:
    may_end, is_undone = threading.Event(), threading.Event()
    outcome = start_thread(lambda: may_end.wait(allow_s(10)), name="test", undo=is_undone.set)
    if is_cancelled:
        assert outcome.cancel()
    may_end.set()
    if is_cancelled:
        assert is_undone.wait(allow_s(60))
    else:
        assert outcome.result(allow_s(10))
        assert not outcome.cancel()
        assert not is_undone.is_set()


def test_pauses_double_up_to_the_longest() -> None:
    assert list(islice(backoff(0.25, 1.5), 5)) == [0.25, 0.5, 1.0, 1.5, 1.5]


def test_a_timer_calls_once_when_its_time_has_come() -> None:
    clock, calls = ManualClock(), list[str]()
    timers = Timers(clock)
    timers.later(2.0, lambda: calls.append("second"))
    timers.later(1.0, lambda: calls.append("first"))
    clock.advance(1.5)
    assert calls == ["first"]
    clock.advance(10.0)
    assert calls == ["first", "second"]


def test_a_timer_with_the_same_key_replaces_the_one_before() -> None:
    clock, calls = ManualClock(), list[str]()
    timers = Timers(clock)
    timers.later(1.0, lambda: calls.append("early"), key="lease")
    timers.later(3.0, lambda: calls.append("late"), key="lease")
    clock.advance(2.0)
    assert "lease" in timers
    clock.advance(2.0)
    assert calls == ["late"]
    assert "lease" not in timers


def test_cancelled_and_closed_timers_do_not_call() -> None:
    clock, calls = ManualClock(), list[str]()
    timers = Timers(clock)
    timers.cancel(timers.later(1.0, lambda: calls.append("cancelled")))
    timers.later(1.0, lambda: calls.append("closed"))
    timers.close()
    timers.cancel("no such key")
    clock.advance(5.0)
    assert not calls


def test_a_timer_may_set_the_next_one_with_its_own_key() -> None:
    clock, calls = ManualClock(), list[float]()
    timers = Timers(clock)

    def tick() -> None:
        calls.append(clock.time())
        timers.later(1.0, tick, key="tick")

    tick()
    clock.advance(2.0)
    assert calls == [1_000.0, 1_001.0, 1_002.0]


async def test_timers_use_the_running_loop_by_default() -> None:
    called = asyncio.Event()
    Timers().later(0.0, called.set)
    await asyncio.wait_for(called.wait(), allow_s(60))


@pytest.mark.parametrize("steps", range(6))
async def test_a_cancellation_beside_the_end_of_the_work_is_not_lost(steps: int) -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(allow_s(10))
        ended.set()

    waiting = asyncio.ensure_future(in_thread(work, deadline_s=10.0))
    await asyncio.sleep(0.01)
    go.set()
    ended.wait(allow_s(10))
    for _ in range(steps):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_callers_share_a_task_that_outlives_a_cancelled_one() -> None:
    """The error that comes after the cancellation is the other caller's. It is logged nowhere."""
    logged: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
    goes_on = asyncio.Event()

    async def work() -> None:
        await goes_on.wait()
        raise ValueError("broken")

    shared = start_shared(work())
    first, second = (asyncio.create_task(join_shared(shared)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    goes_on.set()
    with pytest.raises(ValueError, match="broken"):
        await second
    with pytest.raises(ValueError, match="broken"):
        await join_shared(shared)
    await asyncio.sleep(0)
    assert logged == []
