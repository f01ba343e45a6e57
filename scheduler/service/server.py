"""The scheduler as a process of its own: `python -m roost.scheduler.service.server --backend local --folder DIR`.

It serves `OPERATIONS` on a Unix socket in its private folder. The first client starts it. It exits after a while
without clients and kernels, or on request (`leave`, SIGTERM). All kernels and starts stay for the next service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from dataclasses import dataclass
from functools import partial, wraps
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from roost.launchers.daemon.daemon import DaemonError, Hold, announce, announce_failure, hold
from roost.launchers.daemon.file_input import take_json
from roost.launchers.daemon.private_files import FolderError, settle_home, write_private_json
from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import Timers, cancel_all
from roost.launchers.protocol.messages import PROTOCOL as AGENT_PROTOCOL
from roost.launchers.protocol.process_context import loosen
from roost.launchers.protocol.process_log import set_up_log
from roost.launchers.protocol.rpc import RpcError
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.launchers.protocol.shared_values import VERSION
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend, BackendContext
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.backends.spec import DEFAULT_BACKEND, BackendSpec
from roost.scheduler.client.advice import write_command
from roost.scheduler.client.service_folder import OPTIONS_VARIABLE, PROTOCOL
from roost.scheduler.config.files import load_settings
from roost.scheduler.config.section import Section
from roost.scheduler.config.settings import Settings
from roost.scheduler.core.caps import find_default_timeout
from roost.scheduler.core.events import EventStream
from roost.scheduler.core.scheduler import Scheduler
from roost.scheduler.errors import ConfigError, LaunchError, RoostError
from roost.scheduler.messages import Event, Finding, Kernel, Owner, ServiceFacts, StartKernel
from roost.scheduler.policies.catalog import PolicyCatalog

from . import garbage
from .decision_log import log_decision
from .input_checks import MOST_CHARACTERS, check_input

log = logging.getLogger(__name__)

_NAME_FILE = "name.json"
_PAGE = 200
"""At most this many kernels are in one answer, which may have 8 MiB."""
_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""At most this many bytes fit into the path of a Unix socket."""
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


class Service:
    """The operations of one scheduler (`core`), for its clients. Runs until `left` is set."""

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        spec: BackendSpec,
        options: Mapping[str, Any] = NO_OPTIONS,
        agents: Agents | None = None,
    ) -> None:
        self.core = scheduler
        self._agents = agents or Agents()
        self._options = options
        self._settings = settings
        self._spec = spec
        self._held: Hold | None = None
        self._calls = 0
        self.metrics_problem = ""
        """Why the metrics are not served; empty if they are served, or if the operator does not want metrics."""
        self._timers = Timers()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.left = asyncio.Event()
        self.server = RpcServer(
            {name: Operation(self._guard(route), route.message) for name, route in OPERATIONS.items()}
        )
        self._stop_listening = scheduler.events.listen(self.server.publish)
        self._watch_idleness()

    def greet(self, protocol: int = PROTOCOL, version: str = "") -> ServiceFacts:
        """Return versions, pid, backend and cluster address.

        The client decides whether it can use this service.
        """
        return {
            "protocol": PROTOCOL,
            "agent_protocol": AGENT_PROTOCOL,
            "version": VERSION,
            "pid": os.getpid(),
            "backend": self._spec.name,
            "address": self.core.backend.address,
            "options": dict(self._options),
            "launch_timeout_s": find_default_timeout(self._settings),
            "node_start_timeout_s": self.core.backend.growth.start_timeout_s,
        }

    def watch_folder(self, held: Hold) -> None:
        """Watch the service's folder. If it was deleted, start no kernel, and leave once there are none."""
        self._held = held

        def is_needed() -> bool:  # its clients find the next service
            return bool(self._calls) or not self.core.is_idle()

        watch = partial(held.watch, is_needed=is_needed, leave=self.left.set)
        keep_running(watch, self._tasks, log, "the watch of the service's folder")

    async def close(self) -> None:
        await cancel_all(self._tasks)
        self._stop_listening()
        self._timers.close()
        await self.server.close()

    def _guard(self, route: Route) -> Callable[..., Awaitable[Any]]:
        """Return a handler for `route`: it checks the input, counts calls, and raises errors that cross the socket."""
        method = attrgetter(f"{route.part}.{route.method.__name__}".lstrip("."))(self)

        @wraps(route.method)
        async def answer(*message: Any, **arguments: Any) -> Any:
            self._calls += 1
            try:
                self._check_call(message[0] if message else None, arguments)
                value = method(*message, **arguments)
                if inspect.isawaitable(value):
                    value = await value
                return {route.key: value} if route.key else value
            except RoostError as problem:
                raise problem.to_remote() from None
            finally:
                self._calls -= 1
                self._watch_idleness()

        return answer

    def _check_call(self, message: Any, arguments: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for values and options that no settings allow.

        Raise `LaunchError` for a start if the folder was deleted: no other program would find the kernel.
        """
        check_input(message, arguments)
        if request := message.request if message else arguments.get("request"):
            self._spec.check_options(request.options)
        if isinstance(message, StartKernel):
            self.core.backend.note_caller()
        if isinstance(message, StartKernel) and self._held is not None and not self._held.is_intact:
            refusal = f"The folder {self._held.folder} was deleted, so its service starts no kernel"
            raise LaunchError(f"{refusal}: shut down the kernels that it has, or restart the application.")

    async def list_kernels(self, with_use: bool = False, after: str = "") -> dict[str, Any]:
        """Return one page of kernels in the order of their ids, after the id `after`.

        `more`: another page follows. `unreachable` names the agents that do not answer: kernels that are not
        listed may live there.
        """
        found = self.core.list_kernels(after, _PAGE + 1)
        page = await self.core.with_use(found[:_PAGE]) if with_use else found[:_PAGE]
        unreachable = sorted(self.core.reconciler.unreachable)
        return {"kernels": page, "more": len(found) > _PAGE, "unreachable": unreachable}

    async def read_kernel(self, kernel_id: str, with_use: bool = False) -> Kernel:
        kernel = self.core.kernel(kernel_id)
        return (await self.core.with_use([kernel]))[0] if with_use else kernel

    def subscribe(self, owner: Owner) -> None:
        """Watch an owner whose client has connected, and which gets the events from now on."""
        self.core.backend.note_caller()
        self.core.owners.watch(owner)

    async def check_policies(self, names: list[str]) -> dict[str, str]:
        """Return the policies among `names` that a kernel cannot use, each with the reason."""
        problems = await self.core.policies.find_problems(names)
        return {name: problem.user_message for name, problem in problems.items()}

    async def diagnose(self, fix: bool = False) -> list[Finding]:
        """Return the scheduler's findings, and a warning if the metrics are not served."""
        found = await self.core.doctor(fix)
        if self.metrics_problem:
            command = write_command("restart-service", self._spec.name, self._options)
            do = f"set c.RoostScheduler.metrics to a free address, and run `{command}`"
            found.append({"level": "warning", "what": self.metrics_problem, "do": do})
        return found

    async def end_all(self) -> None:
        """End the agents, and then this service. Raises `ConfigError` while there are kernels or starts."""
        if not self.core.is_idle():
            raise ConfigError("There are kernels or starts: end them first.")
        await self._agents.leave()
        self.leave()

    def leave(self) -> None:
        self._timers.later(0.05, self.left.set)  # after the answer has been sent

    def _watch_idleness(self) -> None:
        """Check later whether the service is idle. Each call restarts this timer."""
        self._timers.later(self._settings.idle_exit_s, self._leave_if_idle, key="idle")

    def is_needed(self) -> bool:
        """True if there are clients or kernels."""
        self.server.publish(Event(kind="idle", at=time.time()))  # finds out which subscribers are gone
        return bool(not self.core.is_idle() or self._calls or self.server.subscribers)

    def _leave_if_idle(self) -> None:
        if not self.is_needed():
            log.info("leaving: no clients and no kernels for %g s", self._settings.idle_exit_s)
            self.left.set()
        else:
            self._watch_idleness()


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an operation for clients: the method of `service.<part>` that answers it.

    With a `key`, the answer is an object that has the method's result under this key. The arguments of the call are the
    method's parameters, or the fields of the `message` that the method takes.
    """

    part: str
    method: Callable[..., Any]
    key: str = ""
    message: type | None = None


OPERATIONS: Mapping[str, Route] = {
    "hello": Route("", Service.greet),
    "subscribe": Route("", Service.subscribe),
    "start": Route("core", Scheduler.start, message=StartKernel),
    "cancel": Route("core", Scheduler.cancel),
    "stop": Route("core", Scheduler.stop),
    "signal": Route("core", Scheduler.signal),
    "kernels": Route("", Service.list_kernels),
    "elsewhere": Route("core", Scheduler.count_elsewhere, "kernels"),
    "kernel": Route("", Service.read_kernel),
    "nodes": Route("core", Scheduler.nodes, "nodes"),
    "node_types": Route("core", Scheduler.node_types, "node_types"),
    "adopt": Route("core", Scheduler.adopt),
    "journal": Route("core", Scheduler.journal),
    "explain": Route("core", Scheduler.explain, "decision"),
    "logs": Route("core", Scheduler.logs, "text"),
    "drain": Route("core", Scheduler.drain),
    "warm": Route("core", Scheduler.warm),
    "up": Route("core.backend", Backend.warm_up, "nodes"),
    "add_policy": Route("core.policies", PolicyCatalog.add),
    "check_policies": Route("", Service.check_policies, "problems"),
    "doctor": Route("", Service.diagnose, "findings"),
    "events": Route("core.events", EventStream.recent, "events"),
    "leave": Route("", Service.leave),
    "end_all": Route("", Service.end_all),
}


async def serve(
    folder: Path,
    spec: BackendSpec,
    settings: Settings,
    own_settings: Section,
    options: Mapping[str, Any] = NO_OPTIONS,
) -> None:
    """Run the scheduler of `folder` until it is idle or asked to leave.

    Raises `AlreadyRunning`, `RoostError`. `options` are those of the client that has started it.
    """
    if len(os.fsencode(folder / "socket")) > _LONGEST_SOCKET:  # before an agent is started
        raise ConfigError(
            f"{folder / 'socket'} is longer than the {_LONGEST_SOCKET} bytes that a socket's path may have: "
            "set ROOST_RUNTIME_DIR to a shorter path."
        )
    with hold(folder) as held:
        agents = Agents()
        spec.check_packages()
        backend = create_backend(spec, settings, own_settings, folder, agents)
        name = scheduler_name(folder)
        scheduler = Scheduler(backend, agents, settings, name=name, folder=folder)
        service = Service(scheduler, settings, spec, options, agents)
        scheduler.events.listen(log_decision)
        serving = contextlib.ExitStack()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, service.left.set)
        try:
            if settings.metrics:
                service.metrics_problem = serving.enter_context(start_metrics(scheduler, spec, settings))
            await scheduler.open()
            path = folder / "socket"
            path.unlink(missing_ok=True)  # left by a killed service: this process holds the folder
            announce(folder, {"endpoint": service.server.start(f"ipc://{path}"), **service.greet()})
            service.watch_folder(held)
            await service.left.wait()
        finally:
            await service.close()
            serving.close()
            await scheduler.close()


def create_backend(
    spec: BackendSpec, settings: Settings, own_settings: Section, folder: Path, agents: Agents
) -> Backend:
    """Return the backend of the service in this folder. Its cluster library is imported here and nowhere else."""
    context = BackendContext(
        agents=agents,
        folder=folder,
        restart_grace_s=settings.restart_grace_s,
        idle_exit_s=settings.idle_exit_s,
    )
    backend: Backend = load_object(spec.create, f"the backend {spec.name}")(own_settings, context)
    return backend


def start_metrics(
    scheduler: Scheduler, spec: BackendSpec, settings: Settings
) -> contextlib.AbstractContextManager[str]:
    """Count the scheduler's events, and return the context that serves the metrics. Raises `ConfigError`."""
    module = _import_metrics()
    metrics = module.Metrics(scheduler.count_kernels, scheduler.snapshot, by_user=settings.metrics_by_user)
    scheduler.events.listen(metrics)
    served: contextlib.AbstractContextManager[str] = module.serve_metrics(metrics, settings.metrics)
    return served


def _import_metrics() -> Any:
    try:
        from . import metrics
    except ImportError:
        raise ConfigError(
            "c.RoostScheduler.metrics needs prometheus-client: install roost[metrics]."
        ) from None
    return metrics


def scheduler_name(folder: Path) -> str:
    """Return the name that marks this scheduler's leases, among those of all schedulers on the cluster.

    A file in the folder keeps the name for later services. In a new container of JupyterHub, the user's URL prefix
    gives the same name again.
    """
    file = folder / _NAME_FILE
    known = take_json(file, log, str)
    if known and len(known) <= MOST_CHARACTERS and known.isprintable():
        return str(known)
    prefix = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "")
    place = f"hub {prefix}" if prefix else f"{socket.gethostname()} {os.getuid()} {folder}"
    name = f"{folder.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    write_private_json(file, name)
    return name


def main(arguments: list[str]) -> int:
    """Run the service and return its exit code.

    The environment has its options (`service_folder.OPTIONS_VARIABLE`).
    """
    parser = argparse.ArgumentParser(prog="roost.scheduler.service.server", description=__doc__)
    parser.add_argument("--backend", default=DEFAULT_BACKEND)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args(arguments)
    settle_home()
    loosen()
    garbage.set_up()
    set_up_log()
    try:
        options = json.loads(os.environ.pop(OPTIONS_VARIABLE, "") or "{}")
        settings, own_settings = load_settings(given.backend, options)
        asyncio.run(serve(given.folder, get_spec(given.backend), settings, own_settings, options))
    except (DaemonError, FolderError, RoostError, RpcError) as problem:
        announce_failure(type(problem).__name__, str(problem))
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
