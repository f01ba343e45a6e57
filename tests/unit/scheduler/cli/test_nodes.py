"""`roost nodes` and `roost drain`, with a stub client."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import roost
from kit.fakes.client import NODES, StubClient, document, run
from roost.placement import Device, Node, NodeType


def test_a_scheduler_with_options_can_be_named(
    capsys: pytest.CaptureFixture[str], client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(roost, "connect", lambda backend, **options: asked.append(options) or client)
    assert run(capsys, "nodes", "--backend-option", "gpus=2", "--backend-option", "gpu_model=H200")[0] == 0
    assert asked == [{"gpus": 2, "gpu_model": "H200"}]
    assert run(capsys, "nodes", "--backend-option", "gpus")[0] == 2


def test_nodes_show_promises_and_devices(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "nodes")
    assert code == 0
    assert "2.5 of 64" in out
    assert "8 GiB of 512 GiB" in out
    assert "draining" in out
    assert "H200" in out
    assert max(map(len, out.splitlines())) <= 80
    assert [node["id"] for node in document(capsys, "nodes")["nodes"]] == ["big", "small"]


def test_resources_labels_taints_and_warm_interpreters_are_shown(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not {"TAINTS", "RESOURCES"} & set(run(capsys, "nodes")[1].split())
    traits = {"labels": {"zone": "a", "disk": "ssd"}, "warm": (f"/home/ada/{'deep/' * 20}bin/python",)}
    traits |= {"resources": {"licence": 2}, "resources_promised": {"licence": 0.5}}
    client.cluster[0] = replace(NODES[0], **traits)
    out = run(capsys, "nodes")[1]
    assert "LABELS" in out
    assert "disk=ssd" in out
    assert "WARM" in out
    assert "0.5 of 2 licence" in out
    assert "TAINTS" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_kinds_of_nodes_that_the_cluster_could_start_are_shown(
    client: StubClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "NODE TYPE" not in run(capsys, "nodes")[1]
    devices = (Device(id="0", model="A100"), Device(id="1", model="A100"))
    node = Node(id="a100x2", cpus=8, memory_bytes=2**35, devices=devices, labels={"pool": "a100"})
    failure = "2 attempts have failed: no A100 is left"
    client.types = [NodeType(node=node, running=1, starting=1, limit=3, failure=failure)]
    out = run(capsys, "nodes")[1]
    assert "a100x2" in out
    assert "2 A100" in out
    assert "1 of 3 run, 1 starts" in out
    assert out.endswith(f"Starts of type a100x2: {failure}.\n")
    assert document(capsys, "nodes")["node_types"] == [client.types[0].to_dict()]


@pytest.mark.parametrize(
    ("others", "shown"),
    [
        (0.0, {"0": "100%", "1": "0%"}),
        (0.5, {"0": "100%", "1": "unknown"}),
        (1.0, {"0": "100%", "1": "100%"}),
    ],
)
def test_gpus_that_others_hold_are_not_shown_as_free(
    client: StubClient, capsys: pytest.CaptureFixture[str], others: float, shown: dict[str, str]
) -> None:
    """Ray says how many GPUs of a node are held, not which ones."""
    gpus = (Device(id="0", model="T4", promised=1.0), Device(id="1", model="T4"))
    client.cluster[:] = [Node(id="n", cpus=4, devices=gpus, gpus_promised=1.0 + others)]
    lines = [line.split() for line in run(capsys, "nodes")[1].splitlines()]
    assert {line[0]: line[4] for line in lines if line[1:3] == ["n", "T4"]} == shown


def test_drain(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "drain", "big")[0] == 0
    assert client.asked[-1] == ("drain", "big", True)
    assert document(capsys, "drain", "big", "--off") == {"node": "big", "is_draining": False}


def test_the_cluster_is_named(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    where = "ray at 192.0.2.1:6379"
    assert f"Cluster: {where}." in " ".join(run(capsys, "nodes")[1].split())
    assert document(capsys, "nodes")["cluster"] == {"backend": "ray", "address": "192.0.2.1:6379"}
    assert f"the service is for {where}" in run(capsys, "doctor")[1]
