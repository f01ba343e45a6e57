"""Deadlines and waits of tests. They grow with the load of the machine."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_MOST = 10.0
"""At most how many times longer a deadline gets. A hang must still end the test."""
_LONGER = 4.0
"""How many times as long as its deadline a wait goes on looking. This tells a slow machine from a race."""
_MORE_S = 240.0
"""At most how long a wait goes on looking after its deadline. The time limit of the test must not end it first."""


class TooLate(AssertionError):
    """The error of a wait for something that came after its deadline. The machine is slow."""

    def __init__(self, what: str, took_s: float) -> None:
        super().__init__(f"It came after its deadline, {took_s:.1f} s after the wait began: {what}")


class Never(AssertionError):
    """The error of a wait for something that did not come long after its deadline. It is a race or a defect."""

    def __init__(self, what: str) -> None:
        super().__init__(f"It never came: {what}")


def allow_s(seconds: float) -> float:
    """Return how many seconds a test allows for what takes less than `seconds` on a quiet machine.

    With two threads for each CPU, everything may take twice as long. The load is the mean of the last minute.
    """
    return seconds * min(_MOST, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


@overload
async def until(
    condition: Callable[[], Awaitable[T | None]],
    what: str | Callable[[], object],
    seconds: float = 60.0,
    pause_s: float = 0.05,
) -> T: ...
@overload
async def until(
    condition: Callable[[], T | None],
    what: str | Callable[[], object],
    seconds: float = 60.0,
    pause_s: float = 0.05,
) -> T: ...
async def until(
    condition: Callable[[], Any],
    what: str | Callable[[], object],
    seconds: float = 60.0,
    pause_s: float = 0.05,
) -> Any:
    """Wait until `condition`, which may be async, returns a true value. Return the value.

    `what` names the wait in the text of an error. If it is a function, it is called after the deadline, and may
    describe what the last look has found. The deadline is `allow_s(seconds)`, from the load at each look.

    Raises `TooLate` if the value becomes true after the deadline. Raises `Never` after four times the deadline, or
    240 s after it. Errors of `condition` are raised at once.
    """
    __tracebackhide__ = True
    wait = _Wait(what, seconds)
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            wait.accept()
            return value
        wait.go_on()
        await asyncio.sleep(pause_s)


def until_blocking(
    condition: Callable[[], T | None],
    what: str | Callable[[], object],
    seconds: float = 60.0,
    pause_s: float = 0.05,
) -> T:
    """Wait as `until` does, in a test that is not async. The errors are the same."""
    __tracebackhide__ = True
    wait = _Wait(what, seconds)
    while True:
        if value := condition():
            wait.accept()
            return value
        wait.go_on()
        time.sleep(pause_s)


class _Wait:
    """The time of one wait. A look in vain after the deadline makes the wait late."""

    def __init__(self, what: str | Callable[[], object], seconds: float) -> None:
        self._what, self._seconds = what, seconds
        self._began = time.monotonic()
        self._late_text: str | None = None

    def accept(self) -> None:
        """Raise `TooLate` if an earlier look in vain came after the deadline."""
        __tracebackhide__ = True
        if self._late_text is not None:
            raise TooLate(self._late_text, self._took_s())

    def go_on(self) -> None:
        """Take note of a look in vain. Raise `Never` if it was the last one."""
        __tracebackhide__ = True
        took_s, deadline_s = self._took_s(), allow_s(self._seconds)
        if took_s >= min(_LONGER * deadline_s, deadline_s + allow_s(_MORE_S)):
            raise Never(self._describe())
        if took_s >= deadline_s and self._late_text is None:
            self._late_text = self._describe()

    def _took_s(self) -> float:
        return time.monotonic() - self._began

    def _describe(self) -> str:
        return self._what if isinstance(self._what, str) else str(self._what())
