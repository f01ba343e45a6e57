"""Ends a service in an orderly way, and starts the next one in its folder. Kernels live on, and clients join again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, ensure, is_alive, read_announcement
from roost.launchers.daemon.private_files import FolderError, private_folder
from roost.launchers.daemon.process import is_running
from roost.launchers.protocol import rpc
from roost.scheduler.errors import BackendUnavailable, ConfigError, from_remote
from roost.scheduler.messages import end_sentence

from .service_folder import service_command

_END_S = 10.0
"""How long a service may take to end before it is killed."""
_KILLED_S = 5.0
_START_S = 30.0
_LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The result of `restart_service`."""

    ended_pid: int | None
    """The process of the service that has ended; None if none ran."""
    was_killed: bool
    pid: int
    took_s: float
    """How long no service has answered."""


def read_options(folder: Path) -> dict[str, Any] | None:
    """Return the options with which the service of this folder was started; None if none runs."""
    announced = read_announcement(folder)
    return None if announced is None else dict(announced.get("options") or {})


def restart_service(folder: Path, backend: str, options: Mapping[str, Any]) -> Restart:
    """End the service of this folder, and start the next one with these options, and this process's environment.

    Blocks for a minute at most. Raises `ConfigError`, without ending anything, if the folder is not private, or if the
    settings are wrong. Raises `BackendUnavailable` if the next service cannot start.
    """
    from roost.scheduler.config.files import load_settings  # here, because only a restart needs it

    announced = read_announcement(folder)
    try:
        private_folder(folder)
        load_settings(backend, options)
    except (FolderError, ConfigError) as problem:
        end = "No service runs" if announced is None else "The service that runs was not ended"
        raise ConfigError(f"{end_sentence(str(problem))} Correct this first. {end}.") from None
    began = time.monotonic()
    was_killed = announced is not None and _end(folder, announced)
    argv, env = service_command(backend, folder, options)
    try:
        started = ensure(
            folder, argv, env=env, deadline_s=_START_S
        )  # a client may have started one meanwhile
    except DaemonError as problem:
        cause = from_remote(rpc.RemoteError(problem.kind or "BackendUnavailable", str(problem)))
        what = f"The service cannot start: {cause}"
        if announced is not None:
            what = f"No service runs now, and kernels live on. The next one cannot start: {cause}"
        raise type(cause)(what) if isinstance(cause, ConfigError) else BackendUnavailable(what) from None
    return Restart(
        ended_pid=announced["pid"] if announced is not None else None,
        was_killed=was_killed,
        pid=started["pid"],
        took_s=time.monotonic() - began,
    )


def _end(folder: Path, announced: Mapping[str, Any]) -> bool:
    """End the service that has announced itself; return True if it had to be killed."""
    pid, started_at = announced["pid"], float(announced.get("process_started_at", 0.0))

    def has_ended() -> bool:
        return not is_alive(folder) or (read_announcement(folder) or announced)["pid"] != pid

    for signum, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _KILLED_S)):
        if is_running(pid, started_at):
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        if _wait_until(has_ended, wait_s):
            return signum is signal.SIGKILL
    raise BackendUnavailable(
        f"The scheduler service (pid {pid}) does not end, even by SIGKILL: see its log.", pid=pid
    )


def _wait_until(is_true: Callable[[], bool], longest_s: float) -> bool:
    """Wait until the question has the answer yes. Neither a lock nor the process of another parent has an event."""
    deadline = time.monotonic() + longest_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True
