"""Ray's descriptions of nodes, read without Ray."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack
from types import ModuleType
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
    """Ray shows both raylets for a while, and refuses claims on them."""
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
        assert [(node.daemon, node.id) for node in nodes.read()] == [
            ("old", "127.0.0.1/2"),
            ("new", "127.0.0.1"),
        ]
        lives.close()
        (node,) = nodes.read()
        assert (node.id, node.daemon, node.is_held_up) == ("127.0.0.1", "new", True)
        assert "earlier raylet" in nodes.build_node(node, None).drains_because
        raylets[0]["Alive"] = False
        assert [(node.id, node.is_held_up) for node in nodes.read()] == [("127.0.0.1", False)]


def test_a_raylet_keeps_its_node_id_when_another_joins_at_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its agent and its kernels are found by this id, by the next service too if there is one beside the head."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [server.getsockname()[1] for server in servers]

        def join(name: str, port: int, **resources: float) -> dict[str, Any]:
            facts = {"NodeManagerAddress": "127.0.0.1", "NodeID": name, "NodeManagerPort": port}
            return {**raylet({"CPU": 1.0, **resources}), **facts}

        def read(known: tuple[nodes.RayNode, ...] = ()) -> dict[str, str]:
            nonlocal seen
            seen = nodes.read(known)
            return {node.daemon: node.id for node in seen}

        seen: tuple[nodes.RayNode, ...] = ()
        raylets = [join("z", ports[0], **{nodes._HEAD: 1.0})]
        ray = ModuleType("ray")
        ray.nodes = lambda: raylets  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ray", ray)
        assert read() == {"z": "127.0.0.1"}
        raylets.append(join("b", ports[1]))
        assert read(seen) == {"z": "127.0.0.1", "b": "127.0.0.1/2"} == read()
        raylets.append(join("a", ports[2]))
        assert read(seen) == {"z": "127.0.0.1", "b": "127.0.0.1/2", "a": "127.0.0.1/3"}
        raylets.append(join("c", ports[1]))  # its port is fixed, and Ray still lists the one before
        assert read(seen) == {"z": "127.0.0.1", "c": "127.0.0.1/2", "a": "127.0.0.1/3"}
