"""Kernels on a Ray cluster of three nodes, on this machine: how soon they answer, how many at once, and at what size.

start      start_kernel() called → first execute_reply; interleaved: plain Jupyter on this machine, a kernel with a
           CPU on Ray, one with half a GPU on Ray. Agents are up, interpreters and workers warm
shutdown   shutdown_kernel() called → returned
burst      60 starts at once, until all have replied: kernels per second. What is promised is read all the while
cold       a new cluster, no service, no agent, no worker of Ray's. `in turn`: the service starts and joins Ray; three
           agents come up, each by a first worker on its node; then the kernel, with half a GPU, whose device that
           worker names. `at once`: one start_kernel(): `leased` is its node's agent, and its worker beside it
decode     what Ray says of 1,000 nodes → RayNodes, at every reading but the first; `as_node` → roost's nodes, of those
           that have changed. Made of a reply that is recorded here, with two placement groups on each node

Claims: start with a CPU ≤ 0.25 × plain, with a share of a GPU ≤ 0.30 × (medians); never more promised than there is;
decode ≤ 10 ms. Without Ray it says so and exits with 77.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import Report, interleave, parser
from jupyter_client.manager import AsyncKernelManager
from place import (
    PLAIN,
    ROOST,
    RUNTIME,
    client_of,
    elapsed_ms,
    end_processes,
    execute,
    private_world,
    start,
    until_forked,
    write_kernelspec,
)

import roost

sys.path.append(str(Path(__file__).parents[1] / "docs/examples"))

from raylets import Machine, Raylets, why_not

MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="T4"),
    Machine(cpus=4, gpus=4, gpu_model="A100"),
    Machine(cpus=2, labels={"zone": "b"}),
)
KERNELSPECS: Mapping[str, Mapping[str, object]] = {
    "roost-cpu": {"backend": "ray", "cpus": 1},
    "roost-gpu": {"backend": "ray", "gpus": 0.5},
    "roost-tiny": {"backend": "ray", "cpus": 0.05},
}
AT_ONCE = 60
NODES = 1_000
GROUPS_PER_NODE = 2
REST_S = 0.5
CHILD_DEADLINE_S = 180


@contextmanager
def cluster(folder: Path) -> Iterator[Raylets]:
    """A new cluster whose nodes, and the service that will join it, have nothing in `folder` yet."""
    with Raylets(*MACHINES, environment={RUNTIME: str(folder / "n")}) as started:
        os.environ["RAY_ADDRESS"] = started.address
        try:
            yield started
        finally:
            del os.environ["RAY_ADDRESS"]
            end_processes(str(folder / "r"))


async def life(name: str, report: Report) -> dict[str, float]:
    """One kernel from start to shutdown: stage → milliseconds, with those that roost itself timed."""
    manager = AsyncKernelManager(kernel_name=name)
    took = {}
    try:
        began = time.perf_counter()
        await start(manager)
        took["start_kernel returned"] = elapsed_ms(began)
        async with client_of(manager) as client:
            await execute(client)
            took["start"] = elapsed_ms(began)
        if name != "plain":
            kernel = await roost.connect("ray").kernel(manager.kernel_id)
            took |= {f"start stage {stage}": value for stage, value in kernel.timing_ms.items()}
            if kernel.how != "forked":
                report.notes.append(f"A kernel of {name} was not forked ({kernel.how}), on {kernel.node_id}.")
    finally:
        began = time.perf_counter()
        await manager.shutdown_kernel()
        took["shutdown"] = elapsed_ms(began)
    return took


async def burst(name: str) -> dict[str, float]:
    """AT_ONCE starts in parallel: kernels per second, and the most that was promised of any node's CPUs (1: all)."""
    await asyncio.sleep(REST_S)
    client = roost.connect("ray")
    managers = [AsyncKernelManager(kernel_name=name) for _ in range(AT_ONCE)]
    most = 0.0

    async def look() -> None:
        nonlocal most
        nodes = await client.nodes()
        shares = (node["cpus_promised"] / node["cpus"] for node in nodes)
        most = max(most, *(round(share, 6) for share in shares))  # sums of many 0.05

    async def look_on() -> None:
        while True:
            await look()
            await asyncio.sleep(0.05)

    async def one(manager: AsyncKernelManager) -> None:
        await start(manager)
        async with client_of(manager) as channel:
            await execute(channel)

    looking = asyncio.ensure_future(look_on())
    try:
        began = time.perf_counter()
        await asyncio.gather(*(one(manager) for manager in managers))
        rate = AT_ONCE / (time.perf_counter() - began)
        await look()
        running = [kernel for kernel in await client.kernels() if kernel.state == "running"]
        if len(running) != AT_ONCE or len({kernel.lease_id for kernel in running}) != AT_ONCE:
            raise RuntimeError(f"{len(running)} of {AT_ONCE} kernels run")
    finally:
        looking.cancel()
        started = [manager for manager in managers if manager.has_kernel]
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in started))
    return {"burst": rate, "burst most promised": most}


async def first_start(name: str, *, in_turn: bool) -> dict[str, float]:
    """What a fresh process does on a fresh cluster: milliseconds by stage."""
    took = {}
    client = roost.connect("ray")
    began = time.perf_counter()
    if in_turn:
        await client.nodes()
        took["service and join"] = elapsed_ms(began)
        began_up = time.perf_counter()
        await client.up()
        took["three agents"] = elapsed_ms(began_up)
    manager = AsyncKernelManager(kernel_name=name)
    try:
        began_kernel = time.perf_counter()
        await start(manager)
        took["start_kernel returned"] = elapsed_ms(began_kernel)
        async with client_of(manager) as channel:
            await execute(channel)
        took |= {"kernel": elapsed_ms(began_kernel), "total": elapsed_ms(began)}
        timing = (await client.kernel(manager.kernel_id)).timing_ms
        took |= {f"stage {stage}": value for stage, value in timing.items()}
    finally:
        await manager.shutdown_kernel(now=True)
    return took


def decoding(rounds: int) -> dict[str, list[float]]:
    """Record this cluster's state with some groups in it, make 1,000 nodes of it: milliseconds to read them."""
    import ray
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2
    from ray.util.placement_group import placement_group

    from roost.scheduler.backends import ray_state

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    bundles = [{"CPU": 0.1, f"node:{node['NodeManagerAddress']}": 0.001} for node in ray.nodes()]
    groups = [placement_group([bundle]) for bundle in bundles for _ in range(GROUPS_PER_NODE)]
    for group in groups:
        group.wait(10)
    end = time.monotonic() + 10
    while True:  # until the nodes have told of them
        content = global_worker.gcs_client.get_cluster_resource_state(timeout_s=5)
        recorded = autoscaler_pb2.GetClusterResourceStateReply.FromString(
            content
        ).cluster_resource_state.node_states
        shown = [
            name for state in recorded for name in state.total_resources if name.startswith("bundle_group_0_")
        ]
        if len(shown) == len(groups) or time.monotonic() > end:
            break
    reply = autoscaler_pb2.GetClusterResourceStateReply()
    for number in range(NODES):
        state = reply.cluster_resource_state.node_states.add()
        state.CopyFrom(recorded[number % len(recorded)])
        state.node_id = number.to_bytes(28, "big")
        state.node_ip_address = f"10.0.{number // 250}.{number % 250}"
        state.labels["ray.io/node-id"] = state.node_id.hex()
    ray.shutdown()
    content = reply.SerializeToString()
    nodes = ray_state.decode(content)
    assert len({node.id for node in nodes}) == NODES
    assert all(len(node.groups or ()) == GROUPS_PER_NODE for node in nodes)

    def timed(call: Callable[[], object]) -> list[float]:
        took = []
        for _ in range(rounds):
            began = time.perf_counter()
            call()
            took.append(elapsed_ms(began))
        return took

    return {
        "decode": timed(lambda: ray_state.decode(content, nodes)),
        "first decode": timed(lambda: ray_state.decode(content)),
        "as_node": timed(lambda: [ray_state.as_node(node, (), None, None) for node in nodes]),
    }


def child(*options: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What this script prints as JSON with these options, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, *options],
        env={**os.environ, **(environment or {})},
        timeout=CHILD_DEADLINE_S,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def cold(report: Report, how: str) -> None:
    """One first start, in a process, a runtime folder and a cluster of its own."""
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as name:
        folder = Path(name)
        with cluster(folder):
            took = child("--first-start", how, environment={RUNTIME: str(folder / "r")})
    for stage, value in took.items():
        report.add(f"cold {how}: {stage}/roost-gpu", value, "ms")


async def warm(report: Report, *, rounds: int, bursts: int) -> None:
    """On agents that are up, where interpreters are warm."""
    await roost.connect("ray").up()
    for name in KERNELSPECS:
        if not await until_forked(name, backend="ray"):
            report.notes.append(f"No kernel of {name} was forked.")
    names = ("plain", "roost-cpu", "roost-gpu")
    await interleave(report, {name: partial(life, name, report) for name in names}, rounds=rounds, warm_up=2)
    await burst("roost-tiny")  # brings interpreters up on every node
    for _ in range(bursts):
        took = await burst("roost-tiny")
        report.add("burst/roost-tiny", took["burst"], "kernels/s")
        report.add("most promised, of 1/roost-tiny", took["burst most promised"], "share")
    for name in names[1:]:
        report.ratio(f"start: {name} ÷ plain", f"start/{name}", "start/plain")


def measure(arguments: Namespace, root: Path) -> Report:
    rounds = arguments.rounds or (3 if arguments.quick else 20)
    report = Report("on Ray", rounds=rounds, at_once=AT_ONCE, nodes=NODES, groups_per_node=GROUPS_PER_NODE)
    for _ in range(1 if arguments.quick else 3):
        for how in ("in turn", "at once"):
            cold(report, how)
    with cluster(root):
        for stage, values in child("--decode", str(20 if arguments.quick else 100)).items():
            for value in values:
                report.add(f"{stage}/{NODES} nodes", value, "ms")
        asyncio.run(warm(report, rounds=rounds, bursts=1 if arguments.quick else 5))
    ratios = report.ratios
    for name, bound in (("roost-cpu", 0.25), ("roost-gpu", 0.30)):
        report.claim(f"start, {name} ÷ plain", ratios[f"start: {name} ÷ plain"].of_medians, at_most=bound)
    most = report.figure("most promised, of 1/roost-tiny").max
    report.claim("most that was promised of a node's CPUs", most, at_most=1.0)
    report.claim(f"decode of {NODES} nodes, ms", report.figure(f"decode/{NODES} nodes").median, at_most=10.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    options.add_argument("--first-start", metavar="HOW", help="internal: one start, printed as JSON")
    options.add_argument("--decode", type=int, metavar="N", help="internal: decode so often, printed as JSON")
    arguments = options.parse_args()
    if arguments.first_start:
        took = asyncio.run(first_start("roost-gpu", in_turn=arguments.first_start == "in turn"))
        print(json.dumps(took))
        return 0
    if arguments.decode:
        print(json.dumps(decoding(arguments.decode)))
        return 0
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 77  # as test suites say that something was left out
    with private_world({"plain": PLAIN}) as root:
        for name, config in KERNELSPECS.items():
            write_kernelspec(root / "jupyter_path" / "kernels" / name, ROOST, config)
        report = measure(arguments, root)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
