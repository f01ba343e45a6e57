"""Kernels in pods of a Kubernetes cluster of three nodes, all on this machine: time from nothing to the first reply.

Each start makes a new pod. The image is on the nodes. Six cases are interleaved. Each begins at a random moment,
because a kubelet looks at its containers only once a second (`on_pods.py`):

plain              plain Jupyter on this machine, without a pod
roost, gateway     a pod of roost, and a pod whose command is the kernel. Neither has a CPU limit
roost-limited, gateway-limited    the same with a CPU limit of 0.5
gateway-default    the gateway's pod, created and awaited as Gateway Provisioners 0.5 and Enterprise Gateway do it

A gateway creates its pod, watches it until it has an IP, connects and sends a request. All these pods request 0.5 CPUs,
and 512 MiB, which is also their limit.

In `gateway-default`, the pod requests and limits nothing. A Python process of its own imports the package `kubernetes`
and creates the pod. Every 0.5 s the gateway lists the pod, until it is Running. Left out here: a namespace for each
kernel, a shell and RSA in the pod, and the kernel's report of its ports.

The stages are those of `on_pods.py`; leased is created and bound. For the gateway: created, address (→ the watch shows
the IP), reply.

Claims (medians): roost ≤ 1.15 × gateway, roost-limited ≤ 1.15 × gateway-limited, roost ≤ 0.6 × gateway-default.
Without a cluster the script prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from claims import SKIPPED, Report, interleave, parser
from on_pods import GATEWAY_OPTIONS, MEMORY_BYTES, plain_life, reply_of_gateway, rest, roost_life
from page_tables import PLAIN_JUPYTER, PageTable

from roost.bench.world import PLAIN, ROOST, elapsed_ms, private_world, write_config, write_kernelspec

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.clusters.kubelets import MACHINES, PYTHON, Api, Kubelets, why_not

CPUS = 0.5
OPEN, LIMITED = "kernels", "kernels-limited"
"""The namespaces. In the second one, Kubernetes gives each container without a CPU limit a limit of 0.5."""
USER = 12345
POLL_S = 0.5
"""How often a gateway looks at its pod, by default."""
CREATE = """
import json, os, sys
import jinja2, urllib3, yaml
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
client.CoreV1Api().create_namespaced_pod(body=json.load(sys.stdin), namespace=sys.argv[2])
"""
SECURITY: Mapping[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
TABLE = PageTable(
    name="on_kubernetes",
    columns={
        PLAIN_JUPYTER: "start/plain",
        "roost": "start/roost",
        "pod whose command is the kernel": "start/{}",
    },
    rows={
        "without a CPU limit": "gateway",
        "with a limit of 0.5 CPUs": ["start/plain", "start/roost-limited", "start/gateway-limited"],
        "by the defaults of each side": "gateway-default",
    },
    ratios={"roost ÷ pod": ("roost", "pod whose command is the kernel")},
    corner="start → first `execute_reply`",
)


def prepare(cluster: Kubelets, root: Path) -> None:
    """Make the namespaces, roost's configuration and the kernelspecs."""
    for name in (OPEN, LIMITED):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        cluster.api.call("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    limits = {"limits": [{"type": "Container", "default": {"cpu": str(CPUS)}}]}
    limit_range = {"metadata": {"name": "limited"}, "spec": limits}
    cluster.api.call("POST", f"/api/v1/namespaces/{LIMITED}/limitranges", limit_range)
    template = root / "pod.yaml"
    template.write_text(f"spec: {{securityContext: {{runAsUser: {USER}}}}}")
    backend = {
        "address": str(cluster.kubeconfig),
        "namespace": OPEN,
        "allowed_namespaces": [LIMITED],
        "image": PYTHON,
        "read_all_pods": True,
        "pod_template": str(template),
        "identity_file": str(root / "identity" / "keys.json"),
    }
    write_config(root, {"RoostKubernetesBackend": backend})
    asks = {"backend": "kubernetes", "cpus": CPUS, "memory": MEMORY_BYTES}
    kernels = root / "jupyter_path" / "kernels"
    write_kernelspec(kernels / "roost", ROOST, asks, python="python3")
    write_kernelspec(
        kernels / "roost-limited", ROOST, {**asks, "options": {"namespace": LIMITED}}, python="python3"
    )


async def pod_life(name: str, namespace: str, api: Api) -> dict[str, float]:
    """Run one kernel in a pod of roost. Return stage → milliseconds."""
    took, _ = await roost_life("kubernetes", name, partial(count_pods, api, namespace))
    return took


async def gateway_life(
    namespace: str, cpu_limit: float | None, cluster: Kubelets, *, is_default: bool = False
) -> dict[str, float]:
    """Run one kernel as the command of a pod. Return stage → milliseconds."""
    name, key = f"gateway-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    api, pods = cluster.api, f"/api/v1/namespaces/{namespace}/pods"
    pod = gateway_pod(name, key, cpu_limit)
    began = time.perf_counter()
    try:
        if is_default:
            pod["spec"]["containers"][0]["resources"] = {}
            took, address = await create_by_default(cluster, namespace, pod)
        else:
            took, address = await asyncio.to_thread(create, api, pods, pod)
        reply_ms = await reply_of_gateway(address, key)
        return {"start": elapsed_ms(began), **took, "stage reply": reply_ms}
    finally:
        await asyncio.to_thread(api.call, "DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 1})
        await rest(partial(count_pods, api, namespace))


def create(api: Api, pods: str, pod: Mapping[str, Any]) -> tuple[dict[str, float], str]:
    """Create the pod of a gateway's kernel, and watch it until it has an address.

    Return stage → milliseconds, and the address.
    """
    began = time.perf_counter()
    metadata = api.call("POST", pods, pod)["metadata"]
    took = {"stage created": elapsed_ms(began)}
    query = f"fieldSelector=metadata.name={metadata['name']}&resourceVersion={metadata['resourceVersion']}"
    began = time.perf_counter()
    for event in api.watch(f"{pods}?watch=1&{query}"):
        if address := event["object"]["status"].get("podIP"):
            return {**took, "stage address": elapsed_ms(began)}, address
    raise RuntimeError(f"{metadata['name']} got no address")


async def create_by_default(
    cluster: Kubelets, namespace: str, pod: Mapping[str, Any]
) -> tuple[dict[str, float], str]:
    """Create a gateway's pod as gateways do it by default. Return stage → milliseconds, and the address."""
    began = time.perf_counter()
    creating = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CREATE, str(cluster.kubeconfig), namespace, stdin=asyncio.subprocess.PIPE
    )
    assert creating.stdin is not None
    creating.stdin.write(json.dumps(pod).encode())
    creating.stdin.close()
    while True:
        await asyncio.sleep(POLL_S)
        found = await asyncio.to_thread(cluster.api.call, "GET", f"/api/v1/namespaces/{namespace}/pods")
        if status := next(
            (
                item["status"]
                for item in found["items"]
                if item["metadata"]["name"] == pod["metadata"]["name"]
                and item["status"]["phase"] == "Running"
            ),
            None,
        ):
            await creating.wait()
            return {"stage address": elapsed_ms(began)}, status["podIP"]


def gateway_pod(name: str, key: str, cpu_limit: float | None) -> dict[str, Any]:
    """Return a pod whose command is the kernel, with the same requests, memory limit and security as roost's."""
    requests = {"cpu": f"{CPUS:g}", "memory": str(MEMORY_BYTES)}
    limits = {"memory": str(MEMORY_BYTES), **({"cpu": f"{cpu_limit:g}"} if cpu_limit else {})}
    command = ["python3", "-m", "ipykernel_launcher", f"--Session.key=b'{key}'", *GATEWAY_OPTIONS]
    container = {
        "name": "kernel",
        "image": PYTHON,
        "command": command,
        "env": [{"name": "HOME", "value": "/home/user"}],
        "workingDir": "/home/user",
        "resources": {"requests": requests, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp", "subPath": "tmp"},
            {"name": "scratch", "mountPath": "/home/user", "subPath": "home"},
        ],
    }
    spec = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": SECURITY,
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    return {"metadata": {"name": name}, "spec": spec}


def count_pods(api: Api, namespace: str) -> int:
    return len(api.call("GET", f"/api/v1/namespaces/{namespace}/pods")["items"])


async def measure(arguments: Namespace, cluster: Kubelets) -> Report:
    rounds = arguments.rounds or (2 if arguments.quick else 20)
    report = Report("on Kubernetes", rounds=rounds, cpus=CPUS, memory_bytes=MEMORY_BYTES)
    api = cluster.api
    lives = {
        "plain": plain_life,
        "roost": partial(pod_life, "roost", OPEN, api),
        "gateway": partial(gateway_life, OPEN, None, cluster),
        "roost-limited": partial(pod_life, "roost-limited", LIMITED, api),
        "gateway-limited": partial(gateway_life, LIMITED, CPUS, cluster),
        "gateway-default": partial(gateway_life, OPEN, None, cluster, is_default=True),
    }
    await interleave(report, lives, rounds=rounds)
    for above, below, bound in (
        ("roost", "gateway", 1.15),
        ("roost-limited", "gateway-limited", 1.15),
        ("roost", "gateway-default", 0.6),
    ):
        report.ratio(f"start: {above} ÷ {below}", f"start/{above}", f"start/{below}")
        report.claim(f"start: {above} ÷ {below}", at_most=bound)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each case (default 20, quick 2)")
    arguments = options.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return SKIPPED
    with Kubelets(*MACHINES) as cluster, private_world({"plain": PLAIN}) as root:
        prepare(cluster, root)
        report = asyncio.run(measure(arguments, cluster))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
