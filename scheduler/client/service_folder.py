"""The folder of a scheduler service, and the command that starts it.

A user has one service for a cluster, however the cluster is named: the name of the folder has a hash of its address.

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
from urllib.parse import urlsplit

from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.daemon.private_files import runtime_dir
from roost.launchers.daemon.world import NAME_VARIABLE as NAME_VARIABLE
from roost.launchers.daemon.world import find_world as find_world
from roost.launchers.daemon.world import name_in_world
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.errors import RoostError

PROTOCOL = 9
"""Version of the service's operations.

A client asks a service with a lower version to exit, and starts its own. It refuses a service with a higher version. A
new operation, or a new field of an answer or event, does not change the version.
"""

_NO_ADDRESS = ("", "auto")
_PORTS = {"http": 80, "https": 443}

OPTIONS_VARIABLE = "ROOST_SERVICE_OPTIONS"
"""Environment variable with the service's options as JSON. In argv, every user of the machine could read them."""

PYTHON_VARIABLE = "ROOST_SERVICE_PYTHON"
"""Environment variable with the service's interpreter, if it is not the caller's own. A cluster may accept only its
own versions of Python and of its library."""


def with_address(backend: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given options. If they have no address, add that of the backend's environment variable.

    Raises `ConfigError` for an unknown backend.
    """
    given = {name: value for name, value in options.items() if value is not None}
    variable = get_spec(backend).address_variable
    if variable and given.get("address", "") in _NO_ADDRESS:
        address = os.environ.get(variable, "").strip()
        if address not in _NO_ADDRESS:
            given["address"] = address
    return given


def service_folder(backend: str, options: Mapping[str, Any]) -> Path:
    """Return the folder of the service for this backend, its cluster, and for this machine this process's world.

    If nothing names a cluster now, the only service is meant that was started without an address. The kernels of a
    cluster run in the world of their node, so their service serves every world of this machine. The service's socket in
    the folder is `socket`. Blocks for milliseconds. Raises `FolderError`.
    """
    address = find_cluster(backend, options)
    spec = get_spec(backend)
    if not address and spec.cluster:
        # Imported here, because that module needs `PROTOCOL`.
        from .running_services import find_services

        running = [each for each in find_services() if each.backend == backend and not each.is_named]
        if len(running) == 1:
            return running[0].folder
    digest = f"-{hashlib.sha256(address.encode()).hexdigest()[:8]}" if address else ""
    world = find_world() if spec.runs_on_this_machine else ""
    return runtime_dir() / name_in_world(f"scheduler-{backend}{digest}", world)


def find_worlds(folder: Path) -> list[str]:
    """Return the other worlds in which a service runs beside that of this folder; none for a cluster's."""
    name, dot, own = folder.name.partition(".")
    found = folder.parent.glob(f"{name}.*") if dot else ()
    worlds = (each.name.partition(".")[2] for each in found if read_announcement(each) is not None)
    return sorted(world for world in worlds if world != own)


def find_cluster(backend: str, options: Mapping[str, Any]) -> str:
    """Return the address of the cluster, in one spelling. Empty if the backend has no address, or if nothing names one.

    The first of these names it: an option, the backend's variable, the operator's settings, the manager's own file.
    """
    spec = get_spec(backend)  # raises for a name that is no backend, before it becomes part of a path
    given = with_address(backend, options)
    named = str(given.get("address", ""))
    if spec.cluster:
        # Imported here, because other backends need no settings.
        from roost.scheduler.config.files import load_settings

        try:
            _, settings = load_settings(backend, given)
            named = str(load_object(spec.cluster, f"the address of the backend {backend}")(settings))
        except (RoostError, OSError, ValueError):
            # The service fails with the same error, which says what to do.
            if "://" in named:  # never the address of a service that runs, if the backend refuses it
                return named
    return ",".join(sorted(_spell(each) for each in named.split(",") if each))


def _spell(address: str) -> str:
    """Return an address as `host:port` with an optional path, in one spelling; any other text as it is."""
    text = address.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return text
    if not host or not port:
        return text
    host = "127.0.0.1" if host in ("localhost", "::1") else host
    end = f":{port}{parts.path.rstrip('/')}"
    return f"[{host}]{end}" if ":" in host else host + end


def find_other_options(options: Mapping[str, Any], running: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that the running service was not started with. The address does not count."""
    return {
        name: value
        for name, value in options.items()
        if name != "address" and _to_text(value) != _to_text(running.get(name))
    }


def _to_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)  # a path becomes text on its way to the service


def service_command(
    backend: str, folder: Path, options: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment for `daemon.ensure`. `options` beat the backend's section of the configuration."""
    python = os.environ.get(PYTHON_VARIABLE) or sys.executable
    argv = [python, "-m", "roost.scheduler.service.server", "--backend", backend, "--folder", str(folder)]
    return argv, {**os.environ, OPTIONS_VARIABLE: json.dumps(dict(options))}
