"""Ends a service in an orderly way, and starts the next one in its folder. Kernels live on, and clients join again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, ensure, is_alive, read_announcement
from roost.launchers.daemon.private_files import FolderError, private_folder
from roost.launchers.daemon.process import is_running
from roost.launchers.protocol import rpc
from roost.placement.model.format import format_count
from roost.scheduler.errors import BackendUnavailable, ConfigError, ServedElsewhere, from_remote
from roost.scheduler.messages import end_sentence

from .cluster_record import read_referral
from .service_folder import PYTHON_VARIABLE, service_command
from .settings_path import compare_paths

CHECK_FLAG = "--check"
"""With this argument, the service's command only reads its settings and loads their policies.

It prints the name of each file that it reads, after `READS`, and the first problem as its last line. After `MOVES`, it
prints the address of a cluster that the settings name, and that the service has not served.
"""
READS = "roost reads "
MOVES = "roost moves to "
_CHECK_S = 45.0
_NOT_ENDED = "The service that runs was not ended."
_KEPT = f"Correct this first. {_NOT_ENDED}"
_NONE_RUNS = "Correct this first. No service runs."
_END_S = 10.0
"""How long a service may take to end before it is killed."""
_KILLED_S = 5.0
_START_S = 75.0
"""Longer than `_CHECK_S`, because the next service reads the same settings, and then joins its cluster."""
_LOOK_AGAIN_S = 0.02
_FOLDER_VARIABLE = "JUPYTER_CONFIG_DIR"
"""Without this variable, the folder is in HOME."""
_OF_SETTINGS = (
    _FOLDER_VARIABLE,
    "JUPYTER_CONFIG_PATH",
    "JUPYTER_PREFER_ENV_PATH",
    "HOME",
    PYTHON_VARIABLE,
)
"""Variables that decide where the service looks for its settings, and in which Python."""
_MODULE = "roost.scheduler.service.server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """The result of `restart_service`."""

    ended_pid: int | None
    """The process of the service that has ended; None if none ran."""
    was_killed: bool
    pid: int
    address_before: str
    """The address of the cluster of the service that has ended; empty if it has none, or if none ran."""
    took_s: float
    """How long no service has answered."""
    kept: tuple[str, ...]
    """The names of variables of the settings that the service has kept, and that differ from this process's."""
    path_before: tuple[str, ...] = ()
    """Folders in which only the service that has ended looked for its settings."""
    path_now: tuple[str, ...] = ()
    """Folders in which only the next service looks for them."""


def restart_service(
    folder: Path,
    backend: str,
    options: Mapping[str, Any],
    *,
    is_here: bool = False,
    count_kernels: Callable[[], int] = lambda: 0,
) -> Restart:
    """End the service of this folder, and start the next one with its Python, environment and options.

    With `is_here`, or if none runs, they are those of this process, and `options`. Blocks for two minutes at most.
    Raises `ConfigError`, without ending anything, if the folder is not private, if the next service could not read its
    settings, or if it would serve another cluster while `count_kernels` is not 0. Raises `BackendUnavailable` if the
    next service cannot start.
    """
    announced = read_announcement(folder)
    argv, env = _find_command(None if is_here else announced, folder, backend, options)
    end = _KEPT if is_alive(folder) else _NONE_RUNS
    try:
        private_folder(folder)
    except FolderError as problem:
        raise ConfigError(f"{problem}. {end}") from None
    other = _check_settings(argv, env, folder, end)
    before = str((announced or {}).get("address", ""))
    if other and announced is not None and (kernels := count_kernels()):
        live = f"{format_count(kernels, 'kernel')} {'lives' if kernels == 1 else 'live'} at {before}"
        raise ConfigError(
            f"The settings name the cluster at {other}, but {live}, which the next service would not reach: stop them "
            f"first, or correct the settings. {_NOT_ENDED}"
        )
    began = time.monotonic()
    was_killed = announced is not None and _end(folder, announced)
    serving, started = _start(folder, argv, env, has_ended=announced is not None)
    if announced is None and serving != folder:  # only now it is known which service was meant
        return restart_service(serving, backend, options, is_here=is_here, count_kernels=count_kernels)
    path_before, path_now = compare_paths((announced or {}).get("config_path", ()), started["config_path"])
    return Restart(
        ended_pid=announced["pid"] if announced is not None else None,
        was_killed=was_killed,
        pid=started["pid"],
        address_before=before,
        took_s=time.monotonic() - began,
        kept=_find_kept(env),
        path_before=path_before,
        path_now=path_now,
    )


def find_refusal(folder: Path, backend: str, options: Mapping[str, Any]) -> str:
    """Return why `restart_service` would refuse the settings, as a sentence; empty if it would not. Takes seconds."""
    argv, env = _find_command(read_announcement(folder), folder, backend, options)
    try:
        _check_settings(argv, env, folder, "")
    except ConfigError as problem:
        return problem.user_message.strip()
    except BackendUnavailable:  # it may pass
        pass
    return ""


def _find_command(
    announced: Mapping[str, Any] | None, folder: Path, backend: str, options: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of the next service: those of the announced one, if there is one that shows them."""
    own = service_command(backend, folder, options)
    return own if announced is None else _read_command(announced["pid"], folder) or own


def _find_kept(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of those variables that differ in this process and have an effect."""
    has_folder = env.get(_FOLDER_VARIABLE) and os.environ.get(_FOLDER_VARIABLE)
    return tuple(
        name
        for name in _OF_SETTINGS
        if env.get(name) != os.environ.get(name) and not (name == "HOME" and has_folder)
    )


def _read_command(pid: int, folder: Path) -> tuple[list[str], dict[str, str]] | None:
    """Return argv and environment of a service that runs; None if the system does not show them."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    except OSError:
        return None
    if _MODULE not in argv or str(folder) not in argv:
        return None
    return argv, dict(line.partition("=")[::2] for line in lines if "=" in line)


def _check_settings(argv: Sequence[str], env: Mapping[str, str], folder: Path, end: str) -> str:
    """Return the other cluster that the settings name; empty if they name none.

    Raises `ConfigError` if a service with this command and environment could not use its settings. `end` are the last
    sentences of the error.
    """
    try:
        done = subprocess.run(
            [*argv, CHECK_FLAG],
            cwd=folder if folder.is_dir() else "/",  # as the service: policies may be modules
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=_CHECK_S,
        )
    except subprocess.TimeoutExpired as problem:
        printed: Any = problem.stderr or ""  # bytes in most versions of Python, although `text` is set
        file = _find_last_read(printed.decode(errors="replace") if isinstance(printed, bytes) else printed)
        raise ConfigError(f"{file or 'The settings'} cannot be read within {_CHECK_S:g} s. {end}") from None
    except OSError as problem:
        raise BackendUnavailable(
            f"The next service could not start, so nothing was ended: {problem}."
        ) from None
    refusal = done.stderr.strip().rpartition("\n")[2]  # a policy may print lines before it
    if refusal.startswith(READS):
        refusal = ""
    if done.returncode:
        file = _find_last_read(done.stderr) or f"The check of the settings by {argv[0]}"
        refusal = refusal or f"{file} ends Python with exit code {done.returncode}, without a message"
        raise ConfigError(f"{end_sentence(refusal)} {end}")
    moves = [line.removeprefix(MOVES) for line in done.stderr.splitlines() if line.startswith(MOVES)]
    return moves[-1] if moves else ""


def _find_last_read(printed: str) -> str:
    """Return the file that the check has read last; empty if it printed none."""
    files = [line.removeprefix(READS) for line in printed.splitlines() if line.startswith(READS)]
    return files[-1] if files else ""


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


def _start(
    folder: Path, argv: list[str], env: Mapping[str, str], *, has_ended: bool
) -> tuple[Path, Mapping[str, Any]]:
    """Return the announcement of the next service, and its folder. `has_ended`: another one was ended for it.

    A client that has started a service meanwhile is as good. Another service may serve the cluster.
    """
    try:
        try:
            return folder, ensure(folder, argv, env=env, deadline_s=_START_S)
        except DaemonError as problem:
            target = read_referral(folder) if problem.kind == ServedElsewhere.__name__ else None
            announced = read_announcement(target) if target is not None else None
            if target is None or announced is None:
                raise
            return target, announced
    except DaemonError as problem:
        cause = from_remote(rpc.RemoteError(problem.kind or "BackendUnavailable", str(problem)))
        before = "No service runs now, and kernels live on. The next one" if has_ended else "The service"
        what = f"{before} cannot start: {cause}"
        raise type(cause)(what) if isinstance(cause, ConfigError) else BackendUnavailable(what) from None
