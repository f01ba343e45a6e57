"""roost's Ray cluster for tests: nodes are as declared, workers have a clean environment, and nothing stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from roost.bench.clusters.cluster_folder import processes, wait_until
from roost.bench.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import VARIABLE

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LONG_S = 60.0
DRIVER = """
import json, os, sys
sys.modules["rfc3987_syntax"] = None  # as in raylets.py
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
@ray.remote(num_cpus=0)
def environment():
    return dict(os.environ)
print(json.dumps({"nodes": ray.nodes(), "environment": ray.get(environment.remote())}))
"""


def drive(cluster: Raylets) -> dict[str, Any]:
    """Run a Ray driver. Return its view of the cluster: nodes by address, and a worker's environment."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, cluster.address],
        check=True, capture_output=True, text=True, timeout=allow_s(60), cwd="/",
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said["nodes"] = {node["NodeManagerAddress"]: node for node in said["nodes"]}
    return said


@pytest.fixture
def raylets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Raylets]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("RAY_ADDRESS", "203.0.113.1:6379")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    machines = [
        Machine(cpus=3, gpus=2, gpu_model="T4", memory_bytes=1 << 30),
        Machine(labels={"zone": "b"}, resources={"disk": 2}, environment={"SITE": "east"}),
    ]
    with Raylets(*machines, keeps_state=True, environment={VARIABLE: "/tmp/r-none"}) as cluster:
        yield cluster


def test_a_token_in_the_users_home_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would read it by itself, and then ask every driver for it."""
    file = tmp_path / ".ray/auth_token"
    file.parent.mkdir()
    file.write_text("of-another-cluster")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    with Raylets(Machine()) as cluster:
        assert drive(cluster)["environment"]["RAY_AUTH_MODE"] == "disabled"
    assert [(path, path.read_text()) for path in file.parent.rglob("*")] == [(file, "of-another-cluster")]


def test_a_cluster_starts_survives_a_killed_gcs_and_raylet_and_ends(raylets: Raylets) -> None:
    head, other = raylets.nodes
    assert raylets.address.startswith(f"{head.address}:")

    said = drive(raylets)
    first, second = said["nodes"][head.address], said["nodes"][other.address]
    assert first["Alive"]
    assert second["Alive"]
    declared = {"CPU": 3, "GPU": 2, "accelerator_type:T4": 1, "memory": 1 << 30}
    assert declared.items() <= first["Resources"].items()
    assert first["Labels"]["ray.io/accelerator-type"] == "T4"
    assert {"CPU": 1, "disk": 2}.items() <= second["Resources"].items()
    assert "GPU" not in second["Resources"]
    assert second["Labels"]["zone"] == "b"
    environment = said["environment"]
    assert environment[VARIABLE] == "/tmp/r-none"
    assert environment["PYTHONPATH"] == "/nowhere"
    assert not {"CUDA_VISIBLE_DEVICES", "RAY_ADDRESS"} & set(environment)

    raylets.kill_gcs()
    raylets.restart_gcs()
    assert {node["NodeID"] for node in drive(raylets)["nodes"].values()} == {
        first["NodeID"],
        second["NodeID"],
    }

    raylets.kill_raylet(other.address)
    try:
        wait_until(
            lambda: processes(other.folder) == [], "processes of the node stay", timeout_s=allow_s(LONG_S)
        )
    except RuntimeError:
        pytest.fail(f"these outlived their raylet: {[left.cmdline() for left in processes(other.folder)]}")
    wait_until(
        lambda: not drive(raylets)["nodes"][other.address]["Alive"],
        "Ray does not notice",
        timeout_s=allow_s(LONG_S),
    )
    third = raylets.add_node(Machine())
    assert drive(raylets)["nodes"][third.address]["Alive"]
    raylets.stop_node(third.address)
    assert not drive(raylets)["nodes"][third.address]["Alive"]

    before = raylets.processes()
    assert before
    raylets.close()
    assert raylets.processes() == []
    assert not raylets.folder.exists()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in before)
