"""`EventQueue`: the events that a backend has put and the scheduler has not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from .base import BackendEvent


class EventQueue:
    """The events of a backend, in the order in which they were put. The scheduler alone reads them."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[BackendEvent | None] = asyncio.Queue()

    def put(self, event: BackendEvent) -> None:
        self._events.put_nowait(event)

    async def read(self) -> AsyncIterator[BackendEvent]:
        """Yield the events, also those put later, until the queue is closed: the result of `Backend.events`."""
        while (event := await self._events.get()) is not None:
            yield event

    def close(self) -> None:
        """End `read` once it has yielded the events put before."""
        self._events.put_nowait(None)
