"""`roost nodes` and `roost drain`, with a stub client."""

from __future__ import annotations

from typing import Any

import pytest

import roost
from kit.fakes.client import StubClient, document, run
from roost.placement import Node, NodeType


def test_a_scheduler_with_options_can_be_named(
    capsys: pytest.CaptureFixture[str], client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(roost, "connect", lambda backend, **options: asked.append(options) or client)
    assert run(capsys, "nodes", "--backend-option", "gpus=2", "--backend-option", "gpu_model=H200")[0] == 0
    assert asked == [{"gpus": 2, "gpu_model": "H200"}]
    assert run(capsys, "nodes", "--backend-option", "gpus")[0] == 2


def test_nodes_as_json(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.types = [NodeType(node=Node(id="a100x2", cpus=8), running=1, limit=3)]
    found = document(capsys, "nodes")
    assert [node["id"] for node in found["nodes"]] == ["big", "small"]
    assert found["node_types"] == [client.types[0].to_dict()]
    assert found["cluster"] == {"backend": "ray", "address": "192.0.2.1:6379"}


def test_the_doctor_names_the_cluster(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the service is for ray at 192.0.2.1:6379" in run(capsys, "doctor")[1]


def test_drain(client: StubClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "drain", "big")[0] == 0
    assert client.asked[-1] == ("drain", "big", True)
    assert document(capsys, "drain", "big", "--off") == {"node": "big", "is_draining": False}
