"""What Ray says of a node, read without Ray."""

from __future__ import annotations

from typing import Any

from roost.launchers.messages import Owner
from roost.placement import Request
from roost.scheduler.backends import ray_groups, ray_state
from roost.scheduler.backends.base import Lease

GROUP = "5ad02b1d3b8d7c2ae1b02e9f7e3a01000000"
RESOURCES = {
    "CPU": 4.0, "GPU": 1.0, "memory": 100.0, "object_store_memory": 50.0,
    "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0, "accelerator_type:T4": 1.0,
    f"licence_group_{GROUP}": 1.0, f"licence_group_0_{GROUP}": 1.0, f"bundle_group_{GROUP}": 1000.0,
    "licence": 2.0, "a_group_of_seats": 3.0,
}  # fmt: skip


def raylet(resources: dict[str, float]) -> dict[str, Any]:
    return {"Alive": True, "NodeID": "ab", "NodeManagerAddress": "10.0.0.1", "Resources": resources}


def test_custom_resources_are_what_only_its_operator_knows() -> None:
    assert ray_state.custom(RESOURCES) == ["licence", "a_group_of_seats"]
    (node,) = ray_state.decode_public([raylet(RESOURCES)])
    lease = Lease(
        id="roost:k:1",
        kernel_id="k",
        node_id=node.id,
        device_ids=(),
        request=Request(resources={"licence": 0.5}),
        owner=Owner(user="ada"),
    )
    known = ray_state.as_node(node, [lease], None, None)
    assert known.resources == {"licence": 2.0, "a_group_of_seats": 3.0}
    assert (known.resource_free("licence"), known.resource_free("a_group_of_seats")) == (1.5, 3.0)


def test_a_group_asks_for_them_too() -> None:
    (node,) = ray_state.decode_public([raylet(RESOURCES)])
    bundle = ray_groups.bundle(Request(cpus=1, resources={"licence": 0.5}), node)
    assert bundle.pop("node:10.0.0.1") > 0
    assert bundle == {"CPU": 1.0, "licence": 0.5}
    assert ray_state.custom(bundle) == ["licence"]
