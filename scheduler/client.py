"""The one client of the scheduler service: from any thread, any event loop, with or without one.

    client = roost.connect("local")
    kernels = client.kernels().result()      # from a thread without an event loop
    kernels = await client.kernels()         # from any event loop

One background thread per process and service runs the connection. Every call may be repeated (its ids say that it
is the same), so that a service that dies or is replaced under way costs a moment and nothing else: the connection is
made anew, with a new service if none lives, and the call is repeated until its own deadline.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from roost.launchers import rpc
from roost.launchers.daemon import DaemonError, ensure, is_alive
from roost.launchers.version import VERSION, as_numbers
from roost.launchers.wire import decode, encode

from .errors import BackendUnavailable, RoostError, UnknownKernel, from_remote
from .operations import PROTOCOL, service_command, service_folder
from .owner import this_owner
from .values import Event, Kernel, KernelRequest, StartKernel

__all__ = ["Call", "Client", "connect"]

log = logging.getLogger(__name__)

CALL_DEADLINE_S = 20.0
"""How long a call is repeated, besides what it is allowed to wait for (a start its queue, a stop its grace)."""
_START_SERVICE_S = 30.0
_GREETING_S = 5.0
_RETRY_S = (0.02, 1.0)
"""First and longest pause before a connection is tried again."""
_REJOIN_S = 0.3
"""Pause before a lost connection is made anew for listeners alone: whoever replaces the service comes first."""

T = TypeVar("T")


class Call(Generic[T]):
    """A call under way: `await` it in any event loop, or ask for its `result` in a thread without one."""

    __slots__ = ("_future", "_thread")

    def __init__(self, future: concurrent.futures.Future[T], thread: threading.Thread | None = None) -> None:
        self._future = future
        self._thread = thread

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Wait for the answer; raises what the call raises, and `TimeoutError` (the call goes on) after `timeout`."""
        if threading.current_thread() is self._thread and not self._future.done():
            raise RuntimeError(
                "a listener may not wait for a call: it runs on the thread that would answer it"
            )
        return self._future.result(timeout)

    def cancel(self) -> bool:
        """Give up on the answer; a start is taken back."""
        return self._future.cancel()

    def add_done_callback(self, callback: Callable[[Call[T]], object]) -> None:
        """Call `callback` with this call once it is done, on the client's thread (or at once)."""
        self._future.add_done_callback(lambda _: callback(self))


class Client:
    """Calls to the scheduler service of one backend; get it from `connect`.

    All methods return at once and may be called from any thread. Their calls raise the `RoostError` that the service
    answered with, or `BackendUnavailable` when no service could be reached or started in time.
    """

    def __init__(self, backend: str = "local", options: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.options = dict(options or {})
        self._listeners: list[Callable[[Event], None]] = []
        self._forget_thread()

    def start(self, start: StartKernel) -> Call[Kernel]:
        """Start a kernel, or start it again in its lease. Cancelling the call takes the start back."""
        return self._run(self._start(start))

    def stop(self, kernel_id: str, grace_s: float = 5.0) -> Call[Kernel]:
        """End a kernel, or its start, and give its lease back; raises `UnknownKernel`."""
        arguments = {"kernel_id": kernel_id, "grace_s": float(grace_s)}
        return self._run(self._kernel("stop", arguments, CALL_DEADLINE_S + grace_s))

    def cancel(self, kernel_id: str, launch_id: str = "") -> Call[None]:
        """Take a start back; its caller gets `Cancelled`."""
        return self._run(self._nothing("cancel", {"kernel_id": kernel_id, "launch_id": launch_id}))

    def signal(self, kernel_id: str, signum: int) -> Call[None]:
        """Send a signal to the kernel's process group."""
        return self._run(self._nothing("signal", {"kernel_id": kernel_id, "signum": int(signum)}))

    def kernels(self) -> Call[list[Kernel]]:
        """All kernels, also queued ones, without their connections."""
        return self._run(self._listed("kernels", {}, "kernels", Kernel))

    def kernel(self, kernel_id: str) -> Call[Kernel]:
        """One kernel, with its connection; raises `UnknownKernel`."""
        return self._run(self._kernel("kernel", {"kernel_id": kernel_id}, CALL_DEADLINE_S))

    def nodes(self) -> Call[list[dict[str, Any]]]:
        """The nodes, with what is promised and used of each."""
        return self._run(self._field("nodes", {}, "nodes"))

    def explain(self, request: KernelRequest) -> Call[dict[str, Any]]:
        """Where such a kernel would go now, and why nowhere else: `placement.Decision.to_dict()`."""
        return self._run(self._field("explain", {"request": request, "owner": this_owner()}, "decision"))

    def logs(self, kernel_id: str, tail_bytes: int = 65_536) -> Call[str]:
        """The last of what a kernel wrote outside Jupyter's channels."""
        return self._run(self._field("logs", {"kernel_id": kernel_id, "tail_bytes": tail_bytes}, "text"))

    def drain(self, node_id: str, on: bool = True) -> Call[None]:
        """Stop (or resume) placing kernels on a node."""
        return self._run(self._nothing("drain", {"node_id": node_id, "on": on}))

    def warm(self, argv: Sequence[str], env: Mapping[str, str]) -> Call[None]:
        """Prepare a fast start for kernels of this `argv` in this environment."""
        return self._run(self._nothing("warm", {"argv": list(argv), "env": dict(env)}, _START_SERVICE_S * 2))

    def doctor(self) -> Call[list[dict[str, Any]]]:
        """What the service finds wrong, missing or well."""
        return self._run(self._field("doctor", {}, "findings"))

    def events(self, limit: int = 100) -> Call[list[Event]]:
        """The most recent events, oldest first."""
        return self._run(self._listed("events", {"limit": limit}, "events", Event))

    def listen(self, callback: Callable[[Event], None]) -> Callable[[], None]:
        """Have `callback` called with every event, on the client's thread; returns what ends that.

        An event of kind `resync` means that others may have been missed: read again what you need. While someone
        listens, a lost connection is made anew at once.
        """
        self._listeners.append(callback)
        self._run(self._connected(time.monotonic() + CALL_DEADLINE_S)).add_done_callback(_ignore_outcome)

        def stop() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return stop

    def close(self) -> None:
        """Forget the listeners and close the connection; the next call makes a new one. For tests: exits need it not."""
        self._listeners.clear()
        with self._starting:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            asyncio.run_coroutine_threadsafe(self._leave(), loop).result(_GREETING_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_GREETING_S)
            loop.close()

    # The thread

    def _forget_thread(self) -> None:
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._rpc: rpc.Client | None = None
        self._joining: asyncio.Task[rpc.Client] | None = None
        self._rejoining: asyncio.Task[None] | None = None
        self._has_joined = False

    def _after_fork(self) -> None:
        """In a forked child: the thread is gone, and its loop and sockets are the parent's."""
        _of_parents.append((self._loop, self._rpc, self._joining, self._rejoining))
        self._forget_thread()

    def _run(self, work: Coroutine[Any, Any, T]) -> Call[T]:
        loop = self._loop or self._start_thread()
        return Call(asyncio.run_coroutine_threadsafe(work, loop), self._thread)

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=loop.run_forever, name=f"roost-{self.backend}", daemon=True
                )
                self._thread.start()
                self._loop = loop
            return self._loop

    # The connection; everything from here on runs on the thread's loop

    async def _connected(self, deadline: float) -> rpc.Client:
        """The live connection, made if need be by one task for all that wait; raises `BackendUnavailable`."""
        if self._rpc is not None and not self._rpc.is_lost:
            return self._rpc
        if self._joining is None or self._joining.done():
            self._joining = asyncio.ensure_future(self._join())
            self._joining.add_done_callback(_retrieve)
        try:
            return await asyncio.wait_for(
                asyncio.shield(self._joining), max(0.0, deadline - time.monotonic())
            )
        except asyncio.TimeoutError:
            raise BackendUnavailable(
                f"The scheduler service ({self.backend}) did not answer in time; `roost doctor` says more."
            ) from None

    async def _join(self) -> rpc.Client:
        """Connect, greet, subscribe; start the service if none lives, replace it if it is older than this client."""
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None
        deadline = time.monotonic() + _START_SERVICE_S
        pause_s = _RETRY_S[0]
        while True:
            try:
                connection = await self._greeted(await _in_thread(self._ensure_service))
                if connection is not None:
                    break
            except (rpc.RpcError, asyncio.TimeoutError) as problem:
                if time.monotonic() > deadline:
                    raise BackendUnavailable(
                        f"The scheduler service ({self.backend}) does not answer ({problem}); `roost doctor` says more."
                    ) from None
                log.debug("the scheduler service does not answer yet: %s", problem)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_S[1])
        self._rpc = connection
        if self._has_joined:
            self._tell(Event(kind="resync", at=time.time()))
        self._has_joined = True
        return connection

    async def _greeted(self, endpoint: str) -> rpc.Client | None:
        """A connection ready for calls, or None after an older service was asked to leave."""
        connection = rpc.Client(endpoint, on_event=self._on_event, on_lost=self._on_lost)
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
        """Endpoint of the living service; blocks. One that is about to end is left to the next attempt."""
        try:
            folder = service_folder(self.backend, self.options)
            argv, env = service_command(self.backend, folder, self.options)
            try:
                ensure(folder, argv, env=env, deadline_s=_START_SERVICE_S)
            except DaemonError as problem:
                if is_alive(folder):
                    raise rpc.Disconnected(str(problem)) from None
                raise
        except (DaemonError, OSError) as problem:
            raise BackendUnavailable(f"No scheduler service ({self.backend}): {problem}") from None
        return f"ipc://{folder}/socket"

    async def _is_current(self, connection: rpc.Client) -> bool:
        """Whether this service can be used; one that is older has been asked to leave."""
        hello = {"protocol": PROTOCOL, "version": VERSION}
        greeting = await connection.call("hello", hello, timeout_s=_GREETING_S)
        protocol, version = int(greeting["protocol"]), str(greeting["version"])
        if protocol == PROTOCOL and as_numbers(version) >= as_numbers(VERSION):
            return True
        if protocol > PROTOCOL:
            raise BackendUnavailable(
                f"The running scheduler service is roost {version}, too new for roost {VERSION}: upgrade this."
            )
        log.info("scheduler service pid=%s is roost %s: asked to leave", greeting.get("pid"), version)
        try:
            await connection.call("leave", {}, timeout_s=_GREETING_S)
        except rpc.Disconnected:
            pass
        return False

    async def _leave(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None

    def _on_lost(self) -> None:
        if self._listeners and (self._rejoining is None or self._rejoining.done()):
            self._rejoining = asyncio.ensure_future(self._rejoin())

    async def _rejoin(self) -> None:
        """Make the connection anew for those who listen, for as long as somebody does."""
        pause_s = _REJOIN_S
        while self._listeners:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 30.0)
            try:
                await self._connected(time.monotonic() + 2 * _START_SERVICE_S)
                return
            except BackendUnavailable as problem:
                log.warning("%s", problem)

    def _on_event(self, message: Mapping[str, Any]) -> None:
        if self._listeners:
            self._tell(decode(Event, message))

    def _tell(self, event: Event) -> None:
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on an event of kind %s", event.kind)

    # Calls

    async def _call(self, op: str, arguments: Mapping[str, Any], deadline_s: float = CALL_DEADLINE_S) -> Any:
        """Call, and repeat the call on a new connection for as long as the deadline allows."""
        deadline = time.monotonic() + deadline_s
        payload = encode(arguments)
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s + _RETRY_S[0], _RETRY_S[1])
            connection = await self._connected(deadline)
            try:
                return await connection.call(op, payload, timeout_s=max(0.01, deadline - time.monotonic()))
            except rpc.RemoteError as problem:
                raise from_remote(problem) from None
            except (rpc.Disconnected, rpc.Unauthorized):
                log.debug("connection lost during %s: calling again", op)
            except asyncio.TimeoutError:
                raise BackendUnavailable(
                    f"The scheduler service ({self.backend}) did not answer `{op}` within {deadline_s:g} s."
                ) from None

    async def _nothing(
        self, op: str, arguments: Mapping[str, Any], deadline_s: float = CALL_DEADLINE_S
    ) -> None:
        await self._call(op, arguments, deadline_s)

    async def _field(self, op: str, arguments: Mapping[str, Any], name: str) -> Any:
        return (await self._call(op, arguments))[name]

    async def _listed(self, op: str, arguments: Mapping[str, Any], name: str, kind: type[T]) -> list[T]:
        return [decode(kind, item) for item in (await self._call(op, arguments))[name]]

    async def _kernel(self, op: str, arguments: Mapping[str, Any], deadline_s: float) -> Kernel:
        return decode(Kernel, await self._call(op, arguments, deadline_s))

    async def _start(self, start: StartKernel) -> Kernel:
        try:
            return await self._kernel("start", encode(start), start.launch_timeout_s + CALL_DEADLINE_S)
        except (asyncio.CancelledError, BackendUnavailable):
            _keep(asyncio.ensure_future(self._take_back(start)))
            raise

    async def _take_back(self, start: StartKernel) -> None:
        try:
            await self._call("cancel", {"kernel_id": start.kernel_id, "launch_id": start.launch_id})
        except UnknownKernel:
            pass
        except RoostError as problem:
            log.warning("kernel=%s its start could not be taken back: %s", start.kernel_id, problem)


def connect(backend: str = "local", **options: Any) -> Client:
    """The client of this process for `backend`; nothing is started or connected before its first call.

    `options` are settings of the service (for `local`: `cpus`, `memory_bytes`, `gpus`, `gpu_model`, `config_file`):
    other options mean another service. The same arguments give the same client.
    """
    options = {name: value for name, value in options.items() if value is not None}
    key = backend, json.dumps(options, sort_keys=True, default=str), os.environ.get("ROOST_RUNTIME_DIR", "")
    with _clients_lock:
        return _clients.setdefault(key, Client(backend, options))


_clients: dict[tuple[str, str, str], Client] = {}
_clients_lock = threading.Lock()
_of_parents: list[object] = []
"""Loops and connections of the process that this one was forked from: never closed, for closing would reach into it."""
_tasks: set[asyncio.Future[Any]] = set()


def _keep(task: asyncio.Future[Any]) -> None:
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _after_fork() -> None:
    global _clients_lock
    _clients_lock = threading.Lock()
    _of_parents.extend(_tasks)
    _tasks.clear()
    for client in _clients.values():
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork)


async def _in_thread(work: Callable[[], T]) -> T:
    """`asyncio.to_thread` in a daemon thread, which an interpreter that wants to exit does not wait for."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as problem:  # noqa: BLE001 - it is raised where the result is awaited
            future.set_exception(problem)

    threading.Thread(target=run, name="roost-start", daemon=True).start()
    return await asyncio.wrap_future(future)


def _ignore_outcome(call: Call[Any]) -> None:
    if not call._future.cancelled():
        call._future.exception()


def _retrieve(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
