"""The undoing of a start after each of its steps, and repeated undoing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kit.fakes.scheduler import fake_world
from roost.scheduler.core import backend_access, scheduler
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    LaunchError,
)


@pytest.mark.parametrize("stage", ["reserve", "launch"])
async def test_a_start_is_taken_back_at_each_stage(tmp_path: Path, stage: str) -> None:
    async with fake_world(tmp_path) as w:
        release = w.agent.hold(stage)
        start = w.start("k", cpus=1)
        await w.agent.called(stage)
        cancel = asyncio.ensure_future(w.scheduler.cancel("k", "1"))
        with pytest.raises(Cancelled):
            await start
        release.set()
        await cancel
        await w.until(lambda: w.leases() == []) if w.leases() else None
        assert w.scheduler.kernels() == []
        with pytest.raises(Cancelled):
            await w.start("k")


async def test_a_stop_that_cannot_reach_the_agent_is_carried_out_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.core.ender.RETRY_S", 0.05)
    monkeypatch.setattr("roost.scheduler.backends.local.backend._PAUSES_S", (0.0,))
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1)
        await w.agent.close()
        with pytest.raises(BackendUnavailable):
            await w.scheduler.stop("k", 0)
        await asyncio.sleep(0.01)
        w.agent._begin()
        await w.told("released", "k")
        assert w.leases() == []


async def test_a_cancel_that_overtakes_its_start_takes_it_back(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.scheduler.cancel("k", "1")
        with pytest.raises(Cancelled):
            await w.start("k")
        assert (await w.start("k", "2")).state == "running"


async def test_a_cancel_that_comes_late_ends_the_kernel(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")
        await w.scheduler.cancel("k", "1")
        assert w.leases() == []
        await w.start("other")
        await w.scheduler.cancel("other")
        assert w.kernel("other").state == "running"


async def test_a_defect_in_a_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("roost.scheduler.core.lease_claim.held_for_elders", fail)
    async with fake_world(tmp_path) as w:
        with pytest.raises(LaunchError, match="ZeroDivisionError: a defect"):
            await w.start("k", cpus=1)
        assert w.scheduler.kernels() == []
        assert w.leases() == []


async def test_an_agent_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_access, "IN_TIME_S", 0.05)
    monkeypatch.setattr(scheduler, "_STOPS_S", 0.05)
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1)
        releases = [w.agent.hold(stage) for stage in ("signal", "logs", "stop")]
        silent = r"^the agent on here has not answered within 0.05 s\."
        for call in (w.scheduler.signal("k", 2), w.scheduler.logs("k")):
            with pytest.raises(BackendUnavailable, match=f"{silent}$"):
                await call
        with pytest.raises(BackendUnavailable, match=f"{silent} The kernel is stopped as soon as its agent"):
            await w.scheduler.stop("k", 0.0)
        assert list(w.scheduler._ender._due) == ["roost:k:s/1"]  # also for the next scheduler
        for release in releases:
            release.set()
        await w.until(lambda: w.leases() == [])  # the stop goes on
        await w.until(lambda: not w.scheduler._ender._due)
