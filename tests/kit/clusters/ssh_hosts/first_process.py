"""The first process of a host: it keeps an sshd running, reaps orphans, and ends the host.

Its arguments are the command of sshd. It starts sshd again when sshd has ended, as systemd does, and also after SIGHUP.
At the end of its input it kills all its descendants. It needs the standard library only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36  # from linux/prctl.h
_RESTART_S = 0.05


class Sshd:
    """The running sshd."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self.start()

    def start(self) -> None:
        no_input = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        self._pid = os.posix_spawn(self._command[0], self._command, os.environ, file_actions=[no_input])

    def kill(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def reap(self, *_: object) -> None:
        """Reap all children that have ended. Start sshd again if it is one of them."""
        while pid := _reap_one(os.WNOHANG):
            if pid == self._pid:
                time.sleep(_RESTART_S)  # an sshd that cannot start must not take all of a CPU
                self.start()


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # without namespaces, orphans would leave
    sshd = Sshd(sys.argv[1:])
    signal.signal(signal.SIGCHLD, sshd.reap)
    signal.signal(signal.SIGHUP, sshd.kill)
    print(flush=True)
    sys.stdin.buffer.read()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while children := _find_children():  # the children of a killed child become ours
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        _reap_one()


def _reap_one(options: int = 0) -> int:
    """Reap a child and return its pid. Return 0 if there is none."""
    try:
        return os.waitpid(-1, options)[0]
    except ChildProcessError:
        return 0


def _find_children() -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(
                    file.read().rpartition(b")")[2].split()[1]
                )  # proc(5): state and parent follow the name
        except OSError:
            continue
        if parent == os.getpid():
            found.append(int(name))
    return found


if __name__ == "__main__":
    main()
