"""A process group ends with its owner, and a guard that is not needed any more lets it be."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from roost.launchers.daemon.group_guard import GroupGuard


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
