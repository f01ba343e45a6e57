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
from roost.launchers.daemon.world import name_in_world
from roost.launchers.protocol import rpc
from roost.launchers.protocol.messages import PROTOCOL as AGENT_PROTOCOL
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.shared_values import VERSION, is_older
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    ManagerAway,
    RoostError,
    ServedElsewhere,
    UnknownKernel,
    from_remote,
)
from roost.scheduler.messages import DEFAULT_LAUNCH_TIMEOUT_S

from .caller_variables import send_caller
from .cluster_record import read_referral
from .service_folder import PROTOCOL, PYTHON_VARIABLE, service_command, service_folder
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
_MOST_REFERRALS = 4
"""At most this many services refer to another one in a row. Each has found the next one running, or its record."""
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

    `on_rejoined` is called after each new connection but the first: events may have been missed before. While
    `is_wanted()` is true, a lost connection is made again without a call. A service of another world
    (`is_elsewhere`) is neither started nor replaced, because its agent would be started in this world.
    """

    def __init__(
        self,
        backend: str,
        options: Mapping[str, Any],
        *,
        world: str,
        is_elsewhere: bool,
        on_event: Callable[[Mapping[str, Any]], None],
        on_rejoined: Callable[[], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self._backend = backend
        self._options = options
        self._world = world
        self._is_elsewhere = is_elsewhere
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
        """The folder of the service. It may not exist. Blocks for half a second at most."""
        if self._folder is not None and self._folder.parent == runtime_dir():
            return self._folder
        return service_folder(self._backend, self._options, self._world)

    async def _join(self) -> RpcClient:
        """Connect and subscribe. Start the service if none runs; replace it if it is older than this client."""
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
        """Return a connection that is ready for calls, or None if an older service was asked to leave."""
        connection = RpcClient(endpoint, on_event=self._on_event, on_lost=self._on_lost)
        await connection.connect(timeout_s=_GREETING_S)
        try:
            if await self._is_current(connection):
                await connection.call("subscribe", {"owner": this_owner()}, timeout_s=_GREETING_S)
                await send_caller(connection, self._backend, timeout_s=_GREETING_S)
                return connection
        except BaseException:
            await connection.close()
            raise
        await connection.close()
        return None

    def _ensure_service(self) -> str:
        """Return the endpoint of the running service, and start one if needed. Blocks."""
        try:
            folder = self.folder
            if self._is_elsewhere:
                return self._find_elsewhere(folder)
            folder = self._start_service(folder)
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

    def _start_service(self, folder: Path) -> Path:
        """Start the service of this folder, unless it runs. Return the folder of the service that serves the cluster.

        A service that finds its cluster served already refers to that service, which may have ended meanwhile.
        """
        for _ in range(_MOST_REFERRALS):
            argv, env = service_command(self._backend, folder, self._options)
            try:
                ensure(folder, argv, env=env, deadline_s=_START_SERVICE_S)
            except DaemonError as problem:
                target = read_referral(folder) if problem.kind == ServedElsewhere.__name__ else None
                if target is None:
                    raise
                log.info("%s", problem)
                folder = target
            else:
                return folder
        raise DaemonError(f"the services of several folders refer to each other, the last to {folder}")

    def _find_elsewhere(self, folder: Path) -> str:
        """Return the endpoint of another world's service.

        Raises `BackendUnavailable` if the service has ended, and `UnknownKernel` if the agent of its kernels has, too.
        """
        if read_announcement(folder) is not None:
            return f"ipc://{folder}/socket"
        if not is_alive(folder) and not is_alive(folder.with_name(name_in_world("agent", self._world))):
            raise UnknownKernel(f"Everything in the world {self._world} has ended.")
        problem = f"The scheduler service of another world ({folder.name}) has ended"
        raise BackendUnavailable(f"{problem}: only a program in that world can start it.")

    async def _is_current(self, connection: RpcClient) -> bool:
        """True if this client can use the service. An older service is asked to leave.

        Raise `BackendUnavailable` if the next service could not use its agents: then it stays, and so do its kernels.
        """
        hello = {"protocol": PROTOCOL, "version": VERSION}
        greeting = await connection.call("hello", hello, timeout_s=_GREETING_S)
        protocol, version = int(greeting["protocol"]), str(greeting["version"])
        self.launch_timeout_s = float(greeting.get("launch_timeout_s", DEFAULT_LAUNCH_TIMEOUT_S))
        self.node_start_timeout_s = float(greeting.get("node_start_timeout_s", 0.0))
        if protocol == PROTOCOL and (self._is_elsewhere or not is_older(version)):
            return True
        if protocol > PROTOCOL:
            raise BackendUnavailable(f"The service {version} is newer than this client ({VERSION}): upgrade.")
        if self._is_elsewhere:
            raise BackendUnavailable(
                f"The scheduler service of another world ({self._world}) has the older version {version}: "
                "use it from a program in that world."
            )
        pid = greeting.get("pid")
        if greeting["agent_protocol"] != AGENT_PROTOCOL:
            raise BackendUnavailable(
                f"The scheduler service (pid {pid}) is roost {version}, whose agents have another protocol than those "
                f"of roost {VERSION}: stop its kernels with roost {version}, or run `kill {pid}` and this again, which "
                "then names them."
            )
        log.info("scheduler service pid=%s is roost %s and is asked to leave", pid, version)
        try:
            await connection.call("leave", {}, timeout_s=_GREETING_S)
        except rpc.Disconnected:
            pass
        return False

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
            except UnknownKernel:  # the listeners read their kernels again, and get this error
                self._on_rejoined()
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
