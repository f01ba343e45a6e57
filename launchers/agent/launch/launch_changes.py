"""The changes of a launch for this node: addresses, the environment of the node, and devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import Launch


def adapt(
    request: Launch, settings: AgentSettings, device_ids: Sequence[str], *, has_bus_ids: bool
) -> Launch:
    """Return the launch with the changes that `AgentSettings` lists. `has_bus_ids`: the ids are those of NVML."""
    connection, cwd, env = request.connection, request.cwd, dict(request.env)
    if settings.address and connection.transport == "tcp":
        connection = replace(connection, ip=settings.address)
    if settings.is_remote:
        cwd = next(filter(os.path.isdir, (cwd, os.path.expanduser("~"))), os.getcwd())
        env = {**build_node_environment(), **env}
    if has_bus_ids or settings.gpu_visibility == "manager":
        env["CUDA_VISIBLE_DEVICES"] = ",".join(device_ids)
    if has_bus_ids:  # NVML numbers devices in PCI order, but CUDA's default order puts the fastest first
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return replace(request, connection=connection, cwd=cwd, env=env)


def build_node_environment() -> dict[str, str]:
    """Return the agent's environment without roost's folder in PYTHONPATH, which may exist for the agent alone."""
    home = Path(__file__).resolve().parents[4]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in entries if path and Path(path).resolve() != home]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**env, "PYTHONPATH": os.pathsep.join(paths)} if paths else env
