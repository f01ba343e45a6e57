"""Finds out whether a TCP port belongs to this launch: a process of the bridge's session listens on it.

Anybody on the node can send an answer, because the public key stands in a command line. A foreign process cannot
listen within the launch's session.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

_TCP_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # Java listens on IPv6 sockets
_LISTENS = "0A"


def are_of_session(ports: Collection[int], session: int) -> bool:
    """True if processes of this session, and no others, listen on each of the ports.

    It reads the tables of the system, which takes some milliseconds.
    """
    listeners = _find_listeners(ports)
    wanted = {f"socket:[{inode}]" for inodes in listeners.values() for inode in inodes}
    return len(listeners) == len(ports) and wanted <= set(_find_sockets(session))


def _find_listeners(ports: Collection[int]) -> dict[int, set[str]]:
    """Return the inodes of the sockets that listen on the ports, by port."""
    found: dict[int, set[str]] = defaultdict(set)
    for file in _TCP_TABLES:
        with contextlib.suppress(FileNotFoundError), file.open() as table:  # no IPv6
            for line in itertools.islice(table, 1, None):
                # proc_net_tcp: number, local address:port, remote one, state, queues, timer, retransmits, uid,
                # timeout, inode
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                port = int(local.rpartition(":")[2], 16)
                if state == _LISTENS and port in ports:
                    found[port].add(inode)
    return found


def _find_sockets(session: int) -> Iterator[str]:
    """Yield the names of all open files of the session's processes, as `socket:[17]`."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if entry.isdecimal() and os.getsid(int(entry)) == session:
                folder = f"/proc/{entry}/fd"
                for descriptor in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield os.readlink(f"{folder}/{descriptor}")
