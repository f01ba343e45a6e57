"""A warm process that forks ipykernels: run as a script, by path, with the kernel's own Python.

    python [interpreter flags] zygote/main.py FD ROOM

ROOM is any long string: its place is used to show a kernel's command line in ps.
FD is one end of a ``SOCK_SEQPACKET`` socket pair; the agent holds the other.  Packets are JSON.

    agent → zygote   {"preload": [module names], "args": [those most kernels will get]} + [file]    once, first
    zygote → agent   "prepared", when in that file is
                     {"op": "ready", "files", "folders", "names", "environment", …}  or "refused", "failed": {"reason"}
    agent → zygote   {"argv", "env", "cwd"} + [report_fd, log_fd]                              one per kernel
    kernel → agent   on report_fd, one line each: {"pid": …}, then {"ports": {"shell_port": …, …}}; EOF when it ended

The zygote has one thread and no ZeroMQ context, no event loop, ever: these do not survive a fork.  It ends at EOF
of its socket; its kernels live on.  A kernel is forked twice, so that it becomes a child of the agent (a child
subreaper), which reaps it with its exact exit status whatever happens to the zygote.

Nothing outside the standard library is imported at the top, and nothing of roost but the files beside
this one, under a name of their own: the kernel's environment need not have roost.  A forked kernel runs the
unmodified ``IPKernelApp`` and ends as a plain one does, by leaving this script at its end: exit handlers, threads and
exit codes are Python's own.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import types

_PACKAGE = "_roost_zygote"


def main() -> None:
    folder = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]
    package = sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
    package.__path__ = [folder]
    agent = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(agent.fileno(), False)
    kernel = importlib.import_module(f"{_PACKAGE}.loop").serve(agent)
    if kernel is None:
        os._exit(0)
    kernel.run()


if __name__ == "__main__":
    main()
