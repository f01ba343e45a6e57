"""The zygote's entry point. The agent runs this file as a script, by its path, with the kernel's own Python.

    python [interpreter flags] zygote/main.py FD ROOM

FD is one end of a `SOCK_SEQPACKET` socket pair. The agent holds the other end. Packets are JSON.
ROOM is any long string. Where Linux does not let a process choose the memory of the command line that `ps` shows
(`shown_process`), a forked kernel overwrites ROOM with it.

    agent → zygote   {"args": [arguments of most kernels], "env": the environment, "preload": [modules],
                      "scratch": folder or null, "folder" and "cpus": those it was started with,
                      "is_whole": true if it was started with all variables of "env",
                      and the other fields of agent_settings.Forking} + [file]                      once, first
    zygote → agent   "prepared", once the file contains
                     {"op": "ready", "files", "folders", "absent", "names", "late_names", "environment", …}
                     or {"op": "startup", "code": [names]} if start-up code may need all variables
                     or {"op": "refused" or "failed", "reason"}
    agent → zygote   {"most_spares": number}                                                        whenever it changes
    agent → zygote   {"argv", "env", "cwd", "umask", "groups", "listeners"}                         once per kernel
                     + [channel, log, as many sockets as "listeners" says, files of a control group …]
    kernel → agent   on the channel, also a SOCK_SEQPACKET socket: {"pid": …}, then {"ready": true} when it serves its
                     ports, or {"standby": true} when it has its folder and environment and will serve them (not ipc)
    agent → kernel   "go" on the channel, once the agent has recorded the process. If the channel is closed instead, the
                     kernel ends before it has done anything.
    spare → zygote   what its standby kernel depends on (`standby.describe`), once it is ready
    zygote → spare   a launch

The zygote never has a second thread, a ZeroMQ context or an event loop, because these do not survive a fork. It ends
when the agent closes the socket. A kernel is forked twice, so that the agent (a child subreaper) becomes its parent.

A forked kernel runs the unmodified `IPKernelApp`. It ends like a plain kernel (`ending.py`): exit handlers, threads and
exit codes work as usual.
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
    # Python puts a script's folder on sys.path. Kernels must not import `loop` or `memory` from there.
    if sys.path and os.path.realpath(sys.path[0]) == folder:
        del sys.path[0]
    # The files import each other as a package with a name of its own: "roost" may be absent, or be another version.
    package = sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
    package.__path__ = [folder]
    agent = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(agent.fileno(), False)
    startup = importlib.import_module(f"{_PACKAGE}.startup").look(agent.fileno())
    kernel = importlib.import_module(f"{_PACKAGE}.loop").serve(agent, startup)
    if kernel is None:
        os._exit(0)  # without exit handlers: those of preloaded modules belong to kernels
    kernel.run()


if __name__ == "__main__":
    main()
