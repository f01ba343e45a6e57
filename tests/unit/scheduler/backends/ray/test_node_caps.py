"""Caps on the nodes that kernels bring."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.ray.node_caps import NodeCaps
from roost.scheduler.backends.ray.placement_groups import Group

STANDING = {"head"}


def group(number: int, user: str = "ada", node: str = "", *, is_pinned: bool = False) -> Group:
    """Return a group that waits, or that Ray has created on `node`."""
    return Group(
        id=f"{number:02}",
        name=f"roost:{number} for {user}",
        lease_id="",
        kernel_id="",
        user=user,
        node=node,
        amounts={"GPU": 1.0, **({"node:a": 0.001} if is_pinned else {})},
        is_created=bool(node),
    )


@pytest.mark.parametrize(
    ("groups", "refused"),
    [
        ([], ""),
        ([group(1)], "ada may have 1 new node (max_new_nodes_per_user), and has or waits for 1"),
        ([group(1, node="n1")], "ada may have 1 new node"),
        ([group(1, node="n1", is_pinned=True)], "ada may have 1 new node"),  # it keeps the node
        ([group(1, node="head")], ""),
        ([group(1, is_pinned=True)], ""),  # it waits for a node that is there
        ([group(1, "bob", "n1")], ""),
        ([group(1, "bob", "n1"), group(2, "bob", "n1")], ""),
        ([group(1, "bob", "n1"), group(2, "eve")], "all users may have 2 new nodes together (max_new_nodes)"),
    ],
)
def test_who_may_wait_for_a_node(groups: list[Group], refused: str) -> None:
    found = NodeCaps(per_user=1, in_total=2).why_not("ada", groups, STANDING)
    assert found.startswith(refused)
    assert bool(found) == bool(refused)


def test_the_first_groups_by_id_stay() -> None:
    groups = [group(5), group(4, "bob"), group(3), group(2, "bob", "n2"), group(1, "bob", "head")]
    surplus = NodeCaps(in_total=2).find_surplus(groups, STANDING)
    assert list(surplus) == ["roost:4 for bob", "roost:5 for ada"]
    assert list(NodeCaps(per_user=1).find_surplus(groups, STANDING)) == ["roost:4 for bob", "roost:5 for ada"]
    assert NodeCaps().find_surplus(groups, STANDING) == {}
    assert list(NodeCaps(per_user=0).find_surplus([group(1)], STANDING)) == ["roost:1 for ada"]
