"""The private members of Jupyter's objects that roost uses. No other file of `provisioners/` touches one.

Each function names its member, and the releases whose source was read for it. `make long` tests the functions with
the oldest and the newest release that roost allows. `OVERRIDDEN` lists the private methods that roost's subclasses
replace, and `change_class` makes an existing object one of these subclasses.

This module imports no Jupyter Server, because the provisioner works without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jupyter_client.manager import KernelManager

if TYPE_CHECKING:  # an application without restarts has not loaded it
    from jupyter_client.restarter import KernelRestarter

OVERRIDDEN: Mapping[str, tuple[str, ...]] = {
    # jupyter_client 8.10: KernelManager calls these to start and stop, also in a restart.
    "QuickManager": (
        "_async_restart_kernel",
        "_async_shutdown_kernel",
        "_async_start_kernel",
        "_create_connected_socket",
    ),
    "_PromptManager": ("_async_shutdown_kernel", "_async_start_kernel"),
    # jupyter_client 8.10: the client of a kernel calls it, and Jupyter Server's manager behind a gateway lacks it.
    "GatewayKernelManager": ("_async_is_alive",),
    # jupyter_server 2.17–2.21: `start_kernel` awaits the first, and `shutdown_all` calls the second for each kernel.
    "PendingStarts": ("_async_shutdown_kernel", "_finish_kernel_start"),
}
"""The private methods of Jupyter's classes that roost's classes override, by class of roost."""


def change_class(configurable: Any, kind: type[Any]) -> None:
    """Make an existing object of Jupyter an object of `kind`, a subclass of its class without traits of its own.

    traitlets 5.14–5.16: an object has no slots, and finds its methods in its class.
    """
    configurable.__class__ = kind


# One kernel's manager, of jupyter_client


def read_launch_arguments(km: KernelManager) -> Mapping[str, Any]:
    """Return the arguments of the kernel's latest start; empty before the first one.

    jupyter_client 8.10: `KernelManager._launch_args`.
    """
    return km._launch_args or {}


@contextmanager
def added_launch_arguments(km: KernelManager, **added: Any) -> Iterator[None]:
    """Add arguments to those of the latest start. `format_kernel_cmd` in this block replaces `{name}` by their values.

    jupyter_client 8.10: `KernelManager._launch_args`.
    """
    usual = km._launch_args
    km._launch_args = {**(usual or {}), **added}
    try:
        yield
    finally:
        km._launch_args = usual


def record_random_ports(km: KernelManager) -> None:
    """Record which ports a restart with new ports may choose again: all ports of 0, and none if ports are cached.

    jupyter_client caches the ports of TCP by default. Its own provisioner then keeps them in every restart. Its
    restarter asks for new ports in a kernel's first 10 s, but no client would follow the kernel there.

    jupyter_client 8.10: `ConnectionFileMixin._record_random_port_names` and `_random_port_names`.
    """
    if km.cache_ports and km._random_port_names is None:
        km._random_port_names = []
    km._record_random_port_names()


def make_url(km: KernelManager, channel: str) -> str:
    """Return the address of one of the kernel's channels, as ZeroMQ expects it.

    jupyter_client 8.10: `ConnectionFileMixin._make_url`.
    """
    return km._make_url(channel)


def open_sockets_by(km: Any, make: Callable[..., Any]) -> None:
    """Let `make` open the sockets of a manager or client from now on. Jupyter Server gives a manager's to websockets.

    It gets the usual method's arguments. May be repeated: the first `make` stays.

    jupyter_client 8.10: `ConnectionFileMixin._create_connected_socket`.
    """
    if "_create_connected_socket" not in vars(km):
        km._create_connected_socket = make


def open_socket(km: Any, *arguments: Any, **options: Any) -> Any:
    """Open a socket as the class of a manager or client does.

    jupyter_client 8.10: `ConnectionFileMixin._create_connected_socket`.
    """
    return type(km)._create_connected_socket(km, *arguments, **options)


def declares_curve(km: KernelManager) -> bool:
    """True if the kernelspec says that the kernel can use CURVE.

    jupyter_client 8.10: `KernelManager._kernel_supports_curve_encryption`.
    """
    return km._kernel_supports_curve_encryption()


def drop_unread_requests(km: KernelManager | None) -> None:
    """Drop the requests on the control channel that the kernel has not read, when the channel closes.

    Otherwise a request that a dead kernel did not read ends its successor on the same port.

    jupyter_client 8.10: `KernelManager._control_socket`.
    """
    control = getattr(km, "_control_socket", None)
    if control is not None:
        control.linger = 0


def renew_ready(km: KernelManager) -> None:
    """Give the manager a new `ready` at the beginning of a start or shutdown, unless it is the first start.

    jupyter_client 8.10: `KernelManager._ready` and `_attempted_start`, as in `in_pending_state`.
    """
    if km._attempted_start or not km._ready:
        km._ready = asyncio.get_running_loop().create_future()


def find_restarter(km: KernelManager) -> KernelRestarter | None:
    """Return the object that restarts the kernel when it dies; None if nothing does.

    jupyter_client 8.10: `KernelManager._restarter`.
    """
    restarter: KernelRestarter | None = km._restarter
    return restarter


def use_up_restarts(restarter: KernelRestarter) -> None:
    """Let the restarter report the next death of its kernel as *dead*, instead of a restart.

    jupyter_client 8.10: `KernelRestarter._restarting` and `_restart_count`.
    """
    restarter._restarting, restarter._restart_count = True, restarter.restart_limit


def makes_own_context(client: Any) -> bool:
    """True if a client has made its ZeroMQ context itself. A program may give it another one.

    jupyter_client 8.10: `KernelClient._created_context`. The client makes its context when that is first used.
    """
    return client.context is not None and bool(client._created_context)


# The manager of many kernels, of jupyter_client and Jupyter Server


def list_kernel(kernels: Any, kernel_id: str, km: KernelManager) -> None:
    """List a kernel that has not started yet.

    jupyter_client 8.10: `MultiKernelManager._kernels`.
    """
    kernels._kernels[kernel_id] = km


def find_pending(kernels: Any, kernel_id: str) -> Any:
    """Return the task that starts or stops a kernel; None if there is none, or if `kernels` manages no kernels.

    jupyter_client 8.10: `MultiKernelManager._pending_kernels`.
    """
    return getattr(kernels, "_pending_kernels", {}).get(kernel_id)


def forget_pending(kernels: Any, kernel_id: str) -> None:
    """Forget the task that starts or stops a kernel. A shutdown of all kernels waits for each such task.

    jupyter_client 8.10: `MultiKernelManager._pending_kernels`. A failed start stays there.
    """
    kernels._pending_kernels.pop(kernel_id, None)


def begin_connections(kernels: Any, kernel_id: str) -> None:
    """Begin to count the connections of a kernel's clients, unless they are counted already.

    jupyter_server 2.17–2.21: `MappingKernelManager._kernel_connections`.
    """
    kernels._kernel_connections.setdefault(kernel_id, 0)


def reset_connections(kernels: Any, kernel_id: str) -> None:
    """Count the connections of a kernel's clients from 0 again.

    jupyter_server 2.17–2.21: `MappingKernelManager._kernel_connections`.
    """
    kernels._kernel_connections[kernel_id] = 0


def forget_connections(kernels: Any, kernel_id: str) -> None:
    """Stop counting the connections of a kernel's clients.

    jupyter_server 2.17–2.21: `MappingKernelManager._kernel_connections`.
    """
    kernels._kernel_connections.pop(kernel_id, None)


def record_ports(kernels: Any, kernel_id: str) -> None:
    """Record a kernel's ports. Jupyter Server then does not replace the sockets that it has opened for the kernel.

    Do nothing if `kernels` records no ports.

    jupyter_server 2.17–2.21: `MappingKernelManager._kernel_ports`.
    """
    if kernel_id in getattr(kernels, "_kernel_ports", {}):
        kernels._kernel_ports[kernel_id] = kernels.get_kernel(kernel_id).ports


def is_buffered_for(kernels: Any, kernel_id: str, session_key: str) -> bool:
    """True if Jupyter Server keeps a kernel's messages for the client of this session.

    jupyter_server 2.17–2.21: `MappingKernelManager._kernel_buffers`.
    """
    buffered = kernels._kernel_buffers.get(kernel_id)
    return bool(buffered) and buffered["session_key"] == session_key


# The websocket of a client, of Jupyter Server


def answer_info(km: KernelManager, answer: Any) -> None:
    """Take the future `answer` for the kernel's info. Websockets then do not ask for it, which a busy kernel delays.

    jupyter_server 2.17–2.21: `_kernel_info_future`, which `request_kernel_info` of a websocket sets.
    """
    km._kernel_info_future = answer  # type: ignore[attr-defined]


async def register_session(connection: Any) -> None:
    """Note that a client has opened its session on this connection. An older connection of that session closes.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._register_session`.
    """
    await connection._register_session()


def forget_session(connection: Any) -> None:
    """Forget the session of a client, unless it is open on another connection.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._open_sessions`.
    """
    if connection._open_sessions.get(connection.session_key) is connection.websocket_handler:
        del connection._open_sessions[connection.session_key]


def list_open_sessions(connections: type[Any]) -> Collection[str]:
    """Return the keys of all sessions that are open on connections of a class.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._open_sessions`.
    """
    sessions: Mapping[str, object] = connections._open_sessions
    return sessions.keys()


def has_info(connection: Any) -> bool:
    """True if this connection knows the kernel's info, or has given up.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._kernel_info_future`.
    """
    return bool(connection._kernel_info_future.done())


def give_up_info(connection: Any) -> None:
    """Give up the request for the kernel's info. Other connections wait for the answer, too.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._kernel_info_future`.
    """
    if not has_info(connection):
        connection._kernel_info_future.set_result({})


def hide_traceback(connection: Any, channel: str, message: dict[str, Any], parts: list[bytes]) -> None:
    """Replace the traceback in a kernel's message in place, if the server does not allow tracebacks.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._on_error`.
    """
    connection._on_error(channel, message, parts)


def serialize_for_client(connection: Any, message: dict[str, Any], channel: str) -> str | bytes:
    """Return a kernel's message as Jupyter Server sends it to clients of the older protocol.

    jupyter_server 2.17–2.21: `ZMQChannelsWebsocketConnection._reserialize_reply`.
    """
    written: str | bytes = connection._reserialize_reply(message, channel=channel)
    return written


def read_responses(client: Any) -> None:
    """Read what a gateway sends to a kernel's client, until its websocket closes. Blocks.

    jupyter_server 2.17–2.21: `GatewayKernelClient._route_responses`.
    """
    client._route_responses()


def mark_token_authenticated(handler: Any) -> None:
    """Note that a request has proved itself where it comes from. Jupyter Server then asks it for no cookie.

    jupyter_server 2.17–2.21: `_token_authenticated`, which `IdentityProvider.is_token_authenticated` reads.
    """
    handler._token_authenticated = True


# The server itself


def add_to_cleanup(serverapp: Any, before: Callable[[], None], after: Callable[[], Awaitable[None]]) -> None:
    """Call `before` when the server begins to stop, and `after` once its kernels are shut down.

    The server ends if its kernels cannot be shut down, too: Jupyter's event loop would go on after an error. A second
    signal waits for the same end.

    jupyter_server 2.17–2.21: `ServerApp._cleanup`, after which `ServerApp._stop` stops the event loop.
    """
    clean_up = serverapp._cleanup
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        before()
        try:
            await clean_up()
        except Exception:
            serverapp.log.exception("The server ends, but not everything in it could be shut down:")
        await after()

    async def end_once() -> None:
        if not ending:
            ending.append(asyncio.ensure_future(end()))
        await asyncio.wait(ending)

    serverapp._cleanup = end_once
