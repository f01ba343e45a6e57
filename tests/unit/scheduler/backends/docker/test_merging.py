"""One stream of own changes and the engine's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from roost.scheduler.backends.docker.merging import OwnChanges


async def test_own_changes_come_before_events_that_are_not_read() -> None:
    own = OwnChanges[str]()
    may_end = asyncio.Event()

    async def events() -> AsyncGenerator[str, None]:
        yield "event 1"
        yield "event 2"
        await may_end.wait()
        raise OSError("the engine has ended")

    stream = own.merge(events())
    assert await anext(stream) == "event 1"
    await asyncio.sleep(0.01)  # the second event is there
    own.put("own 1")
    own.put("own 2")
    assert [await anext(stream) for _ in range(3)] == ["own 1", "own 2", "event 2"]
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    own.put("own 3")
    assert await asyncio.wait_for(waiting, 5) == "own 3"
    may_end.set()
    with pytest.raises(OSError, match="the engine has ended"):
        await asyncio.wait_for(anext(stream), 5)


async def test_the_end_of_the_stream_closes_the_events() -> None:
    is_closed = False

    async def events() -> AsyncGenerator[str, None]:
        nonlocal is_closed
        try:
            yield "event"
            await asyncio.Event().wait()
        finally:
            is_closed = True

    stream = OwnChanges[str]().merge(events())
    assert await anext(stream) == "event"
    await stream.aclose()
    assert is_closed
