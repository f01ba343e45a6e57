"""Processes, identified by pid and start time, because the system reuses pids."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import getpass
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_IS_LINUX = sys.platform == "linux"
_START_TOLERANCE_S = 0.02
_WATCH_INTERVAL_S = 0.5
_BETWEEN_BOOTS_S = 1e9
"""How many seconds apart `start_time` puts the times of two boots. No machine runs 31 years without a reboot."""
_BOOTS = 1 << 14


_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def end_with_parent() -> None:
    """Have the system kill this process when its parent ends, which works on Linux only."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def name_user() -> str:
    """Return the name of this user; the number in a container that does not know the name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@functools.cache
def _find_boot() -> int:
    """Return a number that identifies the current boot, from 1 to `_BOOTS`. Return 0 if it is unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return int(file.read(4), 16) % _BOOTS + 1
    except (OSError, ValueError):
        return 0


def start_time(pid: int) -> float:
    """Return when the process started, in seconds, or 0.0 if it has ended (a zombie has ended).

    Use the value only to identify a process on this machine. On Linux the value counts from boot, so that
    changes of the clock do not matter. Each boot adds its own offset. A record from before a reboot therefore
    matches no new process.
    """
    if _IS_LINUX:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # proc(5): state (field 3) follows the name
        except OSError:
            return 0.0
        if fields[0] in (b"Z", b"X"):
            return 0.0
        return _find_boot() * _BETWEEN_BOOTS_S + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError):
        return 0.0


def current_start_time() -> float:
    """Return the `start_time` of a process that would start now."""
    return _find_boot() * _BETWEEN_BOOTS_S + time.clock_gettime(time.CLOCK_BOOTTIME)


def is_of_this_boot(started_at: float) -> bool:
    """True if a process with this `start_time` may have started since the machine's last boot."""
    return int(started_at // _BETWEEN_BOOTS_S) == _find_boot()


def is_running(pid: int, started_at: float) -> bool:
    """True if the process with this pid and start time runs. A zombie does not run."""
    found = start_time(pid) if pid > 0 and started_at > 0 else 0.0
    if started_at < _BETWEEN_BOOTS_S:
        found %= _BETWEEN_BOOTS_S  # a script without roost has noted it
    return found > 0 and is_same_start(found, started_at)


def is_later(one: float, other: float) -> bool:
    """True if the first of two values of `start_time` is the later one. A script without roost may have noted one."""
    if min(one, other) < _BETWEEN_BOOTS_S:
        one, other = one % _BETWEEN_BOOTS_S, other % _BETWEEN_BOOTS_S
    return one > other


def is_same_start(one: float, other: float) -> bool:
    """True if two values of `start_time` of one pid are those of one process."""
    return abs(one - other) < _START_TOLERANCE_S


def describe_process(pid: int) -> str:
    """Return `process 17 (backup) of the user with uid 1001`, as far as it can be seen."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            name = file.read(64).strip()
    except OSError:
        return f"process {pid}"
    shown = name if name.isprintable() else ascii(name)[1:-1]
    return f"process {pid} ({shown}) of the user with uid {uid}"


def signal_group(pid: int, signum: int) -> bool:
    """Send `signum` to the process group that `pid` leads, else to `pid` alone. Return False if there is no process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)
        return True
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError:
        log.warning("pid=%d belongs to another user: no signal %d", pid, signum)
    return True


class Watch:
    """A watch on a process that is no child of this one.

    After the end of that process, the watch calls `on_end` once, but never inside the constructor.
    """

    def __init__(self, pid: int, started_at: float, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = pid
        self._started_at = started_at
        self._on_end = on_end
        self._descriptor: int | None = None
        # The first look finds a process that has ended already. Another process may have its pid.
        self._timer: asyncio.Handle | None = self._loop.call_soon(self._look)
        # There are no pidfds here, the process has ended, or no process can have this pid.
        with contextlib.suppress(AttributeError, OSError, OverflowError):
            self._descriptor = os.pidfd_open(pid)
            self._loop.add_reader(self._descriptor, self._ended)

    def close(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if not is_running(self._pid, self._started_at):
            self._ended()
        elif self._descriptor is None:
            self._timer = self._loop.call_later(_WATCH_INTERVAL_S, self._look)

    def _ended(self) -> None:
        self.close()
        self._on_end()


def describe_exit(code: int | None, *, was_asked: bool = False) -> str:
    """Return a phrase for people about an exit code of `subprocess`.

    `was_asked`: roost itself sent the signal. The code is None if no agent that runs had started the process.
    """
    if code is None:
        return (
            "was stopped"
            if was_asked
            else "ended; its exit code is not known, because its first agent was gone"
        )
    if code >= 0:
        return f"exited with code {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    if was_asked:
        return f"was stopped by {name}"
    is_strange = code == -signal.SIGKILL
    return f"was ended by {name}" + (" (often the system's out-of-memory killer)" if is_strange else "")
