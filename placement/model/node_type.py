"""Node types: the kinds of nodes that a cluster could start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .format import format_count
from .json_codec import decode, encode
from .node import Node
from .validation import Check, check_fields, check_whole, if_known

_CHECKS: Mapping[str, Check] = {
    "running": check_whole,
    "limit": if_known(check_whole),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeType:
    """A kind of node that the cluster could start.

    >>> a100 = NodeType(node=Node(id="a100x2", cpus=8), running=1, limit=3)
    >>> a100.name, a100.has_room, a100.describe_count()
    ('a100x2', True, '1 of 3')
    """

    node: Node
    """An empty node of this type. Its id is the name of the type."""
    running: int = 0
    """How many nodes of this type the cluster has."""
    limit: int | None = None
    """How many it may have at most; None if there is no limit, or if it is not known."""

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)

    @property
    def name(self) -> str:
        return self.node.id

    @property
    def has_room(self) -> bool:
        """True if the cluster may start another node of this type."""
        return self.limit is None or self.running < self.limit

    def describe_node(self) -> str:
        """Return the main amount of such a node: ``2 × A100``, ``1 GPU`` or ``8 CPUs``."""
        devices = self.node.devices
        if not devices:
            return format_count(self.node.cpus, "CPU")
        model = devices[0].model
        return f"{len(devices)} × {model}" if model else format_count(len(devices), "GPU")

    def describe_count(self) -> str:
        """Return the number of nodes that run, and the limit if there is one: ``1 of 3`` or ``1``."""
        return f"{self.running}" if self.limit is None else f"{self.running} of {self.limit}"

    def describe_room(self) -> str:
        """Return whether the cluster may start another such node, as a clause with the reason."""
        if self.has_room:
            running = f"{self.describe_count()} {'run' if self.limit != 1 else 'runs'}"
            return f"a node of type {self.name} can be started for it ({running})"
        if not self.limit:
            return f"the cluster may start no node of type {self.name}"
        nodes = f"{format_count(self.limit, 'node')} of type {self.name}"
        return f"all of the {nodes} that the cluster may have run already"

    def to_dict(self) -> dict[str, Any]:
        """Return the type as JSON types; ``from_dict`` is the inverse."""
        return encode(self)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NodeType:
        """Return the value that ``to_dict`` wrote. Raises ``ValueError`` for unknown keys and wrong values."""
        return decode(cls, data)
