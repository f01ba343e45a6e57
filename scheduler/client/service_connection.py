"""The connection to a scheduler service. After a loss it connects again, and starts a service if none runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import (
    DaemonError,
    EndedSilently,
    NotPrivate,
    ensure,
    is_alive,
    read_announcement,
)
from roost.launchers.daemon.private_files import FolderError, runtime_dir
from roost.launchers.daemon.tasks import backoff, in_thread, join_shared, start_shared
from roost.launchers.protocol import rpc
from roost.launchers.protocol.messages import PROTOCOL as AGENT_PROTOCOL
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.shared_values import VERSION, is_older
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    ManagerAway,
    RoostError,
    from_remote,
)
from roost.scheduler.messages import DEFAULT_LAUNCH_TIMEOUT_S

from .advice import write_command
from .service_folder import (
    PROTOCOL,
    PYTHON_VARIABLE,
    find_other_options,
    service_command,
    service_folder,
)
from .this_owner import this_owner

log = logging.getLogger(__name__)

_START_SERVICE_S = 30.0
_GREETING_S = 5.0
RETRY_S = (0.02, 1.0)
"""First and longest pause before a connection or a call is tried again."""
_REJOIN_S = (0.3, 30.0)
"""First and longest pause before a lost connection is made again for listeners only.

The pauses are long, so that an application with a call starts the next service first.
"""
_LOOK_S = 1.0
"""How often a long pause looks whether that has happened."""


IF_IT_HANGS = "If it hangs, `roost restart-service` ends it and starts the next: kernels live on."
"""The remedy for a service that does not answer."""


def no_answer(backend: str, folder: Path, problem: str) -> BackendUnavailable:
    """Return the error about a service that does not answer. It names the service's process and log.

    If the process is known, the error says what helps. Its field `what` is the same without that.
    """
    pid = (read_announcement(folder) or {}).get("pid")
    what = f"The scheduler service ({backend}, pid {pid or 'unknown'}, log {folder / 'log'}) {problem}."
    return BackendUnavailable(f"{what} {IF_IT_HANGS}" if pid else what, pid=pid, what=what)


class ServiceConnection:
    """A connection to one service, used on one event loop.

    `reach` returns the endpoint of a service of another user, and starts what leads there; it blocks. Without it, the
    service is this user's own.

    `on_rejoined` is called after each new connection but the first: events may have been missed before. While
    `is_wanted()` is true, a lost connection is made again without a call.
    """

    def __init__(
        self,
        backend: str,
        options: Mapping[str, Any],
        *,
        on_event: Callable[[Mapping[str, Any]], None],
        on_rejoined: Callable[[], None],
        is_wanted: Callable[[], bool],
        reach: Callable[[], str] | None = None,
    ) -> None:
        self._reach = reach
        self._backend = backend
        self._options = options
        self._running_options: Mapping[str, Any] = {}
        """The options of the service that answered last. The next service has them, too: other programs need them."""
        self._on_event = on_event
        self._on_rejoined = on_rejoined
        self._is_wanted = is_wanted
        self._rpc: RpcClient | None = None
        self._joining: asyncio.Task[RpcClient] | None = None
        self._rejoining: asyncio.Task[None] | None = None
        self._has_joined = False
        self.launch_timeout_s = DEFAULT_LAUNCH_TIMEOUT_S
        """How long a start may take that names no time, as the service says."""
        self.node_start_timeout_s = 0.0
        """How long a start may wait for a new node besides, as the service says."""
        self._folder: Path | None = None
        """The folder of the service that was found last. Later services of the same folder know the same kernels."""

    async def connect(self, deadline: float) -> RpcClient:
        """Return the live connection; raises `BackendUnavailable`. Concurrent callers share one attempt."""
        if self._rpc is not None and not self._rpc.is_lost:
            return self._rpc
        if self._joining is None or self._joining.done():
            self._joining = start_shared(self._join())
        try:
            rest_s = max(0.0, deadline - time.monotonic())
            return await asyncio.wait_for(join_shared(self._joining), rest_s)
        except asyncio.TimeoutError:
            raise no_answer(self._backend, self.folder, "did not answer in time") from None

    @property
    def folder(self) -> Path:
        """The folder of the service. It may not exist. Blocks for milliseconds."""
        if self._reach is not None:
            return runtime_dir() / "of-another-user"
        if self._folder is not None and self._folder.parent == runtime_dir():
            return self._folder
        return service_folder(self._backend, self._options)

    async def _join(self) -> RpcClient:
        """Connect and subscribe. Start the service if none runs; replace it if it is older, or has fewer options."""
        await self.close()
        deadline = time.monotonic() + _START_SERVICE_S
        pauses = backoff(*RETRY_S)
        while True:
            try:
                connection = await self._greet(await in_thread(self._ensure_service))
                if connection is not None:
                    break
            except (rpc.RpcError, asyncio.TimeoutError) as problem:
                if time.monotonic() > deadline:
                    raise no_answer(self._backend, self.folder, f"does not answer ({problem})") from None
                log.debug("the scheduler service does not answer yet: %s", problem)
            await asyncio.sleep(next(pauses))
        self._rpc = connection
        if self._has_joined:
            self._on_rejoined()
        self._has_joined = True
        return connection

    async def _greet(self, endpoint: str) -> RpcClient | None:
        """Return a connection that is ready for calls, or None if the service was asked to leave for the next."""
        connection = RpcClient(endpoint, on_event=self._on_event, on_lost=self._on_lost)
        await connection.connect(timeout_s=_GREETING_S)
        try:
            if await self._is_current(connection):
                await connection.call("subscribe", {"owner": this_owner()}, timeout_s=_GREETING_S)
                return connection
        except BaseException:
            await connection.close()
            raise
        await connection.close()
        return None

    def _ensure_service(self) -> str:
        """Return the endpoint of the running service, and start one if needed. Blocks."""
        if self._reach is not None:
            return self._reach()
        try:
            folder = self.folder
            argv, env = service_command(self._backend, folder, {**self._running_options, **self._options})
            ensure(folder, argv, env=env, deadline_s=_START_SERVICE_S)
            self._folder = folder
        except (FolderError, NotPrivate) as problem:
            raise ConfigError(f"{problem}.") from None
        except (DaemonError, OSError) as problem:
            if isinstance(problem, DaemonError) and problem.kind:
                refusal = from_remote(rpc.RemoteError(problem.kind, str(problem)))
                raise (
                    ManagerAway(str(problem)) if isinstance(refusal, BackendUnavailable) else refusal
                ) from None
            if isinstance(problem, EndedSilently) or (isinstance(problem, DaemonError) and is_alive(folder)):
                raise rpc.Disconnected(str(problem)) from None
            python = os.environ.get(PYTHON_VARIABLE)
            remedy = f"; {PYTHON_VARIABLE} is {python}: correct it, or unset it" if python else ""
            raise BackendUnavailable(f"No scheduler service ({self._backend}): {problem}{remedy}") from None
        return f"ipc://{folder}/socket"

    async def _is_current(self, connection: RpcClient) -> bool:
        """True if this client can use the service. One that is older, or that lacks an option, is asked to leave.

        Raise `BackendUnavailable` if the next service could not use its agents: then it stays, and so do its kernels.
        """
        hello = {"protocol": PROTOCOL, "version": VERSION}
        greeting = await connection.call("hello", hello, timeout_s=_GREETING_S)
        protocol, version = int(greeting["protocol"]), str(greeting["version"])
        self.launch_timeout_s = float(greeting.get("launch_timeout_s", DEFAULT_LAUNCH_TIMEOUT_S))
        self.node_start_timeout_s = float(greeting.get("node_start_timeout_s", 0.0))
        if protocol == PROTOCOL and not is_older(version):
            if not self._lacks_options(greeting):
                return True
            log.info(
                "scheduler service pid=%s leaves for one with the options of this client", greeting["pid"]
            )
            await self._ask_to_leave(connection)
            return False
        if protocol > PROTOCOL:
            raise BackendUnavailable(f"The service {version} is newer than this client ({VERSION}): upgrade.")
        pid = greeting.get("pid")
        if greeting.get("agent_protocol") != AGENT_PROTOCOL:
            raise BackendUnavailable(
                f"The scheduler service (pid {pid}) is roost {version}, whose agents have another protocol than those "
                f"of roost {VERSION}: stop its kernels with roost {version}, or run `kill {pid}` and this again, which "
                "then names them."
            )
        log.info("scheduler service pid=%s is roost %s and is asked to leave", pid, version)
        await self._ask_to_leave(connection)
        return False

    async def _ask_to_leave(self, connection: RpcClient) -> None:
        with contextlib.suppress(rpc.Disconnected):
            await connection.call("leave", {}, timeout_s=_GREETING_S)

    def _lacks_options(self, greeting: Mapping[str, Any]) -> bool:
        """True if the service has no value for an option of this client. Raise `ConfigError` if it has another one."""
        self._running_options = running = greeting["options"]
        others = find_other_options(self._options, running)
        if any(name in running for name in others):
            wanted = ", ".join(f"{name}={value}" for name, value in others.items())
            has = ", ".join(f"{name}={running[name]}" for name in others if name in running)
            # With the options of the others, too: their programs would be refused otherwise.
            command = write_command("restart-service", self._backend, {**running, **self._options})
            raise ConfigError(
                f"The service of {self._backend} (pid {greeting['pid']}) was started without {wanted}, and has {has}. "
                f"`{command}` starts the next one with it, and kernels live on."
            )
        return bool(others)

    async def close(self) -> None:
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None

    def _on_lost(self) -> None:
        if self._is_wanted() and (self._rejoining is None or self._rejoining.done()):
            self._rejoining = asyncio.ensure_future(self._rejoin())

    async def _rejoin(self) -> None:
        """Connect again for the listeners, until it works or nobody listens. Any error may be over at the next try."""
        said = ""
        for pause_s in backoff(*_REJOIN_S):
            if not self._is_wanted():
                return
            await self._pause(pause_s)
            try:
                await self.connect(time.monotonic() + 2 * _START_SERVICE_S)
                return
            except Exception as problem:
                if str(problem) != said:
                    expected = isinstance(problem, RoostError)
                    log.warning("%s", problem, exc_info=None if expected else problem)
                said = str(problem)

    async def _pause(self, longest_s: float) -> None:
        """Wait before the next try. The wait ends soon after another program has started the service."""
        until = time.monotonic() + longest_s
        while (rest_s := until - time.monotonic()) > 0:
            await asyncio.sleep(min(rest_s, _LOOK_S))
            with contextlib.suppress(RoostError, FolderError):
                if rest_s > _LOOK_S and read_announcement(self.folder) is not None and is_alive(self.folder):
                    return
