"""The last kernels that have ended, and the file that keeps them for the next scheduler."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.client import build_kernel
from kit.fakes.scheduler import FakeAgent, fake_world, scheduler_on
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Connection, KernelProcess
from roost.scheduler.core import ended_kernels
from roost.scheduler.core.ended_kernels import EndedKernels
from roost.scheduler.errors import NoNodeEver
from roost.testing.deadlines import until

ENDED = replace(build_kernel("k-1", node_id="n1"), state="exited", reason="it was killed")


async def test_the_next_scheduler_knows_why_a_kernel_has_ended(tmp_path: Path) -> None:
    agent = FakeAgent(tmp_path / "here", name="here")
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    async with scheduler_on([agent], folder=folder) as w:
        await w.start("k")
        await w.scheduler.stop("k", 0)
        reason = w.scheduler.kernel("k").reason
    async with scheduler_on([agent], folder=folder) as w:
        kernel = w.scheduler.kernel("k")
        assert (kernel.state, kernel.reason) == ("exited", reason)
        assert await w.scheduler.logs("k") == kernel.log_tail
    await agent.close()


async def test_a_kernel_that_runs_again_has_not_ended(tmp_path: Path) -> None:
    """A restart by Jupyter keeps the id. The next scheduler may not find the kernel at once."""
    async with fake_world(tmp_path, nodes=("here",)) as w:
        for launch_id in ("1", "2"):
            await w.start("k", launch_id)
            assert w.scheduler._table.ended.find("k") is None
            await w.scheduler.stop("k", 0)
            assert w.scheduler._table.ended.find("k") is not None


async def test_a_killed_scheduler_has_written_them_soon_after_the_end(tmp_path: Path) -> None:
    file = tmp_path / "ended.json"
    ended = EndedKernels(Timers(), file)
    ended.add(ENDED)
    await until(file.exists, "the file is written", 30)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert EndedKernels(Timers(), file).find("k-1") == ENDED


async def test_only_the_latest_are_kept_and_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended_kernels, "_SAVED", 2)
    process = KernelProcess(
        kernel_id="k",
        launch_id="l",
        lease_id="l",
        pid=7,
        process_started_at=1.0,
        how="exec",
        connection=Connection(key="secret-key"),
        launched_at=1.0,
    )
    with_key = replace(ENDED, process=process)
    ended = EndedKernels(Timers(), tmp_path / "ended.json")
    for number in (1, 2, 3, 1):
        ended.add(replace(with_key, id=f"k-{number}"))
    ended.close()
    assert ended.find("k-2") is not None
    assert ended.find("") is None
    later = EndedKernels(Timers(), tmp_path / "ended.json")
    assert [later.find(f"k-{number}") is None for number in (1, 2, 3)] == [False, True, False]
    assert later.find("k") == later.find("k-1")  # the latest
    assert "secret-key" not in (tmp_path / "ended.json").read_text()


async def test_a_failed_next_start_does_not_hide_why_the_kernel_has_ended(tmp_path: Path) -> None:
    """Jupyter starts a lost kernel again and again, and while the cluster is away each of these starts fails."""
    async with fake_world(tmp_path) as w:
        await w.start("k")
        await w.scheduler.stop("k", 0)
        reason = w.kernel("k").reason
        for launch_id in ("2", "3"):
            with pytest.raises(NoNodeEver):
                await w.start("k", launch_id, gpus=1)
        shown = w.kernel("k")
        assert (shown.state, shown.reason) == ("exited", reason)
        assert (shown.request.gpus, shown.decision) == (1, None), "what it would need now"
        assert (await w.start("k", "4")).state == "running"
        await w.scheduler.stop("k", 0)
        with pytest.raises(NoNodeEver):
            await w.start("never ran", gpus=1)
        assert "no node could ever hold" in w.kernel("never ran").reason
