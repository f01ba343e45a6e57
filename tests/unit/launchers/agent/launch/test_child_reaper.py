"""Exit codes of children, with real processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from roost.launchers.agent.launch.child_reaper import Reaper
from roost.testing.deadlines import allow_s


@pytest.fixture
async def unknown_children() -> asyncio.Queue[int]:
    """Return a queue of the pids of ended children that no caller was waiting for."""
    return asyncio.Queue()


@pytest.fixture
async def reaper(unknown_children: asyncio.Queue[int]) -> AsyncIterator[Reaper]:
    reaper = Reaper(others=lambda pid, status: unknown_children.put_nowait(pid), remembered_s=60.0)
    yield reaper
    reaper.close()


@pytest.fixture(params=["waitid", "without waitid"])
def wait_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without waitid":  # as on macOS before Python 3.13
        monkeypatch.delattr(os, "waitid", raising=False)


def spawn(code: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        close_fds=False,
    )
    process.returncode = 0
    return process.pid


async def exit_code(future: asyncio.Future[int]) -> int:
    return await asyncio.wait_for(future, allow_s(60))


@pytest.mark.usefixtures("wait_calls")
async def test_the_group_of_a_child_ends_with_the_child(reaper: Reaper) -> None:
    ready, ready_in = os.pipe()
    os.set_inheritable(ready_in, True)
    pid = spawn("import os; os.fork() or __import__('signal').pause(); os._exit(3)")
    os.close(ready_in)
    assert await exit_code(reaper.exit_code(pid, is_ours=True)) == 3
    assert os.read(ready, 1) == b"", "the child in its group, which held the pipe, is gone too"
    os.close(ready)


async def test_an_exit_code_is_kept_for_a_late_caller(
    reaper: Reaper, unknown_children: asyncio.Queue[int]
) -> None:
    pid = spawn("raise SystemExit(5)")
    await asyncio.wait_for(unknown_children.get(), allow_s(60))
    assert await exit_code(reaper.exit_code(pid)) == 5


@pytest.mark.parametrize(("is_ours", "remembered_s"), [(True, 60.0), (False, 0.0)])
async def test_the_exit_code_of_an_earlier_process_with_the_same_pid_does_not_count(
    unknown_children: asyncio.Queue[int], is_ours: bool, remembered_s: float
) -> None:
    reaper = Reaper(others=lambda pid, status: unknown_children.put_nowait(pid), remembered_s=remembered_s)
    pid = spawn("raise SystemExit(7)")
    await asyncio.wait_for(unknown_children.get(), allow_s(60))
    future = reaper.exit_code(pid, is_ours=is_ours)  # as if another process had this pid now
    assert not future.done()
    reaper.close()


@pytest.mark.usefixtures("wait_calls")
async def test_what_a_child_has_used_is_known(reaper: Reaper) -> None:
    pid = spawn("import time; x = bytearray(b'1') * (50 << 20)\nwhile time.process_time() < 0.1: pass")
    await exit_code(reaper.exit_code(pid, is_ours=True))
    assert reaper.spent(pid).cpu_s >= 0.1
    assert reaper.spent(pid).peak_bytes > 50 << 20
    assert reaper.spent(1) == (0, 0)
