"""What the clusters of the tests leave alone on this machine: networks, folders and files of other processes."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kit.clusters.docker_engine import engine
from kit.clusters.docker_engine.start_script import network, write_script
from kit.clusters.hadoop_nodes import HadoopNodes, Machine
from kit.clusters.hadoop_nodes.settings import PORTS
from kit.clusters.kubelets import build, image
from kit.clusters.ssh_hosts import remains
from roost.launchers.daemon.process import start_time
from roost.testing.clusters import cluster_folder
from roost.testing.clusters.cluster_folder import claim_network


def test_two_clusters_never_have_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    first, claim = claim_network()
    draw, drawn = random.randint, [int(first.rpartition(".")[2])]  # once more, then any
    monkeypatch.setattr(
        cluster_folder.random, "randint", lambda *bounds: drawn.pop() if drawn else draw(*bounds)
    )
    with claim:
        second, other = claim_network()
        other.close()
    assert not drawn
    assert first != second


def test_a_network_with_a_used_port_is_not_taken() -> None:
    cluster = HadoopNodes(Machine())
    with claim_network(cluster._is_free)[1] as claim:
        taken = claim.getsockname()[0].rpartition(".")[0]
        assert cluster._is_free(taken)
        with socket.create_server((f"{taken}.11", PORTS["nm"][0])):
            assert not cluster._is_free(taken)


def test_an_engine_has_addresses_and_folders_of_its_own() -> None:
    script = write_script(Path("/tmp/docker-engine-x"), 7)
    assert network(7) == "10.248.7.0/24"
    assert "--host=unix:///tmp/docker-engine-x/docker.sock" in script
    assert "--cgroup-parent=/docker-engine-x" in script
    assert "/var/lib/docker" not in script
    script = write_script(Path("/tmp/docker-engine-x"), 7, "podman")
    assert "--root=/tmp/docker-engine-x/data" in script
    assert "dockerd --host" not in script


@pytest.mark.parametrize(
    ("module", "prefix", "make_folder"),
    [(engine, "docker-engine", engine._make_folder), (remains, "ssh-hosts", remains.make_folder)],
    ids=["docker", "ssh"],
)
def test_a_start_removes_the_remains_of_ended_processes_only(
    module: ModuleType,
    prefix: str,
    make_folder: Callable[[], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BASE", tmp_path)
    monkeypatch.setattr(engine, "_CGROUPS", tmp_path / "no-groups")
    own = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    owners = {
        f"{prefix}-lives": own,
        f"{prefix}-ended": {**own, "start_time": 1.0},
        "other": {**own, "pid": 0},
    }
    for name, owner in owners.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "owner.json").write_text(json.dumps(owner))
    for name, age_s in {f"{prefix}-begins": 0, f"{prefix}-broken": 3600}.items():
        (tmp_path / name).mkdir()
        then = (tmp_path / name).stat().st_mtime - age_s
        os.utime(tmp_path / name, (then, then))
    folder = make_folder()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{prefix}-lives", "other", f"{prefix}-begins", folder.name}
    assert module.leftovers(folder) == [f"folder {folder}"]


def test_builds_of_other_checkouts_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("program-1", "images-1", "images-old", "images-other"):
        (tmp_path / name / "part").mkdir(parents=True)
        if name != "images-other":
            os.utime(tmp_path / name, (1, 1))
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setattr(build, "program", lambda: tmp_path / "program-1" / "part")
    monkeypatch.setattr(build, "images", lambda: tmp_path / "images-1" / "part")
    monkeypatch.setattr(build, "why_not_build", lambda: None)
    build.build()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"build.lock", "program-1", "images-1", "images-other"}


def test_the_image_has_ipykernel_and_no_roost() -> None:
    """Tests in pods show therefore that a pod needs no roost."""
    names = {each.metadata["Name"].lower() for each in image.required("ipykernel")}
    assert {"ipykernel", "pyzmq", "jupyter_client", "psutil"} <= names
    assert "roost" not in names
