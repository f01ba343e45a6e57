"""`OwnChanges`: the changes that this process reports itself, in one stream with those of the engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


class OwnChanges(Generic[T]):
    """A queue of changes, which comes before all events of the engine that are not read yet.

    A container that is reported here may end at once: its end must not be read first.
    """

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._is_filled = asyncio.Event()

    def put(self, item: T) -> None:
        self._items.append(item)
        self._is_filled.set()

    async def merge(self, events: AsyncGenerator[S, None]) -> AsyncGenerator[S | T, None]:
        """Yield the changes and the events as they come, until the events end. Raises what `events` raises."""
        async with aclosing(events):
            event = asyncio.ensure_future(anext(events))
            try:
                while True:
                    self._is_filled.clear()
                    while self._items:
                        yield self._items.popleft()
                    if event.done():
                        try:
                            arrived = event.result()
                        except StopAsyncIteration:
                            return
                        event = asyncio.ensure_future(anext(events))
                        yield arrived
                        continue
                    filled = asyncio.ensure_future(self._is_filled.wait())
                    try:
                        await asyncio.wait([event, filled], return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        filled.cancel()
            finally:
                event.cancel()
                await asyncio.gather(event, return_exceptions=True)
