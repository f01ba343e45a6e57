"""A kernel that another application has started: `roost.attach`."""

from __future__ import annotations

import math
import queue
import signal
import time
import uuid
from typing import Any

import zmq
from jupyter_client.blocking.client import BlockingKernelClient

from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.client import Client, connect
from roost.scheduler.errors import BackendUnavailable, LaunchTimeout, UnknownKernel
from roost.scheduler.messages import Connection, Kernel

from .execution import Result, add_output, build_result
from .kernel_connection import accept_odd_messages, find_context, to_jupyter
from .launch_end import LaunchEnd, check_lives
from .other_worlds import find_elsewhere_blocking
from .request_options import read_seconds

_ANSWER_S = 20.0


class AttachedKernel:
    """A kernel of another application. It stays with that application: `close` ends only this connection."""

    def __init__(self, service: Client, kernel: Kernel) -> None:
        self._service = service
        self._kernel = kernel
        self._clients: list[BlockingKernelClient] = []
        self._own: BlockingKernelClient | None = None
        """The client of `execute`, one of `_clients`."""
        self._answered = ""
        """The launch that has answered `_own`."""

    @property
    def id(self) -> str:
        """The kernel's id, as in `roost kernels`."""
        return self._kernel.id

    @property
    def node_id(self) -> str:
        """The node on which the kernel runs."""
        return self._kernel.node_id

    @property
    def connection(self) -> Connection:
        """The kernel's addresses, ports and keys."""
        assert self._kernel.connection is not None
        return self._kernel.connection

    def execute(self, code: str, *, timeout_s: float | None = None, check: bool = False) -> Result:
        """Execute code after all earlier requests to the kernel, and return the result.

        The result has the error that the code raised, if any; with `check`, this method raises that error.
        Raises `TimeoutError` after `timeout_s`; the code then goes on in the kernel. Raises `KernelDied` if the kernel
        has ended, or if it ends or is restarted before the code has ended.
        """
        if timeout_s is not None:
            read_seconds("timeout_s", timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with LaunchEnd(self._service, self.id) as ending:
            if self._own is None:
                self._own = self.client()
            elif self._answered != ending.launch_id:
                _wait_until_subscribed(self._own)
            self._answered = ending.launch_id
            try:
                result = _execute(self._own, code, ending, deadline)
            except TimeoutError:
                raise TimeoutError(f"The code did not end within {timeout_s} s. It goes on.") from None
        if check and result.error is not None:
            raise result.error
        return result

    def client(self) -> BlockingKernelClient:
        """Return a new jupyter_client that is connected to the kernel. `close` closes it.

        Raises `KernelDied` if the kernel has ended.
        """
        check_lives(self._service.kernel(self.id).result())
        client = BlockingKernelClient(context=find_context(zmq.Context))
        client.load_connection_info(to_jupyter(self.connection))
        client.session.session = uuid.uuid4().hex
        accept_odd_messages(client)
        client.start_channels(hb=False)
        try:
            _wait_until_subscribed(client)
        except BaseException:
            client.stop_channels()
            raise
        self._clients.append(client)
        return client

    def interrupt(self) -> None:
        """Interrupt the code that the kernel executes, as its kernelspec says. Another application may have sent it."""
        if self.connection.interrupt_mode == "message":
            client = self._own = self._own or self.client()
            client.control_channel.send(client.session.msg("interrupt_request", content={}))
        else:
            self._service.signal(self.id, signal.SIGINT).result()

    def close(self) -> None:
        """Close the connections. The kernel goes on. May be repeated."""
        self._own = None
        while self._clients:
            self._clients.pop().stop_channels()

    def __enter__(self) -> AttachedKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(kernel_id: str, backend: str = DEFAULT_BACKEND, **backend_options: Any) -> AttachedKernel:
    """Attach to a kernel of another application, such as a notebook's:
    `roost.attach(kernel_id).execute("x")`.

    `backend` and `backend_options` are those of `roost.connect`. The kernel must run. Raises `UnknownKernel`,
    `KernelDied` if the kernel has ended, and `BackendUnavailable` if nobody can connect with it yet.
    """
    service = connect(backend, **backend_options)
    try:
        kernel = service.kernel(kernel_id).result()
    except UnknownKernel:
        other = find_elsewhere_blocking(service, kernel_id)
        if other is None:
            raise
        service, kernel = other, other.kernel(kernel_id).result()
    check_lives(kernel)
    if kernel.connection is None:
        raise BackendUnavailable(
            f"Kernel {kernel_id} is {kernel.state}: there is nothing to connect with yet."
        )
    return AttachedKernel(service, kernel)


def _wait_until_subscribed(client: BlockingKernelClient) -> None:
    """Wait until the client receives what the kernel publishes on IOPub. Raises `LaunchTimeout`.

    The requests go through the control channel, because the kernel answers there also while a cell runs.
    """
    deadline = time.monotonic() + _ANSWER_S
    asked = set()
    while time.monotonic() < deadline:
        message = client.session.msg("kernel_info_request")
        asked.add(message["header"]["msg_id"])
        client.control_channel.send(message)
        try:
            while client.get_iopub_msg(timeout=0.2)["parent_header"].get("msg_id") not in asked:
                pass
        except queue.Empty:
            continue
        return
    raise LaunchTimeout(f"The kernel did not answer within {_ANSWER_S:g} s.")


def _execute(client: BlockingKernelClient, code: str, ending: LaunchEnd, deadline: float | None) -> Result:
    """Execute code and return its result. Raises `KernelDied` at the end of the launch, and `TimeoutError`."""
    outputs: list[dict[str, Any]] = []
    reply: dict[str, Any] | None = None
    is_idle = False
    iopub, shell = client.iopub_channel, client.shell_channel
    poller = zmq.Poller()
    for source in (iopub.socket, shell.socket, ending.fileno()):
        poller.register(source, zmq.POLLIN)
    request_id = client.execute(code, allow_stdin=False, stop_on_error=False)
    while reply is None or not is_idle:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        ready = dict(poller.poll(None if left_s is None else math.ceil(left_s * 1000)))
        if iopub.socket in ready:
            message = iopub.get_msg(timeout=0)
            if message["parent_header"].get("msg_id") == request_id:
                add_output(outputs, message)
                is_status = message["header"]["msg_type"] == "status"
                is_idle |= is_status and message["content"]["execution_state"] == "idle"
        elif shell.socket in ready:
            message = shell.get_msg(timeout=0)
            if message["parent_header"].get("msg_id") == request_id:
                reply = message["content"]
        elif ready:  # after the messages that have arrived
            raise ending.explain()
    return build_result(outputs, reply)
