"""Kernels on a Kubernetes cluster whose parts fail, and the checks that follow each fault.

roost's service has its own user, with the rights that an operator would give.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.faults import ClusterWorld
from kit.clusters.kubelets import PYTHON, Api, Kubelets, Machine
from kit.clusters.kubernetes.shared_cluster import NAMESPACE, cluster_settings, create_namespace
from kit.jupyter.kernelspecs import IPYKERNEL
from kit.jupyter.notebook import Notebook
from kit.machine.tcp_proxy import TcpProxy
from roost.scheduler.messages import Kernel
from roost.testing.deadlines import allow_s

SPARE = {"spare": "yes"}
"""The label of the node `n2`, which tests switch off."""
MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360),
    Machine(cpus=2, labels=SPARE),
)
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
OURS = "?labelSelector=app.kubernetes.io/managed-by=roost"
USER = "roost-service"
CLEAN_S = 180.0
"""How long Kubernetes may take to remove a deleted pod and its Secret. It is slow after its API server was away."""
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


class KubernetesWorld(ClusterWorld):
    """A Kubernetes cluster with roost's service, and its notebooks. The service reaches the API server by `proxy`."""

    clean_s = CLEAN_S

    def __init__(
        self, cluster: Kubelets, home: Path, folder: Path, patch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        super().__init__("kubernetes", home, folder, ["python3", *IPYKERNEL[1:]], cpus=0.1)
        folder.chmod(0o700)
        self.cluster = cluster
        self.api = cluster.api
        config = json.loads(cluster.write_kubeconfig(USER).read_text())
        server = config["clusters"][0]["cluster"]["server"]
        host, _, port = server.removeprefix("https://").partition(":")
        self.proxy = TcpProxy(host, int(port))
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.proxy.port}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(config))
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        patch.setenv("KUBECONFIG", str(self.kubeconfig))
        self.configure(**cluster_settings(cluster, folder))
        self.configure(address=str(self.kubeconfig), **settings)

    def held(self) -> dict[str, str]:
        """Return the node of each lease that has a pod; the node is '' while the pod waits for one."""
        return {
            json.loads(pod["metadata"]["annotations"]["roost/lease"])["id"]: pod["spec"].get("nodeName", "")
            for pod in self.pods()
        }

    def key_of(self, notebook: Notebook, kernel: Kernel) -> str:
        return kernel.lease_id

    def left(self) -> list[str]:
        return left(self.api)

    def pods(self) -> list[dict[str, Any]]:
        """Return all pods of roost that are not being deleted."""
        found = self.api.call("GET", PODS + OURS)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def pod(self, notebook: Notebook) -> dict[str, Any]:
        """Return the pod of a kernel."""
        lease_id = (await self.kernel_of(notebook)).lease_id
        (found,) = [
            pod
            for pod in self.pods()
            if json.loads(pod["metadata"]["annotations"]["roost/lease"])["id"] == lease_id
        ]
        return found

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        """Return the processes in a kernel's pod, the agent first."""
        pids = self.cluster.pids((await self.pod(notebook))["metadata"]["uid"])
        return sorted(map(psutil.Process, pids), key=lambda process: process.create_time())

    def delete_pod(self, pod: dict[str, Any]) -> None:
        """Delete a pod as `kubectl delete pod` does."""
        self.api.call("DELETE", f"{PODS}/{pod['metadata']['name']}")


def containerd_pid(cluster: Kubelets, node: str) -> int:
    """Return the pid of a node's containerd."""
    config = f"{cluster.folder}/{node}/containerd.toml"
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if command[0] == "containerd" and command[-1] == config:
            return int(process.pid)
    raise AssertionError(f"{node} has no containerd")


def tag_image(cluster: Kubelets, node: str, name: str) -> None:
    """Give the image of kernels another name on a node, as if an image of that name had been pulled."""
    socket = f"/proc/{containerd_pid(cluster, node)}/root/run/containerd/containerd.sock"
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "tag"]
    done = subprocess.run([*command, PYTHON, name], capture_output=True, text=True, timeout=allow_s(30))
    assert done.returncode == 0, done.stderr


def prepare(cluster: Kubelets) -> None:
    """Create the namespace of kernels, and give the service's user its rights."""
    create_namespace(cluster)
    subject = {"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}
    account = {"kind": "ServiceAccount", "name": USER, "namespace": NAMESPACE}
    cluster.api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": USER}})
    everywhere = [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    ]
    verbs = ["create", "get", "list", "watch", "patch", "delete"]
    inside = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": verbs},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["get", "list", "watch"]},
    ]
    for path, kind, rules in (
        (_RBAC, "ClusterRole", everywhere),
        (f"{_RBAC}/namespaces/{NAMESPACE}", "Role", inside),
    ):
        cluster.api.call("POST", f"{path}/{kind.lower()}s", {"metadata": {"name": USER}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": USER}
        binding = {"metadata": {"name": USER}, "roleRef": role, "subjects": [subject, account]}
        cluster.api.call("POST", f"{path}/{kind.lower()}bindings", binding)


def left(api: Api) -> list[str]:
    """Return the names of roost's pods and Secrets, also during their deletion."""
    return [
        f"{kind} {item['metadata']['name']}"
        for kind, path in (("pod", PODS), ("Secret", SECRETS))
        for item in api.call("GET", path + OURS)["items"]
    ]
