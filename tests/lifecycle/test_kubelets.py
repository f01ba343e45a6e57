"""The Kubernetes cluster of the tests: pods run, parts die and come back, and nothing stays on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from kit.clusters.kubelets import GPUS, Api, Kubelets, Machine, Refused, leftovers, why_not
from kit.clusters.kubelets.cluster import claim
from roost.bench.clusters.cluster_folder import answers, wait_until
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PODS = "/api/v1/namespaces/default/pods"
LONG_S = 60.0
SERVER = "import socket; socket.create_server(('', 5555)).accept()"
SLEEP = "import time; time.sleep(1000)"
OWNER = """
import os, sys
from kit.clusters.kubelets import Kubelets, Machine
with Kubelets(Machine()) as cluster:
    print(cluster.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def kubelets() -> Iterator[Kubelets]:
    with Kubelets(Machine(gpus=2, gpu_model="Tesla-T4"), Machine()) as cluster:
        yield cluster
    assert not leftovers(cluster.folder)


def run(api: Api, name: str, code: str, *, node: str = "", **limits: str) -> None:
    """Create a pod that runs Python code as a plain user who can write nothing. `limits` are its resource limits."""
    limits = {"cpu": "100m", "memory": "100Mi", **limits}
    security = {
        "runAsUser": 12345,
        "runAsNonRoot": True,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "main", "image": "roost-test:1", "command": ["python3", "-c", code],
        "securityContext": security, "resources": {"limits": limits},
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    api.call("POST", PODS, {"metadata": {"name": name}, "spec": spec})


def phase(api: Api, name: str) -> str:
    return str(api.call("GET", f"{PODS}/{name}")["status"].get("phase"))


def pid_of(cluster: Kubelets, name: str) -> int:
    """Return the pid of the only process of a pod."""
    (pid,) = cluster.pids(cluster.api.call("GET", f"{PODS}/{name}")["metadata"]["uid"])
    return pid


def test_a_pod_has_its_gpu_its_log_and_its_exit_code(kubelets: Kubelets) -> None:
    code = "import ipykernel, os; print(os.getuid(), os.environ['NVIDIA_VISIBLE_DEVICES']); os._exit(7)"
    run(kubelets.api, "ends", code, **{GPUS: "1"})
    wait_until(
        lambda: phase(kubelets.api, "ends") == "Failed", "the pod does not end", timeout_s=allow_s(LONG_S)
    )
    pod = kubelets.api.call("GET", f"{PODS}/ends")
    assert pod["spec"]["nodeName"] == "n1"
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 7
    user, gpu = kubelets.api.text("GET", f"{PODS}/ends/log").split()
    assert user == "12345"
    assert gpu.startswith("GPU-")


def test_this_machine_reaches_a_pod_by_its_address(kubelets: Kubelets) -> None:
    run(kubelets.api, "serves", SERVER, node="n2")
    wait_until(
        lambda: phase(kubelets.api, "serves") == "Running", "the pod does not run", timeout_s=allow_s(LONG_S)
    )
    address = kubelets.api.call("GET", f"{PODS}/serves")["status"]["podIP"]
    wait_until(lambda: answers(f"{address}:5555"), "the pod does not listen", timeout_s=allow_s(LONG_S))


def test_a_user_has_the_rights_of_its_groups_only(kubelets: Kubelets) -> None:
    api = Api(kubelets.write_kubeconfig("alice", ["users"]))
    with pytest.raises(Refused, match='User \\\\"alice\\\\" cannot list resource') as refused:
        api.call("GET", PODS)
    assert refused.value.status == 403
    role = {
        "metadata": {"name": "users-see"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "users"}],
    }
    kubelets.api.call("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", role)
    wait_until(lambda: allows(api), "the role has no effect", timeout_s=allow_s(LONG_S))


def allows(api: Api) -> bool:
    try:
        api.call("GET", PODS)
    except Refused:
        return False
    return True


def test_admission_refuses_pods_beyond_quota_and_security_level(kubelets: Kubelets) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubelets.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": "strict", "labels": labels}})
    path = "/api/v1/namespaces/strict"
    pod = {"metadata": {"name": "any"}, "spec": {"containers": [{"name": "main", "image": "roost-test:1"}]}}
    wait_until(
        lambda: kubelets.api.has(f"{path}/serviceaccounts/default"), "no account", timeout_s=allow_s(LONG_S)
    )
    with pytest.raises(Refused, match="violates PodSecurity"):
        kubelets.api.call("POST", f"{path}/pods", pod)
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    kubelets.api.call("POST", "/api/v1/namespaces/default/resourcequotas", quota)
    try:
        wait_until(lambda: is_quota_known(kubelets.api), "the quota has no effect", timeout_s=allow_s(LONG_S))
        with pytest.raises(Refused, match="exceeded quota"):
            kubelets.api.call("POST", PODS, pod)
    finally:
        kubelets.api.call("DELETE", "/api/v1/namespaces/default/resourcequotas/none")


def is_quota_known(api: Api) -> bool:
    status = api.call("GET", "/api/v1/namespaces/default/resourcequotas/none").get("status", {})
    return "hard" in status


@pytest.mark.slow
def test_a_pod_outlives_the_api_server_the_kubelet_containerd_and_the_network(kubelets: Kubelets) -> None:
    api = kubelets.api
    run(api, "lives", SLEEP, node="n2")
    wait_until(lambda: phase(api, "lives") == "Running", "the pod does not run", timeout_s=allow_s(LONG_S))
    process = psutil.Process(pid_of(kubelets, "lives"))

    kubelets.kill("apiserver")
    assert not api.is_ready()
    kubelets.start("apiserver")
    wait_until(api.is_ready, "the API server does not come back", timeout_s=allow_s(LONG_S))

    for stop, start in (
        (lambda: kubelets.kill("n2/kubelet"), lambda: kubelets.start("n2/kubelet")),
        (lambda: kubelets.pause("n2/kubelet"), lambda: kubelets.resume("n2/kubelet")),
        (lambda: kubelets.cut("n2"), lambda: kubelets.reconnect("n2")),
    ):
        stop()
        wait_until(
            lambda: not kubelets.is_node_ready("n2"), "the node stays ready", timeout_s=allow_s(LONG_S)
        )
        assert kubelets.is_node_ready("n1")
        start()
        wait_until(
            lambda: kubelets.is_node_ready("n2"), "the node does not come back", timeout_s=allow_s(LONG_S)
        )
    kubelets.kill("n2/containerd")
    kubelets.start("n2/containerd")
    assert process.is_running()
    assert phase(api, "lives") == "Running"


@pytest.mark.slow
def test_a_node_loses_power_and_comes_back_without_its_pods(kubelets: Kubelets) -> None:
    api = kubelets.api
    run(api, "dies", SLEEP, node="n1")
    wait_until(lambda: phase(api, "dies") == "Running", "the pod does not run", timeout_s=allow_s(LONG_S))
    pid = pid_of(kubelets, "dies")
    kubelets.power_off("n1")
    assert not psutil.pid_exists(pid)
    wait_until(lambda: not kubelets.is_node_ready("n1"), "the node stays ready", timeout_s=allow_s(LONG_S))
    kubelets.power_on("n1")
    wait_until(lambda: kubelets.is_node_ready("n1"), "the node does not come back", timeout_s=allow_s(LONG_S))
    run(api, "next", "pass", node="n1")
    wait_until(lambda: phase(api, "next") == "Succeeded", "no pod runs there", timeout_s=allow_s(LONG_S))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["owner", "keeper"])
def test_nothing_outlives_the_killed_process(victim: str) -> None:
    folder_of_kit = str(Path(__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": folder_of_kit},
    ) as owner:  # fmt: skip
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        keeper = int((folder / "pid").read_text())
        os.kill(owner.pid if victim == "owner" else keeper, signal.SIGKILL)
        stays = {"cgroup", "folder"} if victim == "keeper" else set()
        wait_until(lambda: kinds_of(leftovers(folder)) <= stays, f"the cluster outlives its {victim}")
        owner.kill()
    with claim(int(folder.name)):
        assert kinds_of(leftovers(folder)) == {"folder"}, "the next cluster of that number starts clean"
    folder.rmdir()


def kinds_of(lines: list[str]) -> set[str]:
    return {line.partition(" ")[0] for line in lines}
