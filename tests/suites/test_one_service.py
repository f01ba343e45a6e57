"""One service for a cluster, however it is named: real Ray, real services, and the `roost` command in a shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import roost
from kit.clusters.hadoop_nodes.cluster import HadoopNodes
from kit.clusters.kubelets.cluster import Kubelets
from kit.clusters.kubernetes.shared_cluster import cluster_settings as kubernetes_settings
from kit.clusters.yarn.shared_cluster import cluster_settings as yarn_settings
from kit.machine.daemons import daemon_pids, settle, wait_gone
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.yarn.hadoop_conf import find_web_addresses
from roost.scheduler.client.client import disconnect
from roost.scheduler.client.running_services import find_services
from roost.testing.clusters.dask_machines import DaskMachines
from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s


@pytest.fixture
def cluster(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raylets]:
    """Start a Ray cluster on this machine whose kernels have the runtime folder of the test."""
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with Raylets(Machine(cpus=2), environment={"ROOST_RUNTIME_DIR": str(runtime_dir)}) as cluster:
        yield cluster
        disconnect()
        settle(runtime_dir)


def shell(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `roost` in a shell with these variables."""
    return subprocess.run(
        [sys.executable, "-m", "roost", *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=allow_s(120),
        env={**os.environ, **environment},
    )


def read(*argv: str, **environment: str) -> Mapping[str, Any]:
    """Return the JSON that `roost` prints in a shell with these variables."""
    done = shell(*argv, "--json", **environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.backends("ray")
def test_every_name_of_a_cluster_leads_to_its_one_service(
    cluster: Raylets, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray itself finds the cluster of this machine by this file.
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(cluster.address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with roost.start_kernel(backend="ray", cpus=1) as kernel:
        (service,) = find_services()
        assert service.folder.parent == runtime_dir
        cell = kernel.execute(
            "!roost kernels --backend ray --json".replace("roost", f"{sys.executable} -m roost")
        )
        (listed,) = json.loads(cell.stdout)["kernels"]
        assert listed["id"] == kernel.id

        host, _, port = cluster.address.rpartition(":")
        for named in (f"{host}:{port}", f" {host.upper()}:{port}/", f"127.0.0.1:{port}"):
            assert read("kernels", "--backend", "ray", RAY_ADDRESS=named)["kernels"], named
        option = f"address={cluster.address}"
        assert read("kernels", "--backend", "ray", "--backend-option", option)["kernels"]
        file = tmp_path / "config" / "jupyter_roost_config.py"
        file.parent.mkdir()
        file.write_text(f"c.RoostRayBackend.address = {cluster.address!r}")
        assert read("kernels", "--backend", "ray", JUPYTER_CONFIG_DIR=str(file.parent))["kernels"]

        assert [each.pid for each in find_services()] == [service.pid]
        assert daemon_pids(runtime_dir, "scheduler") == [service.pid]

        done = read("restart-service", "--backend", "ray", RAY_ADDRESS=cluster.address)
        assert (done["ended_pid"], done["kernels"]) == (service.pid, 1)
        assert len(find_services()) == 1

        assert read("kernels", "--backend", "ray", "--backend-option", "agent_idle_exit_s=60")["kernels"]
        refused = shell("kernels", "--backend", "ray", "--backend-option", "agent_idle_exit_s=90")
        assert refused.returncode == 2
        assert "was started without agent_idle_exit_s=90" in refused.stderr
        assert len(find_services()) == 1


@pytest.mark.backends("ray")
def test_the_service_that_a_shell_started_serves_jupyter_too(
    cluster: Raylets, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read("kernels", "--backend", "ray", RAY_ADDRESS=cluster.address)["kernels"] == []
    (service,) = find_services()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(cluster.address)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with roost.start_kernel(backend="ray", cpus=1) as kernel:
        (listed,) = read("kernels", "--backend", "ray", RAY_ADDRESS=cluster.address)["kernels"]
        assert listed["id"] == kernel.id
        assert [each.pid for each in find_services()] == [service.pid]
        os.kill(service.pid, signal.SIGKILL)
        wait_gone(service.pid)
        (listed,) = read("kernels", "--backend", "ray")["kernels"]  # the next service knows the same kernels
        assert listed["id"] == kernel.id
        (next_service,) = find_services()
        assert next_service.folder == service.folder
    cluster.kill_gcs()  # every name leads there while the cluster is down, too
    for named in ({}, {"RAY_ADDRESS": cluster.address}):
        read("kernels", "--backend", "ray", **named)
        assert [each.pid for each in find_services()] == [next_service.pid], named


def configure(
    backend: str,
    settings: Mapping[str, Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    with_address: bool = False,
) -> None:
    """Write these settings where services find them, without the address unless it is wanted."""
    section = get_spec(backend).section
    others = {name: value for name, value in settings.items() if with_address or name != "address"}
    (folder / "jupyter_roost_config.json").write_text(json.dumps({section: others}))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(folder))


def assert_one_service(backend: str, names: Iterable[str], runtime_dir: Path) -> None:
    """Assert that all these values of the backend's variable lead to the service that the first one starts."""
    variable, pids = get_spec(backend).address_variable, set[int]()
    try:
        for name in names:
            assert read("nodes", "--backend", backend, **{variable: name})["nodes"], name
            pids |= {service.pid for service in find_services()}
    finally:
        settle(runtime_dir)
    assert len(pids) == 1


def test_a_dask_cluster_has_one_service(
    dask_cluster: DaskMachines, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, address = tmp_path / "scheduler.json", dask_cluster.address
    file.write_text(json.dumps({"address": address}))
    plain = address.removeprefix("tcp://")
    with roost.start_kernel(backend="dask", backend_options={"address": str(file)}, cpus=1) as kernel:
        (service,) = find_services()
        command = f"ROOST_RUNTIME_DIR={runtime_dir} {sys.executable} -m roost kernels --backend dask --json"
        (listed,) = json.loads(kernel.execute(f"!{command}").stdout)["kernels"]
        assert listed["id"] == kernel.id
        for named in (str(file), address, plain):
            assert read("kernels", "--backend", "dask", DASK_SCHEDULER_ADDRESS=named)["kernels"], named
        option = f"address={address}"
        assert read("kernels", "--backend", "dask", "--backend-option", option)["kernels"]
        monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
        configure("dask", {"address": address}, tmp_path, monkeypatch, with_address=True)
        assert read("kernels", "--backend", "dask")["kernels"]
        assert [each.pid for each in find_services()] == [service.pid]
    disconnect()
    settle(runtime_dir)


def test_a_kubernetes_namespace_has_one_service(
    kubernetes_cluster: Kubelets, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    settings = kubernetes_settings(kubernetes_cluster, tmp_path)
    configure("kubernetes", settings, tmp_path, monkeypatch)
    copy = tmp_path / "another context"
    text = Path(settings["address"]).read_text()
    copy.write_text(text)
    assert_one_service(
        "kubernetes", (settings["address"], str(copy), f"{copy}:{settings['address']}"), runtime_dir
    )


def test_a_yarn_cluster_has_one_service(
    yarn_cluster: HadoopNodes, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    settings = yarn_settings(yarn_cluster, tmp_path)
    configure("yarn", settings, tmp_path, monkeypatch)
    (address,) = find_web_addresses(settings["address"])
    copy = tmp_path / "conf"
    shutil.copytree(settings["address"], copy)
    assert_one_service(
        "yarn", (settings["address"], address, address.removeprefix("http://"), str(copy)), runtime_dir
    )


@pytest.mark.backends("ray")
def test_the_next_service_replaces_an_idle_agent_in_another_interpreter(
    cluster: Raylets, runtime_dir: Path, tmp_path: Path
) -> None:
    config, python = tmp_path / "jupyter_roost_config.py", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    named = {"RAY_ADDRESS": cluster.address, "JUPYTER_CONFIG_DIR": str(tmp_path)}
    read("up", "--backend", "ray", **named)
    before = daemon_pids(runtime_dir, "agent-ray")
    read("restart-service", "--backend", "ray", **named)
    read("up", "--backend", "ray", **named)
    assert daemon_pids(runtime_dir, "agent-ray") == before, "nothing has changed"
    config.write_text(f"c.RoostRayBackend.python = {str(python)!r}")
    read("restart-service", "--backend", "ray", **named)
    read("up", "--backend", "ray", **named)
    after = daemon_pids(runtime_dir, "agent-ray")
    assert len(after) == len(before) > 0
    assert not set(after) & set(before)
