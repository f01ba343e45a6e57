"""The service on a large simulated cluster. The agents are real servers, but start no kernels.

connect             the service joins the cluster and connects to all agents
idle                processor time of the service while no kernel starts, in percent of a core
starts              kernels per second that were placed, leased and "launched", `at_once` at the same time
start p50, p99      start() called → the agent has answered
decision p50, p99   the part of a start in which the scheduler chooses a node
CPU per start       of the service, of the process with all agents, and of this process with the client
memory              of the service, with all kernels
descriptors         of the service, per node
read back           the service is killed, and the next one knows all kernels again
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from roost.bench.report import Report, show_time
from roost.bench.runs import Measurement
from roost.bench.world import MIB, NEUTRAL, elapsed_ms, private_world
from roost.placement import Request
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.errors import ConfigError, RoostError
from roost.scheduler.messages import Connection, Owner, StartKernel

from . import NAME, install
from .cluster import MOST_SOCKETS

_READY_S = 300.0
_SETTLE_S, _IDLE_S = 2.0, 10.0
"""How long to wait after the service has connected, and how long its processor time is then measured."""
_MOST_NODES = 100_000
_DESCRIPTORS = 12
"""The number of file descriptors that each agent takes in the process with all agents."""
_REQUESTS = (
    Request(cpus=1.0, memory_bytes=2 << 30),
    Request(cpus=1.0, memory_bytes=4 << 30, gpus=0.25),
    Request(cpus=2.0, memory_bytes=8 << 30, gpus=0.5),
)
"""The kernels ask for these at random. A node has room for about twelve of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The numbers of nodes and of kernels. `at_once` kernels start at the same time."""

    nodes: int
    kernels: int
    at_once: int


def check(size: Size) -> None:
    """Raise `ConfigError` if this machine cannot hold such a cluster."""
    if size.nodes > _MOST_NODES:
        raise ConfigError(f"--nodes {size.nodes} are too many for one machine: take at most {_MOST_NODES}.")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needs = size.nodes * _DESCRIPTORS + 1000
    if size.nodes <= MOST_SOCKETS and hard != resource.RLIM_INFINITY and hard < needs:
        most = (hard - 1000) // _DESCRIPTORS
        raise ConfigError(
            f"--nodes {size.nodes} needs {needs} file descriptors, and a process may have {hard} here: "
            f"take at most {most} nodes, or more than {MOST_SOCKETS}, or raise the limit (ulimit -n)."
        )
    if size.kernels > 12 * size.nodes:
        raise ConfigError(
            f"--kernels {size.kernels} do not fit on {size.nodes} nodes: take at most {12 * size.nodes}."
        )


@contextlib.contextmanager
def cluster(folder: Path, size: Size) -> Iterator[psutil.Process]:
    """Run a simulated cluster, and register its backend for services that start later. Yield the cluster's process."""
    own = folder / "cluster"
    own.mkdir()
    packages = folder / "packages"
    install(packages)
    python_path = {"PYTHONPATH": os.pathsep.join([str(packages), *_python_path()])}
    command = [sys.executable, "-m", f"{__package__}.cluster", str(own), str(size.nodes)]
    process = subprocess.Popen(
        command,
        cwd=NEUTRAL,
        env={**os.environ, **python_path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    sys.path.append(str(packages))  # for the client in this process
    try:
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the simulated cluster has ended; its output says why")
        os.environ.update(python_path)
        yield psutil.Process(process.pid)
    finally:
        sys.path.remove(str(packages))
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def prepare(report: Report, size: Size) -> Iterator[Measurement]:
    """Run a simulated cluster, with private folders for Jupyter and roost. Yield the function that measures it."""
    with private_world({}) as folder, cluster(folder, size) as agents:
        try:
            yield lambda: measure(report, agents, folder, size)
        finally:
            disconnect()


async def measure(report: Report, agents: psutil.Process, folder: Path, size: Size) -> None:
    """Start all kernels, kill the service, and add the figures to the report."""
    client = connect(NAME, address=f"ipc://{folder / 'cluster' / 'manager'}")
    began = time.perf_counter()
    nodes = await client.up()
    report.add("connect", elapsed_ms(began), "ms")
    assert nodes == size.nodes
    service = psutil.Process((await client.service())["pid"])
    report.add("descriptors", service.num_fds() / nodes, "per node")
    await asyncio.sleep(_SETTLE_S)
    used_s, began = _cpu_s(service), time.perf_counter()
    await asyncio.sleep(_IDLE_S)
    report.add("idle: service", 100_000 * (_cpu_s(service) - used_s) / elapsed_ms(began), "% of a core")
    await _start_all(report, client, {"service": service, "agents": agents, "client": psutil.Process()}, size)
    report.add("memory", service.memory_full_info().pss / MIB, "MiB")
    os.kill(service.pid, signal.SIGKILL)
    began = time.perf_counter()
    while True:  # the next service answers when it has read everything back
        try:
            await client.service()
            break
        except RoostError as problem:
            if elapsed_ms(began) > _READY_S * 1000:
                report.notes.append(f"The next service did not answer within {_READY_S:g} s: {problem}")
                return
    report.add("read back", elapsed_ms(began), "ms")
    running = sum(kernel.state == "running" for kernel in await client.kernels())
    if running < size.kernels:
        report.notes.append(f"The next service knows only {running} of {size.kernels} kernels.")


async def _start_all(
    report: Report, client: Client, processes: dict[str, psutil.Process], size: Size
) -> None:
    dice = random.Random(1)
    starts_ms, decisions_ms = list[float](), list[float]()
    starts = iter([_build_start(dice.choice(_REQUESTS)) for _ in range(size.kernels)])
    used = {name: _cpu_s(process) for name, process in processes.items()}
    began = time.monotonic()

    async def work() -> None:
        for start in starts:
            asked = time.perf_counter()
            kernel = await client.start(start)
            starts_ms.append(elapsed_ms(asked))
            decisions_ms.append(kernel.timing_ms["placed"])

    try:
        await show_time("scale", [work() for _ in range(size.at_once)], size.kernels / 100)
    finally:
        for name, samples in (("start", starts_ms), ("decision", decisions_ms)):
            for percent in (50, 99) if samples else ():
                found = sorted(samples)[len(samples) * percent // 100]
                report.add(f"{name} p{percent}", found, "ms")
    report.add("starts", size.kernels / (time.monotonic() - began), "kernels/s")
    for name, process in processes.items():
        spent_ms = (_cpu_s(process) - used[name]) * 1000
        report.add(f"CPU per start: {name}", spent_ms / size.kernels, "ms")
    report.notes.append(_name_limit(report, processes))


def _name_limit(report: Report, processes: dict[str, psutil.Process]) -> str:
    """Return a sentence that names the process that used the most CPU time."""
    spent = {name: statistics.median(report.samples[f"CPU per start: {name}"]) for name in processes}
    busiest = max(spent, key=spent.__getitem__)
    rate = statistics.median(report.samples["starts"])
    return f"The limit is the {busiest}, which used {spent[busiest] * rate / 10:.0f} % of a core."


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _build_start(request: Request) -> StartKernel:
    return StartKernel(
        kernel_id=str(uuid.uuid4()),
        launch_id=uuid.uuid4().hex,
        request=request,
        owner=Owner(user="bench"),
        argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env={"HOME": "/", "PATH": os.defpath},
        cwd="/",
        connection=Connection(key=uuid.uuid4().hex),
        launch_timeout_s=_READY_S,
    )


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
