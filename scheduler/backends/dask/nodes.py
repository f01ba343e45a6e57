"""The machines that the plugin in Dask's scheduler describes, and roost's nodes built from them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost.placement import Device, Node
from roost.placement.model.json_codec import decode
from roost.scheduler.backends.agent_per_node.manager import StartedAgent, decode_agent
from roost.scheduler.backends.agent_per_node.node_table import build_device
from roost.scheduler.backends.dask.plugin.slot_ledger import GPU
from roost.scheduler.backends.key_pair import KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskNode:
    """A machine with Dask workers. Amounts are as in `placement.Node`."""

    id: str
    """The machine's address."""
    threads: float
    memory_bytes: int
    resources: Mapping[str, float]
    """Dask's abstract resources."""
    free: Mapping[str, float]
    """The amounts that neither tasks nor kernels hold."""
    devices: tuple[str, ...]
    shares: Mapping[str, float]
    """The parts of the devices that kernels hold."""
    cpus_promised: float
    memory_promised_bytes: int
    leases: frozenset[str]
    drains_because: str = ""
    agent: Mapping[str, Any] = field(default_factory=dict)
    """A nanny's report about the agent, empty before the report."""
    started_agent: StartedAgent | None = None
    """That agent, if it accepts this service."""
    seen: tuple[Device, ...] = ()
    """The GPUs that the agent saw when it was started."""

    @property
    def daemon(self) -> str:
        """The id of the nanny's report about the agent. It changes when a new nanny starts the agent."""
        return str(self.agent.get("report", ""))

    @classmethod
    def of(cls, name: str, described: Mapping[str, Any], key_pair: KeyPair) -> DaskNode:
        """Build the node from the plugin's description of a machine, for the service with this key pair."""
        unused = {"used": None, "memory_used_bytes": None}  # the figures of the agent's start are old by now
        derived = {
            "id": name,
            "drains_because": _explain_drain(described),
            "seen": [{**device, **unused} for device in described["agent"].get("devices", ())],
        }
        node = decode(cls, {**described, **derived}, ignore_unknown=True)
        if key_pair.public not in node.agent.get("clients", ()):
            return node
        return replace(node, started_agent=decode_agent(node.agent, name, node.daemon, key_pair))


def build_node(node: DaskNode, status: Node | None, used: Mapping[str, float] | None) -> Node:
    """Return the node for placement. GPUs that tasks hold are known only as a sum (`gpus_promised`).

    Real use comes from the agent's `status`. Without a status it comes from the workers (`used`: cpus, memory_bytes),
    and does not include the kernels.
    """
    promised = {name: max(0.0, total - node.free.get(name, 0.0)) for name, total in node.resources.items()}
    seen = node.seen if status is None else status.devices
    return Node(
        id=node.id,
        address=node.id,
        cpus=node.threads,
        memory_bytes=node.memory_bytes,
        devices=tuple(build_device(name, seen, promised=node.shares.get(name, 0.0)) for name in node.devices),
        cpus_promised=node.cpus_promised,
        memory_promised_bytes=node.memory_promised_bytes,
        gpus_promised=promised.get(GPU, 0.0),
        resources={name: amount for name, amount in node.resources.items() if name != GPU},
        resources_promised={name: amount for name, amount in promised.items() if name != GPU},
        cpus_used=status.cpus_used if status else used["cpus"] if used else None,
        memory_used_bytes=status.memory_used_bytes if status else int(used["memory_bytes"]) if used else None,
        kernels=len(node.leases),
        owners=status.owners if status else {},
        is_draining=bool(node.drains_because),
        drains_because=node.drains_because,
        warm=status.warm if status else (),
        enforcement=status.enforcement if status else "",
        problems=status.problems if status else (),
        metrics_age_s=status.metrics_age_s if status else 0.0 if used else None,
    )


def _explain_drain(described: Mapping[str, Any]) -> str:
    if described["is_draining"]:
        return "Dask is retiring its workers"
    problem = described["agent"].get("problem", "")
    return f"no agent of roost runs there: {problem}" if problem else ""
