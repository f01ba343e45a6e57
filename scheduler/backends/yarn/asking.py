"""Builds the ask for the container of a lease: its resources, command, and the work of its agent."""

from __future__ import annotations

import base64
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Assignment, Launch, Lease, Reserve
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import dump_lease
from roost.scheduler.backends.node_archive import dump_start, pack
from roost.scheduler.config.shared_sections import parse_port_range

from .archives import find_python
from .derived_keys import DerivedKeys
from .master.messages import Archive, Ask, Resources, Unpacked
from .settings import RoostYarnBackend

_IDLE_EXIT_S = 60.0
_AFTER_EXPIRY_S = 60.0
"""How much longer than YARN an agent waits for its NodeManager before it takes the node for lost."""
_CREDENTIALS = "HADOOP_TOKEN_FILE_LOCATION"
"""The variable with the path of the private file that holds the agent's code and keys. The kernel does not get it:
Spark would send the content of that file to its own containers."""
_FOLDER = "roost"
"""The agent's folder, in the working directory of the container, which YARN makes private and removes."""


def build_ask(
    lease: Lease,
    launch: Launch | None,
    settings: RoostYarnBackend,
    keys: DerivedKeys,
    nodes: tuple[str, ...],
    racks: Mapping[str, str],
    *,
    unpacked: tuple[Unpacked, ...] = (),
    expiry_s: float,
) -> Ask:
    """Return the ask for a lease's container on one of these nodes. Each ask has a number of its own.

    `unpacked` is the archive with the kernel's Python, if there is one. `expiry_s` is how long YARN waits for a
    NodeManager before it takes the node for lost.
    """
    number = secrets.randbits(63)
    agent = AgentSettings(
        address="$NM_HOST",
        ports=keys.ports(number),
        kernel_ports=parse_port_range(settings.kernel_ports),
        idle_exit_s=_IDLE_EXIT_S,
        is_remote=True,
        gpus=settings.gpus_per_node,
        gpu_visibility="locks",
        is_per_kernel=True,
        shares_session=True,
        daemon_address="$NM_HOST:$NM_PORT",
        daemon_name="NodeManager",
        daemon_grace_s=expiry_s + _AFTER_EXPIRY_S,
        node="$NM_HOST",
        unit="container",
    )
    reserve = Reserve(lease=replace(lease, state="held"), is_granted=True, launch=launch)
    start = dump_start(agent, Assignment(keys=keys.keys(number), reserve=reserve))
    python = find_python(lease.request, settings)
    return Ask(
        number=number,
        lease=dump_lease(lease),
        resources=count_resources(lease.request, settings),
        nodes=nodes,
        racks=racks,
        label=lease.request.options.get("label", ""),
        command=_build_command(python),
        unpacked=unpacked,
        archive=pack(is_imported=True)[1],
        assignment_base64=base64.b64encode(start).decode(),
    )


def _build_command(python: str) -> str:
    """Return the command of the container.

    YARN puts it between double quotes, and its shell becomes the agent.

    The folder of the agent's Python comes first in PATH, so that `python` in a kernelspec is that one.
    """
    folder = os.path.dirname(python)
    if folder:
        folder = folder if os.path.isabs(folder) else f"$PWD/{folder}"
    path = f"PATH='{folder}:$PATH' " if folder else ""
    return (
        f"{path}exec env -u {_CREDENTIALS} {python} '${_CREDENTIALS}' {_FOLDER} "
        "1><LOG_DIR>/stdout 2><LOG_DIR>/stderr"
    )


def build_archive() -> Archive:
    """Return the archive with the agent's code, which a master keeps for its containers."""
    content, digest = pack(is_imported=True)
    return Archive(digest=digest, data_base64=base64.b64encode(content).decode())


def count_resources(request: Request, settings: RoostYarnBackend) -> Resources:
    """Return the resources of a request's container. YARN rounds them up to its own steps."""
    others = {name: int(amount) for name, amount in request.resources.items()}
    if request.gpus:
        others[settings.gpu_resource] = int(request.gpus)
    memory_bytes = request.memory_bytes or settings.memory
    return Resources(
        memory_mb=math.ceil(memory_bytes / 2**20), vcores=max(1, math.ceil(request.cpus)), others=others
    )
