"""PySpark in client mode in a kernel's container. Its executors are containers of Spark's own application.

`make build-spark` installs PySpark for these tests.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit import ROOT
from kit.clusters.hadoop_nodes import HadoopNodes
from kit.clusters.spark import python, spark_home, why_not, write_defaults
from kit.clusters.spark.cells import LONG_JOB, SUM
from kit.clusters.yarn.shared_cluster import assert_nothing_left, cluster_settings
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import until

TEMPLATE = ROOT / "docs/examples/spark/yarn/kernel.json"
"""The file of the documentation's kernelspec for PySpark."""
SPARK_S = 180.0
END_S = 60.0
MASTER_S = 4
End = Callable[[Notebook, HadoopNodes], Awaitable[None]]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def configured_folder(
    yarn_cluster: HadoopNodes, module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return a folder with the configuration of roost and Spark. At the end nothing is left in YARN."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("spark")
    folder.chmod(0o700)
    settings = cluster_settings(yarn_cluster, folder)
    config = {"RoostYarnBackend": settings, "RoostScheduler": {"idle_exit_s": MASTER_S}}
    (folder / "jupyter_roost_config.json").write_text(json.dumps(config))
    write_defaults(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        yield folder
        disconnect()
        settle(module_runtime_dir)
        assert_nothing_left(yarn_cluster, within_s=END_S)


@pytest.fixture
def specs(configured_folder: Path, tmp_path: Path) -> KernelSpecManager:
    """Return a manager of the kernelspec `roosted`: the documentation's kernelspec with the paths of this machine."""
    text = TEMPLATE.read_text().replace("/opt/pyspark/bin/python", python())
    text = text.replace("/opt/spark", str(spark_home()))
    content = json.loads(text)
    config = content["metadata"].pop("kernel_provisioner")["config"]
    env = {**content.pop("env"), "SPARK_CONF_DIR": str(configured_folder)}
    return kernelspecs(tmp_path, config=config, env=env, **content)


async def kill(notebook: Notebook, _: HadoopNodes) -> None:
    os.kill(notebook.pid, signal.SIGKILL)


async def kill_containers(_: Notebook, cluster: HadoopNodes) -> None:
    """End the application of roost's kernels, and with it their containers."""
    for row in cluster.applications():
        if row["applicationType"] == "roost":
            cluster.rest.call("PUT", f"/ws/v1/cluster/apps/{row['id']}/state", {"state": "KILLED"})


def spark_applications(cluster: HadoopNodes) -> list[dict[str, Any]]:
    return [row for row in cluster.applications() if row["applicationType"] == "SPARK"]


def spark_containers(cluster: HadoopNodes, application: str) -> list[psutil.Process]:
    """Return the processes in the containers of an application."""
    part = application.removeprefix("application")
    return [each for each in cluster.container_processes() if part in each.environ()["CONTAINER_ID"]]


async def compute(notebook: Notebook, cluster: HadoopNodes) -> dict[str, Any]:
    """Let Spark compute a sum on two executors. Return YARN's record of its application."""
    began = time.monotonic()
    reply = await notebook.run(SUM, timeout_s=SPARK_S)
    assert reply["status"] == "ok", reply
    print(f"a sum after {time.monotonic() - began:.1f} s")
    assert await notebook.value("total") == "499500"
    application = eval(await notebook.value("application"))
    (row,) = [row for row in spark_applications(cluster) if row["id"] == application]
    assert len(eval(await notebook.value("executors"))) == 2
    assert row["runningContainers"] == 3  # with Spark's application master
    return row


async def open_notebook(specs: KernelSpecManager) -> Notebook:
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = specs
    await notebook.open()
    return notebook


async def await_end(cluster: HadoopNodes, application: str, inside: list[psutil.Process]) -> None:
    """Wait until an application and its processes have ended, and print the seconds."""
    began = time.monotonic()
    took: dict[str, float] = {}

    def have_ended() -> bool:
        ended = {
            "application": application not in [row["id"] for row in spark_applications(cluster)],
            "processes": not any(map(is_alive, inside)),
        }
        for name in (name for name, is_over in ended.items() if is_over and name not in took):
            took[name] = time.monotonic() - began
        return len(took) == 2

    await until(have_ended, lambda: f"application and processes end; ended are {[*took]}", END_S)
    print("ended after", {name: round(seconds, 2) for name, seconds in took.items()})


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(notebook: Notebook, cluster: HadoopNodes, application: str) -> list[psutil.Process]:
    """Return the driver of a notebook and the processes in the containers of its application."""
    (driver,) = [each for each in psutil.Process(notebook.pid).children() if each.name() == "java"]
    assert "HADOOP_TOKEN_FILE_LOCATION" not in driver.environ()
    assert driver.environ()["CONTAINER_ID"] == psutil.Process(notebook.pid).environ()["CONTAINER_ID"]
    return [driver, *spark_containers(cluster, application)]


async def test_spark_computes_is_interrupted_and_restarts_and_nothing_is_left(
    specs: KernelSpecManager, yarn_cluster: HadoopNodes
) -> None:
    notebook = await open_notebook(specs)
    row = await compute(notebook, yarn_cluster)
    assert notebook.manager.kernel_id in row["name"]
    assert row["queue"] in ("default", "root.default")
    inside = processes_of(notebook, yarn_cluster, row["id"])

    await notebook.interrupt(LONG_JOB)
    assert (await notebook.run(SUM))["status"] == "ok"

    await notebook.restart()
    await await_end(yarn_cluster, row["id"], inside)
    row = await compute(notebook, yarn_cluster)
    inside = processes_of(notebook, yarn_cluster, row["id"])
    await notebook.close()
    await await_end(yarn_cluster, row["id"], inside)


@pytest.mark.parametrize("end", [kill, kill_containers])
async def test_the_application_ends_with_the_kernel(
    end: End, specs: KernelSpecManager, yarn_cluster: HadoopNodes
) -> None:
    notebook = await open_notebook(specs)
    row = await compute(notebook, yarn_cluster)
    inside = processes_of(notebook, yarn_cluster, row["id"])
    await end(notebook, yarn_cluster)
    await await_end(yarn_cluster, row["id"], inside)
    await notebook.close()
