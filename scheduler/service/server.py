"""The scheduler as a process of its own: `python -m roost.scheduler.service.server --backend local --folder DIR`.

It serves `operations` on a Unix socket in its private folder, which only this user can enter. The first client that
needs the service starts it. The service leaves after a while without clients and kernels, or on request (`leave`,
SIGTERM). Kernels, leases and starts under way then stay, and the next service reads them back.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, HeldFolder, announce_failure, hold
from roost.launchers.daemon.private_files import FolderError
from roost.launchers.protocol.messages import Logs, Nothing, Owner, Signal, Stop
from roost.launchers.protocol.rpc import RpcError
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.launchers.protocol.version import VERSION
from roost.scheduler.backends.base import Backend, BackendContext
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.backends.spec import DEFAULT_BACKEND, BackendSpec
from roost.scheduler.config.files import load_settings
from roost.scheduler.config.section import Section
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.agent_calls import Agents
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.errors import ConfigError, RoostError

from . import operations as ops
from .decision_log import DecisionLog
from .launch import OPTIONS_VARIABLE, PROTOCOL
from .messages import Event, StartKernel

log = logging.getLogger(__name__)

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""At most this many bytes fit into the path of a Unix socket."""


def create_backend(spec: BackendSpec, settings: Section, context: BackendContext) -> Backend:
    """Return the backend of that spec. Its cluster library is imported here and nowhere else."""
    create: Callable[[Section, BackendContext], Backend] = load_object(
        spec.create, f"the backend {spec.name}"
    )
    return create(settings, context)


class Service:
    """The operations of one scheduler, for its clients. Runs until `left` is set."""

    def __init__(self, scheduler: Scheduler, settings: Settings, spec: BackendSpec) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._spec = spec
        self._calls = 0
        self._idle: asyncio.TimerHandle | None = None
        self.left = asyncio.Event()
        # Each operation of `operations.ARGUMENTS` is the method of that name, with an underscore.
        self.server = RpcServer(
            {
                name: Operation(arguments, self._guard(getattr(self, f"_{name}")))
                for name, arguments in ops.ARGUMENTS.items()
            }
        )
        self._stop_listening = scheduler.events.listen(self._publish)
        self._watch_idleness()

    def greeting(self) -> dict[str, Any]:
        """Return the version and process of this service, and its cluster."""
        who = {"protocol": PROTOCOL, "version": VERSION, "pid": os.getpid()}
        return {**who, "backend": self._spec.name, "address": self._scheduler.address}

    async def close(self) -> None:
        self._stop_listening()
        if self._idle is not None:
            self._idle.cancel()
        await self.server.close()

    def _guard(
        self, handler: Callable[[bytes, Any], Awaitable[Any]]
    ) -> Callable[[bytes, Any], Awaitable[Any]]:
        async def answer(peer: bytes, arguments: Any) -> Any:
            self._calls += 1
            try:
                return await handler(peer, arguments)
            except RoostError as problem:
                raise problem.to_remote() from None
            finally:
                self._calls -= 1
                self._watch_idleness()

        return answer

    async def _hello(self, peer: bytes, _: ops.Hello) -> dict[str, Any]:
        return self.greeting()

    async def _subscribe(self, peer: bytes, request: ops.Subscribe) -> Nothing:
        self._scheduler.owners.watch(request.owner)
        self.server.subscribe(peer)
        return Nothing()

    async def _start(self, peer: bytes, request: StartKernel) -> Any:
        self._spec.check_options(request.request.options)
        return await self._scheduler.start(request)

    async def _cancel(self, peer: bytes, request: ops.Cancel) -> Nothing:
        await self._scheduler.cancel(request.kernel_id, request.launch_id)
        return Nothing()

    async def _stop(self, peer: bytes, request: Stop) -> Any:
        return await self._scheduler.stop(request.kernel_id, request.grace_s)

    async def _signal(self, peer: bytes, request: Signal) -> Nothing:
        await self._scheduler.signal(request.kernel_id, request.signum)
        return Nothing()

    async def _kernels(self, peer: bytes, request: ops.ListKernels) -> dict[str, Any]:
        if request.with_use:
            return {"kernels": await self._scheduler.kernels_with_use()}
        return {"kernels": self._scheduler.kernels()}

    async def _kernel(self, peer: bytes, request: ops.OneKernel) -> Any:
        return self._scheduler.kernel(request.kernel_id)

    async def _nodes(self, peer: bytes, _: Nothing) -> dict[str, Any]:
        return {"nodes": await self._scheduler.nodes()}

    async def _adopt(self, peer: bytes, request: ops.AdoptKernel) -> Any:
        return await self._scheduler.adopt(request.kernel_id, request.owner)

    async def _explain(self, peer: bytes, request: ops.Explain) -> dict[str, Any]:
        self._spec.check_options(request.request.options)
        return {"decision": await self._scheduler.explain(request.request, request.owner)}

    async def _logs(self, peer: bytes, request: Logs) -> dict[str, Any]:
        return {"text": await self._scheduler.logs(request.kernel_id, request.tail_bytes)}

    async def _drain(self, peer: bytes, request: ops.Drain) -> Nothing:
        await self._scheduler.drain(request.node_id, request.on)
        return Nothing()

    async def _warm(self, peer: bytes, request: ops.WarmUp) -> Nothing:
        await self._scheduler.warm(request, Owner(user=""))
        return Nothing()

    async def _up(self, peer: bytes, _: Nothing) -> dict[str, Any]:
        return {"nodes": await self._scheduler.warm_up()}

    async def _add_policy(self, peer: bytes, request: ops.AddPolicy) -> Nothing:
        await self._scheduler.policies.add(request)
        return Nothing()

    async def _check_policies(self, peer: bytes, request: ops.CheckPolicies) -> dict[str, Any]:
        return {"problems": await self._scheduler.policies.find_problems(request.names)}

    async def _doctor(self, peer: bytes, _: Nothing) -> dict[str, Any]:
        return {"findings": await self._scheduler.doctor()}

    async def _events(self, peer: bytes, request: ops.RecentEvents) -> dict[str, Any]:
        return {"events": self._scheduler.events.recent(request.limit)}

    async def _leave(self, peer: bytes, _: Nothing) -> Nothing:
        asyncio.get_running_loop().call_later(0.05, self.left.set)  # after the answer has been sent
        return Nothing()

    def _publish(self, event: Event) -> None:
        if self.server.subscriber_count:
            self.server.publish(event)

    def _watch_idleness(self) -> None:
        """Begin a new idle time, because a client has just called."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._settings.idle_exit_s, self._leave_if_idle)

    def _leave_if_idle(self) -> None:
        self._publish(Event(kind="idle", at=time.time()))  # finds out which subscribers are gone
        if self._scheduler.is_idle() and not self._calls and not self.server.subscriber_count:
            log.info("leaving: no clients and no kernels for %g s", self._settings.idle_exit_s)
            self.left.set()
        else:
            self._watch_idleness()


async def serve(folder: Path, spec: BackendSpec, settings: Settings, own_settings: Section) -> None:
    """Be the scheduler of `folder` until it is idle or asked to leave. Raises `AlreadyRunning`, `RoostError`."""
    if len(os.fsencode(folder / "socket")) > _LONGEST_SOCKET:  # before an agent is started
        raise ConfigError(
            f"{folder / 'socket'} is longer than the {_LONGEST_SOCKET} bytes that a socket's path may have: "
            "set ROOST_RUNTIME_DIR to a shorter path."
        )
    with hold(folder) as held:
        agents = Agents()
        context = BackendContext(
            agents=agents,
            folder=folder,
            restart_grace_s=settings.restart_grace_s,
            idle_exit_s=settings.idle_exit_s,
        )
        backend = create_backend(spec, own_settings, context)
        scheduler = Scheduler(backend, agents, settings, name=scheduler_name(folder), folder=folder)
        service = Service(scheduler, settings, spec)
        decisions = DecisionLog(folder)
        stop_writing = scheduler.events.listen(decisions)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, service.left.set)
        try:
            await scheduler.open()
            _listen(held, service)
            await service.left.wait()
        finally:
            await service.close()
            await scheduler.close()
            stop_writing()
            decisions.close()


def scheduler_name(folder: Path) -> str:
    """Return the name that tells this scheduler's leases from those of other schedulers of the cluster."""
    place = hashlib.sha256(f"{socket.gethostname()} {os.getuid()} {folder}".encode()).hexdigest()[:8]
    return f"{folder.name}-{place}"


def _listen(held: HeldFolder, service: Service) -> None:
    path = held.folder / "socket"
    path.unlink(missing_ok=True)  # left by a killed service: this process holds the folder
    held.announce({"endpoint": service.server.start(f"ipc://{path}"), **service.greeting()})


def main(arguments: list[str]) -> int:
    """The command line; options come as JSON in the environment (`launch.OPTIONS_VARIABLE`)."""
    parser = argparse.ArgumentParser(prog="roost.scheduler.service.server", description=__doc__)
    parser.add_argument("--backend", default=DEFAULT_BACKEND)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        options = json.loads(os.environ.pop(OPTIONS_VARIABLE, "") or "{}")
        settings, own_settings = load_settings(given.backend, options)
        asyncio.run(serve(given.folder, get_spec(given.backend), settings, own_settings))
    except (DaemonError, FolderError, RoostError, RpcError) as problem:
        announce_failure(type(problem).__name__, str(problem))
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
