"""The scheduler as a process of its own: `python -m roost.scheduler.service.server --backend local --folder DIR`.

It serves `operations` on a Unix socket in its private folder, which only this user can enter. The first client that
needs the service starts it. The service leaves after a while without clients and kernels, or on request (`leave`,
SIGTERM). Kernels, leases and starts under way then stay, and the next service reads them back.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import inspect
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, announce, announce_failure, hold
from roost.launchers.daemon.private_files import FolderError
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Nothing
from roost.launchers.protocol.rpc import RpcError
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.launchers.protocol.version import VERSION
from roost.scheduler.backends.base import BackendContext
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
from .messages import Event, Kernel, StartKernel

log = logging.getLogger(__name__)

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""At most this many bytes fit into the path of a Unix socket."""


_ANSWER_KEYS = {
    "kernels": "kernels",
    "nodes": "nodes",
    "explain": "decision",
    "logs": "text",
    "up": "nodes",
    "check_policies": "problems",
    "doctor": "findings",
    "events": "events",
}
"""By operation, the key of an answer that consists of one value. All other answers are values or empty."""


class Service:
    """The operations of one scheduler, for its clients. Runs until `left` is set."""

    def __init__(self, scheduler: Scheduler, settings: Settings, spec: BackendSpec) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._spec = spec
        self._calls = 0
        self._timers = Timers()
        self.left = asyncio.Event()
        handlers = self._build_handlers()
        self.server = RpcServer(
            {
                name: Operation(arguments, self._guard(name, handlers[name]))
                for name, arguments in ops.ARGUMENTS.items()
            }
        )
        self._stop_listening = scheduler.events.listen(self.server.publish)
        self._watch_idleness()

    def greeting(self) -> dict[str, Any]:
        """Return the version and process of this service, and its cluster."""
        who = {"protocol": PROTOCOL, "version": VERSION, "pid": os.getpid()}
        return {**who, "backend": self._spec.name, "address": self._scheduler.backend.address}

    async def close(self) -> None:
        self._stop_listening()
        self._timers.close()
        await self.server.close()

    def _build_handlers(self) -> Mapping[str, Callable[[bytes, Any], Any]]:
        """Return by operation the function that answers it. It gets the peer and the operation's arguments."""
        scheduler = self._scheduler
        return {
            "hello": lambda peer, _: self.greeting(),
            "subscribe": self._subscribe,
            "start": self._start,
            "cancel": lambda peer, asked: scheduler.cancel(asked.kernel_id, asked.launch_id),
            "stop": lambda peer, asked: scheduler.stop(asked.kernel_id, asked.grace_s),
            "signal": lambda peer, asked: scheduler.signal(asked.kernel_id, asked.signum),
            "kernels": lambda peer, asked: (
                scheduler.kernels_with_use() if asked.with_use else scheduler.kernels()
            ),
            "kernel": lambda peer, asked: scheduler.kernel(asked.kernel_id),
            "nodes": lambda peer, _: scheduler.nodes(),
            "adopt": lambda peer, asked: scheduler.adopt(asked.kernel_id, asked.owner),
            "explain": self._explain,
            "logs": lambda peer, asked: scheduler.logs(asked.kernel_id, asked.tail_bytes),
            "drain": lambda peer, asked: scheduler.drain(asked.node_id, asked.on),
            "warm": lambda peer, asked: scheduler.warm(asked),
            "up": lambda peer, _: scheduler.backend.warm_up(),
            "add_policy": lambda peer, asked: scheduler.policies.add(asked),
            "check_policies": lambda peer, asked: scheduler.policies.find_problems(asked.names),
            "doctor": lambda peer, _: scheduler.doctor(),
            "events": lambda peer, asked: scheduler.events.recent(asked.limit),
            "leave": lambda peer, _: self._leave(),
        }

    def _guard(
        self, name: str, handler: Callable[[bytes, Any], Any]
    ) -> Callable[[bytes, Any], Awaitable[Any]]:
        """Return the handler as a coroutine that counts as a call, and raises errors that can cross the socket."""

        async def answer(peer: bytes, arguments: Any) -> Any:
            self._calls += 1
            try:
                value = handler(peer, arguments)
                if inspect.isawaitable(value):
                    value = await value
                if name in _ANSWER_KEYS:
                    return {_ANSWER_KEYS[name]: value}
                return Nothing() if value is None else value
            except RoostError as problem:
                raise problem.to_remote() from None
            finally:
                self._calls -= 1
                self._watch_idleness()

        return answer

    def _subscribe(self, peer: bytes, request: ops.Subscribe) -> None:
        self._scheduler.owners.watch(request.owner)
        self.server.subscribers.add(peer)

    def _start(self, peer: bytes, request: StartKernel) -> Awaitable[Kernel]:
        self._spec.check_options(request.request.options)
        return self._scheduler.start(request)

    def _explain(self, peer: bytes, request: ops.Explain) -> Awaitable[dict[str, Any]]:
        self._spec.check_options(request.request.options)
        return self._scheduler.explain(request.request, request.owner)

    def _leave(self) -> None:
        self._timers.later(0.05, self.left.set)  # after the answer has been sent

    def _watch_idleness(self) -> None:
        """Begin a new idle time, because a client has just called."""
        self._timers.later(self._settings.idle_exit_s, self._leave_if_idle, key="idle")

    def _leave_if_idle(self) -> None:
        self.server.publish(Event(kind="idle", at=time.time()))  # finds out which subscribers are gone
        if self._scheduler.is_idle() and not self._calls and not self.server.subscribers:
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
    with hold(folder):
        agents = Agents()
        context = BackendContext(
            agents=agents,
            folder=folder,
            restart_grace_s=settings.restart_grace_s,
            idle_exit_s=settings.idle_exit_s,
        )
        # The backend's cluster library is imported here and nowhere else.
        backend = load_object(spec.create, f"the backend {spec.name}")(own_settings, context)
        scheduler = Scheduler(backend, agents, settings, name=scheduler_name(folder), folder=folder)
        service = Service(scheduler, settings, spec)
        decisions = DecisionLog(folder)
        scheduler.events.listen(decisions)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, service.left.set)
        try:
            await scheduler.open()
            path = folder / "socket"
            path.unlink(missing_ok=True)  # left by a killed service: this process holds the folder
            announce(folder, {"endpoint": service.server.start(f"ipc://{path}"), **service.greeting()})
            await service.left.wait()
        finally:
            await service.close()
            await scheduler.close()
            decisions.close()


def scheduler_name(folder: Path) -> str:
    """Return the name that tells this scheduler's leases from those of other schedulers of the cluster."""
    place = hashlib.sha256(f"{socket.gethostname()} {os.getuid()} {folder}".encode()).hexdigest()[:8]
    return f"{folder.name}-{place}"


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
