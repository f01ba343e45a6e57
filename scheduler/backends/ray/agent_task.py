"""Starts an agent on a node of a Ray cluster: a Ray actor on that node starts it, as a process of its own, and ends.

What runs in a Ray worker is pickled by value, and uses the standard library alone (see `node_archive`).
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

BringUp = tuple[bytes, str, str, str, dict[str, Any], list[str], str]
"""The arguments of `_bring_up`."""


def prepare(
    node: RayNode, settings: AgentSettings, *, client: str, cluster_address: str, grace_s: float, python: str
) -> BringUp:
    """Return what `node_archive.bring_up` needs on that node. `client` is the public key of the service."""
    manager = {
        "name": "Ray",
        "address": cluster_address,
        "grace_s": grace_s,
        "cluster_id": join.get_cluster_id(),
    }
    name, sent = name_agent("ray", cluster_address, node.id), json.dumps(encode(settings))
    return (*pack(has_bytecode=True), name, sent, manager, [client], python)


def start_on(node: RayNode, bring_up: BringUp) -> Any:
    """Run `node_archive.bring_up` on that node; return the Ray reference to its answer. Blocks for a moment."""
    return run_once(_bring_up, *bring_up, scheduling_strategy=_affinity(node))


def run_once(function: Any, *arguments: Any, returns: int = 1, **options: Any) -> Any:
    """Run one of roost's functions in a Ray actor, which ends with it. Return the Ray reference to its result.

    With `returns` above 1 it returns that many values, and these are as many references. `options` are the actor's.

    On a node without a worker this takes half the time of a task, 0.6 s instead of 1.2: for a task that waits, Ray
    starts a second worker beside the task's own, and both import Ray.
    """
    import ray

    _send_by_value(function)
    actor = ray.remote(num_cpus=0, max_restarts=0)(_Once).options(**options).remote()
    return actor.run.options(num_returns=returns).remote(function, *arguments)


class _Once:
    """An actor that runs one function. Ray ends it after that, because nobody keeps its handle."""

    def run(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments)


def build_task_on(node: RayNode, function: Any) -> Any:
    return build_task(function).options(scheduling_strategy=_affinity(node))


def build_task(function: Any) -> Any:
    """Return a Ray task of one of roost's functions. It asks for no resources, and the node need not have roost.

    Where a worker of this driver is idle, the task runs at once (see `run_once`).
    """
    import ray

    _send_by_value(function)
    # By default, Ray ends a worker after each task with GPUs; `max_calls` keeps it for the next task.
    return ray.remote(num_cpus=0, max_calls=0, max_retries=0)(function)


def _affinity(node: RayNode) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.daemon, soft=False)


def _send_by_value(function: Any) -> None:
    import ray

    for module in (sys.modules[function.__module__], sys.modules[__name__], node_archive):
        ray.cloudpickle.register_pickle_by_value(module)


def _bring_up(
    archive: bytes,
    digest: str,
    name: str,
    settings: str,
    manager: dict[str, Any],
    clients: list[str],
    python: str,
) -> Answer:
    """Call `bring_up` with the environment of `ray start`: the worker's own has Ray's variables for tasks."""
    import os
    import sys

    raylet = os.getppid()
    if manager["cluster_id"]:
        client = f"GcsClient({manager['address']!r})"
        script = f"from ray._raylet import GcsClient; print({client}.cluster_id.hex())"
        manager = {**manager, "probe": [sys.executable, "-c", script]}
    with open(f"/proc/{raylet}/environ", "rb") as file:
        lines = file.read().decode(errors="surrogateescape").split("\0")
    env = restore_variables(dict(line.split("=", 1) for line in lines if "=" in line))
    with open(f"/proc/{raylet}/cmdline", "rb") as file:
        words = file.read().decode(errors="surrogateescape").split("\0")
    node, cluster = (
        next((word for word in words if word.partition("=")[0] == name), "")
        for name in ("--node_ip_address", "--gcs-address")
    )
    if node and cluster:
        manager = {**manager, "command": {"name": "raylet", "node": node, "cluster": cluster}}
    return bring_up(archive, digest, name, settings, {**manager, "pid": raylet}, clients, python, env)


def restore_variables(raylet: dict[str, str]) -> dict[str, str]:
    """Return a raylet's variables as they were before Ray set its own, which preload an allocator or a profiler."""
    added: dict[str, str | None] = {
        "LD_PRELOAD": raylet.get("RAY_JEMALLOC_LIB_PATH"),
        "MALLOC_CONF": raylet.get("RAY_JEMALLOC_CONF"),
    }
    if raylet.get("LD_PRELOAD", "").endswith("/ray/core/libjemalloc.so"):
        added["LD_PRELOAD"] = raylet["LD_PRELOAD"]
    if raylet.get("RAY_RAYLET_PERFTOOLS_PROFILER") == "1":
        added |= {"LD_PRELOAD": raylet.get("PERFTOOLS_PATH"), "CPUPROFILE": raylet.get("PERFTOOLS_LOGFILE")}
    return {
        name: value
        for name, value in raylet.items()
        if value != added.get(name) and (not name.startswith("RAY_") or name.startswith("RAY_AUTH_"))
    }


def list_gpu_ids(_: bytes | None = None) -> list[str]:
    """Return the ids of the devices that Ray has granted to this task."""
    import ray

    return [str(device_id) for device_id in ray.get_gpu_ids()]


def list_gpu_ids_and_bring_up(*bring_up: Any) -> tuple[list[str], Answer]:
    """Return the ids of the granted devices, and the answer of the node's agent: one worker starts for both."""
    device_ids = list_gpu_ids()
    try:
        return device_ids, _bring_up(*bring_up)
    except OSError as error:  # the devices are known all the same
        return device_ids, {"problem": str(error)}
