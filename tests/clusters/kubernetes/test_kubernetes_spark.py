"""PySpark in client mode in a kernel's pod. Its executors are pods, which end with the application or the kernel.

These tests have a cluster of their own, with an image that has Java and PySpark: `make build-spark` builds it. Then
`pytest -m long tests/clusters/kubernetes/test_kubernetes_spark.py` runs them in some minutes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager

from kit import ROOT
from kit.clusters.kubelets import Kubelets, Machine, leftovers
from kit.clusters.kubernetes.shared_cluster import NAMESPACE, cluster_settings, create_namespace
from kit.clusters.spark import SPARK, USER, images, why_no_image
from kit.clusters.spark.cells import LONG_JOB, SUM
from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from roost.scheduler.backends import kubernetes
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import until, until_blocking

KERNELSPEC = ROOT / "docs/examples/spark/kubernetes/kernel.json"
RIGHTS = Path(kubernetes.__file__).parent / "manifests" / "spark.yaml"
DOCS_IMAGE = "registry.example.org/lab/spark:1"
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
}
SPARK_S = 180.0
END_S = 60.0

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster(private_environment: None) -> Iterator[Kubelets]:
    """Start two nodes with the image, and a namespace in which Spark's driver may make executors."""
    if reason := why_no_image():
        pytest.skip(reason)
    machine = Machine(images=str(images()))
    with Kubelets(machine, machine) as cluster:
        create_namespace(cluster)
        for each in yaml.safe_load_all(RIGHTS.read_text()):
            cluster.api.call("POST", PATHS[each["kind"]].format(NAMESPACE), each)
        yield cluster
    left = leftovers(cluster.folder)
    assert not left, "the cluster has left behind:\n" + "\n".join(left)


@pytest.fixture
def specs(
    cluster: Kubelets, runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KernelSpecManager]:
    """Yield a manager of the kernelspec `roosted`: the documentation's. At the end the namespace is empty."""
    settings = cluster_settings(cluster, tmp_path)
    settings["token_service_accounts"] = ["spark"]
    (service,) = cluster.api.call("GET", "/api/v1/namespaces/default/endpoints/kubernetes")["subsets"]
    alias = {"ip": service["addresses"][0]["ip"], "hostnames": ["kubernetes.default.svc"]}  # there is no DNS
    template = {"spec": {"securityContext": {"runAsUser": USER}, "hostAliases": [alias]}}
    Path(settings["pod_template"]).write_text(json.dumps(template))
    config = tmp_path / "jupyter_roost_config.json"
    config.write_text(json.dumps({"RoostKubernetesBackend": settings}))
    tmp_path.chmod(0o700)
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    content = json.loads(KERNELSPEC.read_text().replace(DOCS_IMAGE, SPARK))
    config = content["metadata"].pop("kernel_provisioner")["config"]
    yield kernelspecs(tmp_path, config=config, **content)
    disconnect()
    settle(runtime_dir)
    until_blocking(
        lambda: not left_in(cluster), lambda: f"left in the namespace: {left_in(cluster)}", END_S, 0.1
    )


def left_in(cluster: Kubelets) -> list[str]:
    """Return the names of all pods and of all objects that Spark makes."""
    kinds = ("pods", "configmaps", "services", "persistentvolumeclaims")
    items = [
        each["metadata"]["name"]
        for kind in kinds
        for each in cluster.api.call("GET", f"/api/v1/namespaces/{NAMESPACE}/{kind}")["items"]
    ]
    return [name for name in items if name != "kube-root-ca.crt"]


def executors_of(cluster: Kubelets, application: str = "") -> list[dict[str, Any]]:
    """Return the live pods of executors, of one application or of all."""
    selector = (
        f"spark-role=executor,spark-app-selector={application}" if application else "spark-role=executor"
    )
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector={selector}"
    pods = cluster.api.call("GET", path)["items"]
    return [pod for pod in pods if pod["status"]["phase"] not in ("Succeeded", "Failed")]


async def compute(notebook: Notebook, cluster: Kubelets) -> str:
    """Let Spark compute a sum on two executors. Return the id of its application."""
    began = time.monotonic()
    reply = await notebook.run(SUM, timeout_s=SPARK_S)
    assert reply["status"] == "ok", reply
    print(f"a sum after {time.monotonic() - began:.1f} s")
    assert await notebook.value("total") == "499500"
    application = str(eval(await notebook.value("application")))
    hosts = eval(await notebook.value("executors"))
    pods = executors_of(cluster, application)
    assert sorted(pod["spec"]["hostname"] for pod in pods) == hosts
    assert len(hosts) == 2
    return application


async def test_spark_computes_is_interrupted_and_restarts_and_nothing_is_left(
    specs: KernelSpecManager, cluster: Kubelets
) -> None:
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = specs
    await notebook.open()
    application = await compute(notebook, cluster)
    name = await notebook.value("context.appName")
    assert notebook.manager.kernel_id in name
    owner = await notebook.value("os.environ['ROOST_POD_NAME']")
    for pod in executors_of(cluster):
        assert [each["name"] for each in pod["metadata"]["ownerReferences"]] == [eval(owner)]

    await notebook.interrupt(LONG_JOB)
    assert (await notebook.run(SUM))["status"] == "ok"

    await notebook.restart()
    began = time.monotonic()
    await until(lambda: asyncio.to_thread(lambda: not executors_of(cluster)), "the executors end", END_S, 0.1)
    print(f"no executors {time.monotonic() - began:.1f} s after a restart")
    assert await compute(notebook, cluster) != application
    await notebook.close()
