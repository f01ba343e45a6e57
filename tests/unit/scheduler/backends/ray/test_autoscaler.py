"""What both of Ray's autoscalers report, and what their file says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.placement import NodeType
from roost.scheduler.backends.node_types import make_node_types
from roost.scheduler.backends.ray import autoscaler
from roost.scheduler.backends.ray.autoscaler import Launches
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
    launches = Launches(asked={"gpu": 1}, booting={"any": 1})

    def count(most_nodes: int | None) -> list[tuple[str, bool]]:
        counted = autoscaler.count(types, nodes, launches, most_nodes=most_nodes)
        return [(each.describe_count(), each.has_room) for each in counted]

    assert count(None) == [("2 of 3", True), ("1 of 4", True)]
    assert count(4) == [("2 of 3", True), ("1 of 2", True)]
    assert count(3) == [("2 of 2", False), ("1 of 1", False)]


def test_a_node_that_has_just_joined_is_not_counted_beyond_the_limit() -> None:
    nodes = [node(f"n{number}", **{TYPE_LABEL: "gpu"}) for number in range(3)]
    launches = Launches(booting={"gpu": 1})
    (gpu, _) = autoscaler.count(read(FILE).types or (), nodes, launches, most_nodes=None)
    assert (gpu.describe_count(), gpu.has_room) == ("3 of 3", False)


def test_an_operators_types_are_counted_by_their_labels() -> None:
    types = make_node_types(
        [{"name": "b", "cpus": 1, "labels": {"zone": "b"}, "limit": 1}, {"name": "c", "cpus": 1}]
    )
    counted = autoscaler.count(types, [node("a", zone="b"), node("b")], Launches(), most_nodes=None)
    assert [each.running for each in counted] == [1, 0]


@pytest.mark.parametrize(
    ("launches", "failure"),
    [
        (Launches(), ""),
        (Launches(failed={"gpu": 1}), "an attempt has failed: monitor.log on the head says why"),
        (Launches(failed={"gpu": 14}, reasons={"gpu": "no A100"}), "14 attempts have failed: no A100"),
        (Launches(failed={"gpu": 2}, booting={"gpu": 1}), ""),
    ],
)
def test_a_type_has_the_reason_of_its_last_failures(launches: Launches, failure: str) -> None:
    (gpu, _) = autoscaler.count(read(FILE).types or (), [], launches, most_nodes=None)
    assert gpu.failure == failure


def test_the_first_autoscaler_reports_in_json() -> None:
    away = {
        "is_available": False,
        "last_checked_timestamp": NOW - 10,
        "unavailable_node_information": {"category": "CAPACITY", "description": "no A100"},
    }
    report = {
        "pending_launches": {"gpu": 2},
        "pending_nodes": [["10.0.0.7", "gpu", "setting-up"], ["10.0.0.8", "cpu", "setting-up"]],
        "node_availability_summary": {
            "node_availabilities": {
                "gpu": away,
                "cpu": {"is_available": True, "last_checked_timestamp": NOW},
                "old": {**away, "last_checked_timestamp": NOW - 1_000},
            }
        },
    }
    found = autoscaler.decode_first(json.dumps({"autoscaler_report": report}).encode(), NOW)
    assert (found.asked, found.booting) == ({"gpu": 2}, {"gpu": 1, "cpu": 1})
    assert (found.failed, found.reasons) == ({"gpu": 1}, {"gpu": "CAPACITY: no A100"})
    assert autoscaler.decode_first(b"{}", NOW) == Launches()


def test_the_second_autoscaler_reports_in_a_message() -> None:
    def of(name: str, **values: Any) -> SimpleNamespace:
        return SimpleNamespace(ray_node_type_name=name, **values)

    state = SimpleNamespace(
        pending_instance_requests=[of("gpu", count=2)],
        pending_instances=[of("gpu"), of("cpu")],
        failed_instance_requests=[
            of("gpu", count=2, reason="", failed_ts=NOW - 5),
            of("gpu", count=1, reason="quota", failed_ts=NOW - 1),
            of("old", count=1, reason="quota", failed_ts=NOW - 1_000),
        ],
    )
    found = autoscaler.decode_second(state, NOW)
    assert (found.asked, found.booting) == ({"gpu": 2}, {"gpu": 1, "cpu": 1})
    assert (found.failed, found.reasons) == ({"gpu": 3}, {"gpu": "quota"})


def test_a_type_without_failures_says_nothing() -> None:
    types = (NodeType(node=(read(FILE).types or ())[0].node),)
    assert autoscaler.count(types, [], Launches(), most_nodes=None)[0].failure == ""
