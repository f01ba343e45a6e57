"""This process as an owner of kernels."""

from __future__ import annotations

import os
import socket
import sys

from roost.launchers.daemon.process import name_user, start_time
from roost.launchers.daemon.world import read_namespace
from roost.launchers.protocol.shared_values import Owner


def this_owner(user: str = "", application: str = "", can_adopt: bool = False, server: str = "") -> Owner:
    """Return this process as an owner.

    `can_adopt` says that the application adopts its kernels after a restart, so kernels outlive it. `server`
    is the server name of a Jupyter Server.
    """
    pid = os.getpid()
    return Owner(
        user=user or name_user(),
        application=application or os.path.basename(sys.argv[0] if sys.argv else "") or "python",
        host=socket.gethostname(),
        pid=pid,
        process_started_at=start_time(pid),
        pid_namespace=read_namespace("pid"),
        can_adopt=can_adopt,
        server=server,
    )
