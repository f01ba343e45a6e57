"""Starts an agent on a node of a Ray cluster: a Ray task on that node starts it, as a process of its own.

Functions that run in a Ray worker are pickled by value, and use the standard library alone (see `node_archive`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from roost.launchers.protocol.agent_settings import AgentSettings
from roost.placement.model.json_codec import encode
from roost.scheduler.backends import node_archive
from roost.scheduler.backends.node_archive import Answer, bring_up, name_agent, pack

from . import join
from .nodes import RayNode


def start_on(
    node: RayNode, settings: AgentSettings, *, client: str, cluster_address: str, grace_s: float, python: str
) -> Any:
    """Start a Ray task that runs `node_archive.bring_up` on that node; return the Ray reference to its result.

    Blocks for a moment. `client` is the public key of the service.
    """
    manager = {
        "name": "Ray",
        "address": cluster_address,
        "grace_s": grace_s,
        "cluster_id": join.get_cluster_id(),
    }
    name, sent = name_agent("ray", cluster_address, node.id), json.dumps(encode(settings))
    return build_task_on(node, _bring_up).remote(*pack(), name, sent, manager, [client], python)


def build_task_on(node: RayNode, function: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node.daemon, soft=False)
    return build_task(function).options(scheduling_strategy=strategy)


def build_task(function: Any) -> Any:
    """Return a Ray task of one of roost's functions. It asks for no resources, and the node need not have roost."""
    import ray

    for module in (sys.modules[function.__module__], node_archive):
        ray.cloudpickle.register_pickle_by_value(module)
    # By default, Ray ends a worker after each task with GPUs; `max_calls` keeps it for the next task.
    return ray.remote(num_cpus=0, max_calls=0, max_retries=0)(function)


def _bring_up(
    archive: bytes,
    digest: str,
    name: str,
    settings: str,
    manager: dict[str, Any],
    clients: list[str],
    python: str,
) -> Answer:
    """Call `bring_up` with the raylet's environment: the worker's own environment has Ray's variables for tasks."""
    import os
    import sys

    raylet = os.getppid()
    if manager["cluster_id"]:
        client = f"GcsClient({manager['address']!r})"
        script = f"from ray._raylet import GcsClient; print({client}.cluster_id.hex())"
        manager = {**manager, "probe": [sys.executable, "-c", script]}
    with open(f"/proc/{raylet}/environ", "rb") as file:
        lines = file.read().decode(errors="surrogateescape").split("\0")
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    for variable in [key for key in env if key.startswith("RAY_") and not key.startswith("RAY_AUTH_")]:
        del env[variable]
    return bring_up(archive, digest, name, settings, {**manager, "pid": raylet}, clients, python, env)
