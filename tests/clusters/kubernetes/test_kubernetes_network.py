"""roost's example NetworkPolicies on a real cluster: Jupyter's pod reaches its kernels, and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.clusters.kubelets import Api, Kubelets
from kit.clusters.kubernetes.pod_firewall import PodFirewall
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from kit.machine.daemons import settle
from roost.scheduler.backends import kubernetes
from roost.testing.deadlines import allow_s, until_blocking

MANIFESTS = Path(kubernetes.__file__).parent / "manifests"
JUPYTER, KERNELS, OTHERS = "jupyterhub", "guarded", "others"
"""The namespaces of the test. roost's example policies name the first one."""
SERVER = {"component": "singleuser-server"}
POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
REPORT_PORT = 8871
WAIT_S = 180.0
APPLICATION = """
import asyncio, json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kit.jupyter.kernelspecs import IPYKERNEL, kernelspecs
from kit.jupyter.notebook import Notebook

async def main():
    config = {"backend": "kubernetes", "cpus": 0.1}
    argv = ["python3", *IPYKERNEL[1:]]
    notebook = Notebook("roosted")
    notebook.manager.kernel_spec_manager = kernelspecs(Path(sys.argv[2]), config=config, argv=argv)
    await notebook.open()
    connection = notebook.manager.get_connection_info()
    ports = [port for name, port in connection.items() if name.endswith("_port")]
    print(json.dumps([connection["ip"], ports, await notebook.value("6 * 7")]), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await notebook.interrupt()
    print(json.dumps(await notebook.value("6 * 7")), flush=True)
    await notebook.close()

asyncio.run(main())
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)"


def wait_for(is_true: Callable[[], object], what: str) -> None:
    """Wait until `is_true()` is true. `what` is the text of the error."""
    until_blocking(is_true, what, WAIT_S, 0.1)


class Pods:
    """Pods that only sleep. Programs can run in a pod's network."""

    def __init__(self, cluster: Kubelets) -> None:
        self._cluster = cluster

    def start(self, namespace: str, name: str, labels: dict[str, str]) -> str:
        """Start a pod on `n3`, wait until it has an address, and return its uid."""
        container = {"name": "main", "image": "roost-test:1", "command": ["sleep", "1000"]}
        spec = {"nodeName": "n3", "terminationGracePeriodSeconds": 0, "containers": [container]}
        path = f"/api/v1/namespaces/{namespace}/pods"
        pod = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        uid: str = self._cluster.api.call("POST", path, pod)["metadata"]["uid"]
        wait_for(lambda: self.read(path, name)["status"].get("podIP"), f"{name} has an address")
        return uid

    def read(self, path: str, name: str) -> Any:
        return self._cluster.api.call("GET", f"{path}/{name}")

    def enter(self, uid: str) -> list[str]:
        """Return the first words of a command line. The words after them run as a command in a pod's network."""
        return ["nsenter", "--net", "--target", str(self._cluster.pause_pid(uid))]

    def connects(self, uid: str, ip: str, port: int) -> bool:
        """True if a program in the network of this pod can connect to a port of an address."""
        command = [*self.enter(uid), sys.executable, "-S", "-c", CONNECT, ip, str(port)]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.fixture(scope="module")
def pods(kubernetes_cluster: Kubelets) -> Iterator[Pods]:
    """Create the namespaces, and a policy like JupyterHub's that refuses all connections to Jupyter's pods."""
    api = kubernetes_cluster.api
    for namespace in (JUPYTER, KERNELS, OTHERS):
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    for namespace in (JUPYTER, KERNELS, OTHERS):
        account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        wait_for(lambda account=account: api.has(account), f"there is {account}")  # type: ignore[misc]
    closed = {"podSelector": {"matchLabels": SERVER}, "policyTypes": ["Ingress"]}
    api.call("POST", POLICIES.format(JUPYTER), {"metadata": {"name": "closed"}, "spec": closed})
    yield Pods(kubernetes_cluster)
    for namespace in (JUPYTER, KERNELS, OTHERS):
        api.call("DELETE", f"/api/v1/namespaces/{namespace}")
    for namespace in (JUPYTER, KERNELS, OTHERS):
        wait_for(lambda name=namespace: not api.has(f"/api/v1/namespaces/{name}"), f"{namespace} is removed")  # type: ignore[misc]


@contextmanager
def applied(api: Api, file: str, namespace: str) -> Iterator[None]:
    """Apply the policy of a file in roost's manifests, until the `with` block ends."""
    policy = yaml.safe_load(
        (MANIFESTS / file).read_text().replace("kernels  # CHANGE", f"{KERNELS}  # CHANGE")
    )
    api.call("POST", POLICIES.format(namespace), policy)
    try:
        yield
    finally:
        api.call("DELETE", f"{POLICIES.format(namespace)}/{policy['metadata']['name']}")


def kernel_pod(api: Api) -> str:
    """Return the uid of the only pod of a kernel of roost."""
    found = api.call("GET", f"/api/v1/namespaces/{KERNELS}/pods")["items"]
    (uid,) = [pod["metadata"]["uid"] for pod in found if pod["metadata"]["name"].startswith("roost-")]
    return str(uid)


@pytest.mark.long
@pytest.mark.parametrize("may_report", [True, False], ids=["reports", "no reports"])
def test_only_jupyter_reaches_its_kernels(
    kubernetes_cluster: Kubelets, pods: Pods, runtime_dir: Path, tmp_path: Path, may_report: bool
) -> None:
    cluster, api, name = kubernetes_cluster, kubernetes_cluster.api, f"{may_report:d}"
    jupyter = pods.start(JUPYTER, f"server-{name}", SERVER)
    strangers = {
        "neighbour": pods.start(JUPYTER, f"hub-{name}", {}),
        "imitator": pods.start(OTHERS, f"server-{name}", SERVER),
        "kernel": pods.start(KERNELS, f"kernel-{name}", {"app.kubernetes.io/managed-by": "roost"}),
    }
    tmp_path.chmod(0o700)
    settings = {**cluster_settings(cluster, tmp_path), "namespace": KERNELS}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps({"RoostKubernetesBackend": settings}))
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "KUBECONFIG": settings["address"]}
    tests = str(Path(cluster_settings.__code__.co_filename).parents[3])
    command = [*pods.enter(jupyter), sys.executable, "-c", APPLICATION, tests, str(tmp_path)]
    reports = applied(api, "report-policy.yaml", JUPYTER) if may_report else nullcontext()
    with PodFirewall(cluster) as firewall, ExitStack() as stack:
        stack.callback(settle, runtime_dir)
        with applied(api, "network-policy.yaml", KERNELS), reports:
            wait_for(
                lambda: firewall.rules(jupyter) and firewall.rules(strangers["kernel"]),
                "the policy is enforced",
            )
            began = time.monotonic()
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            application = stack.enter_context(subprocess.Popen(command, env=environment, text=True, **pipes))
            stack.callback(application.kill)
            ip, ports, value = json.loads(application.stdout.readline())
            print(f"started after {time.monotonic() - began:.1f} s")
            assert value == "42"
            kernel, ports = kernel_pod(api), (8870, ports[0])
            wait_for(lambda: firewall.rules(kernel), "the policy is enforced")
            # The pod has reported its kernel. Its agent listens only when the kernel has nothing more to do.
            wait_for(
                lambda: all(pods.connects(jupyter, ip, port) for port in ports), "Jupyter reaches the kernel"
            )
            for stranger, uid in strangers.items():
                assert not any(pods.connects(uid, ip, port) for port in ports), stranger
            if may_report:
                wait_for(lambda: firewall.packets(jupyter, REPORT_PORT), "a report has arrived")
            else:
                assert not firewall.packets(jupyter, REPORT_PORT)
        wait_for(lambda: not firewall.rules(kernel), "the policy is no longer enforced")
        assert all(pods.connects(uid, ip, port) for uid in strangers.values() for port in ports)
        rest, _ = application.communicate("\n", timeout=allow_s(60))
        assert json.loads(rest) == "42"
