"""A cluster of real daemons on this machine, and its folder, by which all its processes are found and ended.

Each works in the folder, or below, or names it in its environment: also one that lost its parent. So whoever has
neither is nobody's but its own.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import psutil

END_TIMEOUT_S = 15.0
FOLDER = "CLUSTER_FOLDER"
"""The environment variable that names the folder in all that descends from the cluster, agents and kernels too."""

AnyCluster = TypeVar("AnyCluster", bound="Cluster")


class Cluster(ABC):
    """Started on entry and gone on exit, with all that was started on its machines.

    Its machines are at addresses of `network`, by default one drawn by chance, so that clusters side by side do not
    look alike. `environment` reaches every process.
    """

    def __init__(self, prefix: str, network: str | None, environment: Mapping[str, str] | None) -> None:
        self.folder = Path(os.devnull)  # until it starts
        self.address = ""
        self.environment = dict(environment or {})
        self._prefix = prefix
        self._network = network or f"127.0.{random.randint(1, 254)}"
        self._programs: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _start(self) -> None:
        """Have it run, in `folder`, which is empty. What is there of it when this raises is ended."""

    def __enter__(self: AnyCluster) -> AnyCluster:
        self.folder, self._watcher = make_folder(self._prefix)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all of it, agents and kernels that were started on its machines too, and remove its folder.

        RuntimeError if a process is there END_TIMEOUT_S later. May be repeated.
        """
        if self._watcher is None:
            return
        watcher, self._watcher = self._watcher, None
        try:
            end(self.folder)
        finally:
            watcher.communicate(timeout=2 * END_TIMEOUT_S)
            for program in self._programs:
                program.wait(END_TIMEOUT_S)

    def processes(self) -> list[psutil.Process]:
        """All live processes of the cluster: its daemons, and what was started on its machines."""
        return processes(self.folder)

    def _run(
        self, command: list[str], *, environment: Mapping[str, str], cwd: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        """One of its programs, with no more than this environment; what it prints is added to the log."""
        with open(log, "ab") as file:
            program = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for who started it
            )
        self._programs.append(program)
        return program


def why_no_cluster(module: str, name: str) -> str | None:
    """Why no cluster of what is called `name`, and comes with `module`, can be started here, or None."""
    if importlib.util.find_spec(module) is None:
        return f"{name} is not installed: pip install 'roost[{name.lower()}]'"
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.1.2", 0))
    except OSError:
        return "this machine has no loopback address but 127.0.0.1 (Linux has them all)"
    return None


def inherit_environment(*but: str) -> dict[str, str]:
    """This process's environment without the variables whose names begin like these."""
    return {name: value for name, value in os.environ.items() if not name.startswith(but)}


def tail(log: Path) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def make_folder(prefix: str) -> tuple[Path, subprocess.Popen[bytes]]:
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
