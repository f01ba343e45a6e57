"""Processes by pid and start time, never by the pid alone, since pids are used again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

log = logging.getLogger(__name__)

_IS_LINUX = sys.platform == "linux"
_START_TOLERANCE_S = 0.02
_WATCH_INTERVAL_S = 0.5


def start_time(pid: int) -> float:
    """When the process started, in seconds; 0.0 when there is none (or only a zombie is left).

    On Linux since boot, which a step of the clock does not change (psutil's `create_time` follows the clock).
    Names a process on one machine together with its pid, and means nothing else.
    """
    if _IS_LINUX:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # proc(5): after the name, state is field 3
        except OSError:
            return 0.0
        return 0.0 if fields[0] in (b"Z", b"X") else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return _start_time_elsewhere(pid)


def _start_time_elsewhere(pid: int) -> float:
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError):
        return 0.0


def is_running(pid: int, started_at: float) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    return pid > 0 and started_at > 0 and abs(start_time(pid) - started_at) < _START_TOLERANCE_S


def signal_group(pid: int, signum: int) -> bool:
    """Send `signum` to the process group that `pid` leads, or to it alone; False when it is gone.

    True as well where the system refuses (a process that changed its user): it is there, and does not end.
    """
    try:
        os.killpg(pid, signum)
        return True
    except (ProcessLookupError, PermissionError):
        pass
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError:
        log.warning("pid=%d belongs to another user: no signal %d", pid, signum)
    return True


class Watch:
    """Calls back once when a process that is not our child ends; `close` takes it back.

    Always from the event loop, never from within the constructor. Uses a pidfd where the system has them, else
    looks twice a second.
    """

    def __init__(self, pid: int, started_at: float, on_end: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pid = pid
        self._started_at = started_at
        self._on_end = on_end
        self._descriptor: int | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        try:
            self._descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # a system without, or a process that is gone
            self._timer = self._loop.call_soon(self._look)
            return
        self._loop.add_reader(self._descriptor, self._ended)
        if not is_running(pid, started_at):  # it had ended, and its pid was used again
            self._timer = self._loop.call_soon(self._ended)

    def close(self) -> None:
        """Stop watching. May be repeated."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if is_running(self._pid, self._started_at):
            self._timer = self._loop.call_later(_WATCH_INTERVAL_S, self._look)
        else:
            self._ended()

    def _ended(self) -> None:
        self.close()
        self._on_end()


def describe_exit(code: int | None, *, was_asked: bool = False) -> str:
    """Words for people about an exit code as `subprocess` gives it; `was_asked`: roost itself sent the signal."""
    if code is None:
        return "ended while no agent watched it"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        is_strange = code == -signal.SIGKILL and not was_asked
        hint = " (often the system's out-of-memory killer)" if is_strange else ""
        return f"was ended by {name}{hint}"
    return f"exited with code {code}"
