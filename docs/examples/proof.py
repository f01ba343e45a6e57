"""What roost and Jupyter hold right now, and the proof that none of it is left.

Every process of a tour inherits its private ROOST_RUNTIME_DIR, and shows it in its environment: whoever has it
belongs to this tour, also one that lost its parent. So do a cluster's, which end after the others: they are told by the
folder that they work in, and left out (`beside`).
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
class Held:
    """Seen while the kernels ran."""

    processes: tuple[psutil.Process, ...]
    ports: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the proof; `left` is empty where it holds."""

    what: str
    left: tuple[str, ...]


def processes(runtime_dir: Path, beside: Path | None = None) -> list[psutil.Process]:
    """All processes of this tour, but the tour itself and those that work in `beside`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(RUNTIME) != str(runtime_dir):
                continue
            if beside is None or not Path(process.cwd()).is_relative_to(beside):
                found.append(process)
        except (psutil.Error, OSError):  # gone, a zombie, or somebody else's
            continue
    return found


def find_held(runtime_dir: Path, beside: Path | None = None) -> Held:
    """All processes of this tour and the TCP ports they listen on."""
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
    return Held(processes=tuple(found), ports=tuple(sorted(ports)))


def check_left(
    before: Held,
    runtime_dir: Path,
    folders: Sequence[Path],
    kernel_ids: Sequence[str],
    beside: Path | None = None,
) -> list[Check]:
    """What of `before` is still there: processes (new ones too), open ports, files and folders named after a kernel."""
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
        Check(what="no kernel's files, nobody behind a socket", left=(*named, *sockets)),
    ]


def end(
    runtime_dir: Path, chosen: Callable[[psutil.Process], bool] = lambda _: True, *, grace_s: float = 5.0
) -> float:
    """SIGTERM to the chosen processes of this tour, SIGKILL after `grace_s`; returns the seconds it took."""
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
    """Does anybody accept connections at that address of this machine? (At 0.0.0.0 and :: it is this machine's.)"""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def is_served(path: Path) -> bool:
    """Does anybody accept connections on that Unix socket? A name that was left is nobody's."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        return probe.connect_ex(str(path)) == 0


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return f"{process.pid}"
