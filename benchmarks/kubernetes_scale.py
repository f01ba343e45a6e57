"""roost's service on large Kubernetes clusters: the time of decisions and leases, its memory and its processor time.

written    a real API server with 1,000 nodes and 5,000 pods of others. They exist in the API only: this script writes
           their status. The real scheduler binds roost's pods to such nodes, where no kubelet starts them
recorded   an imitation of an API server, with 5,000 nodes and 50,000 pods (`kubernetes_recorded.py`)

Other people's pods come and go all the time, CHANGES_PER_S. Each measurement runs in a process of its own:

read       connect → nodes and pods are known (read_all_pods)
decision   a snapshot of the current nodes, and the policy's choice
lease      the pod is being created → bound to its node, as `claim` returns
reread     `recorded`: all watches expire at once → everything is listed again. Starts go on meanwhile
memory     the process's largest resident set. The process has loaded all that the service loads
load       processor time ÷ time while nothing but other people's pods changes

Claims for `recorded`: read ≤ 30 s, memory ≤ 300 MiB. Without a cluster `written` is skipped with a note.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from claims import Report, parser
from kubernetes_objects import describe_node, describe_pod
from page_tables import PageTable

from roost.bench.world import MIB, elapsed_ms

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.clusters.kubelets import Api, Kubelets, Machine, why_not

CHANGES_PER_S = 10.0
SIZES = {"written": (1_000, 5_000), "recorded": (5_000, 50_000)}
QUIET_S = 10.0
DEADLINE_S = 400
TABLE = PageTable(
    name="kubernetes_scale",
    columns={f"{nodes:,} nodes, {pods:,} pods": f"{{}}/{kind}" for kind, (nodes, pods) in SIZES.items()},
    rows={
        "everything is read": "read",
        "decision": "decision",
        "decision, p99": "decision p99",
        "lease (created → bound)": "lease",
        "lease, p99": "lease p99",
        "memory of the service, at most": "memory",
        "processor time while no kernel starts": "load",
        "all watches expire at once → everything is read again": "reread",
        "decision meanwhile": "decision during reread",
        "lease meanwhile": "lease during reread",
    },
)


async def measure(kubeconfig: str, starts: int, server: str) -> dict[str, list[float]]:
    """Act as roost's service. Return samples by stage. `server` is the address of a recorded cluster."""
    import roost.scheduler.service.server  # noqa: F401 - for the memory
    from roost.launchers.protocol.messages import Lease, Owner
    from roost.placement import Request, get_policy
    from roost.scheduler.backends.agent_calls import Agents
    from roost.scheduler.backends.base import BackendContext
    from roost.scheduler.backends.kubernetes.backend import create
    from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend

    folder = Path(kubeconfig).parent
    settings = RoostKubernetesBackend(
        address=kubeconfig,
        namespace="default" if server else "kernels",
        image="none:1",
        read_all_pods=True,
        identity_file=str(folder / "keys" / "identity.json"),
    )
    context = BackendContext(agents=Agents(), folder=folder, restart_grace_s=10.0, idle_exit_s=600.0)
    backend, policy = create(settings, context), get_policy("balanced")
    took: dict[str, list[float]] = {name: [] for name in ("read", "decision", "lease", "load", "memory")}

    async def drain_events() -> None:
        async for _ in backend.events():
            pass

    async def start(decisions: list[float], leases: list[float]) -> None:
        request = Request(cpus=1, memory_bytes=MIB << 10, gpus=1)
        began = time.perf_counter()
        decision = policy.place(request, await backend.snapshot())
        decisions.append(elapsed_ms(began))
        assert decision.placement is not None, decision.reason
        kernel_id = uuid.uuid4().hex
        lease = Lease(
            id=f"roost:{kernel_id}:1",
            kernel_id=kernel_id,
            node_id=decision.placement.node_id,
            request=request,
            owner=Owner(user="ada"),
        )
        began = time.perf_counter()
        granted = await backend.claim(lease)
        leases.append(elapsed_ms(began))
        assert granted.node_id == lease.node_id, granted
        await backend.release(lease)

    began = time.perf_counter()
    await backend.open()
    took["read"].append(elapsed_ms(began))
    draining = asyncio.ensure_future(drain_events())
    for _ in range(starts):
        await start(took["decision"], took["lease"])
    used, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(QUIET_S)
    took["load"].append((time.process_time() - used) / (time.perf_counter() - began) * 100)
    if server:
        took |= {"reread": [], "decision during reread": [], "lease during reread": []}
        pods = backend._cluster._uses  # type: ignore[attr-defined]
        relists = count_lists(pods)
        await asyncio.to_thread(urllib3.request, "POST", f"{server}/expire")
        began = time.perf_counter()
        while not relists:
            await start(took["decision during reread"], took["lease during reread"])
        took["reread"].append(elapsed_ms(began))
    took["memory"].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    draining.cancel()
    await backend.close()
    return took


def count_lists(reflector: Any) -> list[str]:
    """Return a list to which the reflector adds a version after each complete listing."""
    plain, versions = reflector._list, []

    async def count() -> str:
        version: str = await plain()
        versions.append(version)
        return version

    reflector._list = count
    return versions


@contextmanager
def recorded_cluster(folder: Path, nodes: int, pods: int) -> Iterator[tuple[Path, str]]:
    """Run the imitation of an API server (`kubernetes_recorded.py`). Yield a kubeconfig file and the address."""
    script = Path(__file__).with_name("kubernetes_recorded.py")
    command = [sys.executable, str(script), str(nodes), str(pods), str(CHANGES_PER_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            config = {
                "current-context": "recorded",
                "contexts": [{"name": "recorded", "context": {"cluster": "recorded", "user": "nobody"}}],
                "clusters": [{"name": "recorded", "cluster": {"server": address}}],
                "users": [{"name": "nobody", "user": {}}],
            }
            kubeconfig = folder / "recorded.kubeconfig"
            kubeconfig.write_text(json.dumps(config))
            yield kubeconfig, address
        finally:
            server.kill()


@contextmanager
def written_cluster(nodes: int, pods: int) -> Iterator[Path]:
    """Run a real API server, and write nodes and pods into it. Yield a kubeconfig file."""
    with Kubelets(Machine()) as cluster:
        api = cluster.api
        for namespace in ("kernels", "others"):
            api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            wait_until(api, f"/api/v1/namespaces/{namespace}/serviceaccounts/default")
        cluster.kill("controllers")  # they would find that no kubelet answers
        names = [f"node-{number:05}" for number in range(nodes)]
        local = threading.local()

        def write(path: str, item: dict[str, Any]) -> None:
            if not hasattr(local, "api"):
                local.api = cluster.api
            del item["metadata"]["uid"], item["metadata"]["managedFields"]
            item["metadata"].pop("resourceVersion", None)
            item["metadata"].pop("namespace", None)
            local.api.call("POST", path, item)
            name = item["metadata"]["name"]
            local.api.call("PATCH", f"{path}/{name}/status", {"status": item["status"]})
            if path == "/api/v1/nodes":  # a new node has a taint, which the controllers would remove
                local.api.call("PATCH", f"{path}/{name}", {"spec": {"taints": None}})

        def write_pod(number: int) -> None:
            pod = describe_pod(f"web-{number:06}", names[number % nodes], "100m")
            write("/api/v1/namespaces/others/pods", pod)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: write("/api/v1/nodes", describe_node(name)), names))
            list(pool.map(write_pod, range(pods)))
        ending = threading.Event()

        def churn() -> None:
            number = 0
            while not ending.wait(1 / CHANGES_PER_S):
                path = f"/api/v1/namespaces/others/pods/web-{number % pods:06}"
                cluster_api.call("DELETE", path, {"gracePeriodSeconds": 0})
                write_pod(number % pods)
                number += 1

        cluster_api = cluster.api
        churning = threading.Thread(target=churn)
        churning.start()
        try:
            yield cluster.kubeconfig
        finally:
            ending.set()
            churning.join()


def wait_until(api: Api, path: str) -> None:
    end = time.monotonic() + 30
    while not api.has(path):
        if time.monotonic() > end:
            raise RuntimeError(f"there is no {path}")
        time.sleep(0.1)


def child(kubeconfig: Path, starts: int, server: str = "") -> dict[str, list[float]]:
    """Run `measure` in a new process, and return its samples by stage."""
    command = [
        sys.executable,
        __file__,
        f"--measure={kubeconfig}",
        f"--starts={starts}",
        f"--server={server}",
    ]
    environment = {**os.environ, "ROOST_RUNTIME_DIR": str(kubeconfig.parent / "r")}
    done = subprocess.run(
        command, env=environment, timeout=DEADLINE_S, check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def add(report: Report, kind: str, took: dict[str, list[float]]) -> None:
    units = {"load": "% of a core", "memory": "MiB"}
    for stage, values in took.items():
        for value in values:
            report.add(f"{stage}/{kind}", value, units.get(stage, "ms"))
        if len(values) > 20:
            p99 = sorted(values)[int(len(values) * 0.99)]
            report.add(f"{stage} p99/{kind}", p99, "ms")


def run(arguments: Namespace) -> Report:
    report = Report("Kubernetes at scale", starts=arguments.starts, changes_per_s=CHANGES_PER_S, sizes=SIZES)
    kinds = [arguments.only] if arguments.only else list(SIZES)
    if "recorded" in kinds:
        with (
            tempfile.TemporaryDirectory() as name,
            recorded_cluster(Path(name), *SIZES["recorded"]) as (kubeconfig, server),
        ):
            add(report, "recorded", child(kubeconfig, arguments.starts, server))
        report.claim("read/recorded", report.figure("read/recorded").max, at_most=30_000)
        report.claim("memory/recorded", report.figure("memory/recorded").max, at_most=300)
    if "written" in kinds and (reason := why_not()):
        report.notes.append(f"There is no written cluster here: {reason}.")
    elif "written" in kinds:
        with written_cluster(*SIZES["written"]) as kubeconfig, tempfile.TemporaryDirectory() as name:
            copy = Path(name) / "admin.kubeconfig"
            copy.write_text(kubeconfig.read_text())
            add(report, "written", child(copy, arguments.starts))
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument(
        "--starts", type=int, default=200, help="decisions and leases of each cluster (default 200)"
    )
    options.add_argument("--only", choices=list(SIZES), help="measure only this cluster")
    options.add_argument("--measure", metavar="FILE", help="internal: measure on this cluster and print JSON")
    options.add_argument("--server", default="", help="internal")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.starts = 25
    if arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.measure, arguments.starts, arguments.server))))
        return 0
    return run(arguments).finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
