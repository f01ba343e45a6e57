"""The parts that `on_ray.py` and `on_dask.py` share: kernels on a cluster of three nodes, all on this machine.

start      start_kernel() called → first execute_reply. Three cases are interleaved: plain Jupyter on this machine, a
           kernel with one CPU on the cluster, and a kernel with half a GPU there. Agents run, interpreters are warm
shutdown   shutdown_kernel() called → returned
burst      60 starts at once, until all have replied: kernels per second. The promised CPUs are read meanwhile
cold       a new cluster without a service and agents. `in turn`: start the service, then three agents, then a kernel
           with half a GPU. `at once`: one start_kernel(); its stage `leased` includes the start of the node's agent
read       the cluster manager's report on 1,000 nodes → roost's nodes; see the script
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

import roost
from roost.bench.report import Report, interleave, parser
from roost.bench.world import (
    PLAIN,
    ROOST,
    RUNTIME,
    elapsed_ms,
    end_processes,
    first_reply,
    private_world,
    wait_until_forked,
    write_kernelspec,
)

NODES = 1_000
LEASES_PER_NODE = 2
AT_ONCE = 60
REST_S = 0.5
CHILD_DEADLINE_S = 180
KERNELSPECS: Mapping[str, Mapping[str, object]] = {
    "roost-cpu": {"cpus": 1},
    "roost-gpu": {"gpus": 0.5},
    "roost-tiny": {"cpus": 0.05},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCluster:
    """A cluster manager and its measurements.

    `start` takes its daemons' environment and starts a new cluster. `variable` names the variable for its address.
    `read` takes a number of rounds and returns stage → milliseconds. `bounds` limits start ÷ plain by kernelspec.
    `read_bounds` limits the milliseconds of a stage of `read`.
    """

    backend: str
    title: str
    script: str
    variable: str
    start: Callable[[Mapping[str, str]], AbstractContextManager[Any]]
    why_not: Callable[[], str | None]
    read: Callable[[int], Mapping[str, list[float]]]
    bounds: Mapping[str, float]
    read_bounds: Mapping[str, float]

    @contextmanager
    def cluster(self, folder: Path) -> Iterator[None]:
        """Start a new cluster. Its nodes and its service use new folders in `folder`."""
        with self.start({RUNTIME: str(folder / "n")}) as started:
            os.environ[self.variable] = started.address
            try:
                yield
            finally:
                del os.environ[self.variable]
                end_processes(str(folder / "r"))

    def child(self, *options: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run the script with these options in a new process, and return the JSON that it prints."""
        done = subprocess.run(
            [sys.executable, self.script, *options],
            env={**os.environ, **(environment or {})},
            timeout=CHILD_DEADLINE_S,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result


async def life(name: str, backend: str, report: Report) -> dict[str, float]:
    """Run one kernel from start to shutdown. Return stage → milliseconds, including the stages that roost timed."""
    manager = AsyncKernelManager(kernel_name=name)
    try:
        took = await first_reply(manager)
        if name != "plain":
            kernel = await roost.connect(backend).kernel(manager.kernel_id)
            took |= {f"start stage {stage}": value for stage, value in kernel.timing_ms.items()}
            if kernel.how != "forked":
                report.notes.append(f"A kernel of {name} was not forked ({kernel.how}), on {kernel.node_id}.")
    finally:
        began = time.perf_counter()
        await manager.shutdown_kernel()
        shutdown_ms = elapsed_ms(began)
    return {**took, "shutdown": shutdown_ms}


async def burst(name: str, backend: str) -> dict[str, float]:
    """Start AT_ONCE kernels in parallel. Return kernels per second and the largest promised share of a node's CPUs."""
    await asyncio.sleep(REST_S)
    client = roost.connect(backend)
    managers = [AsyncKernelManager(kernel_name=name) for _ in range(AT_ONCE)]
    most = 0.0

    async def look() -> None:
        nonlocal most
        nodes = await client.nodes()
        shares = (node["cpus_promised"] / node["cpus"] for node in nodes)
        most = max(
            most, *(round(share, 6) for share in shares)
        )  # rounds away the error in a sum of many 0.05

    async def look_on() -> None:
        while True:
            await look()
            await asyncio.sleep(0.05)

    looking = asyncio.ensure_future(look_on())
    try:
        began = time.perf_counter()
        await asyncio.gather(*map(first_reply, managers))
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


async def first_start(name: str, backend: str, *, in_turn: bool) -> dict[str, float]:
    """Start a kernel in a fresh process on a fresh cluster. Return milliseconds by stage."""
    took = {}
    client = roost.connect(backend)
    began = time.perf_counter()
    if in_turn:
        await client.nodes()
        took["service and join"] = elapsed_ms(began)
        began_up = time.perf_counter()
        await client.up()
        took["three agents"] = elapsed_ms(began_up)
    manager = AsyncKernelManager(kernel_name=name)
    try:
        replied = await first_reply(manager)
        took |= {
            "start_kernel returned": replied["start_kernel returned"],
            "kernel": replied["start"],
            "total": elapsed_ms(began),
        }
        timing = (await client.kernel(manager.kernel_id)).timing_ms
        took |= {f"stage {stage}": value for stage, value in timing.items()}
    finally:
        await manager.shutdown_kernel(now=True)
    return took


def time_calls(rounds: int, call: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each of `rounds` calls."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(elapsed_ms(began))
    return took


def cold(of: MeasuredCluster, report: Report, how: str) -> None:
    """Measure one first start, with a new process, runtime folder and cluster."""
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as name:
        folder = Path(name)
        with of.cluster(folder):
            took = of.child("--first-start", how, environment={RUNTIME: str(folder / "r")})
    for stage, value in took.items():
        report.add(f"cold {how}: {stage}/roost-gpu", value, "ms")


async def warm(of: MeasuredCluster, report: Report, *, rounds: int, bursts: int) -> None:
    """Measure starts on running agents with warm interpreters."""
    await roost.connect(of.backend).up()
    for name in KERNELSPECS:
        if not await wait_until_forked(name, backend=of.backend):
            report.notes.append(f"No kernel of {name} was forked.")
    names = ("plain", "roost-cpu", "roost-gpu")
    cases = {name: partial(life, name, of.backend, report) for name in names}
    await interleave(report, cases, rounds=rounds, warm_up=2)
    await burst("roost-tiny", of.backend)  # warms interpreters on every node
    for _ in range(bursts):
        took = await burst("roost-tiny", of.backend)
        report.add("burst/roost-tiny", took["burst"], "kernels/s")
        report.add("largest promised share/roost-tiny", took["burst most promised"], "share")
    for name in names[1:]:
        report.ratio(f"start: {name} ÷ plain", f"start/{name}", "start/plain")


def measure(of: MeasuredCluster, arguments: Namespace, root: Path) -> Report:
    rounds = arguments.rounds or (3 if arguments.quick else 20)
    report = Report(
        f"on {of.title}", rounds=rounds, at_once=AT_ONCE, nodes=NODES, leases_per_node=LEASES_PER_NODE
    )
    for _ in range(1 if arguments.quick else 3):
        for how in ("in turn", "at once"):
            cold(of, report, how)
    with of.cluster(root):
        for stage, values in of.child("--read", str(20 if arguments.quick else 100)).items():
            for value in values:
                report.add(f"{stage}/{NODES} nodes", value, "ms")
        asyncio.run(warm(of, report, rounds=rounds, bursts=1 if arguments.quick else 5))
    for name, bound in of.bounds.items():
        ratio = report.ratios[f"start: {name} ÷ plain"].of_medians
        report.claim(f"start, {name} ÷ plain", ratio, at_most=bound)
    most = report.figure("largest promised share/roost-tiny").max
    report.claim("largest promised share of a node's CPUs", most, at_most=1.0)
    for stage, bound in of.read_bounds.items():
        median = report.figure(f"{stage}/{NODES} nodes").median
        report.claim(f"{stage} of {NODES} nodes, ms", median, at_most=bound)
    return report


def run(of: MeasuredCluster, description: str | None) -> int:
    """Run the script; return its exit status."""
    options = parser(description)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    options.add_argument("--first-start", metavar="HOW", help="internal: measure one start and print JSON")
    options.add_argument("--read", type=int, metavar="N", help="internal: measure N readings and print JSON")
    arguments = options.parse_args()
    if arguments.first_start:
        took = first_start("roost-gpu", of.backend, in_turn=arguments.first_start == "in turn")
        print(json.dumps(asyncio.run(took)))
        return 0
    if arguments.read:
        print(json.dumps(of.read(arguments.read)))
        return 0
    if reason := of.why_not():
        print(reason, file=sys.stderr)
        return 77  # the usual exit status for a skipped test
    with private_world({"plain": PLAIN}) as root:
        for name, request in KERNELSPECS.items():
            config = {"backend": of.backend, **request}
            write_kernelspec(root / "jupyter_path" / "kernels" / name, ROOST, config)
        report = measure(of, arguments, root)
    return report.finish(arguments)
