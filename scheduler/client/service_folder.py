"""The folder of a scheduler service, and the command that starts it.

This module is cheap to import: it imports no part of the scheduler's core.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.daemon.world import find_world, name_in_world
from roost.scheduler.backends.registry import get_spec

from .cluster_record import find_served

PROTOCOL = 9
"""Version of the service's operations.

A client asks a service with a lower version to exit, and starts its own. It refuses a service with a higher version. A
new operation, or a new field of an answer or event, does not change the version.
"""

_NO_ADDRESS = ("", "auto")

OPTIONS_VARIABLE = "ROOST_SERVICE_OPTIONS"
"""Environment variable with the service's options as JSON. In argv, every user of the machine could read them."""

PYTHON_VARIABLE = "ROOST_SERVICE_PYTHON"
"""Environment variable with the service's interpreter, if it is not the caller's own. A cluster may accept only its
own versions of Python and of its library."""


def with_address(backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options. If they have no address, add that of the backend's environment variable.

    The address then selects the service like every other option. Raises `ConfigError` for an unknown backend.
    """
    given = {name: value for name, value in options.items() if value is not None}
    variable = get_spec(backend).address_variable
    if variable and given.get("address", "") in _NO_ADDRESS:
        address = os.environ.get(variable, "").strip()
        if address not in _NO_ADDRESS:
            given["address"] = address
    return given


def find_service_world(backend: str) -> str:
    """Return the world of the service that this process uses: its own for kernels on this machine, else none.

    The kernels of a cluster run in the world of their node. Their service can serve every world of this machine,
    because clients reach it through a file. A second service with the same name would take the first one's leases.
    """
    return find_world() if get_spec(backend).runs_on_this_machine else ""


def service_folder(backend: str, options: Mapping[str, Any], world: str | None = None) -> Path:
    """Return the folder of the service for this backend, these options and this world.

    `world` is the one of `find_service_world`, unless it is given. The service's socket in the folder is `socket`. If
    another service of this user serves the cluster that the options name, it is the folder of that service. Blocks for
    half a second at most.
    """
    world = find_service_world(backend) if world is None else world
    own = runtime_dir() / name_in_world(name_service(backend, options), world)
    if not get_spec(backend).address_variable:
        return own
    return find_served(own, backend, options) or own


def name_service(backend: str, options: Mapping[str, Any]) -> str:
    """Return the name of the folder for these options, before another service for the same cluster is looked for."""
    get_spec(backend)  # raises for a name that is no backend, before it becomes part of a path
    name = f"scheduler-{backend}"
    if options:
        chosen = {**options, "address": _spell(options["address"])} if "address" in options else dict(options)
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode())
        name += f"-{digest.hexdigest()[:8]}"
    return name


def other_worlds(backend: str, options: Mapping[str, Any], world: str) -> list[str]:
    """Return the other worlds that have a folder of a service for this backend and these options."""
    name = name_service(backend, options)
    found = (folder.name.partition(".")[2] for folder in runtime_dir().glob(f"{name}.*"))
    return sorted(each for each in found if each != world)


def _spell(address: object) -> object:
    """Return the address in one spelling, so that `LOCALHOST:1` and `127.0.0.1:1` select the same service."""
    if not isinstance(address, str):
        return address
    scheme, mark, rest = address.strip().rpartition("://")
    host, colon, port = rest.rstrip("/").rpartition(":")
    host = "127.0.0.1" if host.lower() in ("localhost", "[::1]") else host.lower()
    return f"{scheme.lower()}{mark}{host}{colon}{port if colon else port.lower()}"


def service_command(
    backend: str, folder: Path, options: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment for `daemon.ensure`. `options` beat the backend's section of the configuration."""
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    argv = [python, "-m", "roost.scheduler.service.server", "--backend", backend, "--folder", str(folder)]
    return argv, {**os.environ, OPTIONS_VARIABLE: json.dumps(dict(options))}
