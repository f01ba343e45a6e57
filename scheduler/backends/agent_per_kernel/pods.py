"""`PodCluster`: the interface of a cluster manager that runs each kernel in a pod (or container, or job) of its own."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from roost.launchers.daemon.json_text import parse_json
from roost.launchers.protocol.messages import AgentAddress, Launch, Lease
from roost.placement.model import Node, Request
from roost.placement.model.json_codec import decode, encode
from roost.scheduler.backends.base import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod: its lease, and the address of its agent once that is known."""

    lease: Lease
    """The lease that `create` got, with the node and the devices that the manager really granted.

    Its state is `pending` until the manager has granted the pod, then `held`. A pending lease has a reason, a clause
    without a full stop, such as "its image is being pulled". The state is `lost` once the pod has ended without roost's
    doing. roost then deletes the pod.
    """
    address: AgentAddress | None = None
    """The address of the agent. It may still be None in a held lease, while the agent starts.

    In a pending lease it may be known already. roost then tries to reach the agent, and the lease is held as soon as
    the agent answers.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PodChange:
    """A change that the cluster reports, of one of five kinds."""

    kind: Literal["pod", "gone", "warning", "nodes", "resync"]
    """`pod`: `pod` is new or differs. `gone`: the pod of `lease_id` exists no more, for `reason`.

    `warning`: the manager will end the pod of `lease_id` soon, for `reason`. `nodes`: the nodes differ. `resync`:
    changes may be missing, so roost reads all nodes and pods again.
    """
    pod: Pod | None = None
    """The pod of a change of the kind `pod`."""
    lease_id: str = ""
    """The lease of the pod that is `gone`, or that a `warning` is about."""
    reason: str = ""
    """Why the pod is gone or will end: a clause without a full stop."""


class PodCluster(ABC):
    """A cluster manager that runs pods.

    Every method raises `BackendUnavailable` if the manager does not answer. A call can be cancelled at any moment.
    `create` is the exception: roost lets it end, and only then calls `create`, `delete` or `close` for that lease.
    """

    name: str
    """The manager's name for people, such as "Kubernetes"."""
    unit: str = "pod"
    """The manager's word for a pod in messages to users, such as "job". Give it to `agent_command` too."""
    creating: Collection[str] = ()
    """The ids of the leases whose `create` has not ended.

    roost sets this. `changes` and `pods` must omit their pods.
    """

    @abstractmethod
    async def join(self) -> str:
        """Connect; return the cluster's address, for people. May be repeated after an outage.

        Raise `BackendUnavailable` for a missing cluster. Do not make an empty one instead: all pods would be lost.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. Pods stay. May be repeated."""

    @abstractmethod
    async def nodes(self) -> Sequence[Node]:
        """Return all nodes, with the resources promised to others.

        Leave out the pods that `pods` returns and those of `creating`: roost adds their requests. Count everything
        else: pods of other users' services, a deleted pod until its resources are free, and the difference if the
        manager grants more than the request, such as a whole CPU for 0.5.

        roost calls this after `join`, after a `nodes` or `resync` change, after `create` has raised `LeaseConflict`,
        and after `delete`. It never calls it by the clock. The answer after a conflict or a `delete` must be as new as
        that, so do not take it from an older reading.
        """

    @abstractmethod
    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        """Create the pod of a lease, and return it once the manager has decided where it runs.

        `lease.node_id` is the node that roost has chosen, and `lease.device_ids` are the devices. Ask the manager for
        exactly this node. The state of the argument says nothing. The returned lease names the node and the devices
        that were granted. If the manager takes another node, it must meet the request too.

        Raise `LeaseConflict` as soon as it is clear that this node has no room now. A manager that keeps such a claim
        would wait for one node while others are free: withdraw the claim, then raise. With `is_everywhere=True` no
        other node would do either, for example because of a quota. roost avoids the node for one second, later for up
        to 30, or until the promises on it have changed. If the manager has not decided within seconds, return a
        pending lease. If that lease is lost later, roost places the request again, unless the lease `is_final`.

        `lease.node_id` is empty only with a `PodGrowth`. Then any node that meets the request will do.
        Return a pending lease if none has room: it waits in the manager's own queue.

        Raise `NoNodeEver` or `LaunchError`, with a sentence for the user, for a pod that can never start. The start
        fails with this error.

        `launch` is the launch that roost will ask the pod's agent for. An agent that has got an `Assignment` with the
        pod begins that launch by itself, which saves the time until roost reaches it.

        Repeated with the same lease id, return the pod that exists. After `delete`, the same id means a new pod. The
        pod's first process is an agent (see `agent_command`). The manager must keep the lease with the pod, so that
        `pods` returns it to any process. Its owner may change later: the agent alone keeps the present one.
        """

    @abstractmethod
    async def delete(self, lease_id: str) -> None:
        """Delete a pod, with everything that runs in it. May be repeated, also without such a pod.

        roost has asked the agent to end its kernel before, and the agent then leaves. This is not so if the agent did
        not answer within 5 s: then kill it. The call need not wait for the pod's end. From now on `pods` and `changes`
        omit this pod, and `nodes` counts it until its resources are free. A user who stops a kernel waits for this
        call: return within 5 s if you can.

        Processes of a kernel are in sessions of their own. Without containers, find them by a variable that
        `environment` sets.
        """

    @abstractmethod
    async def pods(self) -> Sequence[Pod]:
        """Return all pods of this user's services on the cluster, whichever process created them.

        A pod that has ended by itself has a lost lease, until it is deleted. roost calls this after `join` and
        `resync`, when the connection to an agent has ended, for `roost explain` and `roost doctor`, and every 5 s while
        an agent or the manager is out of reach. An operator's cap for each user adds a call for some starts.
        """

    @abstractmethod
    def changes(self) -> AsyncIterator[PodChange]:
        """Yield changes as they happen. The first is `resync`, once no later change can be missed.

        If the manager has no events, compare two readings. One reading for all pods is enough, and it may be seconds
        old. roost ends the iteration by cancelling it, before `close`. After a `BackendUnavailable` it joins again, and
        iterates again.
        """

    async def explain_end(self, lease_id: str) -> str:
        """Return why the manager ends this pod, as a clause; empty if it does not say.

        Called after the pod's agent has reported that it is being ended. The manager may know the cause later than the
        agent. roost waits for 3 s at most, then cancels the call and takes the last `warning` or the agent's own words.
        """
        return ""

    async def warm_up(self) -> None:
        """Start whatever the first pod would have to wait for. Called by `roost up`."""
        return

    async def diagnose(self) -> list[Finding]:
        """Return what `roost doctor` should say about this cluster."""
        return []

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for a request that this cluster can never serve. Called before the request queues."""
        return

    def to_placement(self, request: Request) -> Request:
        """Return the request with labels and tolerated taints for its options. Called after `check_request`.

        A feature of the manager that has no value is a label with the value `yes`, here and in `nodes`.
        """
        return request

    def environment(self, lease: Lease) -> Mapping[str, str]:
        """Return the variables that this manager adds to the environment of a kernel in this lease.

        Called for each launch. It must not block, so keep its facts in memory.
        """
        return {}


def shorten_id(lease_id: str) -> str:
    """Return 20 digits and letters from a to f that stand for a lease id in names of files, jobs and labels.

    A lease id is `roost:<kernel id>:<scheduler>/<launch id>`. It usually has about 110 characters, and may have 600.
    Applications choose the kernel id and the launch id. They may contain all printable characters and spaces, but no
    line breaks, tabs or zero bytes.

    >>> shorten_id("roost:k:s/1")
    '58730b45f503ec3828cc'
    """
    return hashlib.sha256(lease_id.encode()).hexdigest()[:20]


def dump_lease(lease: Lease) -> str:
    """Return the lease as one line of ASCII text, for an annotation or a file of its pod.

    It usually has less than 1 kB. The request's labels and options are in it, so there is no upper limit: an
    application may send some MiB. roost puts no keys in it, but it names the user and the application.
    """
    return json.dumps(encode(lease))


def load_lease(text: str) -> Lease:
    """Return the lease that `dump_lease` wrote; raises `ValueError` for other text."""
    return decode(Lease, parse_json(text), ignore_unknown=True)
