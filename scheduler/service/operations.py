"""The operations of the scheduler service, and the command that starts it. Cheap to import, because clients import it.

Each class has the arguments of one operation (`ARGUMENTS`) as they cross the socket. Its docstring gives the answer.
Errors cross the socket as the class name of a `RoostError` (`errors.from_remote`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.protocol.shared_values import Logs, Nothing, Owner, Signal, Stop
from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec

from .messages import StartKernel

PROTOCOL = 3
"""Version of these operations. A client asks a service with another version to leave, and starts its own.

The version stays for a new operation, and for a new field of an answer or event: older clients ignore that field.
"""

_NO_ADDRESS = ("", "auto")

OPTIONS_VARIABLE = "ROOST_SERVICE_OPTIONS"
"""Environment variable with the service's options as JSON. Every user of the machine could read them in argv."""

PYTHON_VARIABLE = "ROOST_SERVICE_PYTHON"
"""Environment variable with the service's interpreter, if it is not the caller's own. A cluster may accept only its
own versions of Python and of its library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """→ {protocol, version, pid, backend, address}: the service and its cluster."""

    protocol: int = PROTOCOL
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """→ {}. From now on this peer gets every `Event`. The service watches the process of `owner`."""

    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """→ {}. Takes a start back. With a `launch_id`, only that start, even if it has just succeeded."""

    kernel_id: str
    launch_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListKernels:
    """→ {"kernels": [Kernel]}, without connections. `with_use` also asks the agents for CPU and memory use."""

    with_use: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OneKernel:
    """→ Kernel, with its connection."""

    kernel_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptKernel:
    """→ Kernel, with its connection. From now on the application of `owner` holds it; its user stays the same."""

    kernel_id: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """→ {"decision": Decision.to_dict()}: where the request would be placed now. Starts nothing."""

    request: Request
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """→ {}. Stops (or resumes) placing on a node. Kernels on the node go on."""

    node_id: str
    on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """→ {}. Prepares fast starts of such kernels on the node where the request would be placed now."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    request: Request = field(default_factory=Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPolicy:
    """→ {}. The service runs this placement policy's code, and keeps the policy until the service ends.

    `pickled` comes from `policies.pickling`, under the version `python`. A repeated call has the same `token`.
    """

    name: str
    pickled: str = field(repr=False)
    python: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicies:
    """→ {"problems": {name: sentence}}, for each of these placement policies that cannot be used."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentEvents:
    """→ {"events": [Event]}, oldest first."""

    limit: int = 100


ARGUMENTS: Mapping[str, type] = {
    "hello": Hello,
    "subscribe": Subscribe,
    "start": StartKernel,
    "cancel": Cancel,
    "stop": Stop,
    "signal": Signal,
    "kernels": ListKernels,
    "kernel": OneKernel,
    "nodes": Nothing,
    "adopt": AdoptKernel,
    "explain": Explain,
    "logs": Logs,
    "drain": Drain,
    "warm": WarmUp,
    "up": Nothing,
    "add_policy": AddPolicy,
    "check_policies": CheckPolicies,
    "doctor": Nothing,
    "events": RecentEvents,
    "leave": Nothing,
}


def with_address(backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options, with the address that the backend's environment variable names if there is no other.

    The address then selects the service like every other option. Raises `ConfigError` for an unknown backend.
    """
    given = {name: value for name, value in options.items() if value is not None}
    variable = get_spec(backend).address_variable
    if variable and given.get("address", "") in _NO_ADDRESS:
        address = os.environ.get(variable, "").strip()
        if address not in _NO_ADDRESS:
            given["address"] = address
    return given


def service_folder(backend: str, options: Mapping[str, Any]) -> Path:
    """Return the daemon folder of the service for this backend and these options; the socket in it is `socket`."""
    get_spec(backend)  # raises for a name that is no backend, before it becomes part of a path
    name = f"scheduler-{backend}"
    if options:
        digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True, default=str).encode())
        name += f"-{digest.hexdigest()[:8]}"
    return runtime_dir() / name


def service_command(
    backend: str, folder: Path, options: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment for `daemon.ensure`. `options` beat the backend's section of the configuration."""
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    argv = [python, "-m", "roost.scheduler.service.server", "--backend", backend, "--folder", str(folder)]
    return argv, {**os.environ, OPTIONS_VARIABLE: json.dumps(dict(options))}
