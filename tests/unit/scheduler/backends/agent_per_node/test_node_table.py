"""The mapping of leases by id, which also finds the leases of a node."""

from __future__ import annotations

import random

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_node.node_table import Leases


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
