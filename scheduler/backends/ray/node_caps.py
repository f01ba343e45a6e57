"""Caps on the nodes that kernels bring: those of one user, and those of all users together.

Ray's table shows the groups of all users, so each service counts by itself. Across users the caps are advisory: a
service with other settings, or a driver without roost, asks Ray for as many nodes as it likes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from roost.placement.model.format import format_count

from .placement_groups import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCaps:
    """The most nodes of one user and of all users; None: no cap.

    A node counts if a kernel is there, unless the node is known to be none of the autoscaler's. A kernel that waits for
    a node counts as one.
    """

    per_user: int | None = None
    in_total: int | None = None

    @property
    def is_set(self) -> bool:
        return self.per_user is not None or self.in_total is not None

    def why_not(self, user: str, groups: Collection[Group], standing: Collection[str]) -> str:
        """Return why a kernel of this user may not wait for one more node, as a clause; empty if it may.

        `groups` are those of roost, and `standing` the raylets of the nodes that the autoscaler does not manage. A node
        that has just joined may hold a group before the service has read that the node is there.
        """
        own = _count([group for group in groups if group.user == user], standing)
        if self.per_user is not None and own >= self.per_user:
            most = format_count(self.per_user, "new node")
            return f"{user} may have {most} (max_new_nodes_per_user), and has or waits for {own}"
        together = _count(groups, standing)
        if self.in_total is not None and together >= self.in_total:
            most = format_count(self.in_total, "new node")
            return f"all users may have {most} together (max_new_nodes), and have or wait for {together}"
        return ""

    def find_surplus(self, groups: Collection[Group], standing: Collection[str]) -> dict[str, str]:
        """Return the groups that wait although a cap is reached, by name, with the reason.

        All services choose the same ones: the first groups by id may wait.
        """
        kept = [group for group in groups if not _waits(group)]
        surplus = {}
        for group in sorted(filter(_waits, groups), key=lambda group: group.id):
            if reason := self.why_not(group.user, kept, standing):
                surplus[group.name] = reason
            else:
                kept.append(group)
        return surplus


def _count(groups: Iterable[Group], standing: Collection[str]) -> int:
    """Return how many nodes these groups have, and how many more they wait for at most."""
    nodes: set[str] = set()
    waiting = 0
    for group in groups:
        if _waits(group):
            waiting += 1
        elif group.is_created and group.node not in standing:
            nodes.add(group.node)
    return len(nodes) + waiting


def _waits(group: Group) -> bool:
    return not group.is_created and not group.is_pinned
