"""Three schedulers, Jobs and a Deployment want the same GPUs of a Kubernetes cluster: no GPU is promised twice.

The schedulers do not know each other. Kubernetes' scheduler decides. The test reads the promises from the API all the
time. It also reads which device each kernel and Job used, and when. No kubelet refuses a pod that was granted.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from kit.clusters.faults import say
from kit.clusters.kubelets import Kubelets, Machine, why_not
from kit.clusters.kubernetes.faults import CLEAN_S, USER, left, prepare
from kit.clusters.kubernetes.shared_cluster import cluster_settings
from roost.testing.deadlines import until_blocking

SHARES = (1.0, 1.0, 2.0, 1.0)
GPU_NODES = (Machine(cpus=4, gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360),) * 3

ASKER = """
import asyncio, json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import psutil
from kit.clusters.contention import ask
from kit.clusters.own_machines import kernel_pid
from kit.machine.tiny_kernel import TINY_ARGV, tiny

home = Path(os.environ["ROOST_RUNTIME_DIR"])
settings = {**json.loads(os.environ["SETTINGS"]), "identity_file": str(home / "identity.json")}
(home / "jupyter_roost_config.json").write_text(json.dumps({"RoostKubernetesBackend": settings}))
os.environ["JUPYTER_CONFIG_DIR"] = str(home)
os.environ["PATH"] += ":/usr/bin"

async def hold(client, share, hold_s, wishes):
    start = tiny(gpus=share, launch_timeout_s=500, argv=("python3", *TINY_ARGV[1:]))
    kernel = await client.start(start)
    began = time.monotonic()
    visible = psutil.Process(kernel_pid(kernel.id)).environ()["NVIDIA_VISIBLE_DEVICES"]
    await asyncio.sleep(hold_s)
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]

print(json.dumps(asyncio.run(ask("kubernetes", json.loads(sys.argv[2]), hold_s=1.0, hold=hold))))
"""

OTHERS = """
import json, sys, threading, time
from collections import Counter
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from kit.clusters.kubelets import GPUS, Api

PODS, JOBS = "/api/v1/namespaces/default/pods", "/apis/batch/v1/namespaces/default/jobs"
DEPLOYMENT = "/apis/apps/v1/namespaces/default/deployments"
USE = '''
import os, time
began = time.monotonic()
time.sleep(1)
print(os.environ["NVIDIA_VISIBLE_DEVICES"], began, time.monotonic())
'''
api = Api(Path(sys.argv[2]))
looks, over, refused, is_over = 0, [], set(), threading.Event()

def container(*command):
    limits = {GPUS: "1"}
    return {"name": "main", "image": "roost-test:1", "command": command, "resources": {"limits": limits}}

def look():
    global looks
    promised = Counter()
    for pod in api.call("GET", "/api/v1/pods")["items"]:
        status = pod["status"]
        if status.get("reason", "").startswith(("OutOf", "UnexpectedAdmission")):
            refused.add(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}: {status['message']}")
        if pod["spec"].get("nodeName") and status.get("phase") not in ("Succeeded", "Failed"):
            (main,) = pod["spec"]["containers"]
            promised[pod["spec"]["nodeName"]] += int(main["resources"].get("limits", {}).get(GPUS, 0))
    over.extend(f"{node}: {gpus}" for node, gpus in promised.items() if gpus > 2)
    looks += 1

def scale(replicas):
    api.call("PATCH", f"{DEPLOYMENT}/serves", {"spec": {"replicas": replicas}})

template = {
    "metadata": {"labels": {"app": "serves"}},
    "spec": {"terminationGracePeriodSeconds": 0, "containers": [container("sleep", "1000")]},
}
spec = {"replicas": 1, "selector": {"matchLabels": {"app": "serves"}}, "template": template}
api.call("POST", DEPLOYMENT, {"metadata": {"name": "serves"}, "spec": spec})
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
held, waiting, turn, scaled_at = [], set(), 0, time.monotonic()
while waiting or not is_over.is_set():
    while len(waiting) < 2 and not is_over.is_set():
        turn += 1
        pod = {"spec": {"restartPolicy": "Never", "containers": [container("python3", "-S", "-c", USE)]}}
        api.call("POST", JOBS, {"metadata": {"name": f"job-{turn}"}, "spec": {"template": pod, "backoffLimit": 0}})
        waiting.add(f"job-{turn}")
    look()
    if time.monotonic() > scaled_at + 8:
        scaled_at = time.monotonic()
        scale(turn % 2)
    for pod in api.call("GET", f"{PODS}?labelSelector=job-name")["items"]:
        job = pod["metadata"]["labels"]["job-name"]
        if job in waiting and pod["status"].get("phase") in ("Succeeded", "Failed"):
            waiting.discard(job)
            if pod["status"]["phase"] == "Succeeded":
                device, began, ended = api.text("GET", f"{PODS}/{pod['metadata']['name']}/log").split()
                held.append([pod["spec"]["nodeName"], device, 1, float(began), float(ended)])
    time.sleep(0.2)
scale(0)
print(json.dumps(dict(held=held, looks=looks, over=over, refused=sorted(refused), jobs=turn)))
"""


def devices(use: list[Any]) -> Iterator[tuple[str, float, float, float]]:
    """Yield (device, share, began, ended) of each device that a kernel or Job used."""
    _, visible, _, began, ended = use
    for device in visible.split(","):
        yield device, 1.0, began, ended


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixty_kernels_of_three_services_among_jobs_and_a_deployment(
    users_runtime_dirs: list[str], tmp_path: Path, private_environment: None
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    shares = list(itertools.islice(itertools.cycle(SHARES), EACH))
    with Kubelets(*GPU_NODES) as cluster:
        prepare(cluster)
        kubeconfig = str(cluster.write_kubeconfig(USER))
        settings = {**cluster_settings(cluster, tmp_path), "address": kubeconfig}
        environment = {"KUBECONFIG": kubeconfig, "SETTINGS": json.dumps(settings), "USES": str(tmp_path)}
        kit = str(Path(cluster_settings.__code__.co_filename).parent)
        others = (OTHERS, kit, str(cluster.kubeconfig))
        began = time.monotonic()
        answers, seen = contend(ASKER, shares, users_runtime_dirs, others, within_s=600, **environment)
        say(f"{SCHEDULERS * EACH} kernels and {len(seen['held'])} Jobs after", began)
        until_blocking(
            lambda: not left(cluster.api), lambda: f"left behind: {left(cluster.api)}", CLEAN_S, 0.1
        )
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    most = most_at_once(one for use in kernels + seen["held"] for one in devices(use))
    assert max(most.values()) <= 1.0 + 1e-9, most
    assert len(most) == 6, "not all GPUs were used"
    assert seen["looks"] > 100
    assert seen["over"] == [], "Kubernetes promised more than there is"
    assert seen["refused"] == [], "a kubelet refused a pod"
    assert len(seen["held"]) == seen["jobs"] > 10, "a Job failed, or hardly any ran"
    conflicts = [sum(answer["conflicts"]) for answer in answers]
    say(f"{len(seen['held'])} Jobs, {seen['looks']} looks, conflicts {conflicts}")
    assert all(each <= 3 * EACH for each in conflicts), "a waiting request spins"
