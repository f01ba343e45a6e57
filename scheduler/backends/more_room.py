"""Whether a change of a node may let a start go on that waits."""

from __future__ import annotations

from roost.placement import Node
from roost.placement.model import EPSILON


def has_more_room(before: Node, after: Node) -> bool:
    """True if a request may fit into a node that did not fit before: an own kernel has ended, or another user's."""
    free = {device.id: device.free for device in before.devices}
    return (
        after.cpus_free > before.cpus_free + EPSILON
        or after.memory_free_bytes > before.memory_free_bytes
        or after.gpus_free > before.gpus_free + EPSILON
        or any(device.free > free.get(device.id, 0.0) + EPSILON for device in after.devices)
        or (before.is_draining and not after.is_draining)
    )
