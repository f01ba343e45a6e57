"""Translates a kernel's connection between jupyter_client's manager and roost."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import is_local_ip
from jupyter_client.session import Session
from jupyter_core.paths import jupyter_runtime_dir

from roost.scheduler.client.client import user_folder
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import PORT_NAMES, Connection, read_content

from .jupyter_internals import (
    added_launch_arguments,
    change_class,
    makes_own_context,
    open_socket,
    open_sockets_by,
    record_random_ports,
)

DEFAULT_IPC_IP = "kernel-ipc"
"""jupyter_client's default address: socket files in the application's working directory."""
_LONGEST_IPC_IP = (103 if sys.platform == "darwin" else 107) - len("-5")
"""How long a Unix socket's path may be, without the port number."""

_RECONNECT_MS = 5
"""A socket's first pause before it connects again. ZeroMQ's default of 100 ms is longer than a restart."""
_LONGEST_RECONNECT_MS = 100
"""The longest such pause. The pauses double up to this time, so that sockets of a dead kernel take little CPU."""

_MOST_WAITING = 10_000
"""How many messages may wait in a socket for its program. A kernel can display ZeroMQ's default of 1,000 in a second,
and loses what comes then. Without a bound, a socket that nobody reads would grow without end.
"""
_MOST_SOCKETS = 20_000
"""How many sockets a process may have for its kernel objects: four for each client."""

C = TypeVar("C", bound="zmq.Context[Any]")
_contexts: dict[tuple[int, type], zmq.Context[Any]] = {}
_lock = threading.Lock()


def set_up_sockets(context: zmq.Context[Any]) -> None:
    """Let all sockets that `context` creates from now on connect again soon, and hold much for a late program."""
    context.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    context.setsockopt(zmq.RECONNECT_IVL_MAX, _LONGEST_RECONNECT_MS)
    context.setsockopt(zmq.RCVHWM, _MOST_WAITING)


@contextmanager
def quick_sockets(context: zmq.Context[Any]) -> Iterator[None]:
    """Set up the sockets that `context` creates in this block. Leave the context's options as they were."""
    usual = context.sockopts
    context.sockopts = dict(usual)
    set_up_sockets(context)
    try:
        yield
    finally:
        context.sockopts = usual


def hurry_clients(km: Any) -> None:
    """Let the clients and sockets that a manager makes from now on connect again soon after a restart. May be repeated.

    A forked kernel serves its ports long before ZeroMQ's default pause has passed. If a client's shell socket is
    connected first, the output of the next cell is lost. A context that the program has given stays as it is.
    """
    for name in ("client", "blocking_client"):
        if name not in vars(km):
            setattr(km, name, _override_maker(weakref.ref(km), name))
    open_sockets_by(km, _override_opening(weakref.ref(km)))


def _override_opening(manager: weakref.ref[Any]) -> Callable[..., Any]:
    def open_quickly(*arguments: Any, **options: Any) -> Any:
        km: Any = manager()
        with quick_sockets(km.context):
            return open_socket(km, *arguments, **options)

    return open_quickly


def _override_maker(manager: weakref.ref[Any], name: str) -> Callable[..., Any]:
    def make(*arguments: Any, **options: Any) -> Any:
        km: Any = manager()
        client = getattr(type(km), name)(km, *arguments, **options)
        client.start_channels = _override_start(weakref.ref(client))
        return client

    return make


def _override_start(reference: weakref.ref[Any]) -> Callable[..., Any]:
    def start_channels(*arguments: Any, **options: Any) -> Any:
        client: Any = reference()
        if makes_own_context(client):
            set_up_sockets(client.context)
        return type(client).start_channels(client, *arguments, **options)

    return start_channels


def find_context(kind: type[C]) -> C:
    """Return this process's context of a class, for the clients of kernel objects.

    It is never terminated. A client's own context is terminated when Python collects the client, and would then wait
    without end for sockets that nobody has closed.
    """
    key = os.getpid(), kind
    with _lock:
        if key not in _contexts:
            _contexts[key] = context = kind()
            context.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
            set_up_sockets(context)
        return cast(C, _contexts[key])


class _LenientSession(Session):
    """A session that reads messages of any kernel. jupyter_client expects all fields, each with its type.

    A field that is null or missing is empty. A message that cannot be read is one of no type and for no request, which
    clients ignore.
    """

    def deserialize(self, msg_list: list[Any], content: bool = True, copy: bool = True) -> dict[str, Any]:
        try:
            message = super().deserialize(msg_list, content, copy)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return _build_empty_message()
        if not isinstance(message["msg_type"], str) or not isinstance(message["msg_id"], str):
            return _build_empty_message()
        for name in ("parent_header", "metadata", "content"):
            if not isinstance(message[name], dict) and (name != "content" or content):
                message[name] = {}
        if not isinstance(message["parent_header"].get("msg_id", ""), str):
            del message["parent_header"]["msg_id"]
        if content:
            message["content"].update(read_content(message["msg_type"], message["content"]))
        return message


def _build_empty_message() -> dict[str, Any]:
    header = {"msg_id": "", "msg_type": ""}
    empty: dict[str, Any] = {name: {} for name in ("parent_header", "metadata", "content")}
    return {**header, **empty, "header": header, "buffers": []}


def accept_odd_messages(client: Any) -> None:
    """Let a client read the messages of all kernels.

    Kernels such as xeus-python send null as `parent_header`, others leave out fields, and a program in a kernel can
    publish anything.
    """
    change_class(client.session, _LenientSession)


def choose_address(km: Any, kernel_id: str, *, is_local: bool) -> None:
    """Check the address of the kernel manager `km`, or choose a folder for its sockets; raises `ConfigError`.

    Also have jupyter_client record which ports are random.
    """
    if km.transport == "tcp" and is_local and not km.ip.startswith("127.") and not is_local_ip(km.ip):
        raise ConfigError(f"Kernels cannot listen on {km.ip}: this machine does not have that address.")
    if km.transport == "ipc" and not is_local:
        raise ConfigError("Kernels on other machines need c.KernelManager.transport = 'tcp'.")
    if km.transport == "ipc" and km.ip == DEFAULT_IPC_IP:
        km.ip = str(user_folder("ipc") / hashlib.sha256(kernel_id.encode()).hexdigest()[:12])
    if km.transport == "ipc" and len(os.fsencode(os.path.abspath(km.ip))) > _LONGEST_IPC_IP:
        raise ConfigError(f"The path of the kernel's sockets is too long: {km.ip}; set a shorter one.")
    record_random_ports(km)


def choose_connection_folder() -> str:
    """Return the folder for the connection files of executed kernels: below Jupyter's own, which containers show.

    It is empty for a user without a home.
    """
    try:
        return os.path.abspath(os.path.join(jupyter_runtime_dir(), "roost"))
    except RuntimeError:
        return ""


def format_command(km: Any, extra_arguments: list[str]) -> list[str]:
    """Return the kernel's command. `{connection_file}` stays in it, because the agent writes that file."""
    with added_launch_arguments(km, connection_file="{connection_file}"):
        return cast("list[str]", km.format_kernel_cmd(extra_arguments=extra_arguments))


def build_connection(km: Any, jupyter_session: str) -> Connection:
    """Return the manager's keys and ports. A port of 0, as at a first start, means that the kernel chooses one."""
    ports = {name: getattr(km, name) for name in PORT_NAMES}
    if km.transport == "ipc":
        # Ports are numbers of socket files. Take the lowest free ones, as jupyter_client does.
        free = (number for number in range(1, 1_000) if not os.path.exists(f"{km.ip}-{number}"))
        ports = {name: port or next(free) for name, port in ports.items()}
    has_keys = km.curve_publickey is not None and km.curve_secretkey is not None
    return Connection(
        ip=os.path.abspath(km.ip) if km.transport == "ipc" else km.ip,
        transport=km.transport,
        **ports,
        key=km.session.key.decode(),
        signature_scheme=km.session.signature_scheme,
        kernel_name=km.kernel_name,
        jupyter_session=jupyter_session,
        curve_publickey=km.curve_publickey.decode() if has_keys else None,
        curve_secretkey=km.curve_secretkey.decode() if has_keys else None,
        interrupt_mode="message" if km.kernel_spec.interrupt_mode == "message" else None,
    )


def to_jupyter(connection: Connection) -> KernelConnectionInfo:
    """Return the connection as jupyter_client expects it: the key as bytes, and no entry for missing CURVE keys."""
    names = (*PORT_NAMES, "ip", "transport", "signature_scheme", "kernel_name")
    info: dict[str, Any] = {name: getattr(connection, name) for name in names}
    info["key"] = connection.key.encode()
    if connection.curve_publickey is not None and connection.curve_secretkey is not None:
        info.update(curve_publickey=connection.curve_publickey, curve_secretkey=connection.curve_secretkey)
    return cast(KernelConnectionInfo, info)


def load_connection(km: Any, info: KernelConnectionInfo) -> None:
    """Have a manager use the ports and keys of a kernel that it has not started."""
    for name in PORT_NAMES:
        setattr(km, name, 0)  # `load_connection_info` leaves a port alone that is set
    km.curve_publickey = km.curve_secretkey = None
    km.load_connection_info(info)
