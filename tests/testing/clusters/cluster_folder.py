"""A cluster of real daemons on this machine. Its folder identifies its processes, so that all can be ended.

Each process works in the folder or below it, or names the folder in its environment. This also holds for a process
whose parent has ended. A process that does neither does not belong to the cluster.
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
CLAIM_PORT = 47_470
"""The port that a cluster holds at the first address of its network, so that no other cluster takes the network."""
FOLDER = "ROOST_CLUSTER_FOLDER"
"""The environment variable that names the folder in all descendants of the cluster, agents and kernels included."""

AnyCluster = TypeVar("AnyCluster", bound="DaemonCluster")


class DaemonCluster(ABC):
    """A cluster that starts on entry and ends on exit, with all processes that were started on its machines.

    Its machines have addresses in `network`. By default the network is random, so that two clusters have different
    addresses. `environment` reaches every process.
    """

    def __init__(self, prefix: str, network: str | None, environment: Mapping[str, str] | None) -> None:
        self.folder = Path(os.devnull)  # until it starts
        self.address = ""
        self.environment = dict(environment or {})
        self._prefix = prefix
        self._network = network or ""
        self._claim: socket.socket | None = None
        self._programs: list[subprocess.Popen[bytes]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _start(self) -> None:
        """Start the cluster in the empty `folder`. If this raises, the caller ends the started processes."""

    def _is_free(self, network: str) -> bool:
        """True if the cluster's fixed ports are free on this network, or if the cluster has none."""
        return True

    def __enter__(self: AnyCluster) -> AnyCluster:
        if not self._network:
            self._network, self._claim = claim_network(self._is_free)
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
        """Kill all processes of the cluster, agents and kernels included, and remove its folder. May be repeated.

        Raise RuntimeError if a process is still there after END_TIMEOUT_S.
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
            if self._claim is not None:
                self._claim.close()

    def processes(self) -> list[psutil.Process]:
        """Return all live processes of the cluster: its daemons, and all that was started on its machines."""
        return processes(self.folder)

    def _run(
        self, command: list[str], *, environment: Mapping[str, str], cwd: Path, log: Path
    ) -> subprocess.Popen[bytes]:
        """Start a program of the cluster with exactly this environment. Append the program's output to the log."""
        with open(log, "ab") as file:
            program = subprocess.Popen(
                command,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C must not reach the cluster
            )
        self._programs.append(program)
        return program


def why_no_cluster(module: str, name: str) -> str | None:
    """Return why no cluster of the manager `name` can start here, or None. `module` is its Python module."""
    if importlib.util.find_spec(module) is None:
        return f"{name} is not installed: pip install '.[{name.lower()}]'"
    return why_no_address()


def why_no_address() -> str | None:
    """Return why a cluster's machines cannot have addresses of their own here, or None."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.1.2", 0))
    except OSError:
        return "this machine has no loopback address but 127.0.0.1 (Linux has them all)"
    return None


def claim_network(is_free: Callable[[str], bool] = bool) -> tuple[str, socket.socket]:
    """Draw a free loopback network that no other cluster has claimed. The claim lasts until the socket closes."""
    for _ in range(1000):
        network, claim = f"127.0.{random.randint(1, 254)}", socket.socket()
        try:
            claim.bind((f"{network}.1", CLAIM_PORT))
        except OSError:
            claim.close()
            continue
        if is_free(network):
            return network, claim
        claim.close()
    raise RuntimeError("every network from 127.0.1 to 127.0.254 has a cluster")


def inherit_environment(*but: str) -> dict[str, str]:
    """Return this process's environment without the variables whose names begin with one of `but`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(but)}


def tail(log: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


def make_folder(prefix: str) -> tuple[Path, subprocess.Popen[bytes]]:
    """Make a folder, and start a process that ends the cluster when this process dies or closes its input."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))  # short: a socket's path has at most 107 bytes
    watcher = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdin=subprocess.PIPE,
        cwd="/",
        env={},
        start_new_session=True,
    )
    return folder, watcher


def processes(folder: Path) -> list[psutil.Process]:
    """Return all processes that work in `folder` or below, or name it in their environment.

    Ray overwrites the environment of some processes with their titles.
    """
    found = []
    for process in psutil.process_iter():
        try:
            cwd = Path(process.cwd())
            if cwd == folder or folder in cwd.parents or process.environ().get(FOLDER) == str(folder):
                found.append(process)
        except (psutil.Error, OSError):  # ended, a zombie, or another user's
            continue
    return found


def end(folder: Path) -> None:
    """Kill the processes of `folder` until none is left, and remove it. Raise RuntimeError if this takes too long."""

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
    """True if a process accepts connections at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    condition: Callable[[], object], complaint: str, *, timeout_s: float = END_TIMEOUT_S, poll_s: float = 0.05
) -> None:
    """Poll the condition until it is true. Raise `RuntimeError` with the complaint after `timeout_s`.

    No event reports the end of a process that is not our child, or the opening of a port.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(complaint)
        time.sleep(poll_s)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when the process at the other end closes it or dies
    end(Path(sys.argv[1]))
