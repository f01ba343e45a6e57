"""The services of this user, for `roost doctor`: several of them for one cluster."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from typing import Any

from roost.launchers.daemon.daemon import read_announcement
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client import cluster_record
from roost.scheduler.client.client import Client
from roost.scheduler.messages import Finding


def find_twins(client: Client) -> list[Finding]:
    """Return a warning for each other service of this user that serves the cluster of the client's service."""
    found: list[Finding] = []
    folder = client.service_folder()
    for twin, record in cluster_record.find_twins(folder).items():
        pid = (read_announcement(twin) or {}).get("pid", "unknown")
        what = (
            f"two services of yours serve this cluster, and each knows its own kernels only: that of {folder.name}, "
            f"which has answered, and that of {twin.name} (pid {pid})"
        )
        kernels, restart = (
            write_command(command, client.backend, record.options)
            for command in ("kernels", "restart-service")
        )
        if record.has_options(client.options):
            do = f"stop the other one's kernels (`{kernels}` lists them); then `{restart}` joins both"
        else:
            do = f"give both the same options: the other one's kernels are listed by `{kernels}`"
        found.append({"level": "warning", "what": what, "do": do})
    return found


def write_command(command: str, backend: str, options: Mapping[str, Any]) -> str:
    """Return the command line that asks the service with these options, as a user types it in this shell."""
    words = ["roost", command, "--backend", backend]
    for name, value in options.items():
        words += ["--backend-option", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    variable = get_spec(backend).address_variable
    if variable and "address" not in options and os.environ.get(variable):
        words = ["env", "-u", variable, *words]
    return shlex.join(words)
