"""What the plugin in Dask's scheduler says of a machine (`dask_plugin`), as a node of roost's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from roost.launchers.protocol.json_codec import decode
from roost.launchers.protocol.messages import NodeStatus
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Device, Node
from roost.scheduler.backends.agent_per_node.manager import StartedAgent
from roost.scheduler.backends.base import AgentAddress
from roost.scheduler.backends.dask.plugin.slot_ledger import GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskNode:
    """A machine on which workers run; `id` is its address. Amounts as in `placement.Node`.

    `free` is what neither tasks nor kernels have of abstract resources, `shares` what kernels have of each device.
    `agent`: what its nanny has said of the agent, empty before that, and `seen` the GPUs that this saw.
    """

    id: str
    threads: float
    memory_bytes: int
    resources: Mapping[str, float]
    free: Mapping[str, float]
    devices: tuple[str, ...]
    shares: Mapping[str, float]
    cpus_promised: float
    memory_promised_bytes: int
    leases: frozenset[str]
    drains_because: str = ""
    agent: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seen: tuple[Device, ...] = ()

    @property
    def daemon(self) -> str:
        """The nannies of that machine, as long as none has come anew and brought its agent up."""
        return str(self.agent.get("told", ""))

    @property
    def started_agent(self) -> StartedAgent | None:
        """The agent that a nanny of this machine has started."""
        return decode_agent(self.agent) if "endpoint" in self.agent else None

    @classmethod
    def of(cls, name: str, said: Mapping[str, Any]) -> DaskNode:
        """A machine as the plugin describes it."""
        return cls(
            id=name,
            threads=float(said["threads"]),
            memory_bytes=int(said["memory_bytes"]),
            resources=dict(said["resources"]),
            free=dict(said["free"]),
            devices=tuple(said["devices"]),
            shares=dict(said["shares"]),
            cpus_promised=float(said["cpus_promised"]),
            memory_promised_bytes=int(said["memory_promised_bytes"]),
            leases=frozenset(said["leases"]),
            drains_because=_drains_because(said),
            agent=dict(said["agent"]),
            seen=tuple(map(_unused, said["agent"].get("devices", ()))),
        )


def decode_agent(reported: Mapping[str, Any]) -> StartedAgent:
    """Return the agent that a nanny reports."""
    address = AgentAddress(endpoint=str(reported["endpoint"]), keys=decode(ClientKeys, reported["keys"]))
    return StartedAgent(address=address, daemon=str(reported["told"]))


def build_node(
    node: DaskNode,
    status: NodeStatus | None,
    metrics_age_s: float | None,
    used: Mapping[str, float] | None,
) -> Node:
    """roost's node: what is promised is the ledger's and the workers', real use the agent's where it is connected.

    Else it is what the workers themselves use (`used`: cpus, memory_bytes), without the kernels. What tasks have of
    the GPUs is a sum (`gpus_promised`): Dask does not say on which device.
    """
    promised = {name: max(0.0, total - node.free.get(name, 0.0)) for name, total in node.resources.items()}
    devices = node.seen if status is None else status.devices
    seen = {device.id: device for device in devices}
    in_order = list(seen.values())
    return Node(
        id=node.id,
        address=node.id,
        cpus=node.threads,
        memory_bytes=node.memory_bytes,
        devices=tuple(
            _device(name, min(1.0, node.shares.get(name, 0.0)), seen.get(name) or _numbered(in_order, name))
            for name in node.devices
        ),
        cpus_promised=node.cpus_promised,
        memory_promised_bytes=node.memory_promised_bytes,
        gpus_promised=promised.get(GPU, 0.0),
        resources={name: amount for name, amount in node.resources.items() if name != GPU},
        resources_promised={name: amount for name, amount in promised.items() if name != GPU},
        cpus_used=status.cpus_used if status else used["cpus"] if used else None,
        memory_used_bytes=status.memory_used_bytes if status else int(used["memory_bytes"]) if used else None,
        kernels=len(node.leases),
        is_draining=bool(node.drains_because),
        drains_because=node.drains_because,
        warm=status.warm if status else (),
        metrics_age_s=0.0 if status is None and used else metrics_age_s,
    )


def _drains_because(said: Mapping[str, Any]) -> str:
    if said["is_draining"]:
        return "Dask is retiring its workers"
    problem = said["agent"].get("problem", "")
    return f"no agent of roost's runs there: {problem}" if problem else ""


def _unused(seen: Mapping[str, Any]) -> Device:
    """What does not age of a GPU that an agent saw when it was brought up."""
    return replace(decode(Device, seen, ignore_unknown=True), used=None, memory_used_bytes=None)


def _device(name: str, promised: float, seen: Device | None) -> Device:
    if seen is None:
        return Device(id=name, promised=promised)
    return replace(seen, id=name, promised=promised)


def _numbered(seen: list[Device], name: str) -> Device | None:
    """The device of that number, where the agent names them otherwise."""
    number = int(name) if name.isdigit() else -1
    return seen[number] if 0 <= number < len(seen) else None
