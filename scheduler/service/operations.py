"""What the scheduler service can be asked, and how it is started. Cheap to import: its clients do.

Each class is the arguments of one operation (`ARGUMENTS`), as they cross the socket; the answers are told
beside it. What goes wrong is a `RoostError` by its class name (`errors.from_remote`).
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
"""Version of these operations: a client asks a service that speaks another one to leave, and starts its own.

It does not change for a field added to an answer or an event, which an older client leaves out, nor for an operation.
"""

_NO_ADDRESS = ("", "auto")

OPTIONS_VARIABLE = "ROOST_SERVICE_OPTIONS"
"""Environment variable with the service's options as JSON: not in argv, which everybody on the machine can read."""

PYTHON_VARIABLE = "ROOST_SERVICE_PYTHON"
"""Environment variable with the interpreter that the service runs under, where it is not the caller's own: a cluster
may accept only its own versions of Python and of its library."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """→ {protocol, version, pid, backend, address}: who answers, and for which cluster."""

    protocol: int = PROTOCOL
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribe:
    """→ {}. From now on this peer gets every `Event`, and speaks for `owner`, whose process is then watched."""

    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """→ {}. Takes a start back; with a `launch_id` that one alone, even if it has just come to its end."""

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
    """→ Kernel, with its connection. From now on `owner`'s application holds it; its user stays who it was."""

    kernel_id: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """→ {"decision": Decision.to_dict()}. Where the request would go now; nothing is started."""

    request: Request
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """→ {}. Stops (or resumes) placing on a node; what runs there goes on."""

    node_id: str
    on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """→ {}. Prepares fast starts of such kernels on the node that would be chosen now."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    request: Request = field(default_factory=Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPolicy:
    """→ {}. The service keeps this placement policy until it ends, and runs its code.

    `pickled`: see `shipping`; `python`: the version that packed it; `token` tells a repeated call from a new policy.
    """

    name: str
    pickled: str = field(repr=False)
    python: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPolicies:
    """→ {"problems": {name: sentence}}, of those of these placement policies that no kernel could ask for."""

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
