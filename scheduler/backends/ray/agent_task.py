"""Brings an agent up on a node of a Ray cluster: a task on that node starts it, as a process of its own.

What runs in a Ray worker is pickled by value, and uses the standard library alone (see `node_side`).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.protocol.json_codec import encode
from roost.launchers.protocol.messages import Manager
from roost.scheduler.backends.agent_per_node import bootstrap
from roost.scheduler.backends.agent_per_node.bootstrap import Answer, bring_up, name_agent, pack

from . import join
from .nodes import RayNode


def start_on(
    node: RayNode, settings: AgentSettings, *, cluster_address: str, grace_s: float, python: str
) -> Any:
    """A Ray reference to what `bootstrap.bring_up` returns, from that node. Blocks for a moment."""
    manager = Manager(
        name="Ray",
        pid=0,
        process_started_at=0.0,
        address=cluster_address,
        grace_s=grace_s,
        cluster_id=join.cluster_id(),
    )
    archive, digest = pack()
    return task_on(node, _bring_up).remote(
        archive,
        digest,
        name_agent("ray", cluster_address, node.id),
        json.dumps(encode(settings)),
        encode(manager),
        python,
    )


def task_on(node: RayNode, function: Any) -> Any:
    """`task` on that node, and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return task(function).options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False))


def task(function: Any) -> Any:
    """A Ray task that takes nothing, of a function of ours that needs nothing of ours: the node need not have roost.

    Its worker is kept for the next one (by default Ray ends it after each task with GPUs).
    """
    import ray

    for module in (sys.modules[function.__module__], bootstrap):
        ray.cloudpickle.register_pickle_by_value(module)
    return ray.remote(num_cpus=0, max_calls=0, max_retries=0)(function)


def _bring_up(
    archive: bytes, digest: str, name: str, settings: str, manager: dict[str, Any], python: str
) -> Answer:
    """`bring_up`, as a child of the raylet. A worker's own environment is full of what Ray sets for its tasks."""
    import os
    import sys

    raylet = os.getppid()
    if manager["cluster_id"]:
        says = f"from ray._raylet import GcsClient; print(GcsClient({manager['address']!r}).cluster_id.hex())"
        manager = {**manager, "probe": [sys.executable, "-c", says]}
    with open(f"/proc/{raylet}/environ", "rb") as file:
        pairs = (
            pair.partition("=") for pair in file.read().decode(errors="surrogateescape").split("\0") if pair
        )
        env = {
            name: value
            for name, _, value in pairs
            if name.startswith("RAY_AUTH_") or not name.startswith("RAY_")
        }
    return bring_up(archive, digest, name, settings, {**manager, "pid": raylet}, python, env)
