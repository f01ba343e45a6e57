"""Network devices between this machine and the network namespaces of processes. Only root can make them."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path


def ip(*words: str) -> str:
    """Return the output of `ip WORDS`. Raise RuntimeError with its complaint if it fails."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def has_route(network: str) -> bool:
    """True if this machine has a route into the network, apart from wider ones such as its default route."""
    return bool(ip("route", "show", "root", network))


def connect(device: str, peer: str, peer_pid: int, *, pid: int = 0, peer_mac: str = "") -> None:
    """Make a cable (a veth pair). It ends with the namespace at either end.

    `peer` is the device in the network namespace of the process `peer_pid`. `device` is the other end, in the
    namespace of `pid`, or else of this process.
    """
    here = ("netns", str(pid)) if pid else ()
    mac = ("address", peer_mac) if peer_mac else ()
    ip("link", "add", device, *here, "type", "veth", "peer", "name", peer, *mac, "netns", str(peer_pid))


def find_devices(alias: str) -> list[str]:
    """Return the network devices of this machine with an alias, which `ip link set DEVICE alias ALIAS` gives."""
    found = []
    for file in Path("/sys/class/net").glob("*/ifalias"):
        with suppress(OSError):  # it has gone
            if file.read_text().rstrip("\n") == alias:
                found.append(file.parent.name)
    return found


def disconnect(device: str, *, pid: int = 0) -> None:
    """Remove a cable by the device of its end here, or in the namespace of `pid`. May be repeated."""
    there = ("nsenter", "--net", "--target", str(pid)) if pid else ()
    subprocess.run([*there, "ip", "link", "del", device], capture_output=True)
