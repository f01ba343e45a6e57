"""Protects a kernel's channels from other users of the machine and the network.

TCP channels use CURVE keys. An ipykernel on this machine that is too old for CURVE gets sockets in a private folder
instead. A relay in front of the kernel would not help: others could read the channel behind the relay.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import zmq

from roost.scheduler.errors import ConfigError, LaunchError
from roost.scheduler.messages import Connection, is_loopback

from .jupyter_internals import declares_curve
from .kernel_connection import DEFAULT_IPC_IP

WISHES = ("auto", "never", "required")
_FIRST_IPYKERNEL = (7, 3)
"""The first release of ipykernel that reads CURVE keys from its connection file."""


def protect_channels(
    km: Any, argv: Sequence[str], wish: str, *, is_local: bool, requiring_backend: str = ""
) -> str:
    """Give `km` a key pair or a private folder. Return a warning if others can read the kernel's channels, else "".

    `wish` is one of `WISHES`. Jupyter's own option `transport_encryption` can require encryption too, and so can the
    backend, which is then named. Raises `ConfigError` if encryption is required but impossible.
    """
    check_wish(wish, requiring_backend)
    jupyters = str(getattr(km, "transport_encryption", "disabled")).lower()
    is_required = bool(requiring_backend) or "required" in (wish, jupyters)
    is_private = km.transport == "ipc" and jupyters == "disabled"  # a folder that no other user can enter
    if km.curve_publickey is not None or (not is_required and (wish == "never" or is_private)):
        return ""
    reason = _find_obstacle(km, argv, is_local=is_local)
    if not reason:
        km.curve_publickey, km.curve_secretkey = zmq.curve_keypair()
        return ""
    if requiring_backend:
        raise ConfigError(
            f"The backend {requiring_backend} starts no kernel without encryption, but {reason}."
        )
    if is_required:
        raise ConfigError(f"Encryption is required, but {reason}.")
    # Every ipykernel supports ipc.
    if is_local and _is_ipykernel(argv) and is_loopback(km.ip):
        km.transport, km.ip = "ipc", DEFAULT_IPC_IP
        return ""
    readers = f"Others on the {'machine' if is_local else 'network'} can read its output"
    prevention = "prevent that with c.KernelManager.transport = 'ipc', or " if is_local else ""
    return f"not encrypted: {reason}. {readers}: {prevention}accept it with encrypt = 'never'."


def check_channels(connection: Connection, *, is_local: bool) -> None:
    """Raise `LaunchError` unless these channels of another user's kernel are encrypted TCP, on this machine if local.

    Her service names them, and could name any socket that this process may open.
    """
    is_elsewhere = is_local and not is_loopback(connection.ip)
    if connection.transport != "tcp" or not connection.curve_publickey or is_elsewhere:
        raise LaunchError("The person's own service names channels that no gateway connects with.")


def check_wish(wish: str, requiring_backend: str) -> None:
    """Raise `ConfigError` for a wish that the backend refuses. `requiring_backend` is empty if it requires nothing."""
    if requiring_backend and wish == "never":
        raise ConfigError(
            f"The backend {requiring_backend} starts no kernel without encryption: leave out encrypt = 'never'."
        )


def _find_obstacle(km: Any, argv: Sequence[str], *, is_local: bool) -> str:
    """Return the reason why this kernel cannot use CURVE, as a clause; empty if it can.

    A Python of another machine is looked for at its path here, because many clusters share their software.
    """
    if not zmq.has("curve"):
        return "pyzmq was built without CURVE here: reinstall it from its wheel"
    if declares_curve(km):
        return ""
    if not _is_ipykernel(argv):
        return "its kernelspec does not declare it (metadata.supported_encryption = ['curve'])"
    found = find_ipykernel_version(argv[0])
    first = ".".join(map(str, _FIRST_IPYKERNEL))
    if not found and not is_local:
        return (
            f"no ipykernel was found beside {argv[0]} on this machine: if it is {first} or newer there, declare it in "
            "the kernelspec (metadata.supported_encryption = ['curve'])"
        )
    if not found:
        return f"no ipykernel was found beside {argv[0]}"
    if found < _FIRST_IPYKERNEL:
        shown = ".".join(str(number) for number in found)
        return f"its ipykernel {shown} cannot: upgrade it to {first} or newer"
    return ""


def _is_ipykernel(argv: Sequence[str]) -> bool:
    return any(argument in ("ipykernel_launcher", "ipykernel") for argument in argv)


def find_ipykernel_version(python: str) -> tuple[int, ...]:
    """Return the version of the ipykernel that `python` would import, read from metadata; empty if none is found."""
    folders = Path(python).parent.parent.glob("lib/python3*/site-packages/ipykernel-*.dist-info")
    found = min((folder.name for folder in folders), default="").removeprefix("ipykernel-")
    if python == sys.executable:
        try:
            found = version("ipykernel")
        except PackageNotFoundError:
            found = ""
    return tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
