"""Claims on ports and GPUs: names in Linux's abstract namespace of sockets, which holds for one network.

Only one process can bind a name, the system gives the name back when that process ends, and nobody else can take it
away. A lock file could be removed by its owner. Any user may bind any name, so a claim tells who has it.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: ucred in unix(7)


class Peer(NamedTuple):
    """A process at the other end of a Unix socket. Its pid is 0 if it cannot be seen from here."""

    pid: int
    uid: int

    @property
    def is_ours(self) -> bool:
        """True if it is a process of this user."""
        return self.uid == os.getuid()

    def __str__(self) -> str:
        return f"process {self.pid} of the user with uid {self.uid}" if self.pid else f"uid {self.uid}"


def claim(name: str) -> socket.socket:
    """Claim a name until the socket is closed. Raises `OSError` (EADDRINUSE if somebody has it)."""
    claimed = socket.socket(socket.AF_UNIX)
    try:
        claimed.bind(f"\0{name}")
        claimed.listen()
    except OSError:
        claimed.close()
        raise
    return claimed


def find_owner(name: str) -> Peer | None:
    """Return who claims a name; None if nobody does, or if the owner cannot be asked."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"\0{name}")
        except OSError:
            return None
        return read_peer(probe)


def read_peer(connection: socket.socket) -> Peer:
    """Return the process that listens at the other end of a Unix socket."""
    pid, uid, _ = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return Peer(pid, uid)
