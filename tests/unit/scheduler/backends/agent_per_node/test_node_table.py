"""The nodes of a cluster, and its leases by id and by node."""

from __future__ import annotations

import random
from typing import Any

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_node.node_table import Leases, NodeTable


def a_lease(lease_id: str, node_id: str) -> Lease:
    return Lease(
        id=lease_id, kernel_id="k", node_id=node_id, device_ids=(), request=Request(), owner=Owner(user="ada")
    )


def test_the_leases_of_a_node_are_always_those_with_its_id() -> None:
    dice = random.Random(7)
    leases, plain = Leases(), dict[str, Lease]()
    for _ in range(2_000):
        lease = a_lease(f"l{dice.randrange(20)}", f"n{dice.randrange(4)}")
        if dice.random() < 0.4:
            assert leases.pop(lease.id, None) == plain.pop(lease.id, None)
        else:
            leases[lease.id] = plain[lease.id] = lease
        assert dict(leases) == plain
        assert set(leases.nodes()) == {each.node_id for each in plain.values()}
        for node_id in ("n0", "n1", "n2", "n3"):
            expected = {each.id for each in plain.values() if each.node_id == node_id}
            assert {each.id for each in leases.on(node_id)} == expected
    assert dict(Leases(plain.values())) == plain


def test_the_first_reported_use_is_fresh() -> None:
    """It may come before the manager's own figures are read for the first time."""
    table: NodeTable[Any] = NodeTable(lambda node_id, _: Node(id=node_id, metrics_age_s=0.5))
    table.update({"here": "here"}, ["here"])
    assert table.snapshot().has_fresh_metrics(5.0).tolist() == [True]
