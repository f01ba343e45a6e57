"""Kernels in containers of a YARN cluster of three nodes, all on this machine: time from nothing to the first reply.

Each start makes a new container. roost's application master runs. Three cases are interleaved. Each begins at a random
moment, because YARN grants containers when a NodeManager reports, once a second (`on_pods.py`):

plain      plain Jupyter on this machine, without YARN
roost      a container of roost
gateway    an application whose first container is the kernel. A gateway that runs an application for each kernel does
           at least this. The gateway reads the application every 20 ms until it has a node, and connects. Gateway
           Provisioners 0.5 and Enterprise Gateway 3.3 run spark-submit instead, which starts a JVM and copies Spark,
           and read the application every 0.5 s

The cases run on two clusters: one with YARN's defaults, and one with asynchronous scheduling.

stages     those of `on_pods.py`; leased is asked → granted. For the gateway: submitted, address (→ the application has
           a node), reply
master     of the application master: memory, and processor time while nothing happens for a minute
read       the ResourceManager's answer with 1,000 nodes, over HTTP from another process → roost's nodes

Claims (medians): start ≤ 1.5 s, with asynchronous scheduling ≤ 1.0 s; the master takes ≤ 30 MiB, and ≤ 1 % of a core;
read ≤ 100 ms. Without a cluster the script prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from claims import SKIPPED, Report, interleave, parser
from on_pods import GATEWAY_OPTIONS, GONE_S, MEMORY_BYTES, plain_life, reply_of_gateway, rest, roost_life
from page_tables import PLAIN_JUPYTER, PageTable
from recorded_yarn import NODES, time_readings

import roost
from roost.bench.world import MIB, PLAIN, ROOST, elapsed_ms, private_world, write_config, write_kernelspec

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "docs/examples")]

from kit.clusters.hadoop_nodes import MACHINES, HadoopNodes, why_not

CPUS = 1
KERNELSPEC = "roost"
ASYNCHRONOUS = {"yarn.scheduler.capacity.schedule-asynchronously.enable": True}
BOUNDS_MS = {"default": 1500.0, "asynchronous": 1000.0}
POLL_S = 0.02
"""How often the gateway reads its application."""
IDLE_S = 60.0
STARTS = PageTable(
    name="on_yarn",
    columns={PLAIN_JUPYTER: "start/plain, {}", "roost": "start/roost, {}", "gateway": "start/gateway, {}"},
    rows={"YARN's defaults": "default", "with asynchronous scheduling": "asynchronous"},
    ratios={"roost ÷ gateway": ("roost", "gateway")},
    corner="start → first `execute_reply`",
)
STAGES = PageTable(
    name="on_yarn-stages",
    columns={
        "YARN's defaults": "stage {}/roost, default",
        "asynchronous scheduling": "stage {}/roost, asynchronous",
    },
    rows={
        "asked → granted": "leased",
        "granted → the agent has answered": "granted",
        "→ the kernel's ports are open": "launched",
        "→ reply": "reply",
    },
    corner="stage of roost's start",
)
MASTER = PageTable(
    name="on_yarn-master",
    columns={"roost": "{}"},
    rows={
        "memory of the application master (RSS)": "memory, RSS/master",
        "memory of the application master (PSS)": "memory, PSS/master",
        "its processor time in an idle minute": "idle/master",
        "1,000 nodes read": f"read/roost, {NODES} nodes",
    },
)


@contextlib.contextmanager
def cluster(settings: Mapping[str, object]) -> Iterator[HadoopNodes]:
    """Start a cluster, and make private folders with roost's configuration and kernelspecs for it."""
    with HadoopNodes(*MACHINES, settings=settings) as started, private_world({"plain": PLAIN}) as root:
        identity = root / "identity"
        identity.mkdir(mode=0o700)
        backend = {
            "address": str(started.configuration),
            "python": sys.executable,
            "identity_file": str(identity / "keys.json"),
        }
        write_config(root, {"RoostYarnBackend": backend})
        asks = {"backend": "yarn", "cpus": CPUS, "memory": MEMORY_BYTES}
        write_kernelspec(root / "jupyter_path" / "kernels" / KERNELSPEC, ROOST, asks, python="python")
        yield started


async def container_life(yarn: HadoopNodes, report: Report) -> dict[str, float]:
    """Run one kernel in a container of roost. Return stage → milliseconds."""
    took, how = await roost_life("yarn", KERNELSPEC, partial(count_containers, yarn))
    if how != "forked":
        report.notes.append(f"A kernel was not forked ({how}).")
    return took


async def gateway_life(yarn: HadoopNodes) -> dict[str, float]:
    """Run one kernel as the first container of an application. Return stage → milliseconds."""
    key, application = uuid.uuid4().hex, ""
    began = time.perf_counter()
    try:
        application = await asyncio.to_thread(submit, yarn, key)
        took = {"stage submitted": elapsed_ms(began)}
        asked = time.perf_counter()
        address = await asyncio.to_thread(await_address, yarn, application)
        took["stage address"] = elapsed_ms(asked)
        reply_ms = await reply_of_gateway(address, key)
        return {"start": elapsed_ms(began), **took, "stage reply": reply_ms}
    finally:
        path = f"/ws/v1/cluster/apps/{application}/state"
        await asyncio.to_thread(yarn.rest.call, "PUT", path, {"state": "KILLED"})
        await rest(partial(count_containers, yarn))


def submit(yarn: HadoopNodes, key: str) -> str:
    """Submit an application whose first container is a kernel, and return its id."""
    kernel = [sys.executable, "-m", "ipykernel_launcher", f"--Session.key={key}", *GATEWAY_OPTIONS]
    application = str(yarn.rest.call("POST", "/ws/v1/cluster/apps/new-application")["application-id"])
    context = {
        "application-id": application,
        "application-name": "gateway",
        "application-type": "gateway",
        "max-app-attempts": 1,
        "resource": {"memory": MEMORY_BYTES // MIB, "vCores": CPUS},
        "am-container-spec": {
            "commands": {"command": f"exec {' '.join(kernel)} 1><LOG_DIR>/stdout 2><LOG_DIR>/stderr"}
        },
    }
    yarn.rest.call("POST", "/ws/v1/cluster/apps", context)
    return application


def await_address(yarn: HadoopNodes, application: str) -> str:
    """Wait until an application has a node, and return the address."""
    end = time.monotonic() + GONE_S
    while time.monotonic() < end:
        row = yarn.rest.get(f"/ws/v1/cluster/apps/{application}")["app"]
        if address := row.get("amHostHttpAddress"):
            return str(address).partition(":")[0]
        time.sleep(POLL_S)
    raise RuntimeError(f"{application} got no node")


def count_containers(yarn: HadoopNodes) -> int:
    """Return the number of containers besides roost's application master."""
    return sum(int(row["numContainers"]) for row in yarn.nodes().values()) - 1


def watch_master(yarn: HadoopNodes, report: Report, idle_s: float) -> None:
    """Measure the memory of roost's application master, and its processor time while nothing happens."""
    (row,) = (row for row in yarn.applications() if row["applicationType"] == "roost")
    container = row["amContainerLogs"].split("/")[-2]
    (master,) = (each for each in yarn.container_processes(container=container) if each.name() != "bash")

    def used_s() -> float:
        times = master.cpu_times()
        return float(times.user + times.system)

    used, began = used_s(), time.monotonic()
    time.sleep(idle_s)
    share = (used_s() - used) / (time.monotonic() - began)
    memory = master.memory_full_info()
    report.add("memory, RSS/master", memory.rss / MIB, "MiB")
    report.add("memory, PSS/master", memory.pss / MIB, "MiB")
    report.add("idle/master", share * 100, "% of a core")


async def measure(arguments: Namespace, name: str, yarn: HadoopNodes, report: Report) -> None:
    """Measure all starts on one cluster."""
    rounds = arguments.rounds or (2 if arguments.quick else 20)
    await roost.connect("yarn").up()
    lives = {
        "plain": plain_life,
        "roost": partial(container_life, yarn, report),
        "gateway": partial(gateway_life, yarn),
    }
    await interleave(
        report, {f"{case}, {name}": life for case, life in lives.items()}, rounds=rounds, warm_up=2
    )
    start = f"start/roost, {name}"
    report.claim(start, at_most=BOUNDS_MS[name])
    for other in ("plain", "gateway"):
        report.ratio(f"start, {name}: roost ÷ {other}", start, f"start/{other}, {name}")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each case (default 20, quick 2)")
    options.add_argument("--only", choices=[*BOUNDS_MS, "read"], help="measure one cluster, or the reading")
    arguments = options.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return SKIPPED
    report = Report("on YARN", rounds=arguments.rounds, cpus=CPUS, memory_bytes=MEMORY_BYTES, nodes=NODES)
    for name, settings in (("default", {}), ("asynchronous", ASYNCHRONOUS)):
        if arguments.only not in (None, name, *(["read"] if name == "default" else [])):
            continue
        with cluster(settings) as yarn:
            if name == "default":
                for took in time_readings(
                    yarn.rest.get("/ws/v1/cluster/nodes"), 5 if arguments.quick else 50
                ):
                    report.add(f"read/roost, {NODES} nodes", took, "ms")
            if arguments.only == "read":
                continue
            asyncio.run(measure(arguments, name, yarn, report))
            if name == "default":
                watch_master(yarn, report, 5.0 if arguments.quick else IDLE_S)
    for figure, bound in (
        ("memory, RSS/master", 30.0), ("idle/master", 1.0), (f"read/roost, {NODES} nodes", 100.0)
    ):  # fmt: skip
        if figure in report.samples:
            report.claim(figure, at_most=bound)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
