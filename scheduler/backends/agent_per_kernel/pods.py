"""`PodCluster`: the interface of a cluster manager that runs each kernel in a pod (or container) of its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import AgentAddress, Launch, Lease, PodKernel
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement.model import Node, Request
from roost.placement.model.json_codec import decode, encode
from roost.scheduler.backends.base import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod: its lease, and the address of its agent once that is known.

    `lease` is the lease that `create` got, with the node and the devices that the manager chose. Its state is `pending`
    until the manager has granted the pod, then `held`. It is `lost` once the pod has ended without roost's doing; roost
    then deletes the pod. The lease's reason is a clause without a full stop, such as "its image is being pulled".
    `address` may still be None in a held lease, while the agent starts. In a pending lease it may be known already:
    roost then tries to reach the agent, and the lease is held as soon as the agent answers. `kernel` is the kernel that
    the pod has reported, because it listens. Its agent will answer soon at `address`.
    """

    lease: Lease
    address: AgentAddress | None = None
    kernel: PodKernel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodChange:
    """A change that the cluster reports, of one of five kinds.

    `pod`: `pod` is new or differs. `gone`: the pod of `lease_id` exists no more, for `reason`. `warning`: the manager
    will end the pod of `lease_id` soon, for `reason`. `nodes`: the nodes differ. `resync`: changes may be missing, so
    everything is read again.
    """

    kind: Literal["pod", "gone", "warning", "nodes", "resync"]
    pod: Pod | None = None
    lease_id: str = ""
    reason: str = ""


class PodCluster(ABC):
    """A cluster manager that runs pods.

    Every method raises `BackendUnavailable` if the manager does not answer. A call can be cancelled at any moment.
    `create` is the exception: roost lets it end, and only then calls `create`, `delete` or `close` for that lease.
    `name` is the manager's name for people, such as "Kubernetes".
    """

    name: str
    creating: Collection[str] = ()
    """The ids of the leases whose `create` has not ended.

    roost sets this. `changes` and `pods` must omit their pods.
    """

    @abstractmethod
    async def join(self) -> str:
        """Connect; return the cluster's address, for people. May be repeated after an outage."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. Pods stay. May be repeated."""

    @abstractmethod
    async def nodes(self) -> Sequence[Node]:
        """Return all nodes, with the resources promised to others.

        Do not count this service's pods: roost adds them.
        """

    @abstractmethod
    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        """Create the pod of a lease on `lease.node_id`; raises `LeaseConflict` if the manager refuses.

        `launch` is the launch that roost will ask the pod's agent for. An agent that has got an `Assignment` with the
        pod begins that launch by itself, which saves the time until roost reaches it.

        Repeated with the same lease id, it returns the pod that exists. The pod's first process is an agent (see
        `agent_command`). The manager must keep the lease with the pod, so that `pods` returns it to any process.
        """

    @abstractmethod
    async def delete(self, lease_id: str) -> None:
        """Delete a pod, with everything that runs in it. May be repeated, also without such a pod.

        Processes of a kernel are in sessions of their own. Without containers, find them by a variable that
        `environment` sets.
        """

    @abstractmethod
    async def update(self, lease: Lease) -> None:
        """Store this lease with its pod in place of the earlier lease, because its owner has changed."""

    @abstractmethod
    async def pods(self) -> Sequence[Pod]:
        """Return all pods of roost, whichever process created them."""

    @abstractmethod
    def changes(self) -> AsyncIterator[PodChange]:
        """Yield changes as they happen. The first is `resync`, once no later change can be missed.

        roost ends the iteration by cancelling it, before `close`. After a `BackendUnavailable` it joins again, and
        iterates again.
        """

    async def explain_end(self, lease_id: str) -> str:
        """Return why the manager ends this pod, as a clause; empty if it does not say.

        Called after the pod's agent has reported that it is being ended.
        """
        return ""

    async def warm_up(self) -> None:
        """Start whatever the first pod would have to wait for."""
        return

    async def diagnose(self) -> list[Finding]:
        """Return what `roost doctor` should say about this cluster."""
        return []

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for a request that this cluster can never serve. Called before the request queues."""
        return

    def to_placement(self, request: Request) -> Request:
        """Return the request with labels and tolerated taints for its options. Called after `check_request`."""
        return request

    def environment(self, lease: Lease) -> Mapping[str, str]:
        """Return the variables that this manager adds to the environment of a kernel in this lease."""
        return {}


def dump_lease(lease: Lease) -> str:
    """Return the lease as text, for a label, an annotation or a file of its pod."""
    return json.dumps(encode(lease))


def load_lease(text: str) -> Lease:
    """Return the lease that `dump_lease` wrote; raises `ValueError` for other text."""
    return decode(Lease, json.loads(text), ignore_unknown=True)


def agent_command(
    python: str, folder: str, *, address: str = "", idle_exit_s: float = 600.0
) -> tuple[str, ...]:
    """Return the command of a pod's first process: an agent for one kernel, with its state in `folder`.

    The agent writes its address there once it listens (`read_address` returns it). `address` is the IP
    address where it and the kernel listen; empty is loopback. The agent exits when its lease is released, or
    after `idle_exit_s` without a lease.
    """
    settings = AgentSettings(
        address=address,
        idle_exit_s=idle_exit_s,
        is_remote=True,
        gpu_visibility="inherit",
        is_per_kernel=True,
    )
    return (python, "-m", "roost.launchers.agent.main", folder, json.dumps(encode(settings)))


def read_address(folder: str) -> AgentAddress | None:
    """Return the address that the agent of `folder` has written there; None while it does not listen yet.

    The file has the keys that the agent accepts. Only the owner may read it.
    """
    announced = read_json(Path(folder) / "ready.json")
    if not isinstance(announced, dict):
        return None
    return AgentAddress(
        endpoint=announced["endpoint"], keys=decode(ClientKeys, announced["keys"], ignore_unknown=True)
    )
