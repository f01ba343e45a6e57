"""Leases as Ray holds them: one detached, named placement group with one bundle for each kernel, and no process.

The name makes the lease atomic (a second group of a name is refused) and has all that another scheduler, or a person
in front of Ray's dashboard, needs to know whose it is: `<lease id> for <user>`. All functions block for milliseconds,
unless they say otherwise, and belong in a thread.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from roost.placement import Request
from roost.scheduler.errors import LeaseConflict

from .agent_task import task, task_on
from .nodes import RayNode

NAMESPACE = "roost"
_PREFIX = "roost:"
_FOR = " for "
_NODE = "node:"
_SHARE_OF_ADDRESS = 0.0001
"""Each node has 1.0 of `node:<address>`: a crumb of it ties a group to its node, and makes it more than nothing."""
_WAITS = frozenset({"PENDING", "PREPARED", "RESCHEDULING"})
_FULL = frozenset({"NO_RESOURCES", "INFEASIBLE"})
_ANCHOR_BYTES = 200_000
"""Up to 100 KiB Ray keeps an object with its owner, and not on the node that made it."""
_LOOK_AGAIN_S = 0.002
_DECIDES_S = 1.0
"""Ray's GCS places a group, or finds no room for it, within milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A placement group of roost's. `node` is Ray's id of the node that holds it, empty while none does."""

    id: str
    name: str
    lease_id: str
    kernel_id: str
    user: str
    node: str
    amounts: Mapping[str, float]
    is_created: bool

    @property
    def address(self) -> str:
        """Of the node that it is for, also while that has no raylet."""
        return next((name[len(_NODE) :] for name in self.amounts if name.startswith(_NODE)), "")


def group_name(lease_id: str, user: str) -> str:
    """The name of the group that holds this lease."""
    return f"{lease_id}{_FOR}{user}"


def create(name: str, request: Request, node: RayNode) -> Group:
    """Claim the slice on that node, or find the group of that name; raises `LeaseConflict`, and leaves nothing then."""
    import ray
    from ray.util.placement_group import placement_group

    try:
        handle = placement_group(
            [bundle(request, node)], name=name, lifetime="detached", **_pinned(placement_group, node)
        )
    except ray.exceptions.RayError as problem:
        if "already exists" not in str(problem):
            raise
        handle = _handle(name)
        if handle is None:
            raise LeaseConflict("a placement group of this name has just been removed") from None
    asked_at = time.monotonic()
    while True:
        entry = _table(handle)
        group, state = _group(entry), _state(entry)
        if group is not None and group.is_created:
            return group
        if group is None or state in _FULL or time.monotonic() - asked_at > _DECIDES_S:
            remove(name)
            raise LeaseConflict(
                f"Ray has no room for it on {node.address} now ({state.lower() or 'removed'})"
            )
        time.sleep(_LOOK_AGAIN_S)


def remove(name: str) -> None:
    """Give the slice back. May be repeated, also where there is no such group."""
    from ray.util.placement_group import remove_placement_group

    handle = _handle(name)
    if handle is not None:
        remove_placement_group(handle)


def find(name: str) -> Group | None:
    """The group of that name, if there is one."""
    handle = _handle(name)
    return None if handle is None else _group(_table(handle))


def groups() -> list[Group]:
    """All groups of roost's, whoever made them: 0.03 ms each for every group of the cluster."""
    from ray.util.placement_group import placement_group_table

    return [group for entry in placement_group_table().values() if (group := _group(entry)) is not None]


def bundle(request: Request, node: RayNode) -> dict[str, float]:
    """What the group asks Ray for."""
    amounts = {"CPU": request.cpus, "GPU": request.gpus, "memory": float(request.memory_bytes)}
    asked = {name: amount for name, amount in amounts.items() if amount}
    return {**request.resources, **asked, f"{_NODE}{node.address}": _SHARE_OF_ADDRESS}


def device_ids(name: str, gpus: float, anchor: Any) -> Any:
    """A Ray reference to the ids of the devices that Ray gave to the group of that name, a list of texts.

    A task inside the group reads them: 4 ms where its worker is warm, seconds where it is not. `anchor` is that of the
    group's node.
    """
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(_handle(name))
    return task(_gpu_ids).options(num_gpus=gpus, scheduling_strategy=strategy).remote(anchor)


def anchor(node: RayNode) -> Any:
    """A Ray reference to an object that lies on that node, for all tasks there.

    Ray hands a task to the raylet that has what it takes. Without it that is the driver's own, which hears of a new
    group on another node up to 0.1 s later: 97 ms for `device_ids` instead of 4.
    """
    return task_on(node, _ballast).remote(_ANCHOR_BYTES)


def _ballast(size: int) -> bytes:
    return bytes(size)


def _gpu_ids(_: bytes) -> list[str]:
    import ray

    return [str(device_id) for device_id in ray.get_gpu_ids()]


def _pinned(placement_group: Any, node: RayNode) -> dict[str, Any]:
    """The node by its label, where this Ray knows label selectors; its address alone names the next raylet as well."""
    if "bundle_label_selector" not in inspect.signature(placement_group).parameters:
        return {}
    return {"bundle_label_selector": [{"ray.io/node-id": node.ray_id}]}


def _handle(name: str) -> Any:
    from ray.util.placement_group import get_placement_group

    try:
        return get_placement_group(name)
    except ValueError:  # Ray's way to say that there is none
        return None


def _table(handle: Any) -> Mapping[str, Any]:
    from ray.util.placement_group import placement_group_table

    return placement_group_table(handle) or {}


def _state(entry: Mapping[str, Any]) -> str:
    return str((entry.get("stats") or {}).get("scheduling_state", ""))


def _group(entry: Mapping[str, Any]) -> Group | None:
    name = str(entry.get("name", ""))
    state = entry.get("state")
    if not name.startswith(_PREFIX) or not (state == "CREATED" or state in _WAITS):
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
    )
