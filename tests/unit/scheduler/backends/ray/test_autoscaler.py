"""What both of Ray's autoscalers report, and what their file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.scheduler.backends.node_types import make_node_types
from roost.scheduler.backends.ray import autoscaler
from roost.scheduler.backends.ray.nodes import TYPE_LABEL, RayNode

NOW = 1_000_000.0
GPU = {
    "resources": {"CPU": 8, "GPU": 2, "memory": 4 << 30, "accelerator_type:A100": 1, "licence": 2},
    "labels": {"zone": "b"},
    "max_workers": 3,
}
FILE = {
    "head_node_type": "head",
    "max_workers": 4,
    "available_node_types": {"head": {}, "gpu": GPU, "any": {}},
}


def node(name: str, **labels: str) -> RayNode:
    return RayNode(
        id=name, daemon=name, address=name, labels=labels, model="", total={}, free=None, groups=None
    )


def read(config: dict[str, Any] | None, *, has_monitor: bool = True) -> autoscaler.Description:
    return autoscaler.decode({"has_monitor": has_monitor, "config": config})


def test_the_file_has_types_without_the_head() -> None:
    found = read(FILE)
    assert found.types is not None
    gpu, anything = found.types
    assert (gpu.name, gpu.limit, anything.name, anything.limit) == ("gpu", 3, "any", 4)
    assert (gpu.node.cpus, gpu.node.memory_bytes, gpu.node.resources) == (8, 4 << 30, {"licence": 2})
    assert [device.model for device in gpu.node.devices] == ["A100", "A100"]
    assert gpu.node.labels == {"zone": "b", TYPE_LABEL: "gpu"}
    assert (found.marked_models, found.most_nodes) == ({"A100"}, 4)


def command(address: str, *words: str) -> list[str]:
    return ["python", "-u", "/ray/autoscaler/v2/monitor.py", f"--gcs-address={address}", *words, ""]


def test_the_head_reads_the_file_of_its_own_monitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another cluster may run on its machine. The file may have secrets, which stay there."""
    (tmp_path / "file.yaml").write_text(json.dumps({**FILE, "auth": {"ssh_private_key": "secret"}}))
    words = (f"--autoscaling-config={tmp_path}/file.yaml",)
    commands = [["ray"], command("10.0.0.2:6379"), command("10.0.0.1:6380"), command("10.0.0.1:6379", *words)]
    monkeypatch.setattr(autoscaler, "_list_commands", lambda: commands)
    answer = autoscaler._read_files("10.0.0.1:6379")
    assert "secret" not in repr(answer)
    found = autoscaler.decode(answer)
    assert [each.name for each in found.types or ()] == ["gpu", "any"]
    assert autoscaler._read_files("10.0.0.1:6380") == {"has_monitor": True, "config": None}
    assert not autoscaler._read_files("10.0.0.1:6381")["has_monitor"]
    assert autoscaler._find_monitor("head.example:6380", commands) is not None


def test_without_a_file_no_type_is_known() -> None:
    assert read(None).types is None
    assert not read(None, has_monitor=False).has_monitor


@pytest.mark.parametrize(
    "types", [None, [], {"gpu": {"resources": {"CPU": "many"}}}, {"gpu": {"resources": ["CPU"]}}]
)
def test_a_file_of_another_form_is_refused(types: Any) -> None:
    with pytest.raises(ValueError, match="the autoscaler's file cannot be read"):
        read({**FILE, "available_node_types": types})


def test_nodes_are_counted_by_type_and_all_together_have_a_limit() -> None:
    types = read(FILE).types or ()
    nodes = [node("h", **{TYPE_LABEL: "head"}), node("a", **{TYPE_LABEL: "gpu"}), node("b", zone="b")]

    def count(most_nodes: int | None) -> list[tuple[str, bool]]:
        counted = autoscaler.count(types, nodes, most_nodes=most_nodes)
        return [(each.describe_count(), each.has_room) for each in counted]

    assert count(None) == [("1 of 3", True), ("0 of 4", True)]
    assert count(2) == [("1 of 2", True), ("0 of 1", True)]
    assert count(1) == [("1 of 1", False), ("0 of 0", False)]


def test_an_operators_types_are_counted_by_their_labels() -> None:
    types = make_node_types(
        [{"name": "b", "cpus": 1, "labels": {"zone": "b"}, "limit": 1}, {"name": "c", "cpus": 1}]
    )
    counted = autoscaler.count(types, [node("a", zone="b"), node("b")], most_nodes=None)
    assert [each.running for each in counted] == [1, 0]
