"""The guard of groups that wait for a new node: an actor on the head, so that no node is paid for without a kernel.

A service renews its waiting groups every few seconds, and those that Ray has just created, until an agent has noted
their leases. The guard removes such a group if no service has renewed it for `GRACE_S`, and a group whose node has
ended, because its kernel ended with the node. It ends itself when no group is left. The actor is pickled by value, and
uses only Ray and the standard library.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Collection
from typing import Any

from .nodes import RayNode
from .placement_groups import NAMESPACE, PIN, PREFIX

NAME = "roost-guard-of-new-nodes"
"""How the guard's name begins. The head's raylet follows: Ray may keep the name of a guard whose head has ended."""
GRACE_S = 30.0
"""How long a waiting group outlives the service that asked for it."""
RENEW_S = 5.0
"""How long a service waits between two renewals."""
_LOOK_S = 2.0
_IDLE_LOOKS = 30
"""After this many looks without a group the guard ends. A service that needs it starts it again."""


class Guard:
    """Removes groups that nobody wants any more."""

    def __init__(self, prefix: str, pin: str, grace_s: float, look_s: float, idle_looks: int) -> None:
        self._prefix, self._pin, self._grace_s = prefix, pin, grace_s
        self._look_s, self._idle_looks = look_s, idle_looks
        self._renewed: dict[str, float] = {}
        """When each group was renewed last, or seen first, by name."""
        self._unsettled: set[str] = set()
        """The groups that a service has renewed, and of whose leases no agent is known to have noted any."""
        threading.Thread(target=self._watch, daemon=True).start()

    def renew(self, names: list[str]) -> None:
        """Note that a service wants these groups, whose leases no agent has noted yet."""
        self._renewed.update(dict.fromkeys(names, time.monotonic()))
        self._unsettled.update(names)

    def settle(self, names: list[str]) -> None:
        """Note that agents have noted the leases of these groups. They stay without a service from now on."""
        self._unsettled.difference_update(names)

    def find_unwanted(self, groups: list[dict[str, Any]], now: float) -> tuple[list[str], int]:
        """Return the names of the groups that must go, and the number of those that stay.

        `groups` are entries of Ray's table. Groups that are tied to a node are none of the guard's.
        """
        unpinned = {entry["name"]: entry["state"] for entry in groups if self._is_unpinned(entry)}
        self._renewed = {name: self._renewed.get(name, now) for name in unpinned}
        self._unsettled &= unpinned.keys()
        unwanted = [
            name
            for name, state in unpinned.items()
            if (state != "CREATED" or name in self._unsettled) and now - self._renewed[name] > self._grace_s
        ]
        return unwanted, len(unpinned) - len(unwanted)

    def _is_unpinned(self, entry: dict[str, Any]) -> bool:
        bundle: dict[str, float] = next(iter(entry["bundles"].values()), {})
        is_tied = any(name.startswith(self._pin) for name in bundle)
        return entry["name"].startswith(self._prefix) and not is_tied and entry["state"] != "REMOVED"

    def _watch(self) -> None:
        from ray.exceptions import RayError
        from ray.util.placement_group import (
            get_placement_group,
            placement_group_table,
            remove_placement_group,
        )

        idle = 0
        while idle < self._idle_looks:
            time.sleep(self._look_s)
            try:
                unwanted, left = self.find_unwanted(list(placement_group_table().values()), time.monotonic())
                for name in unwanted:
                    remove_placement_group(get_placement_group(name))
            except (RayError, ValueError):
                continue  # Ray is away, or somebody else has removed the group
            idle = 0 if left or unwanted else idle + 1
        os._exit(0)


def renew(head: RayNode, names: Collection[str]) -> Any:
    """Tell the cluster's guard that these groups are wanted. Start it if there is none. Blocks for milliseconds.

    Return the Ray reference to its answer, which comes once it lives. If its first service ends before that, Ray may
    start no guard.
    """
    guard = _find_guard(head)  # older versions of Ray want this name: a method does not keep its actor
    return guard.renew.remote(list(names))


def settle(head: RayNode, names: Collection[str]) -> None:
    """Tell the cluster's guard that agents have noted the leases of these groups. Blocks for milliseconds."""
    guard = _find_guard(head)
    guard.settle.remote(list(names))


def _find_guard(head: RayNode) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = _build_actor().options(
        name=f"{NAME}-{head.daemon[:8]}",
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        scheduling_strategy=NodeAffinitySchedulingStrategy(head.daemon, soft=False),
    )
    return actor.remote(PREFIX, PIN, GRACE_S, _LOOK_S, _IDLE_LOOKS)


@functools.cache
def _build_actor() -> Any:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return ray.remote(num_cpus=0, max_restarts=0)(Guard)
