"""Private runtime folders for tests, and the proof that nothing outlives them.

The scheduler service, the agent, zygotes and kernels all inherit ROOST_RUNTIME_DIR, and a process shows the
environment it was exec'ed with (a fork its parent's): whoever has the folder there belongs to that test.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

VARIABLE = "ROOST_RUNTIME_DIR"
GRACE_S = 5.0


def processes(folder: str) -> list[psutil.Process]:
    """All live processes, but this one, whose environment names `folder` as their runtime folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == folder:
                found.append(process)
        except (psutil.Error, OSError):  # gone, a zombie, or not ours to read
            continue
    return found


def describe(process: psutil.Process) -> str:
    """One line for a message: pid and command line."""
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:160]}"
    except psutil.Error:
        return f"{process.pid} (gone)"


def end(folder: str) -> list[str]:
    """Kill what belongs to `folder` until nothing new appears; returns a line for each process killed."""
    killed = []
    for _ in range(10):
        left = processes(folder)
        if not left:
            break
        killed += [describe(process) for process in left]
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _await_end(left, GRACE_S)
    return killed


def _await_end(found: list[psutil.Process], timeout_s: float) -> None:
    """Wait for the end of processes: a zombie that its parent has not reaped yet has ended (psutil waits for more)."""
    deadline = time.monotonic() + timeout_s
    for process in found:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        os.close(descriptor)


@contextmanager
def private_runtime_dir() -> Iterator[str]:
    """A short 0700 folder under /tmp as this process's ROOST_RUNTIME_DIR (socket paths end at 107 bytes).

    At the end whoever still has it in its environment has GRACE_S to leave, is then killed by pid and named
    in an AssertionError.
    """
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = folder
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        _await_end(processes(folder), GRACE_S)
        left = end(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "processes left behind:\n" + "\n".join(left)
