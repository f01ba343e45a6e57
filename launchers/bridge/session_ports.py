"""Finds out whether a TCP port belongs to this launch: a process of the bridge's session listens on it.

Anybody on the node can send an answer, because the public key stands in a command line. A foreign process cannot
listen within the launch's session.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

from roost.launchers.daemon.tcp_listeners import list_on_loopback


def are_of_session(ports: Collection[int], session: int) -> bool:
    """True if processes of this session, and no others, take the connections to each of the ports on 127.0.0.1.

    It reads the tables of the system, which takes some milliseconds.
    """
    listeners = list_on_loopback(ports)
    wanted = {f"socket:[{each.inode}]" for found in listeners.values() for each in found}
    return all(listeners.values()) and wanted <= set(_find_sockets(session))


def _find_sockets(session: int) -> Iterator[str]:
    """Yield the names of all open files of the session's processes, as `socket:[17]`."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if entry.isdecimal() and os.getsid(int(entry)) == session:
                folder = f"/proc/{entry}/fd"
                for descriptor in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield os.readlink(f"{folder}/{descriptor}")
