"""Functions for asyncio: background tasks, work in daemon threads, pauses between retries, and timers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def spawn(
    coroutine: Coroutine[Any, Any, T], tasks: set[asyncio.Task[Any]], log: logging.Logger
) -> asyncio.Task[T]:
    """Start a background task that nobody awaits, and log its exception. `tasks` refers to the task until its end."""

    def finish(done: asyncio.Task[T]) -> None:
        tasks.discard(done)
        if not done.cancelled() and done.exception() is not None:
            log.error("a background task failed", exc_info=done.exception())

    task = asyncio.get_running_loop().create_task(coroutine)
    tasks.add(task)
    task.add_done_callback(finish)
    return task


async def cancel_all(tasks: set[asyncio.Task[Any]], again_s: float = 5.0) -> None:
    """Cancel tasks and wait until they have ended. The current task is left out: it may be one of `tasks`.

    Tasks that still run after `again_s` are cancelled again: `asyncio.wait_for` may have lost the
    cancellation (see `wait_until_set`).
    """
    others = {task for task in tasks if task is not asyncio.current_task()}
    while others:
        for task in others:
            task.cancel()
        _, others = await asyncio.wait(others, timeout=again_s)


async def wait_until_set(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until an event is set. Return False if it is not set within `timeout_s`.

    Use it in loops that may be cancelled. `asyncio.wait_for` loses a cancellation on Python <= 3.11 if the event is set
    in the same step.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiting], timeout=timeout_s)
    finally:
        waiting.cancel()
    return event.is_set()


async def join_shared(shared: asyncio.Future[T]) -> T:
    """Return the result of a future that others await as well. A cancelled caller does not cancel it.

    `asyncio.shield` does the same, but since Python 3.14 it logs an error that comes after the caller was cancelled.
    """
    if not shared.done():
        await asyncio.wait([shared])
    return shared.result()


def start_shared(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a task that several callers await. Each awaits `join_shared(task)`, so that no caller cancels it."""
    task = asyncio.get_running_loop().create_task(coroutine)
    # Mark its exception as retrieved, or asyncio would log it if all callers were cancelled.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def ask_all(ask: Callable[[S], Awaitable[T]], items: Iterable[S], *, most: int = 256) -> list[T]:
    """Call `ask` for each item, at most `most` at the same time. Return the answers in the order of the items.

    Each call of `ask` has its own deadline. With thousands of calls at once, the last answers would be read too late.
    """
    todo = list(enumerate(items))
    left, answers = iter(todo), dict[int, T]()

    async def work() -> None:
        for number, item in left:
            answers[number] = await ask(item)

    workers = {asyncio.ensure_future(work()) for _ in range(min(most, len(todo)))}
    try:
        await asyncio.gather(*workers)
    finally:
        await cancel_all(workers)
    return [answers[number] for number in range(len(todo))]


def start_thread(
    work: Callable[[], T], *, name: str, undo: Callable[[], object] = lambda: None
) -> concurrent.futures.Future[T]:
    """Run blocking `work` in a daemon thread and return its future. The interpreter's exit does not wait for it.

    The caller can cancel the future until `work` has ended. A cancelled `work` goes on, but its result is dropped. If
    such `work` succeeds, the thread calls `undo`.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as problem:  # noqa: BLE001 - it is raised in the caller
            if outcome.set_running_or_notify_cancel():
                outcome.set_exception(problem)
        else:
            if outcome.set_running_or_notify_cancel():  # atomic: the caller cannot cancel after this
                outcome.set_result(result)
            else:
                undo()

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome


async def in_thread(work: Callable[[], T], *, deadline_s: float | None = None, name: str = "roost-work") -> T:
    """Return the result of blocking `work`, run by `start_thread`; raise `asyncio.TimeoutError` after `deadline_s`.

    It does without `asyncio.wait_for`, which loses a cancellation on Python <= 3.11 if the work ends at the same time.
    """
    outcome = asyncio.wrap_future(start_thread(work, name=name))
    outcome.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
    try:
        await asyncio.wait([outcome], timeout=deadline_s)
    finally:
        outcome.cancel()
    if outcome.cancelled():
        raise asyncio.TimeoutError
    return outcome.result()


def backoff(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield pauses between retries without end: `first_s`, then twice as long each time, at most `longest_s`."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, longest_s)


class TimerHandle(Protocol):
    def cancel(self) -> object: ...


class Clock(Protocol):
    def call_later(self, delay: float, callback: Callable[[], object], /) -> TimerHandle: ...


class Timers:
    """A set of timers that are closed together. Its `clock` is the running event loop by default."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._handles: dict[Hashable, TimerHandle] = {}

    def later(self, delay_s: float, call: Callable[[], object], *, key: Hashable = None) -> Hashable:
        """Call `call` once after `delay_s`. A timer with the same `key` is replaced. Returns the key for `cancel`."""
        key = object() if key is None else key

        def run() -> None:
            del self._handles[key]  # first, because `call` may set the next timer with this key
            call()

        self.cancel(key)
        self._handles[key] = (self._clock or asyncio.get_running_loop()).call_later(delay_s, run)
        return key

    def cancel(self, key: Hashable) -> None:
        handle = self._handles.pop(key, None)
        if handle is not None:
            handle.cancel()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._handles

    def close(self) -> None:
        for key in list(self._handles):
            self.cancel(key)
