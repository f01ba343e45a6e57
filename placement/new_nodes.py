"""Placement on nodes that do not exist yet: the same policy is asked again, about one empty node of each type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .decision import Decision
from .model import NodeType
from .tables.snapshot import Snapshot

AT_LIMIT = "has as many nodes as the cluster may have of it"
"""Why a type is avoided: one empty node of it may fit, but none can be started now."""


@dataclass(frozen=True, slots=True)
class NodeTypes:
    """The node types of a snapshot, as nodes that a policy can be asked about.

    >>> from roost.placement import Node, NodeType, Request, Snapshot, get_policy
    >>> grows = Snapshot.of([]).with_node_types([NodeType(node=Node(id="cpu8", cpus=8), limit=2)])
    >>> pack, request, types = get_policy("pack"), Request(cpus=4), NodeTypes.of(grows)
    >>> decision = pack.place(request, grows)
    >>> types.add_to(decision, pack.place(request, types.nodes, avoid=types.avoid)).reason
    'there are no nodes; a node of type cpu8 can be started for it (0 of 2 run)'
    """

    nodes: Snapshot
    """One empty node of each type. Its id is the name of the type."""
    avoid: Mapping[str, str]
    """The types at their limit, with the reason."""
    types: tuple[NodeType, ...]
    may_grow: bool
    """As in ``Snapshot``."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> NodeTypes:
        types = snapshot.node_types
        nodes = Snapshot.of([each.node for each in types])
        return cls(
            nodes, {each.name: AT_LIMIT for each in types if not each.has_room}, types, snapshot.may_grow
        )

    def add_to(self, decision: Decision, on_types: Decision) -> Decision:
        """Return a decision without placement, with what the policy's decision on ``nodes`` adds to it."""
        by_name = {each.name: each for each in self.types}
        if on_types.placement is not None:
            return decision.changed_to(new_node=by_name[on_types.placement.node_id], may_grow=self.may_grow)
        refused: dict[str, list[str]] = {name: [] for name in by_name}
        for refusal in on_types.refusals:
            refused[refusal.node_id].append(refusal.filter)
        full = (by_name[name] for name, filters in refused.items() if filters == ["avoid"])
        return decision.changed_to(
            new_node=next(full, None),
            type_refusals=tuple(each for each in on_types.refusals if each.filter != "avoid"),
            may_grow=self.may_grow,
        )
