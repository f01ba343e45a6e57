"""Kills at each step of a start that brings its node, on a real Ray cluster with each of Ray's autoscalers.

ROOST_ROUNDS is the number of rounds of each pair of a step and a victim. Whatever is killed, no group stays without a
kernel, and no node stays without a group.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import TESTS
from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.clusters.ray.elastic_world import IDLE_S, Elastic, grown_by_kernels
from kit.machine.daemons import daemon_pids, kill
from roost.scheduler.client.client import connect, disconnect
from roost.testing.clusters.raylets import why_not
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [pytest.mark.long, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

ROUNDS = int(os.environ.get("ROOST_ROUNDS", "1"))
NOBODY_S = 40.0
"""How long a group may stay without a service, and a node after its group and its idle time."""
STEPS: dict[str, Callable[[Elastic], object]] = {
    "asked": lambda elastic: elastic.groups(),
    "launched": lambda elastic: elastic.launched(),
    "joined": lambda elastic: elastic.joined(),
    "running": lambda elastic: any(kernel.state == "running" for kernel in kernels(elastic)),
}
"""The steps of a start, and what is true once they are reached.

Nothing is tried with a machine that boots without ever joining Ray. Its autoscaler waits for it for minutes.
"""
VICTIMS = ("service", "service and application", "head", "agent", "node")
PAIRS = [
    (step, victim)
    for step in STEPS
    for victim in VICTIMS
    if step in {"agent": ("running",), "node": ("joined", "running")}.get(victim, STEPS)
]
OWNER = """
import sys
from kit.machine.tiny_kernel import tiny
from roost.scheduler.client.client import connect
connect("ray").start(tiny(gpus=1)).result(600)
sys.stdin.read()
"""


def kernels(elastic: Elastic) -> list[Any]:
    return list(elastic.client.kernels().result(allow_s(30)))


@pytest.fixture(scope="module", params=["second", "first"])
def elastic_cluster(request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    with grown_by_kernels(
        module_runtime_dir, is_second=request.param == "second", keeps_state=True
    ) as cluster:
        yield cluster


@pytest.mark.timeout(300 + 300 * ROUNDS)
@pytest.mark.parametrize(("step", "victim"), PAIRS)
def test_kills(elastic_cluster: ElasticRaylets, module_runtime_dir: Path, step: str, victim: str) -> None:
    for _ in range(ROUNDS):
        run_round(Elastic(elastic_cluster), module_runtime_dir, step, victim)


def run_round(elastic: Elastic, home: Path, step: str, victim: str) -> None:
    assert (elastic.groups(), elastic.raylets()) == ([], [])
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    with subprocess.Popen([sys.executable, "-c", OWNER], env=environment, stdin=subprocess.PIPE) as owner:
        try:
            has_come = STEPS[step]
            until_blocking(
                lambda: has_come(elastic) or owner.poll() is not None, f"the step {step}", 120, 0.1
            )
            assert owner.poll() is None, "the start has failed"
            if victim == "service and application":
                elastic.close()
                disconnect()
                owner.kill()
            kill_part(elastic, home, victim)
            killed_at = time.monotonic()
            what = see_end(elastic, step, victim)
            print(f"\n{step}, {victim}: {what} after {time.monotonic() - killed_at:.1f} s")
        finally:
            owner.kill()
    if victim == "service and application":
        if step != "running":
            assert daemon_pids(home, "scheduler") == [], "a service has come back"
        elastic.client = connect("ray")
    for kernel in kernels(elastic):
        elastic.client.stop(kernel.id).result(allow_s(60))
    ended_at = time.monotonic()
    until_blocking(lambda: not elastic.groups(), "the groups are removed", NOBODY_S, 0.1)
    groups_s = time.monotonic() - ended_at
    until_blocking(lambda: not elastic.raylets(), "the machines end", IDLE_S + NOBODY_S, 0.1)
    print(f"no group after {groups_s:.1f} s, no node after {time.monotonic() - ended_at:.1f} s", flush=True)
    elastic.close()


def kill_part(elastic: Elastic, home: Path, victim: str) -> None:
    if victim.startswith("service"):
        (pid,) = daemon_pids(home, "scheduler")
        kill(pid)
        return
    if victim == "head":
        elastic.cluster.kill_head()
        elastic.cluster.restart_head()
        return
    agents = [each for each in elastic.cluster.processes() if "roost.launchers.agent.main" in each.cmdline()]
    for process in agents if victim == "agent" else elastic.raylets():
        kill(process.pid)


def see_end(elastic: Elastic, step: str, victim: str) -> str:
    """Wait for what must follow the kill of a part, and say what it was."""
    if victim == "service and application":
        if step == "running":
            time.sleep(5)
            assert elastic.groups(), "a kernel has lost its lease, though only nobody watches"
            return "the kernel lives"
        until_blocking(lambda: not elastic.groups(), "the group is removed", NOBODY_S, 0.1)
        return "no group"
    if (step, victim) == ("running", "node"):
        until_blocking(lambda: not elastic.groups(), "the group is removed", NOBODY_S, 0.1)
        return "no group"
    until_blocking(
        lambda: any(kernel.state == "running" for kernel in kernels(elastic)), "the kernel runs", 180, 0.1
    )
    return "the kernel runs"
