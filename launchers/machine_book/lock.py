"""The lock on the book: `flock` on its folder, which needs no file that a user could own, plant or remove."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from roost.launchers.daemon.process import describe_process
from roost.launchers.daemon.tasks import backoff

DEADLINE_S = 5.0
"""How long an agent waits for the lock."""
_AGAIN_S = (0.001, 0.02)
"""First and longest pause between two attempts. The lock is held for about a millisecond."""


@contextlib.contextmanager
def open_lock(folder: Path) -> Iterator[int]:
    """Yield a descriptor for `take`. The lock ends with the block. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def take(descriptor: int, deadline_s: float) -> bool:
    """Take the lock. Return False if another process has held it for `deadline_s`."""
    give_up_at = asyncio.get_running_loop().time() + deadline_s
    for pause_s in backoff(*_AGAIN_S):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if asyncio.get_running_loop().time() >= give_up_at:
            break
        await asyncio.sleep(pause_s)
    return False


def find_holders(folder: Path) -> list[str]:
    """Return who holds the lock on a folder: `process 17 (backup) of the user with uid 1001`."""
    return [
        describe_process(pid) if pid > 0 else "a process of another container" for pid in find_pids(folder)
    ]


def find_pids(path: Path) -> Iterator[int]:
    """Yield the pids of the processes that hold the lock on a folder or file, as far as they can be seen."""
    try:
        status = path.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return
    device = status.st_dev
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    for line in lines:
        # proc_locks(5): 1: FLOCK ADVISORY WRITE 17 00:19:4711 0 EOF; "->" marks one that waits
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == wanted:
            with contextlib.suppress(ValueError):
                yield int(fields[4])
