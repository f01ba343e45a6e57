"""Spark's cluster mode is refused in every form in which kernelspecs ask for it, and client mode is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kit.fakes.service import FakeService
from kit.jupyter.kernel_managers import manager
from roost.provisioners.spark_mode import check_deploy_mode
from roost.scheduler.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        (["spark-submit", "--deploy-mode", "cluster", "kernel.py"], {}),
        (["spark-submit", "--deploy-mode=cluster", "kernel.py"], {}),
        (["spark-submit", "--conf", "spark.submit.deployMode=cluster"], {}),
        (["run.sh"], {"SPARK_OPTS": "--master yarn --deploy-mode cluster --name k"}),
        (["run.sh"], {"SPARK_OPTS": "--master yarn", "KERNEL_EXTRA_SPARK_OPTS": "--deploy-mode  'cluster'"}),
        (["python"], {"PYSPARK_SUBMIT_ARGS": "--master yarn-cluster pyspark-shell"}),
    ],
)
def test_cluster_mode_is_refused(argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="use `--deploy-mode client`") as refusal:
        check_deploy_mode(argv, env)
    assert "does not lease" in refusal.value.user_message


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        (["/kernels/yarn-cluster/run.sh", "cluster"], {"SPARK_OPTS": "--deploy-mode client --name cluster"}),
        (["python"], {"PYSPARK_SUBMIT_ARGS": "--master yarn --deploy-mode client pyspark-shell"}),
        (["python"], {"OTHER": "--deploy-mode cluster"}),
    ],
)
def test_everything_else_is_not(argv: list[str], env: dict[str, str]) -> None:
    check_deploy_mode(argv, env)


@pytest.mark.parametrize("name", ["yarn", "kubernetes"])
def test_the_kernelspecs_of_the_documentation_are_not_refused(name: str) -> None:
    text = (DOCS / f"examples/spark/{name}/kernel.json").read_text()
    assert text in (DOCS / "spark.md").read_text()
    spec = json.loads(text)
    assert "--deploy-mode client" in spec["env"]["PYSPARK_SUBMIT_ARGS"]
    check_deploy_mode(spec["argv"], spec["env"])


@pytest.mark.parametrize("name", ["executor.sh", "executor.yaml"])
def test_the_documentation_shows_the_files_of_the_image(name: str) -> None:
    assert (DOCS / "examples/spark/kubernetes" / name).read_text() in (DOCS / "spark.md").read_text()


async def test_a_kernelspec_names_its_application_by_the_kernels_id(
    service: FakeService, tmp_path: Path
) -> None:
    env = {
        "PYSPARK_SUBMIT_ARGS": "--name k-${KERNEL_ID} --conf spark.driver.host=${env:NM_HOST} pyspark-shell"
    }
    km = manager(tmp_path, env=env)
    await km.start_kernel(env={"KERNEL_ID": "another"})
    (start,) = service.called("start")
    assert start.env["KERNEL_ID"] == km.kernel_id
    arguments = f"--name k-{km.kernel_id} --conf spark.driver.host=${{env:NM_HOST}} pyspark-shell"
    assert start.env["PYSPARK_SUBMIT_ARGS"] == arguments
    await km.shutdown_kernel(now=True)


@pytest.mark.parametrize("backend", ["yarn", "kubernetes", "ray"])
async def test_a_kernelspec_for_cluster_mode_starts_nothing(
    service: FakeService, tmp_path: Path, backend: str
) -> None:
    env = {"PYSPARK_SUBMIT_ARGS": "--master yarn --deploy-mode cluster pyspark-shell"}
    km = manager(tmp_path, config={"backend": backend}, env=env)
    with pytest.raises(ConfigError, match="Spark's cluster mode"):
        await km.start_kernel()
    assert not service.calls
