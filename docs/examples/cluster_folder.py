"""A cluster's folder, by which all its processes are found and ended: also those that lost their parent.

Each works in the folder, or below, or names it in its environment. So whoever has neither is nobody's but its own.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

END_TIMEOUT_S = 15.0
FOLDER = "CLUSTER_FOLDER"
"""The environment variable that names the folder in all that descends from the cluster, agents and kernels too."""


def make(prefix: str) -> tuple[Path, subprocess.Popen[bytes]]:
    """A new folder, and the process that ends what belongs to it when this process dies, or closes its input."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))  # short: a socket's path ends at 107 bytes
    watcher = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        cwd="/",
        env={},
        start_new_session=True,
    )
    return folder, watcher


def processes(folder: Path) -> list[psutil.Process]:
    """All that work in `folder` or below, or are marked with it. (Ray's titles overwrite some environments.)"""
    found = []
    for process in psutil.process_iter():
        try:
            cwd = Path(process.cwd())
            if cwd == folder or folder in cwd.parents or process.environ().get(FOLDER) == str(folder):
                found.append(process)
        except (psutil.Error, OSError):  # gone, a zombie, or not ours to read
            continue
    return found


def end(folder: Path) -> None:
    """Kill what belongs to `folder` until nothing new appears, then remove it. RuntimeError if that takes too long."""

    def is_empty() -> bool:
        left = processes(folder)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return not left

    wait_until(is_empty, f"processes that cannot be killed work in {folder}")
    shutil.rmtree(folder, ignore_errors=True)


def answers(address: str) -> bool:
    """Does anybody accept connections at host:port?"""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    condition: Callable[[], bool], complaint: str, *, timeout_s: float = END_TIMEOUT_S, poll_s: float = 0.05
) -> None:
    """Ask again and again, since neither a strange process's end nor a port's opening is an event for us."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(poll_s)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends with the process that holds the other end
    end(Path(sys.argv[1]))
