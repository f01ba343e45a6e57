"""Leases as Ray holds them: for each kernel one detached, named placement group with one bundle, and no process.

A group is tied to its node. A group that waits for a new node is not, because Ray creates it where it finds room.

The name, `<lease id> for <user>`, makes the lease atomic, because Ray refuses a second group of that name. Call all
functions in a thread, because they block, for milliseconds unless they say otherwise.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from roost.placement import Request
from roost.scheduler.errors import LeaseConflict

from .agent_task import BringUp, build_task, build_task_on, list_gpu_ids, list_gpu_ids_and_bring_up, run_once
from .nodes import RayNode

NAMESPACE = "roost"
PREFIX = "roost:"
_FOR = " for "
PIN = "node:"
"""How the resource begins that ties a group to its node. A group that waits for a new node has none."""
_SHARE_OF_ADDRESS = 0.0001
"""Each node has 1.0 of Ray's `node:<address>`. This amount ties a group to its node, and makes an empty group valid."""
_SMALLEST = 0.0001
"""The smallest amount that Ray counts."""
_WAITING = frozenset({"PENDING", "PREPARED", "RESCHEDULING"})
_REFUSED = frozenset({"NO_RESOURCES", "INFEASIBLE"})
_ANCHOR_BYTES = 200_000
"""The size of an anchor (see `create_anchor`). Ray keeps an object of up to 100 KiB with its owner, not on its node."""
_LOOK_S = 0.002
_DECIDES_S = 3.0
"""How long to wait for Ray's decision. It takes milliseconds, and on a busy machine seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A placement group of roost. `node` is Ray's id of the node that holds it, empty while no node does.

    `device_ids` is a Ray reference to the ids (a list of texts) of the devices that Ray has granted. It is None
    without GPUs, and if the group was only read. `agent` is one to the answer of the node's agent, if it is brought up.
    """

    id: str
    name: str
    lease_id: str
    kernel_id: str
    user: str
    node: str
    amounts: Mapping[str, float]
    is_created: bool
    is_rescheduling: bool = False
    """True if the node that had the group has ended, and Ray looks for another one."""
    device_ids: Any = None
    agent: Any = None

    @property
    def address(self) -> str:
        """The address of the group's node, also while that node has no raylet."""
        return next((name[len(PIN) :] for name in self.amounts if name.startswith(PIN)), "")

    @property
    def is_pinned(self) -> bool:
        """True if the group is tied to one node."""
        return any(name.startswith(PIN) for name in self.amounts)


def name_group(lease_id: str, user: str) -> str:
    return f"{lease_id}{_FOR}{user}"


def create(
    name: str, request: Request, node: RayNode, anchor: Any = None, bring_up: BringUp | None = None
) -> Group:
    """Claim the slice on that node, or find the group of that name.

    Raises `LeaseConflict` if Ray has no room; then there is no group.

    A request with GPUs needs `bring_up`, to bring up the node's agent, too, or the node's `anchor` (see
    `create_anchor`).
    """
    import ray
    from ray.util.placement_group import placement_group

    try:
        handle = placement_group([build_bundle(request, node)], name=name, lifetime="detached", **_pin(node))
    except ray.exceptions.RayError as problem:
        if "already exists" not in str(problem):
            raise
        handle = _handle(name)
        if handle is None:
            raise LeaseConflict("a placement group of this name has just been removed") from None
    reading, agent = _read_device_ids(handle, request.gpus, anchor, bring_up)
    try:
        group = _wait_until_created(handle, name, node)
    except BaseException:
        cancel_reading(reading)
        raise
    return replace(group, device_ids=reading, agent=agent)


def _wait_until_created(handle: Any, name: str, node: RayNode) -> Group:
    """Wait for Ray's decision. Raises `LeaseConflict` if Ray has no room on the node, after the group is removed."""
    asked_at = time.monotonic()
    while True:
        entry = _table(handle)
        group, state = _group(entry), str((entry.get("stats") or {}).get("scheduling_state", ""))
        if group is not None and group.is_created:
            return group
        if group is None or state in _REFUSED or time.monotonic() - asked_at > _DECIDES_S:
            remove(name)
            raise LeaseConflict(f"Ray has no room for it on {node.address} ({state.lower() or 'removed'})")
        time.sleep(_LOOK_S)


def create_unpinned(name: str, bundle: Mapping[str, float], selector: Mapping[str, str]) -> None:
    """Create a group that Ray may place on any node with these labels, or find the group of that name.

    While it fits no node, it is a demand: an autoscaler starts a node for it.
    """
    import ray
    from ray.util.placement_group import placement_group

    options = {"bundle_label_selector": [dict(selector)]} if selector else {}
    try:
        placement_group([dict(bundle)], name=name, lifetime="detached", **options)
    except ray.exceptions.RayError as problem:
        if "already exists" not in str(problem):
            raise


def find_granted(name: str, request: Request, node: RayNode, bring_up: BringUp | None = None) -> Group:
    """Return the group of that name, which Ray has created on this node. Raises `LeaseConflict` if it has not."""
    handle = _handle(name)
    group = None if handle is None else _group(_table(handle))
    if group is None or not group.is_created or group.node != node.daemon:
        raise LeaseConflict(f"Ray has taken the place on {node.address} back")
    reading, agent = _read_device_ids(handle, request.gpus, None, bring_up)
    return replace(group, device_ids=reading, agent=agent)


def takes_selectors() -> bool:
    """True if this Ray can choose nodes for a group by their labels."""
    from ray.util.placement_group import placement_group

    return "bundle_label_selector" in inspect.signature(placement_group).parameters


def remove(name: str) -> None:
    """Remove the group of that name, if there is one. May be repeated."""
    from ray.util.placement_group import remove_placement_group

    handle = _handle(name)
    if handle is not None:
        remove_placement_group(handle)


def read_groups() -> list[Group]:
    """Return all groups of roost, whichever process made them. Takes 0.03 ms for every group of the cluster."""
    from ray.util.placement_group import placement_group_table

    return [group for entry in placement_group_table().values() if (group := _group(entry)) is not None]


def leave_no_room(request: Request, node: RayNode) -> bool:
    """True if the groups of roost on that node leave too little for the request. Ray knows its groups at once."""
    groups = [group.amounts for group in read_groups() if group.is_created and group.node == node.daemon]
    return any(
        node.total[name] - sum(amounts.get(name, 0.0) for amounts in groups) < amount - _SMALLEST / 2
        for name, amount in build_amounts(request).items()
        if name in node.total
    )


def build_bundle(request: Request, node: RayNode) -> dict[str, float]:
    return {**build_amounts(request), f"{PIN}{node.address}": _SHARE_OF_ADDRESS}


def build_amounts(request: Request) -> dict[str, float]:
    """Return what the request asks for, in Ray's names. Empty if it asks for no amounts."""
    amounts = {"CPU": request.cpus, "GPU": request.gpus, "memory": float(request.memory_bytes)}
    return {**request.resources, **{name: amount for name, amount in amounts.items() if amount}}


def create_anchor(node: RayNode) -> Any:
    """Create an object on that node, and return its Ray reference.

    The object is an argument of each task that reads devices there. Ray sends a task to the raylet that has its
    arguments. Without an anchor this is the driver's own raylet, which learns of a new group up to 0.1 s late: reading
    the devices then takes 97 ms instead of 4.
    """
    return build_task_on(node, _make_bytes).remote(_ANCHOR_BYTES)


def start_reader(node: RayNode) -> None:
    """Have Ray start a worker on that node for the tasks that read devices."""
    build_task_on(node, list_gpu_ids).remote()


def _make_bytes(size: int) -> bytes:
    return bytes(size)


def _read_device_ids(handle: Any, gpus: float, anchor: Any, bring_up: BringUp | None) -> tuple[Any, Any]:
    """Return Ray references to the ids of the devices that Ray grants to the group, and to the agent's answer.

    The first is None without GPUs, the second without `bring_up`. What reads the devices runs inside the group as soon
    as there is room for it. A task needs 4 ms if its worker is warm, else 1.2 s.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not gpus:
        return None, None
    place = {"num_gpus": gpus, "scheduling_strategy": PlacementGroupSchedulingStrategy(handle)}
    if bring_up is None:
        return build_task(list_gpu_ids).options(**place).remote(anchor), None
    reading, agent = run_once(list_gpu_ids_and_bring_up, *bring_up, returns=2, **place)
    return reading, agent


def cancel_reading(reading: Any) -> None:
    """Cancel the reading of devices with this Ray reference, if there is one and it has not ended.

    Otherwise Ray keeps a task that waits in a removed group, and its anchor: the node is then never idle.
    """
    import ray

    if reading is not None:
        with contextlib.suppress(Exception):  # Ray is away, and the task with it
            ray.cancel(reading)


def _pin(node: RayNode) -> dict[str, Any]:
    """Return the option that ties a group to this raylet; empty if this Ray has no label selectors.

    The node's address alone would also fit a later raylet there.
    """
    if not takes_selectors():
        return {}
    return {"bundle_label_selector": [{"ray.io/node-id": node.daemon}]}


def _handle(name: str) -> Any:
    from ray.util.placement_group import get_placement_group

    try:
        return get_placement_group(name)
    except ValueError:  # so Ray reports that there is none
        return None


def _table(handle: Any) -> Mapping[str, Any]:
    from ray.util.placement_group import placement_group_table

    return placement_group_table(handle) or {}


def _group(entry: Mapping[str, Any]) -> Group | None:
    name = str(entry.get("name", ""))
    state = entry.get("state")
    if not name.startswith(PREFIX) or not (state == "CREATED" or state in _WAITING):
        return None
    lease_id, _, user = name.partition(_FOR)
    return Group(
        id=str(entry["placement_group_id"]),
        name=name,
        lease_id=lease_id,
        kernel_id=lease_id.split(":")[1],
        user=user,
        node=str(next(iter(entry["bundles_to_node_id"].values()), "")),
        amounts=dict(next(iter(entry["bundles"].values()), {})),
        is_created=state == "CREATED",
        is_rescheduling=state == "RESCHEDULING",
    )
