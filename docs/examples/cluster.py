"""The tour's Ray cluster: three real nodes on this machine, and what is left in it at the end.

Nothing in here knows of roost but the check, which looks for its leases where they are: among Ray's placement groups.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster_folder import processes
from proof import Check
from raylets import Machine, Raylets
from rich.console import Console

MACHINES = (
    Machine(cpus=4, memory_bytes=8 << 30, labels={"zone": "a"}),
    Machine(cpus=8, memory_bytes=16 << 30, gpus=2, gpu_model="T4", labels={"zone": "a"}),
    Machine(cpus=16, memory_bytes=64 << 30, gpus=1, gpu_model="A100", labels={"zone": "b"}),
)
"""What they declare is not what this machine has: Ray promises it all the same."""

ASK_TIMEOUT_S = 60.0

_GROUPS = """
import json, sys, ray
from ray.util import placement_group_table
ray.init(address=sys.argv[1], logging_level="error", log_to_driver=False)
left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
print(json.dumps([f"{group['name']}: {group['state']}" for group in left]))
"""


@asynccontextmanager
async def ray_cluster(out: Console) -> AsyncIterator[Raylets]:
    """The running cluster, with a sign of life while it starts; gone at the end, with all that was started on it."""
    began = time.monotonic()
    cluster = Raylets(*MACHINES)
    out.print("  A Ray cluster of three nodes starts on this machine. That takes 10 to 20 s …", style="dim")
    try:
        with out.status("ray start --head, and two nodes that join it"):
            await asyncio.to_thread(cluster.__enter__)
        for node, machine in zip(cluster.nodes, MACHINES, strict=True):
            gpus = f"{machine.gpus} × {machine.gpu_model}" if machine.gpus else "no GPU"
            labels = ", ".join(f"{name}={value}" for name, value in machine.labels.items())
            out.print(
                f"  {node.address:<12} {machine.cpus:>2} CPUs, {machine.memory_bytes >> 30:>2} GiB, {gpus:<8}  {labels}"
            )
        out.print(f"  {cluster.address} answers after {time.monotonic() - began:.1f} s", style="dim")
        yield cluster
    finally:
        await asyncio.to_thread(cluster.close)


async def groups_left(cluster: Raylets) -> Check:
    """Ask Ray itself, in a process of its own, which placement groups there are: any would be a lease of roost's."""
    command = [sys.executable, "-W", "ignore", "-c", _GROUPS, cluster.address]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), ASK_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        raise
    left = json.loads(printed) if process.returncode == 0 else ["Ray did not say"]
    return Check(what="no placement group in Ray", left=tuple(left))


async def cluster_left(cluster: Raylets) -> Check:
    """End the cluster, and say what of it is still there."""
    there = len(await asyncio.to_thread(cluster.processes))
    try:
        await asyncio.to_thread(cluster.close)
        left = [str(process.pid) for process in processes(cluster.folder)]
    except RuntimeError as problem:
        left = [str(problem)]
    left += [str(cluster.folder)] if cluster.folder.exists() else []
    return Check(what=f"{there} processes of the Ray cluster ended, its folder is gone", left=tuple(left))
