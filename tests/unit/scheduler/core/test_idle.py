"""Kernels that do nothing: the warning, the end, and what prevents it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.fakes.scheduler import FakeWorld, fake_world
from roost.launchers.protocol.messages import KernelUse
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import idle

SOON = Settings(idle_after_s=10.0, idle_gpu_after_s=4.0)


def use(w: FakeWorld, idle_s: float, quiet_s: float | None = None, state: str = "idle") -> None:
    quiet_s = idle_s if quiet_s is None else quiet_s
    w.agent.use["k"] = KernelUse(kernel_id="k", execution_state=state, idle_s=idle_s, quiet_s=quiet_s)


class Clock:
    """The clock of the idle culler. It stands still until a test sets it forward."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        patch.setattr(idle, "time", SimpleNamespace(monotonic=lambda: self.now, time=time.time))
        patch.setattr(idle, "_SHORTEST_PAUSE_S", 60.0)  # the scheduler does not look by itself


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def looked(w: FakeWorld) -> None:
    """Let the scheduler check once which kernels are idle."""
    await w.scheduler._idle._look()
    await asyncio.sleep(0)


def details(w: FakeWorld, kind: str) -> list[str]:
    return [event.detail for event in w.events if event.kind == kind]


async def test_an_idle_kernel_is_warned_and_then_ends(tmp_path: Path, clock: Clock) -> None:
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k")
        use(w, 7.9)
        await looked(w)
        assert w.count("warned") == 0
        use(w, 9)
        await looked(w)
        await looked(w)
        await w.told("warned", "k")
        assert details(w, "warned") == ["has been idle for 9 s; it ends in 2 s unless it is used"]
        assert w.kernel("k").state == "running"
        clock.now += 1.9
        use(w, 10.9)
        await looked(w)
        assert w.kernel("k").state == "running"
        clock.now += 0.1
        use(w, 11)
        await looked(w)
        await w.told("released", "k")
        kernel = w.kernel("k")
        assert kernel.reason == "culled: idle for longer than 10 s"
        assert kernel.is_stopped
        assert details(w, "cull") == ["culled: idle for longer than 10 s"]


async def test_two_looks_at_once_end_a_kernel_once(tmp_path: Path, clock: Clock) -> None:
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k")
        use(w, 9)
        await looked(w)
        clock.now += 2
        use(w, 11)
        await asyncio.gather(*(w.scheduler._idle._look() for _ in range(2)))
        await w.told("released", "k")
        assert w.count("cull") == 1


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "orphan"])
async def test_a_kernel_that_was_idle_for_long_has_the_whole_time_of_the_warning(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    """The scheduler may be new or may have slept, or its limit is lower now."""
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k")
        monkeypatch.setattr(w.scheduler.owners, "is_alive", lambda _: is_held)
        use(w, 1e6)
        await looked(w)
        await w.told("warned", "k")
        assert "it ends in 2 s" in details(w, "warned")[0]
        clock.now += 1.9
        await looked(w)
        assert w.kernel("k").state == "running"
        clock.now += 0.1
        await looked(w)
        await w.told("released", "k")


@pytest.mark.parametrize(
    "active",
    [
        {"idle_s": 1.0, "quiet_s": 99.0},  # it has published something
        {"idle_s": 99.0, "quiet_s": 1.0},  # a thread, a child process or a GPU works
        {"idle_s": 99.0, "quiet_s": 99.0, "state": "busy"},  # a cell runs or waits for input
    ],
)
@pytest.mark.usefixtures("clock")
async def test_activity_cancels_the_warning(tmp_path: Path, active: dict[str, Any]) -> None:
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("k")
        use(w, 9)
        await looked(w)
        await w.told("warned", "k")
        use(w, **active)
        await looked(w)
        use(w, 11)
        await looked(w)
        assert w.kernel("k").state == "running", "it is warned again first"
        await asyncio.sleep(0)
        idle = "has been idle for {} s; it ends in 2 s unless it is used"
        assert details(w, "warned") == [idle.format(9), "is used again", idle.format(11)]


async def test_a_kernel_with_a_gpu_ends_sooner(tmp_path: Path, clock: Clock) -> None:
    async with fake_world(tmp_path, settings=SOON, gpus=1) as w:
        await w.start("k", gpus=1)
        use(w, 5)
        await looked(w)
        clock.now += 1
        await looked(w)
        await w.told("released", "k")
        assert w.kernel("k").reason == "culled: idle for longer than 4 s"


async def test_without_the_settings_no_kernel_ends(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")
        use(w, 1e6)
        await looked(w)
        await looked(w)
        assert w.count("warned") == 0
        assert w.kernel("k").state == "running"


async def test_the_scheduler_looks_by_itself(tmp_path: Path) -> None:
    async with fake_world(tmp_path, settings=Settings(idle_after_s=1.0)) as w:
        await w.start("k")
        use(w, 30)
        await w.told("released", "k")


async def test_a_start_looks_at_no_other_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many thousand kernels, a look at all of them would take longer than the start."""
    monkeypatch.setattr(idle, "_SHORTEST_PAUSE_S", 60.0)  # the scheduler does not look by itself
    async with fake_world(tmp_path, settings=SOON) as w:
        await w.start("first")
        seen = []
        find_limit = w.scheduler._idle._find_limit
        monkeypatch.setattr(
            w.scheduler._idle,
            "_find_limit",
            lambda record: (seen.append(record.kernel_id), find_limit(record))[1],
        )
        await w.start("second")
        assert set(seen) == {"second"}
