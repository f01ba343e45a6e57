"""PySpark in client mode in a kernel's container. Its executors are containers of Spark's own application.

These tests need a Python with pyspark (500 MB) and ipykernel. ROOST_TEST_PYSPARK names it:

    python3 -m venv /tmp/pyspark && /tmp/pyspark/bin/pip install pyspark ipykernel
    ROOST_TEST_PYSPARK=/tmp/pyspark/bin/python .venv/bin/python -m pytest tests/lifecycle/test_yarn_spark.py
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from kit.clusters.hadoop_nodes import HadoopNodes
from kit.clusters.yarn.shared_cluster import assert_nothing_left, cluster_settings
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s

PYTHON = os.environ.get("ROOST_TEST_PYSPARK", "")
TEMPLATE = Path(__file__).parents[2] / "docs/examples/spark/kernel.json"
"""The file of the documentation's kernelspec for PySpark."""
SPARK_S = 180.0
END_S = 30.0
MASTER_S = 4
PI = """
import os, random, time
from pyspark.sql import SparkSession

context = SparkSession.builder.appName("pi").getOrCreate().sparkContext

def is_inside(_):
    return random.random() ** 2 + random.random() ** 2 < 1

def find_container(_):
    time.sleep(0.5)
    return os.environ["CONTAINER_ID"]

pi = 4 * context.parallelize(range(200_000), 8).filter(is_inside).count() / 200_000
executors = sorted(set(context.parallelize(range(8), 8).map(find_container).collect()))
application = context.applicationId
"""
End = Callable[[Notebook, HadoopNodes], Awaitable[None]]

pytestmark = pytest.mark.skipif(not PYTHON, reason="ROOST_TEST_PYSPARK names no Python with pyspark")


@pytest.fixture(scope="module")
def configured_folder(
    yarn_cluster: HadoopNodes, module_runtime_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return a folder with the configuration of roost and Spark. At the end nothing is left in YARN."""
    folder = tmp_path_factory.mktemp("spark")
    folder.chmod(0o700)
    settings = cluster_settings(yarn_cluster, folder)
    config = {"RoostYarnBackend": settings, "RoostScheduler": {"idle_exit_s": MASTER_S}}
    (folder / "jupyter_roost_config.json").write_text(json.dumps(config))
    (folder / "spark-defaults.conf").write_text(
        f"spark.yarn.jars local:{find_spark()}/jars/*\n"
        f"spark.yarn.stagingDir file://{folder}\n"
        "spark.executor.memory 512m\n"
        "spark.log.level ERROR\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        yield folder
        disconnect()
        settle(module_runtime_dir)
        assert_nothing_left(yarn_cluster, within_s=END_S)


@pytest.fixture
def specs(configured_folder: Path, tmp_path: Path) -> KernelSpecManager:
    """Return a manager of the kernelspec `roosted`: the documentation's kernelspec with the paths of this machine."""
    text = TEMPLATE.read_text().replace("/opt/pyspark/bin/python", PYTHON).replace("/opt/spark", find_spark())
    content = json.loads(text)
    config = content["metadata"].pop("kernel_provisioner")["config"]
    env = {**content.pop("env"), "SPARK_CONF_DIR": str(configured_folder)}
    return kernelspecs(tmp_path, config=config, env=env, **content)


def find_spark() -> str:
    code = "import ipykernel, pyspark; print(*pyspark.__path__)"
    return subprocess.check_output([PYTHON, "-c", code], text=True, timeout=allow_s(60)).strip()


async def shut_down(notebook: Notebook, _: HadoopNodes) -> None:
    await notebook.close()


async def restart(notebook: Notebook, _: HadoopNodes) -> None:
    await notebook.restart()


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


@pytest.mark.parametrize("end", [shut_down, restart, kill, kill_containers])
async def test_pi_on_two_executors_that_end_with_the_kernel(
    end: End, specs: KernelSpecManager, yarn_cluster: HadoopNodes
) -> None:
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = specs
    await notebook.open()
    began = time.monotonic()
    reply = await notebook.run(PI, timeout_s=SPARK_S)
    assert reply["status"] == "ok", reply
    print(f"pi after {time.monotonic() - began:.1f} s")
    assert float(await notebook.value("pi")) == pytest.approx(3.14, abs=0.05)
    executors = eval(await notebook.value("executors"))
    (row,) = spark_applications(yarn_cluster)
    assert row["id"] == eval(await notebook.value("application"))
    assert len(executors) == 2
    assert row["runningContainers"] == 3  # with Spark's application master
    (driver,) = [each for each in psutil.Process(notebook.pid).children() if each.name() == "java"]
    inside = [driver, *spark_containers(yarn_cluster, row["id"])]
    assert "HADOOP_TOKEN_FILE_LOCATION" not in driver.environ()
    assert driver.environ()["CONTAINER_ID"] == psutil.Process(notebook.pid).environ()["CONTAINER_ID"]

    await end(notebook, yarn_cluster)
    began = time.monotonic()
    took: dict[str, float] = {}
    while len(took) < 3:
        ended = {
            "driver": not driver.is_running() or driver.status() == psutil.STATUS_ZOMBIE,
            "application": not spark_applications(yarn_cluster),
            "processes": not any(each.is_running() for each in inside),
        }
        for name in (name for name, is_over in ended.items() if is_over and name not in took):
            took[name] = time.monotonic() - began
        assert time.monotonic() < began + END_S, ended
        await asyncio.sleep(0.05)
    print(end.__name__, {name: round(seconds, 2) for name, seconds in took.items()})
    if end is not shut_down:
        await notebook.close()
