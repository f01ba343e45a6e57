"""Builds the nodes for placement from the nodes that the ResourceManager reports."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from roost.launchers.protocol.messages import Lease
from roost.placement.model import Device, Node, Request

from .rest import JsonObject
from .settings import RoostYarnBackend

PARTITION = "partition"
"""The name of the label and of the taint that roost gives to the nodes of a partition."""
RACK = "rack"
_TAKES_NOTHING = {
    "NEW": "is being added",
    "UNHEALTHY": "is unhealthy",
    "DECOMMISSIONING": "is being decommissioned",
}
"""States of nodes that are shown, but take no containers now.

A node in any other state, except RUNNING, has left.
"""
_MODEL_ATTRIBUTE = "gpu-model"
"""The node attribute that names the model of a node's GPUs."""
_BASIC = ("memory-mb", "vcores")
_USE_STEP_BYTES = 64 << 20


def taint_of(partition: str) -> str:
    """Return the taint of an exclusive partition's nodes. A request for the partition tolerates it."""
    return f"{PARTITION}={partition}"


def to_placement(request: Request) -> Request:
    """Return the request with the required label and the tolerated taint that its option `label` means."""
    label = request.options.get("label", "")
    if not label:
        return request
    return replace(
        request,
        labels={**request.labels, PARTITION: label},
        tolerates=tuple(dict.fromkeys((*request.tolerates, taint_of(label)))),
    )


@dataclass(frozen=True, slots=True)
class Amounts:
    """CPUs, memory and other resources by the names of YARN's resource types."""

    cpus: int = 0
    memory_bytes: int = 0
    others: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """The facts about a node that matter to roost, as the ResourceManager reports them.

    `daemon` is the address of its NodeManager, `host:port`.
    """

    host: str
    daemon: str
    rack: str
    state: str
    trouble: str
    partition: str
    attributes: tuple[tuple[str, str], ...]
    total: Amounts
    used: Amounts
    cpus_used: float | None
    memory_used_bytes: int | None


def read_facts(raw: JsonObject) -> NodeFacts | None:
    """Return the facts about a node; None for a node that has left."""
    state = raw["state"]
    if state != "RUNNING" and state not in _TAKES_NOTHING:
        return None
    use = raw.get("resourceUtilization") or {}
    # A NodeManager that has just been started has no figures yet.
    is_measured = use.get("nodeCPUUsage", -1) >= 0
    infos = (raw.get("nodeAttributesInfo") or {}).get("nodeAttributeInfo", ())
    total = _read_amounts(raw.get("totalResource"))
    if total == Amounts():  # Hadoop before 3.0 has no resource types
        memory, cpus = raw["usedMemoryMB"], raw["usedVirtualCores"]
        total = Amounts(cpus + raw["availableVirtualCores"], (memory + raw["availMemoryMB"]) << 20)
        used = Amounts(cpus, memory << 20)
    else:
        used = _read_amounts(raw.get("usedResource"))
    return NodeFacts(
        host=raw["nodeHostName"],
        daemon=raw["id"],
        rack=raw.get("rack", ""),
        state=state,
        trouble=" ".join(str(raw.get("healthReport", "")).split())[:200],
        partition=next(iter(raw.get("nodeLabels") or ()), ""),
        attributes=tuple((info["name"], info["value"]) for info in infos),
        total=total,
        used=used,
        # Rounded, so that idle nodes do not differ at each reading.
        cpus_used=round(use["nodeCPUUsage"], 1) if is_measured else None,
        memory_used_bytes=_round(use["nodePhysicalMemoryMB"] << 20) if is_measured else None,
    )


class NodeBook:
    """The nodes as YARN reported them last, without the containers of this service.

    YARN's figures include every container. The amounts of this service's containers are subtracted, because roost adds
    them itself. A container that has ended meanwhile stays promised until YARN's figures no longer include it. If YARN
    has rounded a container up, the difference to its request stays promised too.
    """

    def __init__(self, settings: RoostYarnBackend) -> None:
        self._settings = settings
        self._facts: dict[str, NodeFacts] = {}
        self._decommissioned: frozenset[str] = frozenset()
        self._exclusive: frozenset[str] = frozenset()
        self._counted: Mapping[int, Lease] = {}
        self._built: dict[str, tuple[tuple[object, ...], Node]] = {}

    def set(
        self, raws: Sequence[JsonObject], exclusive: Collection[str], counted: Mapping[int, Lease]
    ) -> bool:
        """Note a reading of YARN's nodes; return True if it differs from the last one.

        `exclusive` are the exclusive partitions. `counted` are the leases whose containers the reading includes,
        by number.
        """
        facts = {}
        left = {raw["nodeHostName"] for raw in raws if raw["state"] == "DECOMMISSIONED"}
        for raw in raws:
            if (fact := read_facts(raw)) is not None:
                known = self._facts.get(fact.host)
                facts[fact.host] = known if known == fact else fact  # the same object compares quickly
        self._decommissioned = frozenset(left - facts.keys())
        has_changed = any(fact is not self._facts.get(host) for host, fact in facts.items())
        differs = has_changed or len(facts) != len(self._facts) or counted.keys() != self._counted.keys()
        self._facts, self._exclusive, self._counted = facts, frozenset(exclusive), dict(counted)
        return differs

    def racks(self, hosts: Collection[str]) -> dict[str, str]:
        """Return the rack of each of these hosts that YARN knows."""
        return {host: self._facts[host].rack for host in hosts if host in self._facts}

    def daemon(self, host: str) -> str:
        """Return `host:port` of the NodeManager of a node; empty if the node has left."""
        facts = self._facts.get(host)
        return facts.daemon if facts is not None else ""

    def trouble(self, host: str) -> str:
        """Return why a node takes no containers now, such as "is unhealthy".

        Empty if the node takes containers, or if it is lost.
        """
        if host in self._decommissioned:
            return "was decommissioned"
        facts = self._facts.get(host)
        return _describe_trouble(facts) if facts is not None else ""

    def nodes(self, live: Collection[int]) -> list[Node]:
        """Return all nodes, without the amounts that the containers with these numbers promise.

        An unchanged node is the same object.
        """
        own: dict[str, tuple[Request, ...]] = {}
        for number, lease in self._counted.items():
            if number in live:
                own[lease.node_id] = (*own.get(lease.node_id, ()), lease.request)
        built = {}
        for host, facts in self._facts.items():
            is_exclusive = facts.partition in self._exclusive
            key = (facts, is_exclusive, own.get(host, ()))
            known = self._built.get(host)
            built[host] = known if known and known[0] == key else (key, self._build(*key))
        self._built = built
        return [node for _, node in built.values()]

    def _build(self, facts: NodeFacts, is_exclusive: bool, own: tuple[Request, ...]) -> Node:
        gpu = self._settings.gpu_resource
        total, used = dict(facts.total.others), dict(facts.used.others)
        attributes = dict(facts.attributes)
        promised = {
            name: max(0.0, amount - sum(request.resources.get(name, 0.0) for request in own))
            for name, amount in used.items()
            if name != gpu and amount
        }
        trouble = _describe_trouble(facts)
        labels = {RACK: facts.rack, **({PARTITION: facts.partition} if facts.partition else {})}
        return Node(
            id=facts.host,
            address=facts.daemon.rpartition(":")[0],
            labels={**attributes, **labels},
            cpus=float(facts.total.cpus),
            memory_bytes=facts.total.memory_bytes,
            devices=_devices(total.get(gpu, 0), attributes.get(_MODEL_ATTRIBUTE, "")),
            cpus_promised=max(0.0, round(facts.used.cpus - sum(request.cpus for request in own), 9)),
            memory_promised_bytes=max(
                0, facts.used.memory_bytes - sum(request.memory_bytes for request in own)
            ),
            gpus_promised=max(0.0, used.get(gpu, 0) - sum(request.gpus for request in own)),
            resources={name: float(amount) for name, amount in total.items() if name != gpu and amount},
            resources_promised={name: amount for name, amount in promised.items() if amount},
            cpus_used=facts.cpus_used,
            memory_used_bytes=facts.memory_used_bytes,
            metrics_age_s=None if facts.cpus_used is None else 0.0,
            taints=(taint_of(facts.partition),) if is_exclusive else (),
            is_draining=bool(trouble),
            drains_because=trouble,
        )


def _describe_trouble(facts: NodeFacts) -> str:
    trouble = _TAKES_NOTHING.get(facts.state, "")
    return f"{trouble} ({facts.trouble})" if trouble and facts.trouble else trouble


@cache
def _devices(count: int, model: str) -> tuple[Device, ...]:
    return tuple(Device(id=str(number), model=model) for number in range(count))


def _read_amounts(raw: JsonObject | None) -> Amounts:
    if not raw:
        return Amounts()
    infos = (raw.get("resourceInformations") or {}).get("resourceInformation", ())
    others = tuple((info["name"], info["value"]) for info in infos if info["name"] not in _BASIC)
    return Amounts(raw["vCores"], raw["memory"] << 20, others)


def _round(size_bytes: int) -> int:
    return size_bytes // _USE_STEP_BYTES * _USE_STEP_BYTES
