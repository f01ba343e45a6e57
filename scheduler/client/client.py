"""The client of the scheduler service, for any thread and any event loop.

    client = roost.connect("local")
    kernels = client.kernels().result()      # from a thread without an event loop
    kernels = await client.kernels()         # from any event loop

One background thread per process and service runs the connection. Every call may be repeated, because its ids show
that it is the same call. If the service ends during a call, the client connects again, starts a service if none runs,
and repeats the call until the call's deadline.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar, cast

from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import private_folder, runtime_dir
from roost.launchers.daemon.tasks import backoff, spawn
from roost.launchers.protocol import rpc
from roost.launchers.protocol.process_context import UNKNOWN, read_context
from roost.launchers.protocol.rpc_client import RpcClient
from roost.launchers.protocol.shared_values import VERSION, JournalPage, Owner
from roost.placement.model import Request
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    ManagerAway,
    RoostError,
    UnknownKernel,
    from_remote,
)
from roost.scheduler.messages import (
    DEFAULT_LAUNCH_TIMEOUT_S,
    EVENT_KINDS,
    SERVICE_TIMEOUT,
    Event,
    Finding,
    Kernel,
    ServiceFacts,
    StartKernel,
)
from roost.scheduler.policies.pickling import PYTHON, pack_policy

from .advice import Advice
from .call import Call
from .running_services import read_kernels
from .service_connection import RETRY_S, ServiceConnection, no_answer
from .service_folder import NAME_VARIABLE, PROTOCOL, find_worlds, with_address
from .this_owner import this_owner

__all__ = ["Call", "Client", "KernelList", "connect", "user_folder"]

log = logging.getLogger(__name__)

CALL_DEADLINE_S = 20.0
"""How long a call is repeated. A start's timeout and a stop's grace are added to this."""
_WARM_S = 100.0
"""How long a call waits for agents to start or to warm up."""
_NO_SERVICE_S = (1.0, 5.0)
"""First and longest pause before a call is repeated for which no service can start."""
_CANCEL_AGAIN_S = 3.0
"""The pause before a start is cancelled again that a silent service may still begin."""
_CLOSE_S = 5.0
_MISSED = "connected to the service again: events before this may be missing"

T = TypeVar("T")


class KernelList(list[Kernel]):
    """A list of kernels. `unreachable` names agents that do not answer: kernels that are not listed may live there."""

    def __init__(self, kernels: Iterable[Kernel], unreachable: Sequence[str]) -> None:
        super().__init__(kernels)
        self.unreachable = unreachable


class Client:
    """A client of one backend's scheduler service; `connect` returns it.

    All methods except `close` return at once. All may be called from any thread. A call raises the
    `RoostError` of the service's answer, or `BackendUnavailable` if no service answered or could be started
    in time.
    """

    def __init__(
        self,
        backend: str = DEFAULT_BACKEND,
        options: Mapping[str, Any] | None = None,
        *,
        reach: Callable[[], str] | None = None,
    ) -> None:
        self._reach = reach
        self.backend = backend
        self.options = dict(options or {})
        self.advice = Advice(backend, self.options)
        """Completes the commands in texts about this scheduler. The texts of all answers are complete."""
        self._listeners: dict[str, list[Callable[[Event], None]]] = {}
        """The listeners by the kernel id that they were registered for; the empty id means all kernels."""
        self._policies: dict[str, Mapping[str, Any]] = {}
        self._sent_policies: dict[str, tuple[str, RpcClient]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._begin()

    def start(self, start: StartKernel) -> Call[Kernel]:
        """Start a kernel, or restart it in its lease. Cancelling the call cancels the start."""
        if not isinstance(start, StartKernel):
            raise ConfigError(f"start takes a StartKernel, and got {start!r:.60}.")
        return self._run(self._start(start))

    def stop(self, kernel_id: str, grace_s: float = 5.0, *, repeat_s: float | None = None) -> Call[Kernel]:
        """Stop a kernel, or cancel its start, and give its lease back; raises `UnknownKernel`.

        With `repeat_s`, the call is repeated that long if the service does not answer, or none can start.
        """
        arguments = {"kernel_id": kernel_id, "grace_s": float(grace_s)}
        deadline_s = grace_s + (CALL_DEADLINE_S if repeat_s is None else repeat_s)

        async def stop() -> Kernel:
            return self._read_kernel(
                await self._call("stop", arguments, deadline_s, is_patient=repeat_s is not None)
            )

        return self._run(stop())

    def cancel(self, kernel_id: str, launch_id: str = "") -> Call[None]:
        """Cancel a start: its caller gets `Cancelled`.

        With a `launch_id`, the kernel of that launch is ended if it runs already.
        """
        return self._ask("cancel", _to_nothing, kernel_id=kernel_id, launch_id=launch_id)

    def signal(self, kernel_id: str, signum: int) -> Call[None]:
        """Send a signal to the kernel's process group."""
        return self._ask("signal", _to_nothing, kernel_id=kernel_id, signum=int(signum))

    def kernels(self, *, with_use: bool = False) -> Call[KernelList]:
        """Return all kernels, including queued ones, without their connections.

        `with_use` adds the CPU and memory that each kernel uses. The service asks all agents for them.
        """

        async def ask() -> KernelList:
            found, unreachable = await read_kernels(
                lambda arguments: self._call("kernels", arguments, CALL_DEADLINE_S), with_use=with_use
            )
            return KernelList(map(self._read_kernel, found), unreachable)

        return self._run(ask())

    def count_elsewhere(self) -> Call[int]:
        """Return how many kernels this user has on the cluster through other services, of any machine."""
        return self._ask("elsewhere", itemgetter("kernels"), user=this_owner().user)

    def kernel(self, kernel_id: str, *, with_use: bool = False) -> Call[Kernel]:
        """Return one kernel with its connection; raises `UnknownKernel`. `with_use` is as in `kernels`."""
        also = {"with_use": True} if with_use else {}  # older services do not know it
        return self._ask("kernel", self._read_kernel, kernel_id=kernel_id, **also)

    def adopt(self, kernel_id: str, owner: Owner | None = None, *, takes_away: bool = True) -> Call[Kernel]:
        """Adopt a kernel or a start of another application, and return it; raises `UnknownKernel`.

        This application becomes the holder, unless a Jupyter Server that lives holds the kernel: that server
        stays the holder, and another server gets `HeldElsewhere`. Without `takes_away`, every application that lives
        stays the holder. The returned kernel has no connection if it does not run yet, or if its agent is unreachable
        (state `unknown`).
        """
        arguments = {"kernel_id": kernel_id, "owner": owner or this_owner(), "takes_away": takes_away}
        return self._ask("adopt", self._read_kernel, **arguments)

    def journal(
        self,
        kernel_id: str,
        *,
        after: int = 0,
        offset: int = 0,
        session: str = "",
        since_s: float | None = None,
    ) -> Call[JournalPage]:
        """Return a page of a kernel's journal: the messages on IOPub with a number above `after`.

        For the next page, pass the page's `read` as `after` and the `end` of its last entry as `offset`: a long message
        may continue there. With a `session`, only messages for requests of that session are returned. With `since_s`,
        only those for requests that still run or have ended in the last `since_s` seconds.
        """
        choice = {"after": after, "offset": offset, "session": session, "since_s": since_s}
        return self._ask("journal", _to_page, kernel_id=kernel_id, **choice)

    def service(self) -> Call[ServiceFacts]:
        """Return the service's `version`, `pid`, `backend` and cluster `address` (empty if it has none)."""
        return self._ask("hello", _to_facts, protocol=PROTOCOL, version=VERSION)

    def nodes(self) -> Call[list[dict[str, Any]]]:
        """Return the nodes with their promised and used resources, each as `Node.to_dict()`."""
        return self._ask("nodes", itemgetter("nodes"))

    def node_types(self) -> Call[list[dict[str, Any]]]:
        """Return the kinds of nodes that the cluster could start, each as `NodeType.to_dict()`."""
        return self._ask("node_types", itemgetter("node_types"))

    def explain(self, request: Request, kernel_name: str = "") -> Call[dict[str, Any]]:
        """Return the decision that a request would get now, as `Decision.to_dict()` with warnings and remedies.

        `kernel_name` is the name of the kernelspec, which may have users of its own; empty: none.
        """
        if not isinstance(request, Request):
            raise ConfigError(f"explain takes a Request, and got {request!r:.60}.")
        also = {"kernel_name": kernel_name} if kernel_name else {}  # older services do not know it
        return self._ask("explain", self._read("decision"), request=request, owner=this_owner(), **also)

    def logs(self, kernel_id: str, tail_bytes: int = 65_536) -> Call[str]:
        """Return the end of a kernel's log (its stdout and stderr)."""
        return self._ask("logs", itemgetter("text"), kernel_id=kernel_id, tail_bytes=tail_bytes)

    def drain(self, node_id: str, on: bool = True) -> Call[None]:
        """Drain a node: place no more kernels on it. With `on=False`, place kernels on it again."""
        return self._ask("drain", _to_nothing, node_id=node_id, on=on)

    def warm(self, argv: Sequence[str], env: Mapping[str, str], request: Request | None = None) -> Call[None]:
        """Warm a zygote for kernels of this `argv` and `env`, on the node where such a kernel would be placed now.

        On this machine, they get this thread's context. On another one, `env` is added to the node's own environment.
        `request` is what they ask for; None: nothing. Raises `NoNodeNow` and `NoNodeEver`, as their start would.
        """
        context = read_context() if get_spec(self.backend).runs_on_this_machine else UNKNOWN
        also = {} if request is None else {"request": request}  # older services do not know it
        return self._ask(
            "warm", _to_nothing, _WARM_S, argv=list(argv), env=dict(env), context=context, **also
        )

    def up(self) -> Call[int]:
        """Start the agents of all nodes, and return their number. Later starts do not wait for an agent."""
        return self._ask("up", itemgetter("nodes"), _WARM_S)

    def add_policy(self, name: str, policy: object) -> Call[None]:
        """Add a policy under `name`: an object, a class, or a function of a `Workload`.

        The service runs the policy's code and keeps it until the service ends. The client sends it again to a new
        service, before the first call that needs it. Raises `ConfigError` if the policy cannot be pickled, or if the
        service refuses it: then the client keeps an earlier policy of that name.
        """
        pickled, token = pack_policy(name, policy), uuid.uuid4().hex
        given = {"name": name, "pickled": pickled, "python": PYTHON, "token": token}

        async def send() -> None:
            before = self._policies.get(name)
            self._policies[name] = given
            try:
                await self._call("add_policy", given, CALL_DEADLINE_S)
            except ConfigError:
                if before is not None:
                    self._policies[name] = before
                else:
                    self._policies.pop(name, None)
                raise

        return self._run(send())

    def check_policies(self, names: Sequence[str]) -> Call[dict[str, str]]:
        """Return the policies among `names` that a kernel cannot use, each with the reason."""
        return self._ask("check_policies", self._read("problems"), names=list(names))

    def doctor(self, fix: bool = False) -> Call[list[Finding]]:
        """Return the service's findings: errors, warnings, and checks that passed.

        With `fix`, the service first repairs disagreements between kernels, leases and processes. Each repair
        is a finding of the level `fixed`. Without `fix`, a finding with the key `fix` can be repaired.
        """
        return self._ask("doctor", self._read("findings"), **({"fix": True} if fix else {}))

    def events(self, limit: int = 100) -> Call[list[Event]]:
        """Return the latest events, oldest first."""
        return self._ask("events", lambda answer: self._read_events(answer["events"]), limit=limit)

    def listen(self, callback: Callable[[Event], None], *, kernel_id: str = "") -> Callable[[], None]:
        """Call `callback` with every event, on the client's thread.

        Return a function that removes the callback. With `kernel_id`, the callback gets only the events of
        this kernel, and events that are about no kernel.

        An event of kind `resync` means that events may have been missed: read again what you need. While
        there is a listener, the client connects again by itself after it has lost the connection.
        """
        with self._changing:
            self._listeners.setdefault(kernel_id, []).append(callback)
        self._run(self._connection.connect(time.monotonic() + CALL_DEADLINE_S))

        def stop() -> None:
            with self._changing:
                listeners = self._listeners.get(kernel_id, [])
                if callback in listeners:
                    listeners.remove(callback)
                if not listeners:
                    self._listeners.pop(kernel_id, None)

        return stop

    def is_running(self) -> bool:
        """True if the service runs now, or if it is another user's. This does not start it."""
        return self._reach is not None or read_announcement(self._connection.folder) is not None

    @property
    def is_of_another_user(self) -> bool:
        """True if the service, its agents and its kernels run as another user than this process."""
        return self._reach is not None

    def may_have_kernels(self) -> bool:
        """True unless this machine has neither the service nor an agent. This starts neither."""
        if self.is_running() or not get_spec(self.backend).runs_on_this_machine:
            return True
        return any(read_announcement(folder) is not None for folder in runtime_dir().glob("agent*"))

    def service_folder(self) -> Path:
        """Return the folder of the service, which may not run. Blocks for milliseconds."""
        return self._connection.folder

    @property
    def world(self) -> str:
        """The world of the service (`daemon/world.py`), or the name in its place; empty for a cluster's."""
        return self.service_folder().name.partition(".")[2]

    def find_worlds(self) -> list[str]:
        """Return the other worlds of this user in which a service of this backend runs."""
        return find_worlds(self.service_folder())

    def close(self) -> None:
        """Remove the listeners and close the connection. The next call connects again.

        A program need not call this before it exits.
        """
        self._listeners.clear()
        with self._changing:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(_CLOSE_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSE_S)
            loop.close()

    # The thread

    def _begin(self) -> None:
        self._changing = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: set[str] = set()
        """The launch ids of the starts under way that a service has had."""
        self._connection = ServiceConnection(
            self.backend,
            self.options,
            on_event=self._on_event,
            on_rejoined=lambda: self._notify(Event(kind="resync", at=time.time(), detail=_MISSED)),
            is_wanted=lambda: bool(self._listeners),
            reach=self._reach,
        )

    def _after_fork(self) -> None:
        """Reset the client in a forked child, as thread, loop and sockets belong to the parent."""
        _of_parent.append((self._loop, self._connection, self._tasks))
        self._loop = self._thread = None
        self._begin()

    def _run(self, work: Coroutine[Any, Any, T]) -> Call[T]:
        loop = self._loop or self._start_thread()
        return Call(asyncio.run_coroutine_threadsafe(work, loop), self._thread)

    def _ask(
        self, op: str, read: Callable[[Any], T], deadline_s: float = CALL_DEADLINE_S, /, **arguments: Any
    ) -> Call[T]:
        """Call the operation `op` of the service, and return what `read` makes of its answer."""

        async def ask() -> T:
            return read(await self._call(op, arguments, deadline_s))

        return self._run(ask())

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        with self._changing:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                name = f"roost-{self.backend}"
                self._thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
                self._thread.start()
                self._loop = loop
            return self._loop

    # On the thread's loop

    async def _close(self) -> None:
        await self._connection.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # A call that lost its connection may have begun to open another one meanwhile.
            await self._connection.close()

    def _on_event(self, message: Mapping[str, Any]) -> None:
        if self._find_listeners((message.get("kernel") or {}).get("id")):
            for event in self._read_events([message]):
                self._notify(event)

    def _find_listeners(self, kernel_id: str | None) -> list[Callable[[Event], None]]:
        """Return the listeners that want events of this kernel, or all listeners if `kernel_id` is None."""
        ids = list(self._listeners) if kernel_id is None else ("", kernel_id)
        return [listener for each in ids for listener in self._listeners.get(each, ())]

    def _notify(self, event: Event) -> None:
        for listener in self._find_listeners(event.kernel.id if event.kernel else None):
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on an event of kind %s", event.kind)

    # Calls

    async def _call(
        self, op: str, arguments: Mapping[str, Any], deadline_s: float, *, is_patient: bool = False
    ) -> Any:
        """Call the service. If the connection is lost, repeat the call on a new one until the deadline.

        A call that `is_patient` is also repeated while no service can start. So is a start that a service has had.
        """
        try:
            return await self._repeat(op, arguments, deadline_s, is_patient)
        except RoostError as problem:
            self.advice.complete_error(problem)
            raise

    async def _repeat(
        self, op: str, arguments: Mapping[str, Any], deadline_s: float, is_patient: bool
    ) -> Any:
        deadline = time.monotonic() + deadline_s
        pauses, long_pauses = backoff(*RETRY_S), backoff(*_NO_SERVICE_S)
        asked_at = 0.0
        while True:
            try:
                connection = await self._connection.connect(deadline)
            except (ManagerAway, ConfigError) as problem:
                pause_s = next(long_pauses)
                if not (asked_at or is_patient) or time.monotonic() > deadline - pause_s:
                    if asked_at:  # the kernel may run by now, so the start is cancelled
                        raise BackendUnavailable(problem.user_message) from None
                    raise
                if pause_s == _NO_SERVICE_S[0]:
                    kernel_id = arguments["kernel_id"]
                    log.warning(
                        "kernel=%s its %s is repeated until a service can start: %s", kernel_id, op, problem
                    )
                await asyncio.sleep(pause_s)
                continue
            if arguments.get("launch_timeout_s") == SERVICE_TIMEOUT:
                arguments = {**arguments, "launch_timeout_s": self._connection.launch_timeout_s}
                more_s = self._connection.launch_timeout_s - DEFAULT_LAUNCH_TIMEOUT_S
                deadline, deadline_s = deadline + more_s, deadline_s + more_s
            if op == "start" and not asked_at:
                asked_at = time.time()
                self._asked.add(arguments["launch_id"])
                deadline += self._connection.node_start_timeout_s
                deadline_s += self._connection.node_start_timeout_s
            try:
                await self._send_policy(connection, arguments.get("request"), deadline)
                return await connection.call(op, arguments, timeout_s=max(0.01, deadline - time.monotonic()))
            except rpc.RemoteError as problem:
                raise from_remote(problem) from None
            except (rpc.Disconnected, rpc.Unauthorized):
                log.debug("connection lost during %s: calling again", op)
                if op == "start":
                    arguments = {**arguments, "asked_at": asked_at}
            except asyncio.TimeoutError:
                outcome = f"did not answer `{op}` within {deadline_s:g} s"
                raise no_answer(self.backend, self._connection.folder, outcome) from None
            await asyncio.sleep(next(pauses))

    async def _send_policy(self, connection: RpcClient, request: Request | None, deadline: float) -> None:
        """Send the request's policy if this client has added it, unless it was sent over this connection already."""
        given = self._policies.get(request.policy) if request is not None else None
        if given is not None and self._sent_policies.get(given["name"]) != (given["token"], connection):
            await connection.call("add_policy", given, timeout_s=max(0.01, deadline - time.monotonic()))
            self._sent_policies[given["name"]] = given["token"], connection

    def _read(self, key: str) -> Callable[[Any], Any]:
        """Return a function that reads a part of an answer and completes the commands in its texts."""
        return lambda answer: self.advice.complete_all(answer[key])

    def _read_kernel(self, answer: Any) -> Kernel:
        kernel = decode(Kernel, answer, ignore_unknown=True)
        if not (kernel.reason or kernel.waits_for):
            return kernel
        complete = self.advice.complete
        return replace(kernel, reason=complete(kernel.reason), waits_for=complete(kernel.waits_for))

    def _read_events(self, answers: Iterable[Any]) -> list[Event]:
        """Decode events. Leave out events of a kind that only a later version of roost knows."""
        events = [
            decode(Event, answer, ignore_unknown=True)
            for answer in answers
            if answer.get("kind") in EVENT_KINDS
        ]
        return [replace(event, detail=self.advice.complete(event.detail)) for event in events]

    async def _start(self, start: StartKernel) -> Kernel:
        try:
            # A service of an earlier version knows no repeated starts.
            arguments = {
                each.name: getattr(start, each.name) for each in fields(start) if each.name != "asked_at"
            }
            timeout_s = start.launch_timeout_s or DEFAULT_LAUNCH_TIMEOUT_S
            deadline_s = timeout_s + (start.queue_timeout_s or 0.0) + CALL_DEADLINE_S
            return self._read_kernel(await self._call("start", arguments, deadline_s))
        except (asyncio.CancelledError, BackendUnavailable):
            spawn(self._cancel_start(start, was_asked=start.launch_id in self._asked), self._tasks, log)
            raise
        finally:
            self._asked.discard(start.launch_id)

    async def _cancel_start(self, start: StartKernel, *, was_asked: bool) -> None:
        """Cancel a start. This is repeated while the service runs and does not answer, because it may begin it later.

        If a service has had the start, it is also repeated while none can start: the kernel may run by now.
        """
        arguments = {"kernel_id": start.kernel_id, "launch_id": start.launch_id}
        is_told, long_pauses = False, backoff(*_NO_SERVICE_S)
        while True:
            try:
                await self._call("cancel", arguments, CALL_DEADLINE_S)
                return
            except UnknownKernel:
                return
            except RoostError as problem:
                has_none = was_asked and isinstance(problem, (ConfigError, ManagerAway))
                is_silent = has_none or (isinstance(problem, BackendUnavailable) and self.is_running())
                if not is_told or not is_silent:
                    again = "; it is cancelled once the service answers" if is_silent else ""
                    log.warning(
                        "kernel=%s its start could not be cancelled%s: %s", start.kernel_id, again, problem
                    )
                if not is_silent:
                    return
                is_told = True
                await asyncio.sleep(next(long_pauses) if has_none else _CANCEL_AGAIN_S)


def _to_page(answer: Any) -> JournalPage:
    return decode(JournalPage, answer, ignore_unknown=True)


def _to_facts(answer: Any) -> ServiceFacts:
    return cast(ServiceFacts, answer)


def _to_nothing(_: object) -> None:
    return None


def connect(backend: str = DEFAULT_BACKEND, **options: Any) -> Client:
    """Return this process's client for `backend`. Its first call connects to the service, or starts it.

    `options` are settings of the service (for `local`: `cpus`, `memory`, `gpus`, `gpu_model`, `config_file`). An
    `address` selects the cluster, and each cluster has one service. An environment variable such as `RAY_ADDRESS` can
    give the address. The same arguments return the same client. Raises `ConfigError` for an unknown backend. The calls
    raise it if the service was started with other options.
    """
    given = with_address(backend, options)
    variables = (os.environ.get(name, "") for name in ("ROOST_RUNTIME_DIR", NAME_VARIABLE))
    key = backend, json.dumps(given, sort_keys=True, default=str), *variables
    with _clients_lock:
        if key not in _clients:
            _clients[key] = Client(backend, given)
        return _clients[key]


def user_folder(name: str) -> Path:
    """Return a private folder in the runtime folder, and create it if needed; raises `FolderError` (an `OSError`)."""
    return private_folder(runtime_dir() / name)


def disconnect() -> None:
    """Close all clients of this process. Tests call this before they stop the services."""
    with _clients_lock:
        clients = list(_clients.values())
        _clients.clear()
    for client in clients:
        client.close()


_clients: dict[tuple[str, ...], Client] = {}
_clients_lock = threading.Lock()
_of_parent: list[object] = []
"""Loops and connections of the parent of a fork. They are never closed, because that would disturb the parent."""


def _after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    for client in _clients.values():
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork)
