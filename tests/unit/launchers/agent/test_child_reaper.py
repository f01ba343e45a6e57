"""Exit codes of children, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from roost.launchers.agent import child_reaper as module
from roost.launchers.agent.child_reaper import Reaper


@pytest.fixture
async def reaper() -> Any:
    reaper = Reaper(others=lambda pid, status: None)
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
    return await asyncio.wait_for(future, 10)


@pytest.mark.usefixtures("wait_calls")
async def test_a_child_and_what_it_leaves_in_its_group(reaper: Reaper) -> None:
    ready, ready_in = os.pipe()
    os.set_inheritable(ready_in, True)
    pid = spawn("import os; os.fork() or __import__('signal').pause(); os._exit(3)")
    os.close(ready_in)
    assert await exit_code(reaper.exit_code(pid, is_ours=True)) == 3
    assert os.read(ready, 1) == b"", "the child in its group, which held the pipe, is gone too"
    os.close(ready)


async def test_who_asks_late_hears_it_too(reaper: Reaper) -> None:
    reaped = asyncio.Event()
    reaper._others = lambda pid, status: reaped.set()
    pid = spawn("raise SystemExit(5)")
    await asyncio.wait_for(reaped.wait(), 10)
    assert await exit_code(reaper.exit_code(pid)) == 5


@pytest.mark.parametrize("is_ours", [True, False])
async def test_a_pid_that_comes_round_again_is_not_dead(
    reaper: Reaper, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    if not is_ours:
        monkeypatch.setattr(module, "_REMEMBERED_S", 0.0)
    pid = spawn("import signal; signal.pause()")
    reaper._ended[pid] = (7, 0.0)  # an earlier process of that pid
    future = reaper.exit_code(pid, is_ours=is_ours)
    assert not future.done()
    os.kill(pid, signal.SIGKILL)
    assert await exit_code(future) == -signal.SIGKILL
