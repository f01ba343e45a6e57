"""The shell script of an engine's first process: its mounts, its network, and dockerd or Podman's service.

| address | place |
|---|---|
| 10.248.<number>.1 | the engine, which is the router of its containers |
| 10.248.<number>.2 | this machine |
| 10.248.<number>.64/26 | containers on the network `bridge` |
| 10.248.<number>.128/26 | containers on the network `kernels`, which cannot reach each other |
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from . import podman
from .podman import SOCKET

DEVICE = "machine"
"""The engine's end of its cable to this machine."""
PID_FILE, LOG = "dockerd.pid", "engine.log"
_CONTAINERD = "exec/containerd/containerd.pid"
Program = Literal["dockerd", "podman", "rootless"]
"""Docker's engine, Podman's service as root, and Podman's service as a user without rights."""


def network(number: int) -> str:
    """Return the network of an engine and all its containers."""
    return f"10.248.{number}.0/24"


def separate_network(number: int) -> str:
    """Return the addresses of the network `kernels`."""
    return f"10.248.{number}.128/26"


def write_script(folder: Path, number: int, program: Program = "dockerd") -> str:
    """Return the script of an engine with its files in `folder`.

    It prints a line once its namespaces are there, and reads one when they have a cable. Then it reads commands, and
    prints a line after each: `start` starts the engine, and `kill` kills it, with the child in which Podman works
    without root. At the end of its input all processes end.
    """
    return f"""
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir -p /etc/docker {folder}/data
        mount -t tmpfs -o mode=711 tmpfs {folder}/data
        mount -t tmpfs -o mode=755 tmpfs /etc/docker
        {podman.write_settings(folder, number) if program != "dockerd" else ""}
        {podman.become_possible(folder) if program == "rootless" else ""}
        echo; read -r plugged
        ip link set lo up
        ip addr add 10.248.{number}.1/30 dev {DEVICE}
        ip link set {DEVICE} up
        iptables -I FORWARD -i {DEVICE} -j ACCEPT
        echo
        while read -r command; do
            if [ "$command" = start ]; then
                {shlex.join(_PROGRAMS[program](folder, number))} > {folder}/{LOG} 2>&1 < /dev/null &
            else
                containerd=$(cat {folder}/{_CONTAINERD} 2>/dev/null || echo none)
                {"pkill -KILL -P $! || true" if program == "rootless" else ":"}
                kill -KILL $!
                wait $! || true
                while [ -e /proc/$containerd/exe ]; do sleep 0.01; done
                rm -f {folder}/{SOCKET} {folder}/{PID_FILE} {folder}/{_CONTAINERD}
            fi
            echo
        done
    """


def _dockerd(folder: Path, number: int) -> list[str]:
    return [
        "dockerd", f"--host=unix://{folder}/{SOCKET}", f"--pidfile={folder}/{PID_FILE}", "--group=root",
        f"--data-root={folder}/data", f"--exec-root={folder}/exec", "--storage-driver=overlay2",
        f"--bip=10.248.{number}.65/26", f"--cgroup-parent=/{folder.name}", "--label=shelf=3", "--log-level=warn",
    ]  # fmt: skip


_PROGRAMS: Mapping[Program, Callable[[Path, int], list[str]]] = {
    "dockerd": _dockerd,
    "podman": podman.command,
    "rootless": podman.rootless_command,
}
