"""The GCS of a real Ray cluster is killed again and again under live kernels: none is lost, nothing is promised twice.

ROOST_OUTAGES is the number of rounds. ROOST_OUTAGES_SEED repeats the rounds of an earlier run, which prints its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, settle
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.private_files import read_json
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.errors import BackendUnavailable
from roost.testing.clusters.raylets import Machine, Raylets, processes, why_not
from roost.testing.deadlines import allow_s, until
from roost.testing.leftovers import VARIABLE

ROUNDS = int(os.environ.get("ROOST_OUTAGES", "6"))
SEED = int(os.environ.get("ROOST_OUTAGES_SEED") or random.randrange(10_000))
GRACE_S = 75.0
"""How long kernels wait for Ray: longer than any raylet is away, and shorter than the whole test."""
GIVE_UP_S = 5
"""How long Ray's processes wait for a GCS that is gone."""
BACK_S = 60.0

MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="T4"),
    Machine(cpus=4, gpus=2, gpu_model="A100"),
    Machine(cpus=2, labels={"zone": "b"}),
)
KERNELS: tuple[dict[str, Any], ...] = (
    {
        "gpus": 1,
        "gpu_models": ["T4"],
    },  # ends before the first round, so that the next kernel has Ray's second device
    {"gpus": 0.5, "gpu_models": ["T4"]},
    {"gpus": 0.5, "gpu_models": ["A100"]},
    {"gpus": 0.25, "gpu_models": ["A100"]},
    {"cpus": 0.5, "gpus": 1, "gpu_models": ["A100"]},
    {"cpus": 0.5},
)
IDLE = {"zone": "b"}
"""The labels of the node without a kernel. This node's agent must notice its new raylet too."""

LOOK = """
import json, sys
import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import get_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

ray.init(address=sys.argv[1], namespace="roost", log_to_driver=False, configure_logging=False)

@ray.remote(num_cpus=0, max_calls=0)
def devices():
    return [str(device) for device in ray.get_gpu_ids()]

groups, asked = {}, {}
for entry in placement_group_table().values():
    if entry["state"] != "REMOVED":
        name, (bundle,) = entry["name"], entry["bundles"].values()
        groups[name] = [entry["state"], bundle, []]
        if entry["state"] == "CREATED" and bundle.get("GPU"):
            strategy = PlacementGroupSchedulingStrategy(get_placement_group(name))
            asked[name] = devices.options(num_gpus=bundle["GPU"], scheduling_strategy=strategy).remote()
for name, reference in asked.items():
    done, _ = ray.wait([reference], timeout=5)
    groups[name][2] = ray.get(done[0]) if done else ["no answer"]
free = available_resources_per_node()
nodes = {
    node["NodeManagerAddress"]: [node["Resources"].get("GPU", 0), free[node["NodeID"]].get("GPU", 0)]
    for node in ray.nodes()
    if node["Alive"]
}
print(json.dumps([groups, nodes]))
"""


class Held(Notebook):
    """A kernel that must keep its variable and its devices."""

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__("roosted")
        self.manager.kernel_spec_manager = kernelspecs(folder, config={"backend": "ray", **KERNELS[number]})
        self.number = number
        self.devices = ""

    async def begin(self) -> None:
        await self.open()
        await self.run(f"import os; mine = {self.number}")
        self.devices = (await self.value("os.environ['CUDA_VISIBLE_DEVICES']")).strip("'")

    async def is_kept(self) -> None:
        said = await self.value("(mine, os.environ['CUDA_VISIBLE_DEVICES'])")
        assert said == repr((self.number, self.devices)), KERNELS[self.number]
        assert await self.manager.is_alive(), f"{KERNELS[self.number]} is said to have ended"


class Outages:
    """Rounds of outages of one cluster with kernels. The random generator `dice` chooses the faults."""

    def __init__(self, cluster: Raylets, home: Path, notebooks: list[Held]) -> None:
        self.cluster = cluster
        self.notebooks = notebooks
        self.dice = random.Random(SEED)
        self._home = home

    async def round(self, number: int) -> None:
        """Run one outage and check the recovery. Print each step."""
        dice, cluster = self.dice, self.cluster
        is_kept, is_short = dice.random() < 0.6, dice.random() < 0.4
        say(f"\nround {number}: state {'kept' if is_kept else 'lost'}, {'short' if is_short else 'long'}")
        addresses = [node.address for node in cluster.nodes]
        spared = dice.choice([*addresses, ""])
        cluster.kill_gcs()
        gone_at = time.monotonic()
        for address in addresses:
            is_hit = address != spared and dice.random() < 0.7
            # A raylet that meets the directory of another cluster ends by itself. Its node has then left for good.
            if is_hit or (is_short and not is_kept):
                with contextlib.suppress(Exception):
                    cluster.kill_raylet(address)
                say(f"raylet {address} killed")
        if dice.random() < 0.5:
            kill(*daemon_pids(self._home, "scheduler"))
            say("service killed")
        if dice.random() < 0.4:
            victim = dice.choice(daemon_pids(self._home / "node", "agent"))
            kill(victim)
            say(f"agent {victim} killed")
        await self.values_are_kept()
        await asyncio.sleep(
            max(0.0, gone_at + (2 if is_short else GIVE_UP_S + dice.uniform(4, 8)) - time.monotonic())
        )
        head = addresses[0]
        if is_kept:
            await asyncio.to_thread(cluster.restart_gcs)
        else:
            shutil.rmtree(cluster.folder / "gcs", ignore_errors=True)
            await asyncio.to_thread(cluster.start_again, head)
        await asyncio.sleep(3)  # the living raylets find the directory again, or end
        dead = [address for address in addresses if not self._lives(address)]
        dice.shuffle(dead)
        delays = {address: dice.uniform(0, 10) for address in dead}
        if dead and dice.random() < 0.4:
            delays[dead[-1]] = 25.0
        say("back after " + ", ".join(f"{address} {delay:.1f} s" for address, delay in delays.items()))
        began = time.monotonic()
        for address, delay in sorted(delays.items(), key=lambda pair: pair[1]):
            await asyncio.sleep(max(0.0, began + delay - time.monotonic()))
            await asyncio.to_thread(cluster.start_again, address)
        back_at = time.monotonic()
        await self.is_whole()
        say(f"whole {time.monotonic() - back_at:.1f} s after the last")

    async def is_whole(self) -> None:
        """Wait until Ray holds all leases again. The error after `BACK_S` has the problems."""
        wrong: list[str] = []

        async def is_right() -> bool:
            nonlocal wrong
            wrong = await self._not_yet() or await self._not_in_ray()
            return not wrong

        await until(is_right, lambda: f"Ray holds all leases again: {wrong}", BACK_S, 0.5)
        await self.values_are_kept()
        for asked in ({"cpus": 0.5}, {"gpus": 0.25}, {"labels": IDLE}):
            await self._nothing_is_promised_twice()
            kernel = await service().start(tiny(**asked))
            await self._nothing_is_promised_twice()
            await service().stop(kernel.id, grace_s=0)

    async def values_are_kept(self) -> None:
        await asyncio.gather(*(notebook.is_kept() for notebook in self.notebooks))

    async def _not_yet(self) -> list[str]:
        """Return the problems that must end: raylets without an agent, missing nodes, and kernels that do not run."""
        wrong = []
        raylets = {node.raylet_pid for node in self.cluster.nodes}
        if untold := raylets - self._told():
            wrong.append(f"no agent was told of the raylets {untold}")
        try:
            kernels = {kernel.id: kernel for kernel in await service().kernels()}
            nodes = await service().nodes()
        except BackendUnavailable as problem:
            return [*wrong, str(problem)]
        if len(nodes) != len(MACHINES):
            wrong.append(f"{len(nodes)} nodes")
        for notebook in self.notebooks:
            kernel = kernels.get(notebook.manager.kernel_id)
            if kernel is None or kernel.state != "running":
                state = kernel.state if kernel else "gone"
                wrong.append(f"kernel {KERNELS[notebook.number]} is {state}")
        return wrong

    async def _not_in_ray(self) -> list[str]:
        """Return the kernels, placement groups and nodes for which Ray and roost differ in groups, devices or GPUs."""
        command = [sys.executable, "-c", LOOK, self.cluster.address]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=allow_s(100)
        )
        if done.returncode:
            return [done.stderr[-1000:]]
        (said_last,) = [
            line for line in done.stdout.splitlines() if line.startswith("[{")
        ]  # Ray prints as well
        groups, nodes = json.loads(said_last)
        kernels = {kernel.id: kernel for kernel in await service().kernels()}
        used: Counter[str] = Counter()
        wrong, expected = [], set()
        for notebook in self.notebooks:
            kernel = kernels[notebook.manager.kernel_id]
            (name,) = [name for name in groups if name.startswith(f"{kernel.lease_id} for ")] or [""]
            state, bundle, devices = groups.get(name, ["GONE", {}, []])
            said = (state, ",".join(devices), ",".join(kernel.device_ids), f"node:{kernel.node_id}" in bundle)
            if said != ("CREATED", notebook.devices, notebook.devices, True):
                wrong.append(f"kernel {KERNELS[notebook.number]} on {notebook.devices}: {said}")
            used[kernel.node_id] += bundle.get("GPU", 0)
            expected.add(name)
        wrong += [f"group {name}" for name in groups.keys() - expected]
        for node_id, (total, free) in nodes.items():
            if abs(total - free - used[node_id]) > 1e-6:
                wrong.append(f"{node_id} has {free} of {total} GPUs free, {used[node_id]} are used")
        return wrong

    async def _nothing_is_promised_twice(self) -> None:
        """Check that no device has more than 100 % in roost's list of kernels or in its list of nodes."""
        shares: Counter[tuple[str, str]] = Counter()
        for kernel in await service().kernels():
            for device in kernel.device_ids:
                shares[kernel.node_id, device] += min(1.0, kernel.request.gpus)
        assert max(shares.values()) <= 1 + 1e-9, shares
        for node in await service().nodes():
            assert all(device["promised"] <= 1 + 1e-9 for device in node["devices"]), node
            assert node["gpus_promised"] <= len(node["devices"]) + 1e-9, node

    def _lives(self, address: str) -> bool:
        (pid,) = [node.raylet_pid for node in self.cluster.nodes if node.address == address]
        return any(process.pid == pid for process in processes(self.cluster.folder))

    def lost(self) -> list[str]:
        """Return the log lines of agents that gave up leases."""
        logs = [file.read_text().splitlines() for file in (self._home / "node").glob("agent-ray-*/log*")]
        return [line for lines in logs for line in lines if "leases are lost" in line]

    def _told(self) -> set[int]:
        """Return the pids of the raylets that agents watch."""
        known = [read_json(file) for file in (self._home / "node").glob("agent-ray-*/manager.json")]
        return {daemon["pid"] for watched in known if watched for daemon in watched["managers"]}


def say(text: str) -> None:
    print(text, end=", ", flush=True)


def service() -> Client:
    return connect("ray")


@pytest.fixture
def patient_runtime_dir(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a runtime folder. Kernels wait GRACE_S for Ray, and Ray's drivers wait GIVE_UP_S for a missing GCS."""
    settings = {"RoostRayBackend": {"manager_grace_s": GRACE_S}}
    (tmp_path / "jupyter_roost_config.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", str(GIVE_UP_S))
    yield runtime_dir
    disconnect()
    settle(runtime_dir)


@pytest.mark.long
@pytest.mark.timeout(300 + 180 * ROUNDS)
async def test_outages(patient_runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_not():
        pytest.skip(reason)
    print(f"ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    environment = {
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(GIVE_UP_S),
        VARIABLE: f"{patient_runtime_dir}/node",
    }
    with Raylets(*MACHINES, keeps_state=True, environment=environment) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        await service().up()
        notebooks = [Held(number, tmp_path / str(number)) for number in range(len(KERNELS))]
        try:
            for notebook in notebooks:
                await notebook.begin()
            await notebooks.pop(0).close()
            outages = Outages(cluster, patient_runtime_dir, notebooks)
            await outages.is_whole()
            for number in range(ROUNDS):
                await outages.round(number + 1)
            await asyncio.sleep(GRACE_S + 5)  # nothing runs out later
            await outages.is_whole()
            assert outages.lost() == []
        except BaseException:
            for file in (
                *patient_runtime_dir.glob("scheduler*/log*"),
                *patient_runtime_dir.glob("node/agent*/log*"),
            ):
                print(f"--- {file}", *file.read_text().splitlines()[-60:], sep="\n")
            raise
        finally:
            for notebook in notebooks:
                await notebook.close()
        assert await service().kernels() == []
