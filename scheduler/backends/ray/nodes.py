"""What Ray says of its nodes, as roost's nodes. Pure but for `read`, which asks Ray's GCS.

A node is named by its address: unlike Ray's own id it stays when the node's raylet is started again.
"""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from roost.launchers.protocol.messages import NodeStatus
from roost.placement import Device, Node
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.scheduler.backends.base import Lease

log = logging.getLogger(__name__)

_READ_S = 5.0
_CONNECT_S = 0.5
_HELD_UP = "Ray has not noticed yet that its earlier raylet has ended"
_GROUP = "_PG_"
"""A node's labels of this moment name the placement groups that are created and have a bundle on it: `_PG_<id>`."""
_MODEL_LABEL = "ray.io/accelerator-type"
_MODEL_RESOURCE = "accelerator_type:"
_AMOUNTS = ("CPU", "GPU", "memory")
_OF_RAY = frozenset({*_AMOUNTS, "object_store_memory"})
_MARKS = ("node:", _MODEL_RESOURCE)
"""Resources that say what a node is, not what it has."""
_OF_GROUP = re.compile(r"_group_(\d+_)?[0-9a-f]{36}$")
_DEAD, _DRAINING = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """An alive node of a Ray cluster, as its GCS knows it. `free` is None where Ray does not say.

    Amounts are Ray's, of CPU and GPU in units and of memory in bytes, and of custom resources; what a node has none of
    is left out. `groups` are ids of placement groups that are created and have a bundle here (None: not said). While it
    `is_held_up` by an earlier raylet at its address, which has ended and Ray still counts, Ray gives nothing here.
    """

    id: str
    ray_id: str
    address: str
    labels: Mapping[str, str]
    model: str
    total: Mapping[str, float]
    free: Mapping[str, float] | None
    groups: frozenset[str] | None
    drains_because: str = ""
    is_held_up: bool = False

    @property
    def daemon(self) -> str:
        """Its raylet: Ray's own id of the node."""
        return self.ray_id

    @property
    def started_agent(self) -> StartedAgent | None:
        """None: Ray does not know agents."""
        return None


def read(known: Iterable[RayNode] = ()) -> tuple[RayNode, ...]:
    """All alive nodes now. Blocks, about 0.4 ms; raises whatever Ray raises where its GCS does not answer.

    `known` are those of an earlier reading, which spare work: while a raylet lives, its labels stay, and the names of
    its resources.

    The GCS's state for autoscalers is not public: where a version of Ray lacks it, `ray.nodes()` is asked, which does
    not say what is free. It lists a raylet that was killed for 13 s yet, beside the next one at its address: one whose
    port is closed is left out, so that the next has its name at once.
    """
    import ray

    try:
        from ray._private.worker import global_worker

        content = global_worker.gcs_client.get_cluster_resource_state(timeout_s=_READ_S)
    except (ImportError, AttributeError, TypeError) as problem:
        log.debug("this Ray has no cluster resource state: %s", problem)
        nodes = decode_public(ray.nodes())
    else:
        nodes = decode(content, known)
    at = Counter(node.address for node in nodes)
    if len(at) == len(nodes):
        return nodes
    ports = {node["NodeID"]: node["NodeManagerPort"] for node in ray.nodes()}
    alive = [
        node for node in nodes if not (at[node.address] > 1 and _refuses(node.address, ports[node.ray_id]))
    ]
    held_up = at - Counter(node.address for node in alive)
    return _told_apart(
        [
            replace(node, is_held_up=True, drains_because=_HELD_UP) if held_up[node.address] else node
            for node in alive
        ]
    )


def decode(content: bytes, known: Iterable[RayNode] = ()) -> tuple[RayNode, ...]:
    """The nodes of a serialised `GetClusterResourceStateReply`: 10 µs for each that is known.

    Of one that is not, all resources are read, with the nine that each group adds: that takes ten times as long.
    """
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterResourceStateReply.FromString(content)
    before = {node.ray_id: node for node in known if node.total}
    found = []
    for state in reply.cluster_resource_state.node_states:
        if state.status == _DEAD:
            continue
        resources, address = state.total_resources, state.node_ip_address
        ray_id = state.node_id.hex()
        if (was := before.get(ray_id)) is not None:
            labels, model, names = was.labels, was.model, tuple(was.total)
        else:
            labels = dict(state.labels) if hasattr(state, "labels") else {}
            model = _model(labels, resources) if "GPU" in resources else ""
            names = (*_AMOUNTS, *find_custom_resources(resources))
        found.append(
            RayNode(
                id=address,
                ray_id=ray_id,
                address=address,
                labels=labels,
                model=model,
                total=_amounts(resources, names),
                free=_amounts(state.available_resources, names),
                groups=frozenset(
                    name[len(_GROUP) :] for name in state.dynamic_labels if name.startswith(_GROUP)
                ),
                drains_because="Ray is draining it" if state.status == _DRAINING else "",
            )
        )
    return tuple(found)


def decode_public(nodes: Iterable[Mapping[str, Any]]) -> tuple[RayNode, ...]:
    """The nodes of `ray.nodes()`."""
    found = []
    for node in nodes:
        if node["Alive"]:
            labels, resources = dict(node.get("Labels") or {}), node["Resources"]
            found.append(
                RayNode(
                    id=node["NodeManagerAddress"],
                    ray_id=node["NodeID"],
                    address=node["NodeManagerAddress"],
                    labels=labels,
                    model=_model(labels, resources),
                    total=_amounts(resources, (*_AMOUNTS, *find_custom_resources(resources))),
                    free=None,
                    groups=None,
                )
            )
    return tuple(found)


def find_custom_resources(resources: Iterable[str]) -> list[str]:
    """The names of those that Ray only counts, as it was told to: neither its own nor what a placement group adds."""
    return [
        name
        for name in resources
        if name not in _OF_RAY
        and not name.startswith(_MARKS)
        and not ("_group_" in name and _OF_GROUP.search(name))
    ]


def build_node(
    node: RayNode, leases: Iterable[Lease], status: NodeStatus | None, metrics_age_s: float | None
) -> Node:
    """roost's node: totals and promises are Ray's, shares of devices roost's own, real use what an agent sees.

    What others hold of the GPUs is a sum (`gpus_promised`): Ray does not say on which device.
    """
    held = list(leases)
    total, free = node.total, node.free
    gpus = int(total.get("GPU", 0.0))
    shares: dict[str, float] = {}
    for lease in held:
        for device_id in lease.device_ids:
            shares[device_id] = shares.get(device_id, 0.0) + lease.request.gpu_share
    known = list(shares)[:gpus]
    spare = (str(number) for number in range(2 * gpus) if str(number) not in shares)
    device_ids = sorted([*known, *(next(spare) for _ in range(gpus - len(known)))], key=_in_order)
    seen = status.devices if status is not None else ()

    def promised(name: str, by_leases: float) -> float:
        """What Ray says, which follows a tenth of a second late, and no less than what is known to be held."""
        if free is None:
            return by_leases
        return max(by_leases, round(total.get(name, 0.0) - free.get(name, 0.0), 4))  # Ray counts in 1/10,000

    resources = {name: amount for name, amount in total.items() if name not in _OF_RAY}
    return Node(
        id=node.id,
        address=node.address,
        labels=node.labels,
        cpus=total.get("CPU", 0.0),
        memory_bytes=int(total.get("memory", 0)),
        devices=tuple(
            _device(device_id, node.model, min(1.0, shares.get(device_id, 0.0)), _seen(seen, device_id))
            for device_id in device_ids
        ),
        cpus_promised=promised("CPU", sum(lease.request.cpus for lease in held)),
        memory_promised_bytes=int(promised("memory", sum(lease.request.memory_bytes for lease in held))),
        gpus_promised=promised("GPU", sum(lease.request.gpus for lease in held)),
        resources=resources,
        resources_promised={
            name: max(0.0, promised(name, sum(lease.request.resources.get(name, 0.0) for lease in held)))
            for name in resources
        },
        cpus_used=status.cpus_used if status else None,
        memory_used_bytes=status.memory_used_bytes if status else None,
        kernels=status.kernels if status else len(held),
        is_draining=bool(node.drains_because),
        drains_because=node.drains_because,
        warm=status.warm if status else (),
        metrics_age_s=metrics_age_s,
    )


def _device(device_id: str, model: str, promised: float, seen: Device | None) -> Device:
    if seen is None:
        return Device(id=device_id, model=model, promised=promised)
    return replace(seen, id=device_id, model=model or seen.model, promised=promised)


def _seen(devices: tuple[Device, ...], device_id: str) -> Device | None:
    """What the agent sees of a device, which Ray names by its number, or by what CUDA_VISIBLE_DEVICES named it."""
    for device in devices:
        if device.id == device_id:
            return device
    number = int(device_id) if device_id.isdigit() else -1
    return devices[number] if 0 <= number < len(devices) else None


def _in_order(device_id: str) -> tuple[int, str]:
    return (int(device_id), "") if device_id.isdigit() else (1 << 30, device_id)


def _amounts(resources: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: amount for name in names if (amount := resources.get(name))}


def _model(labels: Mapping[str, str], resources: Iterable[str]) -> str:
    """The model of a node's GPUs: by Ray's label, else by the resource that Ray makes of it, else empty."""
    names = (name.removeprefix(_MODEL_RESOURCE) for name in resources if name.startswith(_MODEL_RESOURCE))
    return labels.get(_MODEL_LABEL) or next(names, "")


def _refuses(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _told_apart(nodes: list[RayNode]) -> tuple[RayNode, ...]:
    """Several raylets at one address, as in tests of Ray itself, are told apart by the head of their ids."""
    at = Counter(node.address for node in nodes)
    return tuple(
        node if at[node.address] == 1 else replace(node, id=f"{node.address}/{node.ray_id[:8]}")
        for node in nodes
    )
