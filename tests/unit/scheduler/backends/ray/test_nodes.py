"""Ray's descriptions of nodes, read without Ray."""

from __future__ import annotations

import socket
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from roost.placement import Node, Request
from roost.scheduler.backends.ray import nodes, placement_groups

GROUP = "5ad02b1d3b8d7c2ae1b02e9f7e3a01000000"
RESOURCES = {
    "CPU": 4.0, "GPU": 1.0, "memory": 100.0, "object_store_memory": 50.0,
    "node:10.0.0.1": 1.0, "node:__internal_head__": 1.0, "accelerator_type:T4": 1.0,
    f"licence_group_{GROUP}": 1.0, f"licence_group_0_{GROUP}": 1.0, f"bundle_group_{GROUP}": 1000.0,
    "licence": 2.0, "a_group_of_seats": 3.0,
}  # fmt: skip


def raylet(resources: dict[str, float]) -> dict[str, Any]:
    return {"Alive": True, "NodeID": "ab", "NodeManagerAddress": "10.0.0.1", "Resources": resources}


class Id(bytes):
    """An id of Ray."""

    def hex(self, *_: Any) -> str:
        return self.decode()


def worker(table: dict[Id, Any]) -> ModuleType:
    """Return Ray's module with a client of a GCS that has these nodes, and tells no resources."""
    module = ModuleType("ray._private.worker")
    client = SimpleNamespace(get_all_node_info=lambda timeout: table)
    module.global_worker = SimpleNamespace(gcs_client=client)  # type: ignore[attr-defined]
    return module


def test_custom_resources_exclude_rays_own_and_those_of_groups() -> None:
    assert nodes.find_custom_resources(RESOURCES) == ["licence", "a_group_of_seats"]
    (node,) = nodes.decode_public([raylet(RESOURCES)])
    known = nodes.build_node(node, Node(id="host", resources_promised={"licence": 0.5}))
    assert known.resources == {"licence": 2.0, "a_group_of_seats": 3.0}
    assert (known.resource_free("licence"), known.resource_free("a_group_of_seats")) == (1.5, 3.0)


def test_a_group_asks_for_custom_resources() -> None:
    (node,) = nodes.decode_public([raylet(RESOURCES)])
    bundle = placement_groups.build_bundle(Request(cpus=1, resources={"licence": 0.5}), node)
    assert bundle.pop("node:10.0.0.1") > 0
    assert bundle == {"CPU": 1.0, "licence": 0.5}
    assert nodes.find_custom_resources(bundle) == ["licence"]


def test_an_ended_raylet_is_left_out_beside_the_next_one_at_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray shows both raylets for a while, and refuses claims on them. Two live raylets get different node ids."""
    with socket.create_server(("127.0.0.1", 0)) as lives, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (lives, other)]
        raylets = [
            {
                **raylet({"CPU": 1.0}),
                "NodeManagerAddress": "127.0.0.1",
                "NodeID": name,
                "NodeManagerPort": port,
            }
            for name, port in zip(("old", "new"), ports, strict=True)
        ]
        ray = ModuleType("ray")
        ray.nodes = lambda: raylets  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ray", ray)
        assert [node.id for node in nodes.read()] == [
            "127.0.0.1/old",
            "127.0.0.1",
        ]  # without times: by Ray's ids
        started_ms = {b"old": 1, b"new": 2}
        table = {Id(name): SimpleNamespace(start_time_ms=at) for name, at in started_ms.items()}
        monkeypatch.setitem(sys.modules, "ray._private.worker", worker(table))
        assert [node.id for node in nodes.read()] == ["127.0.0.1", "127.0.0.1/new"]
        lives.close()
        (node,) = nodes.read()
        assert (node.id, node.daemon, node.is_held_up) == ("127.0.0.1", "new", True)
        assert "earlier raylet" in nodes.build_node(node, None).drains_because
        raylets[0]["Alive"] = False
        assert [(node.id, node.is_held_up) for node in nodes.read()] == [("127.0.0.1", False)]
