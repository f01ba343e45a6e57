"""Enterprise Gateway's own integration tests, against roost's gateway, Kernel Gateway with roost, and itself.

`pytest -m long -s tests/machine/test_old_gateway.py` shows the seconds of both.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from server import JupyterServer, until_it_listens

from kit.clusters.hadoop_nodes import HadoopNodes
from kit.clusters.spark import python as spark_python
from kit.clusters.spark import spark_home, write_defaults
from kit.clusters.spark import why_not as why_no_spark
from kit.clusters.yarn.shared_cluster import assert_nothing_left, end_applications
from kit.clusters.yarn.shared_cluster import cluster_settings as yarn_settings
from kit.jupyter.old_gateway import (
    SPARK_CLASSES,
    install_spark_kernelspecs,
    list_kernelspecs,
    list_spark_kernelspecs,
    python,
    run_tests,
    why_not,
)
from kit.jupyter.real_launchers import library
from kit.jupyter.real_launchers import why_not as why_no_launchers
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s

EXPECTED = {
    "EXPECTED_SPARK_VERSION": "3.5",
    "KERNEL_USERNAME": getpass.getuser(),
    "KERNEL_LAUNCH_TIMEOUT": "120",
}
"""Facts about the cluster, for the tests of Spark."""
CONFIG = """
c.RoostGateway.users = "trust"
c.RoostGateway.shared_accounts = ["local", "yarn"]
c.RoostGateway.inherited_envs = ["JUPYTER_*", "PYTHON*", "SPARK_*", "HADOOP_*"]
c.ServerApp.allow_root = True
c.ServerApp.port = {port}
"""
"""The settings of roost's gateway, as for the people of an Enterprise Gateway."""

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def own_gateway() -> None:
    pytest.importorskip("kernel_gateway", reason="Jupyter Kernel Gateway is not installed here")
    if reason := why_not():
        pytest.skip(reason)


@asynccontextmanager
async def serve(folder: Path, words: list[str], application: str = "", **env: str) -> AsyncIterator[int]:
    """Run a server and yield its port. Its log is in `folder`, and so are its data and its configuration.

    Without the name of an application of Jupyter, the words run roost's gateway.
    """
    port = free_port()
    env |= folders(folder)
    if application:
        words = [*words, f"--{application}.ip=127.0.0.1", f"--{application}.port={port}"]
    else:
        Path(env["JUPYTER_CONFIG_DIR"], "roost_gateway_config.py").write_text(CONFIG.format(port=port))
    with (folder / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
        )
    try:
        await until_it_listens(JupyterServer(pid=process.pid, port=port, token="", log=[]), process)
        yield port
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), allow_s(60))


def folders(folder: Path) -> dict[str, str]:
    """Return the variables with which Jupyter searches a folder first: before its environment, too."""
    return {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder),
        "JUPYTER_PREFER_ENV_PATH": "0",
    }


def migrate(old: list[Path], folder: Path) -> None:
    (folder / "config").mkdir(mode=0o700, parents=True)
    env = {**os.environ, **folders(folder)}
    words = [sys.executable, "-m", "roost", "migrate", *map(str, old)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=allow_s(60))
    assert done.returncode in (0, 3), done.stderr  # 3: a person has to look at old paths


def show(server: str, seconds: dict[str, float]) -> None:
    print(f"\n{server}: {len(seconds)} tests, {sum(seconds.values()):.1f} s")
    for name, took in seconds.items():
        print(f"{took:8.2f} s  {name}")


GATEWAY = [sys.executable, "-m", "roost", "gateway"]


async def test_roosts_gateway_with_migrated_kernelspecs(settled_runtime_dir: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(migrate, list_kernelspecs(tmp_path / "old"), tmp_path / "new")
    async with serve(tmp_path / "new", GATEWAY, **os.environ) as port:
        seconds = await asyncio.to_thread(run_tests, port, tmp_path / "report.xml")
    show("roost's gateway", seconds)


async def test_kernel_gateway_with_migrated_kernelspecs(settled_runtime_dir: Path, tmp_path: Path) -> None:
    await asyncio.to_thread(migrate, list_kernelspecs(tmp_path / "old"), tmp_path / "new")
    words = [sys.executable, "-m", "kernel_gateway"]
    async with serve(tmp_path / "new", words, "KernelGatewayApp", **os.environ) as port:
        seconds = await asyncio.to_thread(run_tests, port, tmp_path / "report.xml")
    show("Kernel Gateway with roost", seconds)


def fit_to_cluster(folder: Path, hadoop: str, spark: Path) -> None:
    """Put the tests' paths into the kernelspecs of a folder: of Python, Spark and Hadoop, and of its own `spark`."""
    write_defaults(spark)
    for file in folder.glob("kernels/*/kernel.json"):
        text = file.read_text().replace("/opt/conda/bin/python", spark_python())
        document = json.loads(text.replace("/usr/hdp/current/spark2-client", str(spark_home())))
        document["env"] |= {"SPARK_CONF_DIR": str(spark), "HADOOP_CONF_DIR": hadoop}
        file.write_text(json.dumps(document))


@pytest.fixture
def yarn_folder(yarn_cluster: HadoopNodes, settled_runtime_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a folder with the migrated kernelspecs of Spark on YARN. The tests' paths stand in place of theirs."""
    if reason := why_no_spark():
        pytest.skip(reason)
    folder = tmp_path / "new"
    migrate(list_spark_kernelspecs(), folder)
    settings = yarn_settings(yarn_cluster, tmp_path)
    config = {"RoostYarnBackend": settings, "RoostScheduler": {"idle_exit_s": 4}}  # roost's master ends then
    (folder / "config" / "jupyter_roost_config.json").write_text(json.dumps(config))
    fit_to_cluster(folder, settings["address"], tmp_path)
    yield folder
    disconnect()
    settle(settled_runtime_dir)
    assert_nothing_left(yarn_cluster)


async def test_roosts_gateway_with_migrated_kernelspecs_of_spark_on_yarn(
    yarn_folder: Path, tmp_path: Path
) -> None:
    async with serve(yarn_folder, GATEWAY, **os.environ) as port:
        seconds = await asyncio.to_thread(run_tests, port, tmp_path / "report.xml", SPARK_CLASSES, **EXPECTED)
    show("roost's gateway on YARN", seconds)


async def test_kernel_gateway_with_migrated_kernelspecs_of_spark_on_yarn(
    yarn_folder: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "kernel_gateway"]
    async with serve(yarn_folder, words, "KernelGatewayApp", **os.environ) as port:
        # The containers run as this user, so nobody else is let in.
        seconds = await asyncio.to_thread(run_tests, port, tmp_path / "report.xml", SPARK_CLASSES, **EXPECTED)
    show("Kernel Gateway with roost on YARN", seconds)


async def test_enterprise_gateway_with_its_own_kernelspecs(tmp_path: Path) -> None:
    list_kernelspecs(tmp_path / "kernels")
    words = [python(), "-m", "enterprise_gateway"]
    env = {"PATH": f"{Path(python()).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    async with serve(tmp_path, words, "EnterpriseGatewayApp", **env) as port:
        seconds = await asyncio.to_thread(run_tests, port, tmp_path / "report.xml")
    show("Enterprise Gateway", seconds)


async def test_enterprise_gateway_with_its_own_kernelspecs_of_spark_on_yarn(
    yarn_cluster: HadoopNodes, tmp_path: Path
) -> None:
    for reason in (why_no_spark(), why_no_launchers()):
        if reason:
            pytest.skip(reason)
    install_spark_kernelspecs(tmp_path / "kernels")
    fit_to_cluster(tmp_path, str(yarn_cluster.configuration), tmp_path)
    for file in tmp_path.glob("kernels/*/kernel.json"):  # the nodes' Python has no library for the launchers
        file.write_text(file.read_text().replace("py4j-0.10.6-src.zip", f"py4j-0.10.6-src.zip:{library()}"))
    words = [python(), "-m", "enterprise_gateway", "--EnterpriseGatewayApp.unauthorized_users=nobody"]
    words += [f"--EnterpriseGatewayApp.yarn_endpoint=http://{yarn_cluster.rest.address}"]
    env = {"PATH": f"{Path(python()).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    try:
        async with serve(tmp_path, words, "EnterpriseGatewayApp", **env) as port:
            seconds = await asyncio.to_thread(
                run_tests, port, tmp_path / "report.xml", SPARK_CLASSES, **EXPECTED
            )
    finally:
        end_applications(yarn_cluster)
    show("Enterprise Gateway on YARN", seconds)
