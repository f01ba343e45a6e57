"""An event loop whose time passes only when there is nothing else to do: hours of waiting take seconds."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class StuckLoop(AssertionError):
    """All tasks wait, and nothing will ever wake one of them."""


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """A selector that does not wait, but moves the loop's clock on."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is None:
            raise StuckLoop("every task waits for another one, and no timer runs")
        if not found and timeout is not None:
            self.loop.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own, `now` in seconds. Code under test must read the time from `time`."""

    def __init__(self) -> None:
        self.now = 1_000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now
