"""A call that is under way on another thread, for callers with and without an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from roost.scheduler.errors import BackendUnavailable

T = TypeVar("T")

ANSWER_S = 30.0
"""How long a command waits for an answer, including the start of the service."""


class Call(Generic[T]):
    """A call that is under way. `await` it in an event loop, or call `result` in a thread without one."""

    __slots__ = ("_future", "_thread")

    def __init__(self, future: concurrent.futures.Future[T], thread: threading.Thread | None = None) -> None:
        self._future = future
        self._thread = thread

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer, and raise the call's error. After `timeout`, raise `TimeoutError`; the call goes on."""
        if threading.current_thread() is self._thread and not self._future.done():
            raise RuntimeError("a listener may not wait for a call: the answer arrives on the same thread")
        try:
            return self._future.result(timeout)
        except concurrent.futures.TimeoutError as problem:  # a different class before Python 3.11
            raise TimeoutError(*problem.args) from None

    async def within(self, timeout_s: float) -> T:
        """Wait for the answer in an event loop. After `asyncio.TimeoutError` or a cancellation, the call goes on."""
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()

        def wake(_: object) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(answered.set)

        self._future.add_done_callback(wake)
        await asyncio.wait_for(answered.wait(), timeout_s)
        return self._future.result(0)

    def cancel(self) -> bool:
        """Stop waiting for the answer; a start is cancelled. Return False if the call had ended already."""
        return self._future.cancel()

    def add_done_callback(self, callback: Callable[[Call[T]], object]) -> None:
        """Call `callback` with this call when it is done: on the client's thread, or now if it is done already."""
        self._future.add_done_callback(lambda _: callback(self))


def wait_for(call: Call[T], timeout_s: float = ANSWER_S) -> T:
    """Return the answer to a call; raises `BackendUnavailable` after `timeout_s`."""
    try:
        return call.result(timeout_s)
    except TimeoutError:
        raise BackendUnavailable(f"The scheduler did not answer within {timeout_s:g} s.") from None
