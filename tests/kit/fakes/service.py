"""A fake scheduler service for tests. It answers all operations, but starts no kernels.

It runs in its own thread, on the socket that `connect` uses, in a folder that looks like a live daemon's.
A test scripts its answers (`answers[op] = callable or exception`) and pushes events.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from roost.launchers.protocol.messages import PORT_NAMES, PROTOCOL, KernelProcess
from roost.launchers.protocol.rpc_server import Operation, RpcServer
from roost.scheduler.client import service_folder
from roost.scheduler.errors import RoostError, UnknownKernel
from roost.scheduler.messages import DEFAULT_LAUNCH_TIMEOUT_S, Event, Kernel, StartKernel
from roost.scheduler.service.server import OPERATIONS
from roost.testing.deadlines import allow_s


class FakeService:
    """A service whose kernels are only values. It records every call in `calls` as (op, arguments)."""

    def __init__(self, folder: Path, version: str = "") -> None:
        self.folder = folder
        self.version = version
        self.launch_timeout_s = DEFAULT_LAUNCH_TIMEOUT_S
        self.node_start_timeout_s = 0.0
        self.options: dict[str, Any] = {}
        self.protocol = service_folder.PROTOCOL
        self.agent_protocol: int | None = PROTOCOL
        """None: a service that does not name it."""
        self.calls: list[tuple[str, Any]] = []
        self.kernels: dict[str, Kernel] = {}
        self.answers: dict[str, Callable[[Any], Any] | BaseException] = {}
        self.left = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: RpcServer | None = None
        self._ports = iter(range(40_000, 60_000))

    def serve(self) -> None:
        self._run(self._serve())

    def close(self) -> None:
        if self._server is not None:
            self._run(self._server.close())
            self._server = None

    def end(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(allow_s(60))
        self._loop.close()

    def called(self, op: str) -> list[Any]:
        return [arguments for name, arguments in self.calls if name == op]

    def push(self, event: Event) -> None:
        async def publish() -> None:
            assert self._server is not None
            self._server.publish(dataclasses.asdict(event))

        self._run(publish())

    def exit(self, kernel_id: str, code: int | None, reason: str = "", log_tail: str = "") -> None:
        """Let a kernel end by itself, and push the event."""
        kernel = exited(self.kernels[kernel_id], code, reason, log_tail)
        self.kernels[kernel_id] = kernel
        self.push(Event(kind="exited", at=time.time(), kernel=kernel.without_keys()))

    async def _serve(self) -> None:
        server = RpcServer(
            {op: Operation(self._handler(op, each.method), each.message) for op, each in OPERATIONS.items()}
        )
        (self.folder / "socket").unlink(missing_ok=True)
        server.start(f"ipc://{self.folder}/socket")
        self._server = server

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(allow_s(10))

    def _handler(self, op: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        async def handle(*message: Any, **given: Any) -> Any:
            arguments = message[0] if message else SimpleNamespace(**given)
            self.calls.append((op, arguments))
            try:
                answer = self.answers.get(op, getattr(self, f"_{op}", lambda _: {}))
                if isinstance(answer, BaseException):
                    raise answer
                result = answer(arguments)
                return await result if asyncio.iscoroutine(result) else result
            except RoostError as problem:
                raise problem.to_remote() from None

        return handle

    def _hello(self, _: Any) -> dict[str, Any]:
        from roost import __version__

        agents = {} if self.agent_protocol is None else {"agent_protocol": self.agent_protocol}
        return {
            **agents, "protocol": self.protocol, "version": self.version or __version__,
            "pid": os.getpid(), "backend": "local", "address": "", "launch_timeout_s": self.launch_timeout_s,
            "node_start_timeout_s": self.node_start_timeout_s, "options": self.options,
        }  # fmt: skip

    def _leave(self, _: Any) -> dict[str, Any]:
        self.left.set()
        return {}

    def _start(self, start: StartKernel) -> Kernel:
        ports = {name: getattr(start.connection, name) or next(self._ports) for name in PORT_NAMES}
        kernel = Kernel(
            id=start.kernel_id, launch_id=start.launch_id, state="running", owner=start.owner, request=start.request,
            node_id="here", process=KernelProcess(
                kernel_id=start.kernel_id, launch_id=start.launch_id, lease_id="", pid=1,
                process_started_at=0.0, how="forked", launched_at=0.0,
                connection=dataclasses.replace(start.connection, **ports),
            ),
        )  # fmt: skip
        self.kernels[start.kernel_id] = kernel
        return kernel

    def _known(self, arguments: Any) -> Kernel:
        if arguments.kernel_id not in self.kernels:
            raise UnknownKernel(f"There is no kernel {arguments.kernel_id}.")
        return self.kernels[arguments.kernel_id]

    def _kernel(self, arguments: Any) -> Kernel:
        return self._known(arguments)

    def _adopt(self, arguments: Any) -> Kernel:
        kernel = self._known(arguments)
        self.kernels[kernel.id] = dataclasses.replace(kernel, owner=arguments.owner)
        return self.kernels[kernel.id]

    def _kernels(self, _: Any) -> dict[str, Any]:
        kernels = [kernel.without_keys() for kernel in self.kernels.values()]
        return {"kernels": kernels, "more": False, "unreachable": []}

    def _signal(self, arguments: Any) -> dict[str, Any]:
        self._known(arguments)
        if arguments.signum in (9, 15):
            self._loop.call_soon(self._exit_soon, arguments.kernel_id, -arguments.signum)
        return {}

    def _exit_soon(self, kernel_id: str, code: int) -> None:
        kernel = exited(self.kernels[kernel_id], code).without_keys()
        self.kernels[kernel_id] = kernel
        assert self._server is not None
        self._server.publish(dataclasses.asdict(Event(kind="exited", at=0.0, kernel=kernel)))

    def _stop(self, arguments: Any) -> Kernel:
        kernel = self._known(arguments)
        del self.kernels[arguments.kernel_id]
        return exited(kernel, 0)

    def _nodes(self, _: Any) -> dict[str, Any]:
        return {"nodes": [{"id": "here"}]}

    def _explain(self, _: Any) -> dict[str, Any]:
        return {"decision": {"placement": None, "is_never": False, "soonest": None}}

    def _logs(self, _: Any) -> dict[str, Any]:
        return {"text": "said"}

    def _check_policies(self, asked: Any) -> dict[str, Any]:
        return {"problems": dict.fromkeys(asked.names, "is not known")}

    def _doctor(self, _: Any) -> dict[str, Any]:
        return {"findings": []}

    def _events(self, _: Any) -> dict[str, Any]:
        return {"events": [dataclasses.asdict(Event(kind="nodes", at=1.0))]}


@contextmanager
def fake_service(version: str = "", backend: str = "local", address: str = "") -> Iterator[FakeService]:
    """Run a fake service of a backend, by default `local`, in this test's ROOST_RUNTIME_DIR.

    With an `address`, it is the service of clients that give this option.
    """
    folder = service_folder.service_folder(backend, {"address": address} if address else {})
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_held(folder, backend, address))
        service = FakeService(folder, version)
        stack.callback(service.end)
        service.serve()
        yield service


@contextmanager
def _held(folder: Path, backend: str, address: str) -> Iterator[None]:
    """Hold the daemon's lock as `daemon.hold` does, but without its signal handlers."""
    import fcntl

    options = {"address": address} if address else {}
    facts = {"pid": os.getpid(), "backend": backend, "address": address, "options": options}
    (folder / "ready.json").write_text(json.dumps(facts))
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(descriptor)
        (folder / "ready.json").unlink(missing_ok=True)


def exited(kernel: Kernel, code: int | None, reason: str = "", log_tail: str = "") -> Kernel:
    """Return the kernel as it is after its process has ended."""
    assert kernel.process is not None
    process = dataclasses.replace(
        kernel.process, is_running=False, exit_code=code, reason=reason, log_tail=log_tail
    )
    return dataclasses.replace(kernel, state="exited", process=process, reason=reason)
