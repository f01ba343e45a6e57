"""Private runtime folders for tests, and the check that no process outlives its folder.

The service, the agent, zygotes and kernels inherit ROOST_RUNTIME_DIR. A process shows the environment of its exec, and
a fork shows its parent's. A process that shows a test's folder therefore belongs to that test.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from .deadlines import allow_s

VARIABLE = "ROOST_RUNTIME_DIR"
_MACHINE = "ROOST_MACHINE_DIR"
GRACE_S = 60.0
"""How long processes may take to end after their test."""


def processes(folder: str) -> list[psutil.Process]:
    """Return all live processes, except this one, with `folder` as their runtime folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(VARIABLE) == folder:
                found.append(process)
        except (psutil.Error, OSError):  # gone, a zombie, or not ours to read
            continue
    return found


def of_roost(folder: str) -> list[psutil.Process]:
    """Return the services and agents with `folder` as their runtime folder, and their descendants."""
    found: list[psutil.Process] = []
    for process in processes(folder):
        with suppress(psutil.Error):
            if " -m roost." in " ".join(process.cmdline()):
                found += [process, *process.children(recursive=True)]
    return found


def terminate(found: list[psutil.Process]) -> None:
    """Send SIGTERM to the processes that still run."""
    for process in found:
        with suppress(psutil.Error):
            process.terminate()


def describe(process: psutil.Process) -> str:
    """Return one line for a message: pid, age and command line."""
    try:
        age_s = time.time() - process.create_time()
        return f"{process.pid} ({age_s:.1f} s old) {' '.join(process.cmdline())[:160]}"
    except psutil.Error:
        return f"{process.pid} (gone)"


def end(folder: str) -> list[str]:
    """Kill the processes of `folder` until no new one appears. Return a line for each killed process."""
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
        await_end(left, GRACE_S)
    return killed


def await_end(found: list[psutil.Process], timeout_s: float) -> None:
    """Wait until the processes have ended. A zombie has ended; psutil would wait until its parent reaps it."""
    deadline = time.monotonic() + allow_s(timeout_s)
    for process in found:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        os.close(descriptor)


@contextmanager
def private_runtime_dir() -> Iterator[str]:
    """Make a private folder under /tmp, and set ROOST_RUNTIME_DIR of this process to it. Yield the folder.

    The machine's book is in it too, so that its agents have the machine for themselves. The folder's name is short,
    because socket paths end at 107 bytes. At the end, processes with this folder have GRACE_S to end. Processes that
    are still there are killed by pid and named in an AssertionError.
    """
    folder = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    machine = Path(folder, "machine")
    machine.mkdir()
    before = {name: os.environ.get(name) for name in (VARIABLE, _MACHINE)}
    os.environ.update({VARIABLE: folder, _MACHINE: str(machine)})
    try:
        yield folder
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        await_end(processes(folder), GRACE_S)
        left = end(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "processes left behind:\n" + "\n".join(left)
