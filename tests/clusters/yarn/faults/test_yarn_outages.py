"""Parts of a YARN cluster fail again and again under live kernels (see `cluster_outages`)."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from kit.clusters.faults import until
from kit.clusters.hadoop_nodes import PARTITION
from kit.clusters.outages import ROUNDS, SEED, TIMEOUT_S, ClusterOutages, Repair
from kit.clusters.yarn.application_master import YarnMaster
from kit.clusters.yarn.faults import MACHINES, SPARE, OpenYarnWorld, YarnWorld, signal_all
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import wait_gone
from roost.scheduler.backends.yarn.master.messages import Resources

EXPIRY_S = 40.0
"""How long YARN waits for a silent node. A killed NodeManager is back sooner, even on a busy machine."""
BACK_S = 120.0


class Outages(ClusterOutages):
    world: YarnWorld
    faults = {
        "service": 3,
        "agent": 2,
        "container ended by hand": 2,
        "all processes": 1,
        "master": 3,
        "ResourceManager": 3,
        "NodeManager": 3,
        "node frozen": 2,
        "node lost": 1,
        "node off": 1,
        "queue full": 2,
    }
    ends_victim = ("agent", "container ended by hand", "all processes")
    ends_spare = ("node lost", "node off")
    first = ("container ended by hand", "master", "queue full")
    covers = {
        # A ResourceManager that is started again does not know the node.
        "node lost": ("ResourceManager", "NodeManager", "node frozen", "node off"),
        "node off": ("NodeManager", "node frozen"),
    }
    spare = SPARE
    back_s = BACK_S

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        return await asyncio.to_thread(self.world.processes, notebook)

    async def until_settled(self) -> None:
        """Wait until YARN knows all containers. Before that, a container would end with its master."""
        await self.world.until_known(*self.notebooks)

    async def break_part(self, fault: str, victim: Notebook, processes: list[psutil.Process]) -> Repair:
        world, cluster = self.world, self.world.cluster
        if fault == "service":
            world.kill_service()
        elif fault == "agent":
            signal_all(processes[:1], signal.SIGKILL)
        elif fault == "all processes":
            signal_all(processes, signal.SIGKILL)
        elif fault == "container ended by hand":
            world.end_container(victim)
            assert await asyncio.to_thread(wait_gone, processes[0].pid)
        elif fault == "master":
            await asyncio.to_thread(world.kill_masters)
        elif fault == "queue full":
            return await self._fill()
        elif fault == "node frozen":
            return self._freeze()
        elif fault == "node lost":
            cluster.pause("nm3")
            return self._lose
        elif fault == "node off":
            await asyncio.to_thread(cluster.power_off, "nm3")
            return lambda: self._start("nm3")
        else:
            daemon = "rm1" if fault == "ResourceManager" else self.dice.choice(list(cluster.machines))
            await asyncio.to_thread(cluster.kill, daemon)
            return lambda: self._start(daemon)
        return None

    def _start(self, daemon: str) -> None:
        if not self.world.cluster.runs(daemon):  # two faults may have ended it
            self.world.cluster.start(daemon)

    async def _fill(self) -> Repair:
        """Let another application ask for all that is free on the spare node."""
        other = YarnMaster(self.world.cluster, self.world.folder)
        other.submit()
        await other.connect()
        for _ in range(MACHINES[-1].vcores):
            await other.ask(resources=Resources(memory_mb=128, vcores=1), label=PARTITION)
        await other.close()
        return lambda: asyncio.run(self._empty(other.application))

    async def _empty(self, application: str) -> None:
        def has_ended() -> bool:
            self.world.end_application(application)
            return application not in [row["id"] for row in self.world.cluster.applications()]

        await until(has_ended, "the other application ends", BACK_S)

    def _freeze(self) -> Repair:
        """Stop all processes of the spare node. The ResourceManager does not notice this within a round."""
        cluster = self.world.cluster
        processes = cluster.container_processes("nm3")
        cluster.pause("nm3")
        signal_all(processes, signal.SIGSTOP)

        def thaw() -> None:
            signal_all(processes, signal.SIGCONT)
            cluster.resume("nm3")

        return thaw

    def _lose(self) -> None:
        self.world.cluster.await_node("nm3", "LOST")
        self.world.cluster.resume("nm3")


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
async def test_outages(open_yarn_world: OpenYarnWorld, tmp_path: Path) -> None:
    print(f"ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    expiry = {"yarn.nm.liveness-monitor.expiry-interval-ms": int(EXPIRY_S * 1000)}
    async with open_yarn_world(expiry, *MACHINES) as world:
        await Outages(world).run()
