"""Ray's actors that hold GPUs, as its GCS lists them.

The list is not public: `ray.util.state` needs the dashboard. A Ray without it names no actors.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """A live actor. `node` is Ray's id of its node, and `name` is a text for people."""

    name: str
    pid: int
    node: str


def read(nodes: Collection[str], own_groups: Collection[str]) -> list[Actor]:
    """Return the actors that hold GPUs of these nodes, but those in roost's own placement groups.

    Blocks for about 10 µs for each actor of the cluster.
    """
    try:
        from ray._private.state import state

        table = state._connect_and_get_accessor().get_actor_table(None, "ALIVE")
    except (ImportError, AttributeError, TypeError) as problem:
        log.debug("this Ray does not list its actors: %s", problem)
        return []
    return decode(table, nodes, own_groups)


def decode(table: Iterable[bytes], nodes: Collection[str], own_groups: Collection[str]) -> list[Actor]:
    """Return the actors of serialised `ActorTableData`, in the order of their pids."""
    from ray.core.generated import gcs_pb2

    found = []
    for content in table:
        actor = gcs_pb2.ActorTableData.FromString(content)
        node, group = actor.address.node_id.hex(), actor.placement_group_id.hex()
        if node not in nodes or not actor.required_resources.get("GPU") or group in own_groups:
            continue
        name = f"{actor.class_name} {actor.name!r}" if actor.name else actor.class_name
        found.append(Actor(name=f"{name} of job {actor.job_id.hex()}", pid=actor.pid, node=node))
    return sorted(found, key=lambda actor: (actor.node, actor.pid))
