"""Ray's nodes, and roost's nodes built from them. Pure, except for `read`, which asks Ray's GCS.

A node's id is its address, which stays the same when its raylet is started again. Ray's own id changes then. Where
several raylets share an address, the second one is `ADDRESS/2`, and so on.
"""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from roost.placement import Node
from roost.scheduler.backends.agent_per_node.node_table import build_device

log = logging.getLogger(__name__)

_READ_S = 5.0
_CONNECT_S = 0.5
_HELD_UP = "Ray has not noticed yet that its earlier raylet has ended"
_GROUP_LABEL = "_PG_"
"""Prefix of the dynamic labels that name the created placement groups with a bundle on a node: `_PG_<id>`."""
MODEL_LABEL = "ray.io/accelerator-type"
MODEL_RESOURCE = "accelerator_type:"
TYPE_LABEL = "ray.io/node-group"
"""Ray's own label of a node that an autoscaler has started: the name of the node's type."""
_HEAD = "node:__internal_head__"
_AMOUNTS = ("CPU", "GPU", "memory")
_RAYS_OWN = frozenset({*_AMOUNTS, "object_store_memory"})
_MARK_PREFIXES = ("node:", MODEL_RESOURCE)
"""Prefixes of resources that mark a node, and are no amounts."""
_GROUP_RESOURCE = re.compile(r"_group_(\d+_)?[0-9a-f]{36}$")
_DEAD, _DRAINING = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RayNode:
    """A live node of a Ray cluster, as its GCS knows it.

    Amounts are Ray's: CPU and GPU in units, memory in bytes, and custom resources. Amounts of 0 are left out.
    """

    id: str
    daemon: str
    """The node's raylet, by Ray's own id of the node."""
    address: str
    labels: Mapping[str, str]
    model: str
    total: Mapping[str, float]
    """All amounts of the node."""
    free: Mapping[str, float] | None
    """The amounts that are free, None if Ray does not report them."""
    groups: frozenset[str] | None
    """The ids of the created placement groups with a bundle here.

    None if Ray does not report them.
    """
    drains_because: str = ""
    is_head: bool = False
    """True if the cluster's head is here, and with it an autoscaler's files."""
    is_held_up: bool = False
    """True if an earlier raylet at this address has ended, and Ray has not noticed that.

    Until Ray notices it, Ray refuses all claims here.
    """
    started_agent: None = None
    """Always None, because Ray does not know the agent."""


def read(known: Iterable[RayNode] = ()) -> tuple[RayNode, ...]:
    """Return all live nodes. Blocks for about 0.4 ms; raises Ray's own errors if its GCS does not answer.

    The nodes of an earlier reading (`known`) save work. Ray lists a killed raylet for another 13 s, beside a
    new one at the same address. A raylet whose port is closed is left out, so that the new one gets the
    node's id at once.
    """
    import ray

    try:  # not public; `ray.nodes()` does not report free amounts
        from ray._private.worker import global_worker

        content = global_worker.gcs_client.get_cluster_resource_state(timeout_s=_READ_S)
    except (ImportError, AttributeError, TypeError) as problem:
        log.debug("this Ray has no cluster resource state: %s", problem)
        nodes = decode_public(ray.nodes())
    else:
        nodes = decode(content, known)
    at = Counter(node.address for node in nodes)
    if len(at) < len(nodes):
        ports = {node["NodeID"]: node["NodeManagerPort"] for node in ray.nodes()}
        nodes = _leave_out_ended(nodes, at, ports, {node.daemon for node in known})
    return _name(nodes, {node.daemon: node.id for node in known})


def _leave_out_ended(
    nodes: Iterable[RayNode], at: Mapping[str, int], ports: Mapping[str, int], known: Collection[str]
) -> tuple[RayNode, ...]:
    """Return the nodes whose raylets live, where `at` says that an address has several. `ports` is by raylet.

    Of those with one port, which an operator may have fixed, only the newest lives: one that is not `known`.
    """
    newest = {(node.address, ports[node.daemon]): node.daemon for node in nodes if at[node.address] > 1}
    for node in nodes:
        if at[node.address] > 1 and node.daemon not in known:
            newest[node.address, ports[node.daemon]] = node.daemon
    live = [
        node
        for node in nodes
        if at[node.address] == 1
        or (
            newest[node.address, ports[node.daemon]] == node.daemon
            and not _refuses(node.address, ports[node.daemon])
        )
    ]
    left = Counter(node.address for node in live)
    return tuple(
        replace(node, is_held_up=True, drains_because=_HELD_UP)
        if left[node.address] < at[node.address]
        else node
        for node in live
    )


def _name(nodes: Iterable[RayNode], known: Mapping[str, str]) -> tuple[RayNode, ...]:
    """Return the nodes with their ids. A raylet keeps its id (`known`) until it ends, and its agent with it.

    The next one at that address gets the id, and with it the agent and its kernels. Of several that are new, the head's
    is first.
    """
    names = {node.daemon: known[node.daemon] for node in nodes if node.daemon in known}
    taken = set(names.values())
    new = [node for node in nodes if node.daemon not in names]
    for node in sorted(new, key=lambda node: (not node.is_head, node.daemon)):
        later = (f"{node.address}/{number}" for number in count(2))
        names[node.daemon] = next(name for name in chain([node.address], later) if name not in taken)
        taken.add(names[node.daemon])
    return tuple(replace(node, id=names[node.daemon]) for node in nodes)


def decode(content: bytes, known: Iterable[RayNode] = ()) -> tuple[RayNode, ...]:
    """Return the nodes of a serialised `GetClusterResourceStateReply`.

    Takes 10 µs for a node in `known`, and 100 µs for another one.
    """
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterResourceStateReply.FromString(content)
    before = {node.daemon: node for node in known if node.total}
    found = []
    for state in reply.cluster_resource_state.node_states:
        if state.status == _DEAD:
            continue
        resources, address = state.total_resources, state.node_ip_address
        ray_id = state.node_id.hex()
        if (was := before.get(ray_id)) is not None:
            labels, model, names, is_head = was.labels, was.model, tuple(was.total), was.is_head
        else:
            labels = dict(state.labels) if hasattr(state, "labels") else {}
            if state.ray_node_type_name:
                labels.setdefault(TYPE_LABEL, state.ray_node_type_name)
            is_head = _HEAD in resources
            model = _find_model(labels, resources) if "GPU" in resources else ""
            names = (*_AMOUNTS, *find_custom_resources(resources))
        found.append(
            RayNode(
                id=address,
                daemon=ray_id,
                address=address,
                labels=labels,
                model=model,
                total=_select_amounts(resources, names),
                free=_select_amounts(state.available_resources, names),
                groups=frozenset(
                    name[len(_GROUP_LABEL) :]
                    for name in state.dynamic_labels
                    if name.startswith(_GROUP_LABEL)
                ),
                drains_because="Ray is draining it" if state.status == _DRAINING else "",
                is_head=is_head,
            )
        )
    return tuple(found)


def decode_public(nodes: Iterable[Mapping[str, Any]]) -> tuple[RayNode, ...]:
    return tuple(
        RayNode(
            id=node["NodeManagerAddress"],
            daemon=node["NodeID"],
            address=node["NodeManagerAddress"],
            labels=dict(node.get("Labels") or {}),
            model=_find_model(node.get("Labels") or {}, node["Resources"]),
            total=_select_amounts(node["Resources"], (*_AMOUNTS, *find_custom_resources(node["Resources"]))),
            free=None,
            groups=None,
            is_head=_HEAD in node["Resources"],
        )
        for node in nodes
        if node["Alive"]
    )


def find_custom_resources(resources: Iterable[str]) -> list[str]:
    """Return the names of custom resources, without Ray's own and those of placement groups."""
    return [
        name
        for name in resources
        if name not in _RAYS_OWN
        and not name.startswith(_MARK_PREFIXES)
        and not ("_group_" in name and _GROUP_RESOURCE.search(name))
    ]


def build_node(node: RayNode, status: Node | None) -> Node:
    """Return the node for placement. GPUs that others hold are known only as a sum (`gpus_promised`)."""
    noted = status or Node(id=node.id)
    total, free = node.total, node.free
    gpus = int(total.get("GPU", 0.0))
    shares = {device.id: device.promised for device in noted.devices if device.promised}
    known = list(shares)[:gpus]
    spare = (str(number) for number in range(2 * gpus) if str(number) not in shares)
    device_ids = sorted([*known, *(next(spare) for _ in range(gpus - len(known)))], key=_sort_key)

    def promised(name: str, noted: float) -> float:
        """Return a promised amount: Ray's figure, which is 0.1 s late, or the agent's if that is larger."""
        if free is None:
            return noted
        return max(noted, round(total.get(name, 0.0) - free.get(name, 0.0), 4))  # Ray counts in 1/10,000

    resources = {name: amount for name, amount in total.items() if name not in _RAYS_OWN}
    return Node(
        id=node.id,
        address=node.address,
        labels=node.labels,
        cpus=total.get("CPU", 0.0),
        memory_bytes=int(total.get("memory", 0)),
        devices=tuple(
            build_device(device_id, noted.devices, promised=shares.get(device_id, 0.0), model=node.model)
            for device_id in device_ids
        ),
        cpus_promised=promised("CPU", noted.cpus_promised),
        memory_promised_bytes=int(promised("memory", noted.memory_promised_bytes)),
        gpus_promised=promised("GPU", noted.gpus_promised),
        resources=resources,
        resources_promised={
            name: max(0.0, promised(name, noted.resources_promised.get(name, 0.0))) for name in resources
        },
        cpus_used=noted.cpus_used,
        memory_used_bytes=noted.memory_used_bytes,
        kernels=noted.kernels,
        owners=noted.owners,
        is_draining=bool(node.drains_because),
        drains_because=node.drains_because,
        warm=noted.warm,
        enforcement=noted.enforcement,
        problems=noted.problems,
        metrics_age_s=noted.metrics_age_s,
    )


def _sort_key(device_id: str) -> tuple[int, str]:
    return (int(device_id), "") if device_id.isdigit() else (1 << 30, device_id)


def _select_amounts(resources: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: amount for name in names if (amount := resources.get(name))}


def _find_model(labels: Mapping[str, str], resources: Iterable[str]) -> str:
    """Return the model of a node's GPUs: from Ray's label, else from a marking resource; empty if unknown."""
    names = (name.removeprefix(MODEL_RESOURCE) for name in resources if name.startswith(MODEL_RESOURCE))
    return labels.get(MODEL_LABEL) or next(names, "")


def _refuses(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_CONNECT_S).close()
    except OSError as problem:
        return isinstance(problem, ConnectionRefusedError)
    return False
