"""`roost explain` on a saved snapshot: no service, any policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from roost.placement import Device, Node
from roost.placement.model import Request
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError
from roost.scheduler.policies import sandbox
from roost.scheduler.policies.offline import explain_saved, read_snapshot
from roost.testing.deadlines import allow_s

PATIENT = Settings(policy_timeout_s=60)
NODES = [
    Node(id="a", cpus=8, metrics_age_s=1, devices=(Device(id="0", model="T4", promised=0.25, used=0.3),)),
    Node(id="b", cpus=4, metrics_age_s=1, labels={"zone": "b"}, taints=("lab",), warm=("/usr/bin/python3",)),
]
POLICY = """
from dataclasses import dataclass

from roost.placement import Pipeline


@dataclass
class Last:
    name = "last"
    needs_metrics = False

    def score(self, request, snapshot):
        return snapshot.columns.cpus * -1.0


MINE = Pipeline(name="mine", scorers=((Last(), 1.0),))


class Broken:
    name = "broken"

    def place(self, request, snapshot, *, avoid):
        raise ZeroDivisionError("oops")
"""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps({"nodes": [node.to_dict() for node in NODES]}))
    (tmp_path / "mine.py").write_text(POLICY)
    return str(path)


def test_saved_nodes_are_read(saved: str) -> None:
    snapshot = read_snapshot(saved)
    assert [snapshot.node(name) for name in snapshot.nodes] == NODES


def test_a_request_is_decided_without_a_service(saved: str) -> None:
    explanation = explain_saved(saved, Request(gpus=0.5))
    assert explanation["placement"]["node_id"] == "a"
    assert (explanation["policy"], explanation["nodes"], explanation["warnings"]) == ("balanced", 2, [])
    assert explain_saved(saved, Request(gpus=1))["placement"] is None
    asked = Request(labels={"zone": "b"}, tolerates=("lab",), policy="pack")
    assert explain_saved(saved, asked)["placement"]["node_id"] == "b"


def test_a_policy_may_be_a_file_or_a_module(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for spec in (f"{tmp_path}/mine.py:MINE", "mine:MINE"):
        explanation = explain_saved(saved, Request(tolerates=("lab",), policy=spec), PATIENT)
        assert (explanation["placement"]["node_id"], explanation["policy"]) == ("b", spec)


def test_a_policy_may_be_one_of_the_operator(saved: str, tmp_path: Path) -> None:
    settings = PATIENT.with_values(policies={"last": f"{tmp_path}/mine.py:MINE"})
    asked = Request(tolerates=("lab",), policy="last")
    assert explain_saved(saved, asked, settings)["placement"]["node_id"] == "b"
    with pytest.raises(ConfigError, match=r"unknown policy 'lost'; known are balanced, .*, last\."):
        explain_saved(saved, Request(policy="lost"), settings)
    with pytest.raises(ConfigError, match=r"give it as path/to/file\.py:Name\."):
        explain_saved(saved, Request(policy=f"{tmp_path}/mine.py"))


def test_a_policy_that_fails_is_named(saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = f"{tmp_path}/mine.py:Broken"
    explanation = explain_saved(saved, Request(policy=broken), PATIENT)
    assert explanation["policy"] == broken
    assert "ZeroDivisionError: oops" in explanation["fallback"]
    for spec in ("nope", "no_such_module:X", f"{tmp_path}/none.py:X", f"{tmp_path}/mine.py:X"):
        with pytest.raises(ConfigError):
            explain_saved(saved, Request(policy=spec))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "has a list of nodes"),
        ({"nodes": {}}, "has a list of nodes"),
        ({"nodes": [3]}, "Node must be an object"),
        ({"nodes": [{}]}, "Node lacks the field 'id'"),
        ({"nodes": [{"id": 3}]}, "Node.id must be text, not int"),
        ({"nodes": [{"id": "a", "devices": None}]}, "Node.devices must be a list"),
        ({"nodes": [{"id": "a"}, {"id": "a"}]}, "two nodes have the id 'a'"),
        ({"nodes": [{"id": "a", "cpu": 1}]}, "Node has no field 'cpu'; it has id, "),
        ({"nodes": [{"id": "a", "cpus": "4"}]}, "Node.cpus must be a number, not str"),
    ],
)
def test_a_file_without_a_snapshot_is_one_sentence(tmp_path: Path, document: Any, said: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(ConfigError, match=said) as caught:
        read_snapshot(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_snapshot(str(tmp_path / "none.json"))
