"""The processes, ports and files of a tour, and the proof that none of them is left.

All processes of a tour inherit its private ROOST_RUNTIME_DIR. The variable identifies them, even if their parent has
ended. The processes of the tour's cluster inherit it too, but end later. They work in the cluster's folder (`beside`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

RUNTIME = "ROOST_RUNTIME_DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The processes and ports of a tour while its kernels run."""

    processes: tuple[psutil.Process, ...]
    ports: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the proof. It holds if `left` is empty."""

    what: str
    left: tuple[str, ...]


def processes(runtime_dir: Path, beside: Path | None = None) -> list[psutil.Process]:
    """Return all processes of this tour except the tour itself and processes that work in `beside`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(RUNTIME) != str(runtime_dir):
                continue
            if beside is None or not Path(process.cwd()).is_relative_to(beside):
                found.append(process)
        except (psutil.Error, OSError):  # ended, a zombie, or another user's
            continue
    return found


def find_footprint(runtime_dir: Path, beside: Path | None = None) -> Footprint:
    """Return all processes of this tour and the TCP ports on which they listen."""
    found = processes(runtime_dir, beside)
    ports: set[tuple[str, int]] = set()
    for process in found:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        ports |= {
            (connection.laddr.ip, connection.laddr.port)
            for connection in connections
            if connection.status == psutil.CONN_LISTEN
        }
    return Footprint(processes=tuple(found), ports=tuple(sorted(ports)))


def check_left(
    before: Footprint,
    runtime_dir: Path,
    folders: Sequence[Path],
    kernel_ids: Sequence[str],
    beside: Path | None = None,
) -> list[Check]:
    """Return the checks that no processes (also new ones), open ports, files of kernels and open sockets are left."""
    files = [path for folder in folders if folder.exists() for path in folder.rglob("*")]
    named = [str(path) for path in files if any(kernel_id in path.name for kernel_id in kernel_ids)]
    sockets = [str(path) for path in files if path.is_socket() and is_served(path)]
    return [
        Check(
            what=f"{len(before.processes)} processes ended",
            left=tuple(map(describe, processes(runtime_dir, beside))),
        ),
        Check(
            what=f"{len(before.ports)} ports closed",
            left=tuple(f"{host}:{port}" for host, port in before.ports if is_open(host, port)),
        ),
        Check(what="no files of kernels, no open sockets", left=(*named, *sockets)),
    ]


def end(
    runtime_dir: Path, chosen: Callable[[psutil.Process], bool] = lambda _: True, *, grace_s: float = 5.0
) -> float:
    """Send SIGTERM to the chosen processes of this tour, and SIGKILL after `grace_s`. Return the seconds this took."""
    began = time.monotonic()
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        there = [process for process in processes(runtime_dir) if chosen(process)]
        for process in there:
            try:
                stop(process)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(there, timeout=grace_s)
    return time.monotonic() - began


def is_open(host: str, port: int) -> bool:
    """True if a process accepts connections at this address. 0.0.0.0 and :: mean this machine."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def is_served(path: Path) -> bool:
    """True if a process accepts connections on this Unix socket. A socket file without a process does not count."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return f"{process.pid}"
