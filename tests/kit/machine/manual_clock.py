"""A clock whose time only a test moves, for `roost.launchers.daemon.tasks.Timers`."""

from __future__ import annotations

import itertools
from collections.abc import Callable


class ManualClock:
    """A clock whose time only `advance` moves. Pass its method `time` as a function that returns seconds."""

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now
        self._numbers = itertools.count()
        self._due: dict[int, tuple[float, Callable[[], object]]] = {}

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], object], /) -> _Handle:
        number = next(self._numbers)
        self._due[number] = (self._now + delay, callback)
        return _Handle(self._due, number)

    def advance(self, seconds: float) -> None:
        """Move time forward. Call the callbacks that fall due meanwhile, in the order of their times."""
        end = self._now + seconds
        while due := [(at, number) for number, (at, _) in self._due.items() if at <= end]:
            at, number = min(due)
            self._now = max(self._now, at)
            self._due.pop(number)[1]()
        self._now = end


class _Handle:
    def __init__(self, due: dict[int, tuple[float, Callable[[], object]]], number: int) -> None:
        self._due = due
        self._number = number

    def cancel(self) -> None:
        self._due.pop(self._number, None)
