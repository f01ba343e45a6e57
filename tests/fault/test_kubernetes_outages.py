"""Parts of a Kubernetes cluster fail again and again under live kernels: only what must end ends, and nothing is left.

ROOST_OUTAGES is the number of rounds. ROOST_OUTAGES_SEED repeats the rounds of an earlier run, which prints its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cluster_world import assert_plain, say, show_logs, until
from kubelets import Kubelets, why_not
from kubernetes_world import MACHINES, SPARE, World, prepare
from notebook import Notebook
from world import settle

from roost.scheduler.client.client import disconnect
from roost.scheduler.errors import RoostError, UnknownKernel

ROUNDS = int(os.environ.get("ROOST_OUTAGES", "6"))
SEED = int(os.environ.get("ROOST_OUTAGES_SEED") or random.randrange(10_000))
BACK_S = 120.0
"""How long the cluster may take to be whole. Kubernetes itself takes a minute after its API server was away."""
FAULTS = {
    "service": 3,
    "agent": 2,
    "pod": 2,
    "all processes": 1,
    "kubelet": 2,
    "containerd": 2,
    "apiserver": 2,
    "watch": 2,
    "node cut off": 2,
    "node off": 1,
}
"""The faults, and how often each is chosen."""
_ENDS = ("agent", "pod", "all processes", "node off")
"""The faults that end their kernel."""
_OF_NODE = ("kubelet", "containerd", "node cut off")
"""The faults of a node that is on."""


class Outages:
    """Kernels on both nodes. `dice` chooses the faults."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = random.Random(SEED)
        self.notebooks: list[Notebook] = []

    async def begin(self) -> None:
        for config in ({"gpus": 1}, {"labels": SPARE}):
            self.notebooks.append(await self.world.open(**config))

    async def round(self, number: int) -> None:
        """Let one or two things fail at once, perhaps while a kernel starts, and check the recovery."""
        dice = self.dice
        faults = dice.sample(list(FAULTS), counts=list(FAULTS.values()), k=dice.choice((1, 1, 2)))
        if "node off" in faults:
            faults = [fault for fault in faults if fault not in _OF_NODE]
        # First the faults that need the API server.
        faults = sorted(dict.fromkeys(faults), key=lambda fault: fault != "pod")
        is_starting = dice.random() < 0.5
        say(f"round {number}: {' and '.join(faults)}{', while a kernel starts' if is_starting else ''}")
        starting = self.world.notebook(labels=SPARE) if is_starting else None
        opening = asyncio.create_task(starting.open()) if starting else None
        if opening:
            await asyncio.sleep(dice.uniform(0, 2.5))
        down_s, victim = dice.uniform(0.5, 12), dice.choice(self.notebooks)
        pods = {notebook: await self.world.processes(notebook) for notebook in self.notebooks}
        repairs = [await self._break(fault, victim, pods[victim]) for fault in faults]
        await asyncio.sleep(down_s if any(repairs) else 1)
        for repair in filter(None, repairs):
            await asyncio.to_thread(repair)
        began = time.monotonic()
        for notebook in self.notebooks:
            is_on_spare = notebook is self.notebooks[1]
            must_end = (notebook is victim and set(faults) & set(_ENDS[:3])) or (
                is_on_spare and "node off" in faults
            )
            await (self._has_ended(notebook, faults) if must_end else self._is_kept(notebook))
        if starting and opening:
            await self._outcome(starting, opening)
        await self.world.has_room(labels=SPARE, within_s=BACK_S)
        await self.world.has_room(gpus=1, within_s=BACK_S)
        await until(lambda: len(self.world.pods()) == 2, "a pod is left", BACK_S)
        await self.world.lives(*self.notebooks)
        say("whole after", began)

    async def _break(
        self, fault: str, victim: Notebook, processes: list[psutil.Process]
    ) -> Callable[[], None] | None:
        """Let something fail. Return how to repair it, if that does not happen by itself."""
        world, cluster = self.world, self.world.cluster
        if fault == "service":
            world.kill_service()
        elif fault in ("agent", "all processes"):
            for process in processes[:1] if fault == "agent" else processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        elif fault == "pod":
            world.delete_pod(await world.pod(victim))
        elif fault == "watch":
            world.proxy.swallow()
        elif fault in ("kubelet", "containerd", "apiserver"):
            part = fault if fault == "apiserver" else f"n2/{fault}"
            await asyncio.to_thread(cluster.kill, part)
            return lambda: cluster.start(part)
        elif fault == "node cut off":
            cluster.cut("n2")
            return lambda: cluster.reconnect("n2")
        elif fault == "node off":
            await asyncio.to_thread(cluster.power_off, "n2")
            return lambda: cluster.power_on("n2")
        return None

    async def _is_kept(self, notebook: Notebook) -> None:
        assert await notebook.value("mine") == "42"

    async def _has_ended(self, notebook: Notebook, faults: list[str]) -> None:
        """Wait until the owner reads why the kernel has ended, and restart it."""
        began = time.monotonic()
        try:
            reason = await self.world.ended(notebook, BACK_S)
        except UnknownKernel as problem:  # the service was away until the pod was gone
            if "service" not in faults:
                raise
            reason = problem.user_message
        say(f"{reason!r} after", began)
        config = {"labels": SPARE} if notebook is self.notebooks[1] else {"gpus": 1}
        await self.world.has_room(within_s=BACK_S, **config)
        await self.world.restart(notebook)

    async def _outcome(self, starting: Notebook, opening: asyncio.Task[None]) -> None:
        """A start under a fault succeeds or fails with one plain sentence. Its kernel is closed."""
        try:
            await asyncio.wait_for(opening, BACK_S)
        except RoostError as problem:
            say(f"the start failed: {problem.user_message}")
            assert_plain(problem.user_message)
        else:
            await self._is_kept_or_ended(starting)
        self.world.opened.remove(starting)

    async def _is_kept_or_ended(self, notebook: Notebook) -> None:
        kernel = await self.world.kernel_of(notebook)
        if kernel.state == "exited":
            assert_plain(kernel.reason)
        else:
            assert await notebook.value("1 + 1") == "2"
        await notebook.close()


@pytest.mark.fault_long
@pytest.mark.timeout(300 + 180 * ROUNDS)
async def test_outages(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_environment: None
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    print(f"ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    with Kubelets(*MACHINES) as cluster:
        prepare(cluster)
        world = World(cluster, runtime_dir, tmp_path, monkeypatch, watch_timeout_s=5.0)
        with world.proxy:
            try:
                with show_logs(runtime_dir):
                    outages = Outages(world)
                    await outages.begin()
                    for number in range(ROUNDS):
                        await outages.round(number + 1)
                    await world.close()
            finally:
                disconnect()
                settle(runtime_dir)
