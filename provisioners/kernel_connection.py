"""How a kernel is reached: from the manager's traits to what the agent is asked for, and back."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import is_local_ip

from roost.scheduler.client.client import user_folder
from roost.scheduler.errors import ConfigError
from roost.scheduler.service.messages import PORT_NAMES, Connection

DEFAULT_IPC_IP = "kernel-ipc"
"""jupyter_client's address where none is set: in whatever folder the application runs."""
_LONGEST_IPC_IP = (103 if sys.platform == "darwin" else 107) - len("-5")
"""What fits into a Unix socket's address, less the number of the port."""


def choose_address(km: Any, kernel_id: str, *, is_local: bool) -> None:
    """Make the manager's address one that the kernel can have, and note which of its ports are random."""
    if km.transport == "tcp" and is_local and not km.ip.startswith("127.") and not is_local_ip(km.ip):
        raise ConfigError(
            f"Kernels of the local backend cannot listen on {km.ip}: it is no address of this machine."
        )
    if km.transport == "ipc" and not is_local:
        raise ConfigError(
            "Kernels on other machines cannot be reached by transport = 'ipc', which is sockets of this one: "
            "leave c.KernelManager.transport at 'tcp'."
        )
    if km.transport == "ipc" and km.ip == DEFAULT_IPC_IP:
        km.ip = str(user_folder("ipc") / hashlib.sha256(kernel_id.encode()).hexdigest()[:12])
    if km.transport == "ipc" and len(os.fsencode(os.path.abspath(km.ip))) > _LONGEST_IPC_IP:
        raise ConfigError(f"The path of the kernel's sockets is too long: {km.ip}; set a shorter one.")
    km._record_random_port_names()


def format_command(km: Any, extra_arguments: list[str]) -> list[str]:
    """The command with `{connection_file}` left in: the kernel's own file is its agent's, and not the manager's."""
    launch_args = km._launch_args
    km._launch_args = {**(launch_args or {}), "connection_file": "{connection_file}"}
    try:
        return cast("list[str]", km.format_kernel_cmd(extra_arguments=extra_arguments))
    finally:
        km._launch_args = launch_args


def build_connection(km: Any, jupyter_session: str) -> Connection:
    """Keys and ports as the manager has them; a port of 0, as at a first start, is the kernel's choice."""
    ports = {name: getattr(km, name) for name in PORT_NAMES}
    if km.transport == "ipc":  # numbers of socket files: the lowest that are free, as jupyter_client does
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
    )


def to_jupyter(connection: Connection) -> KernelConnectionInfo:
    """The same as jupyter_client compares it with its own: the key in bytes, no curve keys rather than None."""
    info: dict[str, Any] = {name: getattr(connection, name) for name in PORT_NAMES}
    info.update(
        ip=connection.ip, transport=connection.transport, key=connection.key.encode(),
        signature_scheme=connection.signature_scheme, kernel_name=connection.kernel_name,
    )  # fmt: skip
    if connection.curve_publickey is not None and connection.curve_secretkey is not None:
        info.update(curve_publickey=connection.curve_publickey, curve_secretkey=connection.curve_secretkey)
    return cast(KernelConnectionInfo, info)
