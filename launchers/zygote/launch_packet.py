"""The one place where the zygote and its spares receive descriptors."""

from __future__ import annotations

import array
import socket

PACKET_BYTES = 1 << 20
_MOST_FDS = 16
_FD_BYTES = array.array("i").itemsize


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet with its descriptors, which no child inherits. The packet is empty at the end.

    A process that a cell starts would otherwise keep the kernel's ports open after the kernel's end.
    `socket.recv_fds` ignores its flags (python/cpython#107898), so this calls `recvmsg` itself.
    """
    packet, ancillary, _, _ = connection.recvmsg(
        PACKET_BYTES, socket.CMSG_LEN(_MOST_FDS * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return packet, list(fds)
