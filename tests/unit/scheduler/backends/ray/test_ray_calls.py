"""Calls to Ray that hang keep their threads. The service ends if Ray answers no call for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from roost.scheduler.backends.ray import manager
from roost.scheduler.backends.ray.manager import RayCalls
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s, until

SILENT = "Ray has not answered for"


class HangingCalls(RayCalls):
    """Calls, and the function `hang`, which returns once `may_return` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_return = threading.Event()
        self.hanging = 0

    def hang(self) -> None:
        self.hanging += 1
        self.may_return.wait(allow_s(60))


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets an item each time that the service ends."""
    found: list[str] = []
    monkeypatch.setattr(manager, "_end_service", lambda: found.append("ended"))
    monkeypatch.setattr(manager, "_CALL_S", 0.05)
    monkeypatch.setattr(manager, "_HANGS_S", 0.2)
    return found


@pytest.fixture
def calls(ends: list[str]) -> Iterator[HangingCalls]:
    calls = HangingCalls()
    yield calls
    calls.may_return.set()
    calls.close()


async def test_the_service_ends_if_hanging_calls_keep_all_threads(
    calls: HangingCalls, ends: list[str]
) -> None:
    while calls.hanging < manager._THREADS:  # a busy machine starts few threads within the deadline
        asked = [calls.ask(calls.hang) for _ in range(manager._THREADS)]
        assert all(SILENT in str(answer) for answer in await asyncio.gather(*asked, return_exceptions=True))
    ends.clear()

    async def end_while_joining() -> bool:
        with pytest.raises(asyncio.TimeoutError):  # Ray would answer at once
            await calls.run(lambda: "joined", deadline_s=0.05)
        return bool(ends)

    await until(end_while_joining, "the end of the service")


async def test_the_service_ends_if_each_call_hangs(calls: HangingCalls, ends: list[str]) -> None:
    """The cluster can be joined again meanwhile: that asks it by another connection."""

    async def end_while_asking() -> bool:
        assert await calls.run(lambda: "joined", deadline_s=allow_s(10)) == "joined"
        with pytest.raises(BackendUnavailable, match=SILENT):
            await calls.ask(calls.hang)
        return bool(ends)

    await until(end_while_asking, "the end of the service")


async def test_a_late_answer_ends_the_silence(calls: HangingCalls) -> None:
    while not calls.hanging:  # a busy machine may not start the call within the deadline
        with pytest.raises(BackendUnavailable, match=SILENT):
            await calls.ask(calls.hang)
    assert calls._silent_since is not None
    calls.may_return.set()
    await until(lambda: calls._silent_since is None, "the late answer")


async def test_a_service_that_joins_slowly_stays(calls: HangingCalls, ends: list[str]) -> None:
    """The import of Ray may take that long on a busy machine."""
    for _ in range(10):
        with pytest.raises(asyncio.TimeoutError):
            await calls.run(calls.hang, deadline_s=0.05)
    assert ends == []
