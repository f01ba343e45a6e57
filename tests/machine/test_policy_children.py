"""Processes that a policy has started in its process group end with it, and with the service."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kit.fakes.client_policies import CLUSTER, HALF, Always, policies
from roost.launchers.daemon.group_guard import GroupGuard
from roost.launchers.daemon.process import is_running, start_time
from roost.placement import Decision, Request, Snapshot, get_policy
from roost.testing.deadlines import until

_SERVICE = f"""
import asyncio
from kit.fakes.client_policies import CLUSTER, HALF, policies
from roost.scheduler.policies import sandbox
from {__name__} import starts_children

sandbox.LOAD_S = 60.0

async def main():
    async with policies(mine=starts_children) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        print(decision.fallback, flush=True)
        await asyncio.sleep(1_000)

asyncio.run(main())
"""


def starts_children_in(folder: Path) -> Always:
    """Return a policy that starts two processes at its first answer, and writes all pids into the folder."""

    def place(request: Request, snapshot: Snapshot) -> Decision:
        if not (folder / "pids").exists():
            started = subprocess.Popen(["sleep", "1000"])
            forked = os.fork()
            if not forked:
                time.sleep(1_000)
            (folder / "pids").write_text(f"{os.getpid()} {started.pid} {forked}")
        return get_policy("pack").place(request, snapshot)

    return Always(place)


starts_children = starts_children_in(Path(os.environ.get("TEST_FOLDER", "/nonexistent")))


def read_processes(folder: Path) -> list[tuple[int, float]]:
    """Return the policy's process and its two children, as pids and start times."""
    found = [(int(pid), start_time(int(pid))) for pid in (folder / "pids").read_text().split()]
    assert [started_at > 0 for _, started_at in found] == [True] * 3
    return found


@contextmanager
def no_leftovers(processes: list[tuple[int, float]]) -> Iterator[None]:
    """End the processes that are left if the test fails."""
    try:
        yield
    finally:
        for pid, started_at in processes:
            if is_running(pid, started_at):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


async def until_ended(processes: list[tuple[int, float]]) -> None:
    with no_leftovers(processes):
        await until(lambda: not any(is_running(*each) for each in processes), "the end of all processes")


async def test_children_of_a_policy_end_with_a_killed_service(tmp_path: Path) -> None:
    """They are stopped when the service ends, so they cannot notice it."""
    path = os.pathsep.join(part for part in sys.path if part)
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SERVICE,
        env={**os.environ, "TEST_FOLDER": str(tmp_path), "PYTHONPATH": path},
        stdout=subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        assert await service.stdout.readline() == b"None\n"
        processes = read_processes(tmp_path)
    finally:
        service.kill()
        await service.wait()
    await until_ended(processes)


async def test_children_of_a_policy_end_with_its_process(tmp_path: Path) -> None:
    async with policies(mine=starts_children_in(tmp_path)) as found:
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
        processes = read_processes(tmp_path)
        os.kill(processes[0][0], signal.SIGKILL)
        await until_ended(processes)


async def test_a_guard_that_ends_first_lets_the_group_be() -> None:
    """After the end of a group, the system may give its number to another."""
    program = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        guard = await GroupGuard.start(program.pid)
        guard.end()
        await guard.ended
        guard.end()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(program.wait()), 0.2)
    finally:
        program.kill()
        await program.wait()


async def test_a_guard_that_ends_twice_leaves_its_exit_code_to_asyncio() -> None:
    no_group = 1 << 30
    for _ in range(30):
        guard = await GroupGuard.start(no_group)
        guard.end()
        until_s = time.monotonic() + 0.003
        while time.monotonic() < until_s:  # the shell ends, and asyncio's thread cannot run
            pass
        guard.end()
        assert await guard.ended == -signal.SIGKILL
