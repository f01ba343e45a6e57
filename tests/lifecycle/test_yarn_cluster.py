"""The YARN cluster of the tests: containers run, daemons die and come back, and nothing stays on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.hadoop_nodes import (
    MACHINES,
    PARTITION,
    HadoopNodes,
    Machine,
    Refused,
    Rest,
    gpus_of,
    why_not,
)
from kit.clusters.yarn.shared_cluster import assert_nothing_left, container_of, left
from roost.bench.clusters.cluster_folder import processes, wait_until
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

LONG_S = 60.0
SLEEPS = "exec sleep 1000"
DETACHES = "cd /; setsid --fork sleep 1000; timeout 1 tail -f /dev/null"
"""A container's command, whose `sleep` leaves the process group. YARN kills the group when the shell ends."""
OWNER = """
import sys
from kit.clusters.hadoop_nodes import HadoopNodes, Machine
with HadoopNodes(Machine()) as cluster:
    print(cluster.folder, cluster.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def hadoop_nodes() -> Iterator[HadoopNodes]:
    settings = {"yarn.nm.liveness-monitor.expiry-interval-ms": 15000}
    with HadoopNodes(*MACHINES, Machine(label=PARTITION), settings=settings) as cluster:
        yield cluster
        folder = cluster.folder
    assert not cluster.processes()
    assert not folder.exists()


def run(rest: Rest, command: str, **context: Any) -> str:
    """Submit an application that runs `command` in its only container. Return the application's id."""
    new = rest.call("POST", "/ws/v1/cluster/apps/new-application")["application-id"]
    context = {
        "application-id": new,
        "application-name": "test",
        "resource": {"memory": 256, "vCores": 1},
        "am-container-spec": {"commands": {"command": command}},
        **context,
    }
    rest.call("POST", "/ws/v1/cluster/apps", context)
    return str(new)


def end(rest: Rest, application: str) -> None:
    """End an application, unless it has ended already."""
    with contextlib.suppress(Refused):
        rest.call("PUT", f"/ws/v1/cluster/apps/{application}/state", {"state": "KILLED"})


def sleeping(folder: Path) -> list[psutil.Process]:
    """Return the `sleep` processes in the containers of the cluster with this folder."""
    found = []
    for each in processes(folder):
        with contextlib.suppress(psutil.NoSuchProcess):  # a shell that has ended meanwhile
            found += [each] if each.name() == "sleep" else []
    return found


def await_process(cluster: HadoopNodes) -> psutil.Process:
    wait_until(
        lambda: len(sleeping(cluster.folder)) == 1, "the container does not run", timeout_s=allow_s(LONG_S)
    )
    return sleeping(cluster.folder)[0]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_nodes_have_gpus_attributes_and_the_partition(hadoop_nodes: HadoopNodes) -> None:
    nodes = hadoop_nodes.nodes()
    assert {name: gpus_of(row) for name, row in nodes.items()} == {"nm1": 0, "nm2": 2, "nm3": 4, "nm4": 0}
    assert {name: row.get("nodeLabels") for name, row in nodes.items()} == {
        "nm1": None, "nm2": None, "nm3": None, "nm4": [PARTITION],
    }  # fmt: skip
    assert {name: attributes_of(row) for name, row in nodes.items()} == {
        "nm1": {}, "nm2": {"gpu-model": "T4"}, "nm3": {"gpu-model": "A100", "zone": "b"}, "nm4": {},
    }  # fmt: skip
    queues = hadoop_nodes.rest.get("/ws/v1/cluster/scheduler")["scheduler"]["schedulerInfo"]["queues"][
        "queue"
    ]
    assert {queue["queueName"] for queue in queues} == {"default", "batch"}


def attributes_of(row: dict[str, Any]) -> dict[str, str]:
    found = (row["nodeAttributesInfo"] or {}).get("nodeAttributeInfo", [])
    return {each["name"]: each["value"] for each in found}


def test_each_setting_can_be_changed(hadoop_nodes: HadoopNodes) -> None:
    found = hadoop_nodes.rest.get("/conf?format=json&name=yarn.nm.liveness-monitor.expiry-interval-ms")
    assert found["property"]["value"] == "15000"


def test_a_container_runs_and_a_process_that_leaves_it_is_found_and_ended(hadoop_nodes: HadoopNodes) -> None:
    application = run(hadoop_nodes.rest, DETACHES, **{"max-app-attempts": 1})
    detached = await_process(hadoop_nodes)
    assert detached.cwd() == "/"
    container = container_of(detached.pid)
    wait_until(
        lambda: hadoop_nodes.container_processes(container=container) == [detached], "its shell lives on"
    )
    end(hadoop_nodes.rest, application)
    with pytest.raises(AssertionError, match=f"process {detached.pid} "):
        assert_nothing_left(hadoop_nodes, within_s=3)
    detached.kill()
    assert_nothing_left(hadoop_nodes)


def test_a_container_in_the_partition_runs_on_its_node(hadoop_nodes: HadoopNodes) -> None:
    application = run(hadoop_nodes.rest, SLEEPS, **{"am-container-node-label-expression": PARTITION})
    process = await_process(hadoop_nodes)
    assert hadoop_nodes.container_processes("nm4", container_of(process.pid))
    assert [len(hadoop_nodes.containers(node)) for node in hadoop_nodes.machines] == [0, 0, 0, 1]
    assert hadoop_nodes.nodes()["nm4"]["numContainers"] == 1
    end(hadoop_nodes.rest, application)
    assert_nothing_left(hadoop_nodes)


def test_a_container_outlives_both_daemons(hadoop_nodes: HadoopNodes) -> None:
    application = run(hadoop_nodes.rest, SLEEPS, **{"am-container-node-label-expression": PARTITION})
    process = await_process(hadoop_nodes)
    hadoop_nodes.kill("nm4")
    hadoop_nodes.await_node("nm4", "LOST")
    hadoop_nodes.start("nm4")
    hadoop_nodes.await_node("nm4")
    wait_until(
        lambda: not is_alive(process), "a container survives its lost lease", timeout_s=allow_s(LONG_S)
    )
    end(hadoop_nodes.rest, application)
    assert_nothing_left(hadoop_nodes)

    application = run(hadoop_nodes.rest, SLEEPS)
    process = await_process(hadoop_nodes)
    (node,) = [node for node in hadoop_nodes.machines if hadoop_nodes.containers(node)]
    hadoop_nodes.kill("rm1")
    hadoop_nodes.kill(node)
    hadoop_nodes.start("rm1")
    hadoop_nodes.start(node)
    hadoop_nodes.await_up()
    assert is_alive(process)
    end(hadoop_nodes.rest, application)
    assert_nothing_left(hadoop_nodes)


@pytest.mark.slow
def test_a_node_that_is_paused_or_loses_power_comes_back(hadoop_nodes: HadoopNodes) -> None:
    hadoop_nodes.pause("nm1")
    hadoop_nodes.await_node("nm1", "LOST")
    hadoop_nodes.resume("nm1")
    hadoop_nodes.await_node("nm1")
    application = run(hadoop_nodes.rest, DETACHES, **{"am-container-node-label-expression": PARTITION})
    await_process(hadoop_nodes)
    hadoop_nodes.power_off("nm4")
    assert not hadoop_nodes.container_processes()
    end(hadoop_nodes.rest, application)
    hadoop_nodes.await_node("nm4", "LOST")
    hadoop_nodes.start("nm4")
    hadoop_nodes.await_up()
    assert_nothing_left(hadoop_nodes)


@pytest.mark.slow
def test_the_standby_takes_over_with_all_applications() -> None:
    with HadoopNodes(Machine(), has_standby=True) as cluster:
        application = run(cluster.rest, SLEEPS)
        process = await_process(cluster)
        cluster.fail_over("rm2")
        cluster.await_up()
        assert [row["id"] for row in cluster.applications()] == [application]
        cluster.kill("rm2")
        cluster.fail_over("rm1")
        cluster.await_up()
        assert [row["id"] for row in cluster.applications()] == [application]
        assert is_alive(process)
        assert left(cluster)
    assert not is_alive(process)


def test_nothing_outlives_the_killed_owner_and_two_clusters_do_not_meet(hadoop_nodes: HadoopNodes) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        name, address = owner.stdout.readline().split()
        folder = Path(name)
        assert address.rpartition(".")[0] != hadoop_nodes.address.rpartition(".")[0]
        application = run(Rest(address), DETACHES, **{"max-app-attempts": 1})
        try:
            wait_until(
                lambda: bool(sleeping(folder)), "the container does not run", timeout_s=allow_s(LONG_S)
            )
        except RuntimeError:
            print(Rest(address).get(f"/ws/v1/cluster/apps/{application}"))
            raise
        owner.kill()
        wait_until(lambda: not folder.exists(), "the cluster outlives its owner", timeout_s=allow_s(LONG_S))
        assert processes(folder) == []
    assert len(hadoop_nodes.nodes()) == 4
    assert_nothing_left(hadoop_nodes)
