"""Who this process is to the scheduler."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import sys

from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.shared_values import Owner


def this_owner(user: str = "", application: str = "", can_adopt: bool = False) -> Owner:
    """The owner that this process is, by pid and start time; `user` empty means the user of the system.

    `can_adopt` says that the application takes its kernels back after its own restart: they outlive it then.
    """
    pid = os.getpid()
    return Owner(
        user=user or system_user(),
        application=application or os.path.basename(sys.argv[0] if sys.argv else "") or "python",
        host=socket.gethostname(),
        pid=pid,
        process_started_at=_started_at(pid),
        can_adopt=can_adopt,
    )


def system_user() -> str:
    """The user's name, or the number where there is no name (some containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.lru_cache(maxsize=2)
def _started_at(pid: int) -> float:  # by pid, so that a fork asks anew
    return start_time(pid)
