"""A kernel that only opens its ports. It starts quickly, so tests can start many."""

from __future__ import annotations

import os
import sys
import uuid

from roost.launchers.protocol.messages import Connection
from roost.placement.model import Request
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.messages import StartKernel
from roost.testing.deadlines import allow_s

TINY_KERNEL = """
import json, signal, socket, sys
connection = json.load(open(sys.argv[1]))
print("up", flush=True)  # before it listens: then its start is over
servers = [socket.create_server((connection["ip"], connection[name])) for name in ("shell_port", "iopub_port")]
signal.pause()
"""
TINY_ARGV = (sys.executable, "-S", "-c", TINY_KERNEL, "{connection_file}")
"""The command of a kernel that only opens its shell and IOPub ports. It starts quickly and is easy to count."""


def tiny(
    kernel_id: str = "",
    *,
    argv: tuple[str, ...] = TINY_ARGV,
    launch_timeout_s: float = 60,
    can_adopt: bool = False,
    **amounts: float,
) -> StartKernel:
    """Return a start of a tiny kernel, owned by this process."""
    return StartKernel(
        kernel_id=kernel_id or uuid.uuid4().hex,
        launch_id=uuid.uuid4().hex,
        request=Request(**amounts),  # type: ignore[arg-type]
        owner=this_owner("ada", "test", can_adopt),
        argv=argv,
        env={"PATH": os.environ["PATH"], "ROOST_RUNTIME_DIR": os.environ["ROOST_RUNTIME_DIR"]},
        cwd="/",
        connection=Connection(key="k"),
        launch_timeout_s=allow_s(launch_timeout_s),
    )
