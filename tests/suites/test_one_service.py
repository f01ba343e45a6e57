"""One service for a cluster, however it is named: real Ray, real services, and the `roost` command in a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
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
        assert service.folder == runtime_dir / "scheduler-ray"
        cell = kernel.execute(
            "!roost kernels --backend ray --json".replace("roost", f"{sys.executable} -m roost")
        )
        (listed,) = json.loads(cell.stdout)["kernels"]
        assert listed["id"] == kernel.id

        host, _, port = cluster.address.rpartition(":")
        for named in (f"{host}:{port}", f" {host.upper()}:{port}/"):
            assert read("kernels", "--backend", "ray", RAY_ADDRESS=named)["kernels"], named
        option = f"address={cluster.address}"
        assert read("kernels", "--backend", "ray", "--backend-option", option)["kernels"]
        file = tmp_path / "config" / "jupyter_roost_config.py"
        file.parent.mkdir()
        file.write_text(f"c.RoostRayBackend.address = {cluster.address!r}")
        assert read("kernels", "--backend", "ray", JUPYTER_CONFIG_DIR=str(file.parent))["kernels"]

        # An address with which only Ray knows that it is the same cluster: its GCS listens on every interface.
        alias = f"127.0.0.1:{port}"
        assert read("kernels", "--backend", "ray", RAY_ADDRESS=alias)["kernels"]
        assert read("kernels", "--backend", "ray", RAY_ADDRESS=alias)["kernels"]
        assert [each.pid for each in find_services()] == [service.pid]
        assert daemon_pids(runtime_dir, "scheduler") == [service.pid]

        # A name that leads to the service restarts it, whether that is known before or not.
        for named in (alias, f"127.0.0.9:{port}"):
            (last,) = find_services()
            done = read("restart-service", "--backend", "ray", RAY_ADDRESS=named)
            assert (done["ended_pid"], done["kernels"]) == (last.pid, 1), named
        assert len(find_services()) == 1

        # Another service has the other options. It says that it does not list the kernel.
        done = shell(
            "kernels", "--backend", "ray", "--backend-option", "agent_idle_exit_s=60", RAY_ADDRESS=alias
        )
        assert "There are no kernels." in done.stdout
        assert "1 kernel of yours was started on this cluster by other services" in done.stdout
        assert len(find_services()) == 2


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


@pytest.mark.backends("ray")
def test_two_services_of_one_cluster_are_joined_as_doctor_says(cluster: Raylets, runtime_dir: Path) -> None:
    """Two services have kernels, as after an upgrade from a roost that did not look for the other one."""
    _, _, port = cluster.address.rpartition(":")
    with roost.start_kernel(backend="ray", backend_options={"address": cluster.address}) as kernel:
        (first,) = find_services()
        record = first.folder / "cluster.json"
        record.rename(record.with_suffix(".away"))
        with roost.start_kernel(backend="ray", backend_options={"address": f"127.0.0.9:{port}"}):
            assert len(find_services()) == 2
            record.with_suffix(".away").rename(record)
            named = {"RAY_ADDRESS": cluster.address}
            (finding,) = _find_twins(named)
            listing, restart = re.findall("`roost ([^`]+)`", finding["do"])
            (other,) = read(*shlex.split(listing))["kernels"]
            assert other["id"] != kernel.id
            assert shell("stop", *shlex.split(listing)[1:], other["id"]).returncode == 0
        done = read(*shlex.split(restart))
        assert done["kernels"] == 1  # of the first service
        assert _find_twins(named) == []
        assert [service.folder for service in find_services()] == [first.folder]
        assert kernel.execute("6 * 7", check=True).text == "42"


def _find_twins(named: Mapping[str, str]) -> list[Mapping[str, Any]]:
    findings = json.loads(shell("doctor", "--backend", "ray", "--json", **named).stdout)["findings"]
    return [each for each in findings if "two services of yours serve this cluster" in each["what"]]


def configure(
    backend: str, settings: Mapping[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write these settings where services find them, but without the address."""
    section = get_spec(backend).section
    others = {name: value for name, value in settings.items() if name != "address"}
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
    dask_cluster: DaskMachines, runtime_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": dask_cluster.address}))
    plain = dask_cluster.address.removeprefix("tcp://")
    assert_one_service("dask", (str(file), dask_cluster.address, plain, str(file)), runtime_dir)


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
