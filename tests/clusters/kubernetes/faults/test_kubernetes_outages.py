"""Parts of a Kubernetes cluster fail again and again under live kernels (see `cluster_outages`)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import psutil
import pytest

from kit.clusters.faults import show_logs
from kit.clusters.kubelets import Kubelets, why_not
from kit.clusters.kubernetes.faults import MACHINES, SPARE, KubernetesWorld, prepare
from kit.clusters.outages import ROUNDS, SEED, TIMEOUT_S, ClusterOutages, Repair
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from roost.scheduler.client.client import disconnect


class Outages(ClusterOutages):
    world: KubernetesWorld
    faults = {
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
    ends_victim = ("agent", "pod", "all processes")
    ends_spare = ("node off",)
    first = ("pod",)
    covers = {"node off": ("kubelet", "containerd", "node cut off")}
    spare = {"labels": SPARE}
    back_s = 120.0
    """How long a recovery may take. Kubernetes itself takes a minute after its API server was away."""

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        return await self.world.processes(notebook)

    async def break_part(self, fault: str, victim: Notebook, processes: list[psutil.Process]) -> Repair:
        world, cluster = self.world, self.world.cluster
        if fault == "service":
            world.kill_service()
        elif fault == "agent":
            processes[0].kill()
        elif fault == "all processes":
            for process in processes:
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


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
async def test_outages(
    runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private_environment: None
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    print(f"ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    with Kubelets(*MACHINES) as cluster:
        prepare(cluster)
        world = KubernetesWorld(cluster, runtime_dir, tmp_path, monkeypatch, watch_timeout_s=5.0)
        with world.proxy:
            try:
                with show_logs(runtime_dir):
                    await Outages(world).run()
                    await world.close()
            finally:
                disconnect()
                settle(runtime_dir)
