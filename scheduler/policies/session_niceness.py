"""Lets all other sessions come first while a policy computes for long. On Linux only.

Linux may share the processors among sessions first, and then among the processes of each (autogroup, as in sched(7)).
The niceness of a process counts within its session only. So a session has a niceness of its own, which counts for all
processes and threads of the policy.
"""

from __future__ import annotations

from pathlib import Path

from roost.launchers.daemon.tasks import Timers

_NICENESS = 10
"""A session with this niceness leaves nine tenths of a contended core to another one."""
_BETWEEN_S = 0.1
"""How long Linux refuses all other changes by users without privileges after each (kernel/sched/autogroup.c)."""


class SessionNiceness:
    """The niceness of a policy's session. It is 0 until the policy has computed for its free time."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/autogroup")
        self._is_nice = False
        self._timers = Timers()

    def begin(self, free_s: float) -> None:
        """Let the policy compute as any other session for `free_s`."""
        if self._is_nice:
            self._is_nice = not self._set(0)
        self._timers.later(free_s, self._stand_back, key="free")

    def end(self) -> None:
        """The policy has answered, or its process is about to end."""
        self._timers.close()

    def _stand_back(self) -> None:
        self._is_nice = self._set(_NICENESS)
        if not self._is_nice:
            self._timers.later(_BETWEEN_S, self._stand_back, key="free")

    def _set(self, niceness: int) -> bool:
        """Return False if this must be tried again."""
        try:
            self._file.write_text(str(niceness))
        except BlockingIOError:
            return False
        except OSError:
            pass  # the process has ended, or this system has no autogroups
        return True
