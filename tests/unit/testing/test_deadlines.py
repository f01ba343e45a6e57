"""Deadlines of tests grow with the load, within bounds. A wait says whether its value came late or never."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from roost.testing import deadlines
from roost.testing.deadlines import Never, TooLate, allow_s, until, until_blocking


@pytest.mark.parametrize(
    ("load", "cpus", "allowed_s"), [(0, 2, 5), (2, 2, 5), (8, 2, 20), (8, 16, 5), (500, 2, 50)]
)
def test_a_deadline_grows_with_the_load(
    load: float, cpus: int, allowed_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)))
    assert allow_s(5) == allowed_s


class Clock:
    """A clock that only pauses move. The awaited value is true from `true_at_s` on."""

    def __init__(self, true_at_s: float) -> None:
        self.now_s = 0.0
        self._true_at_s = true_at_s

    def pause(self, seconds: float) -> None:
        self.now_s += seconds

    def look(self) -> str:
        return "a value" if self.now_s >= self._true_at_s else ""


@pytest.fixture
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(request.param)

    async def pause(seconds: float) -> None:
        clock.pause(seconds)

    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=lambda: clock.now_s, sleep=clock.pause))
    monkeypatch.setattr(deadlines, "asyncio", SimpleNamespace(sleep=pause))
    return clock


@pytest.mark.parametrize(
    ("clock", "error", "text"),
    [
        (0, None, ""),
        (9, None, ""),
        (10, None, ""),  # the look before it was in time
        (11, TooLate, "It came after its deadline, 11.0 s after the wait began: the value"),
        (39, TooLate, "It came after its deadline, 39.0 s after the wait began: the value"),
        (41, Never, "It never came: the value"),
    ],
    indirect=["clock"],
)
@pytest.mark.parametrize("is_late_text", [False, True])
async def test_a_wait_tells_a_late_value_from_one_that_never_comes(
    clock: Clock, error: type[AssertionError] | None, text: str, is_late_text: bool
) -> None:
    async def look() -> str:
        return clock.look()

    what: str | Callable[[], object] = "the value"
    if is_late_text:
        what = lambda: "the value"  # noqa: E731
    for condition in (clock.look, look):
        clock.now_s = 0.0
        if error is None:
            assert await until(condition, what, 10, 1) == "a value"
        else:
            with pytest.raises(error, match=f"^{re.escape(text)}$"):
                await until(condition, what, 10, 1)
    clock.now_s = 0.0
    if error is None:
        assert until_blocking(clock.look, what, 10, 1) == "a value"
    else:
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            until_blocking(clock.look, what, 10, 1)


@pytest.mark.parametrize("clock", [15], indirect=True)
async def test_the_deadline_of_a_wait_follows_the_load(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (4.0, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert await until(clock.look, "the value", 10, 1) == "a value"


@pytest.mark.parametrize("clock", [5], indirect=True)
async def test_a_wait_raises_the_errors_of_its_condition(clock: Clock) -> None:
    def fail() -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await until(fail, "the value")
    with pytest.raises(KeyError, match="mine"):
        until_blocking(fail, "the value")
    assert clock.now_s == 0


@pytest.mark.parametrize("clock", [345], indirect=True)
async def test_a_late_wait_ends_before_the_time_limit_of_its_test(clock: Clock) -> None:
    with pytest.raises(Never):
        await until(clock.look, "the value", 100, 1)
    assert clock.now_s == 340
