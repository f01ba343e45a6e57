"""The memory of all processes of some users, while their kernels are idle.

Each user is a process of its own with its own runtime folder, as on a machine that several people share. It starts its
kernels, runs a cell in each and keeps them. After a rest, the memory (PSS) of the processes that the users have started
is added up. For roost these are service, agent, zygotes, spares and kernels. For other sides these are the kernels.

all in, N users with M kernels      MiB per user
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

from roost.bench.kernel import BenchKernel
from roost.bench.report import Report, show_time
from roost.bench.sides import Side
from roost.bench.world import (
    MIB,
    NEUTRAL,
    OWN_PARTS,
    RUNTIME,
    end_processes,
    name_part,
    processes,
    pss_bytes,
)
from roost.placement.model.format import format_count

_START_S = 60.0
"""How long the start of each kernel of a user may take."""
_PLAIN_REST_S = 5.0
"""How long kernels without roost rest. Without roost, no process ends while they rest."""
_READY = b"ready\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A number of users, and the number of kernels that each of them has."""

    users: int
    kernels: int

    def __str__(self) -> str:
        return f"{format_count(self.users, 'user')} with {format_count(self.kernels, 'kernel')}"


async def measure(report: Report, sides: Sequence[Side], cases: Sequence[Case], rest_s: float) -> None:
    """Measure each side in each case. No two sides run at the same time, because their processes would share pages."""
    for case in cases:
        for side in sides:
            async with AsyncExitStack() as users:
                opened = [await _open_user(users, side, case.kernels) for _ in range(case.users)]
                for_s = rest_s if side.is_roost else min(rest_s, _PLAIN_REST_S)
                await show_time(f"{side.name}, {case}", [asyncio.sleep(for_s)], for_s)
                by_part = _add_up(opened)
            report.add(f"all in, {case}/{side.name}", sum(by_part.values()) / case.users, "MiB")
            for part, used in sorted(by_part.items()) if side.is_roost else ():
                report.add(f"{part}, {case}/{side.name}", used / case.users, "MiB")
        report.compare(f"all in, {case}", [side.name for side in sides])


async def _open_user(users: AsyncExitStack, side: Side, kernels: int) -> tuple[int, str]:
    """Start a user's process and wait for its kernels. Return its pid and its runtime folder."""
    folder = tempfile.TemporaryDirectory(prefix="u-", dir=Path(os.environ[RUNTIME]).parent)
    users.callback(folder.cleanup)
    users.push_async_callback(asyncio.to_thread, partial(end_processes, folder.name))
    command = (sys.executable, str(Path(__file__).resolve()), json.dumps([asdict(side), kernels]))
    user = await asyncio.create_subprocess_exec(
        *command,
        cwd=NEUTRAL,
        env={**os.environ, RUNTIME: folder.name},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    users.push_async_callback(_close_user, user)
    assert user.stdout is not None
    if await asyncio.wait_for(user.stdout.readline(), _START_S * (1 + kernels)) != _READY:
        raise RuntimeError(f"the kernels of {side.name} did not start; the output above says why")
    return user.pid, folder.name


async def _close_user(user: asyncio.subprocess.Process) -> None:
    """Let a user's process stop its kernels and end. Kill the process if that takes too long."""
    assert user.stdin is not None
    user.stdin.close()
    try:
        await asyncio.wait_for(user.wait(), _START_S)
    except asyncio.TimeoutError:
        user.kill()
        await user.wait()


def _add_up(users: Sequence[tuple[int, str]]) -> dict[str, float]:
    """Return the MiB of all users' processes by part of roost. `users` are pids and runtime folders."""
    used: dict[str, float] = {}
    for pid, folder in users:
        for process in processes(folder):
            try:
                part = name_part(process.cmdline())
                if process.pid != pid:
                    part = part if part in OWN_PARTS else "kernels"
                    used[part] = used.get(part, 0.0) + pss_bytes(process.pid) / MIB
            except (psutil.Error, ProcessLookupError):  # the process has just ended
                continue
    return used


async def _be_user(side: Side, count: int) -> None:
    """Start the kernels, keep them until standard input is closed, and stop them."""
    if side.is_roost:
        await side.warm_up()
    kernels = [BenchKernel(side) for _ in range(count)]
    try:
        for kernel in kernels:
            await kernel.start()
        sys.stdout.buffer.write(_READY)
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await asyncio.gather(*(kernel.stop() for kernel in kernels))


if __name__ == "__main__":
    asked, number = json.loads(sys.argv[1])
    asyncio.run(_be_user(Side(**asked), number))
