"""The tour's cluster, with real daemons of Ray, Dask, Docker, Kubernetes, YARN or sshd, and its checks.

Only the checks know roost. They ask the cluster itself for the leases of roost.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import engine_cluster
import hadoop_cluster
import hosts_cluster
import kubelets_cluster
from engine_cluster import EngineCluster
from hadoop_cluster import HadoopCluster
from hosts_cluster import HostsCluster
from kubelets_cluster import KubeletsCluster
from proof import Check
from rich.console import Console

from roost.testing.clusters import dask_machines, raylets
from roost.testing.clusters.cluster_folder import DaemonCluster, processes
from roost.testing.clusters.dask_machines import DaskMachines
from roost.testing.clusters.raylets import Raylets

RAY_MACHINES = (
    raylets.Machine(cpus=4, memory_bytes=8 << 30, labels={"zone": "a"}),
    raylets.Machine(cpus=8, memory_bytes=16 << 30, gpus=2, gpu_model="T4", labels={"zone": "a"}),
    raylets.Machine(cpus=16, memory_bytes=64 << 30, gpus=1, gpu_model="A100", labels={"zone": "b"}),
)
"""The declared machines of the Ray cluster. Ray promises these resources, although this machine does not have them."""
DASK_MACHINES = (
    dask_machines.Machine(cpus=4, memory_bytes=1 << 30, resources={"licence": 1}),
    dask_machines.Machine(cpus=8, memory_bytes=2 << 30, gpus=2, resources={"T4": 2}),
    dask_machines.Machine(cpus=16, memory_bytes=3 << 30, gpus=1, resources={"A100": 1}),
)
"""The declared machines of the Dask cluster. Dask accepts any threads and resources, but no more memory than there is.

Dask knows no GPU models, and an agent without a driver sees none. A resource therefore stands for each model.
"""

FarCluster = EngineCluster | KubeletsCluster | HadoopCluster | HostsCluster
"""A cluster whose kernels have another environment than the tour: that of a pod, a container or a host."""
AnyCluster = DaemonCluster | FarCluster

ASK_TIMEOUT_S = 60.0

_GROUPS = """
import json, sys, ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
print(json.dumps([f"{group['name']}: {group['state']}" for group in left]))
"""
_HELD_BACK = """
import json, sys
from distributed import Client
client = Client(sys.argv[1])
left = [lease["lease_id"] for lease in client.sync(client.scheduler.roost_leases)]
state = client.run(lambda dask_worker: [dask_worker.state.total_resources, dask_worker.state.available_resources])
left += [f"{name} has {free} of {total}" for name, (total, free) in state.items() if free != total]
print(json.dumps(left))
client.close()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of cluster. `rows` describes the machines. `ask` is a program that prints the remaining leases as JSON."""

    name: str
    takes: str
    starting: str
    make: Callable[[], AnyCluster]
    rows: Callable[[Any], list[str]]
    ask: str
    nothing: str
    why_not: Callable[[], str | None]
    nodes: str = "three nodes"


def _ray_rows(cluster: Raylets) -> list[str]:
    return [
        _row(
            node.address,
            f"{machine.cpus:>2} CPUs",
            machine.memory_bytes,
            f"{machine.gpus} × {machine.gpu_model}" if machine.gpus else "no GPU",
            ", ".join(f"{name}={value}" for name, value in machine.labels.items()),
        )
        for node, machine in zip(cluster.nodes, RAY_MACHINES, strict=True)
    ]


def _dask_rows(cluster: DaskMachines) -> list[str]:
    return [
        _row(
            host.address,
            f"{host.machine.cpus:>2} threads",
            host.machine.memory_bytes,
            f"GPU={host.machine.gpus}" if host.machine.gpus else "no GPU",
            ", ".join(f"{name}={value}" for name, value in host.machine.resources.items()),
        )
        for host in cluster.hosts
    ]


def _kubernetes_rows(cluster: KubeletsCluster) -> list[str]:
    return [
        _row(
            f"n{number}",
            f"{machine.cpus:>2} CPUs",
            machine.memory_bytes,
            f"{machine.gpus} × {machine.gpu_model}" if machine.gpus else "no GPU",
            ", ".join(f"{name}={value}" for name, value in machine.labels.items()),
        )
        for number, machine in enumerate(cluster.machines, start=1)
    ]


def _yarn_rows(cluster: HadoopCluster) -> list[str]:
    return [
        _row(
            address,
            f"{machine.vcores:>2} vcores",
            machine.memory_mb << 20,
            f"{machine.gpus} × {machine.gpu_model}" if machine.gpus else "no GPU",
            ", ".join(f"{name}={value}" for name, value in machine.attributes.items()),
        )
        for address, machine in zip(cluster.addresses, cluster.machines, strict=True)
    ]


def _engine_rows(cluster: EngineCluster) -> list[str]:
    return [cluster.describe()]


def _host_rows(cluster: HostsCluster) -> list[str]:
    return [
        f"{name:<4} {cluster.addresses[name]:<14} {' '.join(rules.split()) or 'no GPU'}"
        for name, rules in cluster.rules.items()
    ]


def _row(address: str, cpus: str, memory_bytes: int, gpus: str, rest: str) -> str:
    return f"{address:<12} {cpus}, {memory_bytes >> 30:>2} GiB, {gpus:<8}  {rest}"


KINDS: Mapping[str, Kind] = {
    "ray": Kind(
        name="Ray",
        takes="10 to 20 s",
        starting="ray start --head, and two nodes that join it",
        make=lambda: Raylets(*RAY_MACHINES),
        rows=_ray_rows,
        ask=_GROUPS,
        nothing="no placement group in Ray",
        why_not=raylets.why_not,
    ),
    "dask": Kind(
        name="Dask",
        takes="2 to 5 s",
        starting="dask scheduler, and three dask worker that join it",
        make=lambda: DaskMachines(*DASK_MACHINES),
        rows=_dask_rows,
        ask=_HELD_BACK,
        nothing="no lease in Dask, and all resources are free for tasks",
        why_not=dask_machines.why_not,
    ),
    "docker": Kind(
        name="Docker",
        takes="3 to 6 s",
        starting="dockerd with containerd, and the image of kernels",
        make=EngineCluster,
        rows=_engine_rows,
        ask=engine_cluster.ASK,
        nothing="no container and no volume in the engine",
        why_not=engine_cluster.why_not,
        nodes="one engine",
    ),
    "kubernetes": Kind(
        name="Kubernetes",
        takes="7 to 20 s",
        starting="etcd, API server, controllers, scheduler, and three nodes with containerd and kubelet",
        make=KubeletsCluster,
        rows=_kubernetes_rows,
        ask=kubelets_cluster.ASK,
        nothing="no pod and no Secret in the namespace",
        why_not=kubelets_cluster.why_not,
    ),
    "yarn": Kind(
        name="YARN",
        takes="10 to 20 s",
        starting="a ResourceManager and three NodeManagers",
        make=HadoopCluster,
        rows=_yarn_rows,
        ask=hadoop_cluster.ASK,
        nothing="no container of a kernel in YARN",
        why_not=hadoop_cluster.why_not,
    ),
    "ssh": Kind(
        name="SSH",
        takes="1 to 3 s",
        starting="three hosts with sshd",
        make=HostsCluster,
        rows=_host_rows,
        ask=hosts_cluster.ASK,
        nothing="no promise in the books of the hosts",
        why_not=hosts_cluster.why_not,
    ),
}


@asynccontextmanager
async def run_cluster(kind: Kind, out: Console) -> AsyncIterator[AnyCluster]:
    """Start a cluster, show its progress, and end it with all processes that were started on it."""
    began = time.monotonic()
    cluster = kind.make()
    out.print(
        f"  A {kind.name} cluster of {kind.nodes} starts on this machine. That takes {kind.takes} …",
        style="dim",
    )
    try:
        with out.status(kind.starting):
            await asyncio.to_thread(cluster.__enter__)
        for row in kind.rows(cluster):
            out.print(f"  {row}")
        out.print(f"  {cluster.address} answers after {time.monotonic() - began:.1f} s", style="dim")
        yield cluster
    finally:
        await asyncio.to_thread(cluster.close)


async def find_leases(kind: Kind, cluster: AnyCluster) -> Check:
    """Return the check that no lease of roost is left. A separate process asks the cluster itself."""
    command = [sys.executable, "-W", "ignore", "-c", kind.ask, cluster.address]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), ASK_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        raise
    left = json.loads(printed) if process.returncode == 0 else [f"{kind.name} did not answer"]
    return Check(what=kind.nothing, left=tuple(left))


async def end_cluster(kind: Kind, cluster: AnyCluster) -> Check:
    """End the cluster. Return the check that no process and no folder of it is left."""
    there = len(await asyncio.to_thread(cluster.processes))
    try:
        left = (
            await asyncio.to_thread(cluster.await_applications) if isinstance(cluster, HadoopCluster) else []
        )
        await asyncio.to_thread(cluster.close)
        if isinstance(cluster, FarCluster):
            left += cluster.leftovers()
        else:
            left += [str(process.pid) for process in processes(cluster.folder)]
    except RuntimeError as problem:
        left = [str(problem)]
    left += [str(cluster.folder)] if cluster.folder.exists() else []
    return Check(
        what=f"{there} processes of the {kind.name} cluster ended, its folder is gone", left=tuple(left)
    )
