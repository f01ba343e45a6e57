"""Kernels on a Kubernetes cluster whose parts fail, and the checks that follow each fault.

roost's service has the rights of a user of its own, as an operator would give them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_world import ClusterWorld
from kubelets import PYTHON, Api, Kubelets, Machine, Refused
from kubernetes_nodes import NAMESPACE, cluster_settings, create_namespace
from managers import IPYKERNEL
from notebook import Notebook
from tcp_proxy import TcpProxy
from world import daemon_pids, kill

from roost.placement.model import Request
from roost.scheduler.client.client import Client, connect
from roost.scheduler.errors import RoostError
from roost.scheduler.service.messages import Kernel

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
CLEAN_S = 90.0
"""How long Kubernetes may take to remove a deleted pod and its Secret. It is slow after its API server was away."""
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


class World(ClusterWorld):
    """A cluster with roost's service in the runtime folder `home`, and its notebooks.

    The service reaches the API server through `proxy`.
    """

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
        self._settings = {**cluster_settings(cluster, folder), "address": str(self.kubeconfig)}
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        patch.setenv("KUBECONFIG", str(self.kubeconfig))
        self.configure(**settings)

    def configure(self, **changes: Any) -> None:
        """Write the settings of the service. It reads them when it starts."""
        self._settings |= changes
        config = self.folder / "jupyter_roost_config.json"
        config.write_text(json.dumps({"RoostKubernetesBackend": self._settings}))

    # Kernels

    async def lives(self, *notebooks: Notebook) -> None:
        """Check that these kernels run, keep their variables, and are the only ones with pods."""
        kernels = await self.running(*notebooks)
        pods = {pod["metadata"]["annotations"]["roost/lease"]: pod["spec"]["nodeName"] for pod in self.pods()}
        held = {json.loads(lease)["id"]: node for lease, node in pods.items()}
        assert held == {kernel.lease_id: kernel.node_id for kernel in kernels}

    async def ended(self, notebook: Notebook, within_s: float) -> str:
        """Wait until the owner knows that the kernel has ended. Return the reason, which is one plain sentence."""
        reason = await notebook.ended(service(), within_s)
        assert_plain(reason)
        return reason

    async def restart(self, notebook: Notebook) -> None:
        """Restart a kernel, perhaps in a new pod, whose address differs."""
        notebook.client.stop_channels()
        await notebook.manager.restart_kernel()
        notebook.client = notebook.manager.client()
        notebook.client.start_channels()
        await notebook._until_ready()
        assert (await notebook.run("mine"))["ename"] == "NameError"
        await notebook.run("mine = 42")

    def kill_service(self) -> None:
        for pid in daemon_pids(self.home, "scheduler"):
            kill(pid)

    async def has_room(self, within_s: float = 30.0, **asked: Any) -> float:
        """Wait until the service has room for such a request. Return how long that took."""
        began = time.monotonic()
        while True:
            try:
                if (await service().explain(Request(**asked)))["placement"]:
                    return time.monotonic() - began
                problem = "there is no room"
            except RoostError as error:
                problem = str(error)
            assert time.monotonic() - began < within_s, problem
            await asyncio.sleep(0.1)

    async def refusal(self, within_s: float = 30.0, **asked: Any) -> str:
        """Wait until the service refuses such a request for now. Return the reason."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                decision = await service().explain(Request(**asked))
            except RoostError as error:
                assert_plain(error.user_message)
                return error.user_message
            if not decision["placement"]:
                assert not decision["is_never"]
                return f"{decision['reason']} {decision['refusals']}"
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def waits_for(self, text: str, within_s: float = 20.0) -> str:
        """Wait until a kernel waits for a reason with this text. Return the whole reason."""
        deadline = time.monotonic() + within_s
        while True:
            reasons = [kernel.waits_for for kernel in await service().kernels()]
            if found := [reason for reason in reasons if text in reason]:
                assert_plain(found[0])
                return found[0]
            assert time.monotonic() < deadline, reasons
            await asyncio.sleep(0.1)

    # Pods

    def pods(self) -> list[dict[str, Any]]:
        """Return all pods of roost that are not being deleted."""
        found = self.api.call("GET", PODS + OURS)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def pod(self, notebook: Notebook) -> dict[str, Any]:
        """Return the pod of a kernel."""
        lease_id = (await kernel_of(notebook)).lease_id
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

    async def close(self) -> None:
        """Close all notebooks. Afterwards no kernel, pod or Secret is left, and nothing is promised."""
        for notebook in self.opened:
            if hasattr(notebook, "client"):
                await notebook.close()
        assert await service().kernels() == []
        began = time.monotonic()
        while found := [*left(self.api), *await promised()]:
            assert time.monotonic() - began < CLEAN_S, found
            await asyncio.sleep(0.1)
        say("all removed after", began)


def containerd_pid(cluster: Kubelets, node: str) -> int:
    """Return the pid of a node's containerd."""
    config = f"{cluster.folder}/{node}/containerd.toml"
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if command[0] == "containerd" and command[-1] == config:
            return int(process.pid)
    raise AssertionError(f"{node} has no containerd")


def tag_image(cluster: Kubelets, node: str, name: str) -> None:
    """Give the image of kernels another name on a node, as if that had been pulled."""
    socket = f"/proc/{containerd_pid(cluster, node)}/root/run/containerd/containerd.sock"
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "tag"]
    done = subprocess.run([*command, PYTHON, name], capture_output=True, text=True, timeout=30)
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
    """Return the names of roost's pods and Secrets, those that are being deleted too."""
    return [
        f"{kind} {item['metadata']['name']}"
        for kind, path in (("pod", PODS), ("Secret", SECRETS))
        for item in api.call("GET", path + OURS)["items"]
    ]


async def promised() -> list[str]:
    """Return what roost shows as promised on the nodes."""
    try:
        nodes = await service().nodes()
    except RoostError as problem:
        return [str(problem)]
    return [f"{node['id']} promises {node['cpus_promised']} CPUs" for node in nodes if node["cpus_promised"]]


def service() -> Client:
    return connect("kubernetes")


async def kernel_of(notebook: Notebook) -> Kernel:
    return await service().kernel(notebook.manager.kernel_id)


def assert_plain(reason: str) -> None:
    """Check that a reason is one sentence or clause for people, not a dump."""
    assert reason
    assert len(reason) < 300, reason
    assert not set("{}\n\\") & set(reason), reason
    assert reason.count(". ") == 0 or reason.endswith("."), reason


async def until(is_true: Callable[[], Any], what: str, within_s: float = 30.0) -> None:
    """Wait until something is true. An API server that is away counts as no."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError, Refused):
            if await asyncio.to_thread(is_true):
                return
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)


def say(text: str, since: float | None = None) -> None:
    """Print what was seen, with the seconds that it took."""
    print(f"    {text}" + (f" {time.monotonic() - since:.1f} s" if since is not None else ""), flush=True)
