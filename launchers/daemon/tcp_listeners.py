"""The TCP ports on which somebody listens, as Linux shows them to everybody."""

from __future__ import annotations

import contextlib
import itertools
import socket
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # Java listens on IPv6 sockets
_LISTENS = "0A"
_LOOPBACK_4 = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}"
_MAPPED = f"{int.from_bytes(bytes((0, 0, 255, 255)), sys.byteorder):08X}"
_LOOPBACK = (_LOOPBACK_4, "0" * 16 + _MAPPED + _LOOPBACK_4)
"""127.0.0.1 as the tables write it: four bytes in the machine's order, and as an IPv6 address."""


class Listener(NamedTuple):
    """A socket that listens: its address as the table writes it, its port, the user that has opened it, its inode."""

    address: str
    port: int
    uid: int
    inode: str


def are_known() -> bool:
    """True if this system shows who listens: Linux does."""
    return _TABLES[0].exists()


def list_listeners() -> Iterator[Listener]:
    """Yield all sockets that listen, IPv4's first. Reading them takes some milliseconds."""
    for file in _TABLES:
        with contextlib.suppress(OSError), file.open() as table:
            for line in itertools.islice(table, 1, None):
                # proc_net_tcp: number, local address:port, remote one, state, queues, timer, retransmits, uid,
                # timeout, inode
                _, local, _, state, _, _, _, uid, _, inode, *_ = line.split()
                if state == _LISTENS:
                    address, _, port = local.rpartition(":")
                    yield Listener(address, int(port, 16), int(uid), inode)


def list_on_loopback(ports: Collection[int]) -> dict[int, list[Listener]]:
    """Return who listens, by port, for connections to 127.0.0.1.

    A socket with that address takes them before a socket with all addresses does. A socket with another address, such
    as 127.0.0.2, never gets one.
    """
    bound: dict[int, list[Listener]] = {port: [] for port in ports}
    general: dict[int, list[Listener]] = {port: [] for port in ports}
    for each in list_listeners():
        if each.port in bound:
            if each.address in _LOOPBACK:
                bound[each.port].append(each)
            elif not each.address.strip("0"):
                general[each.port].append(each)
    return {port: bound[port] or general[port] for port in ports}
