"""An engine and its containers fail again and again under live kernels (see `cluster_outages`)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psutil
import pytest

from kit.clusters.docker.faults import DockerWorld
from kit.clusters.outages import ROUNDS, SEED, TIMEOUT_S, ClusterOutages, Repair
from kit.jupyter.notebook import Notebook

KILL = "import os, sys; os.kill(int(sys.argv[1]), 9)"


class Outages(ClusterOutages):
    world: DockerWorld
    faults = {
        "service": 3,
        "kernel": 2,
        "container killed": 2,
        "container stopped": 1,
        "container removed": 2,
        "container paused": 2,
        "engine": 3,
    }
    ends_victim = ("kernel", "container killed", "container stopped", "container removed")
    first = ("kernel", "container killed", "container stopped", "container removed")
    covers = {
        "engine": ("container paused",),  # it could not be resumed
        "container removed": ("kernel", "container killed", "container stopped", "container paused"),
        "container stopped": ("kernel", "container killed", "container paused"),
        "container killed": ("kernel", "container paused"),
        "kernel": ("container paused",),
    }
    back_s = 90.0

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        return []  # the engine is asked for each of them

    def must_end(self, notebook: Notebook, victim: Notebook, faults: Sequence[str]) -> bool:
        """Return whether these faults end this kernel. Docker's engine ends all kernels when it starts again."""
        with_engine = "engine" in faults and self.world.engine.program == "dockerd"
        return with_engine or super().must_end(notebook, victim, faults)

    async def break_part(self, fault: str, victim: Notebook, processes: list[psutil.Process]) -> Repair:
        engine = self.world.engine
        if fault == "service":
            self.world.kill_service()
            return None
        if fault == "engine":
            await asyncio.to_thread(engine.kill)
            return engine.start
        container = await self.world.container(victim)
        if fault == "kernel":
            pid = await victim.value("__import__('os').getpid()")
            await asyncio.to_thread(engine.run, "exec", container, "python3", "-c", KILL, pid)
        elif fault == "container killed":
            await asyncio.to_thread(engine.run, "kill", container)
        elif fault == "container stopped":
            await asyncio.to_thread(engine.run, "stop", container)
        elif fault == "container removed":
            await asyncio.to_thread(engine.run, "rm", "--force", container)
        else:
            await asyncio.to_thread(engine.run, "pause", container)
            return lambda: engine.run("unpause", container)
        return None


class PodmanOutages(Outages):
    usual = {"cpus": 0.1}  # it gives no GPUs


class RootlessOutages(PodmanOutages):
    faults = {name: count for name, count in Outages.faults.items() if name != "container paused"}
    """Without control groups, Podman pauses no container."""


KINDS = {"docker_engine": Outages, "podman_engine": PodmanOutages, "rootless_engine": RootlessOutages}


@pytest.fixture(params=KINDS)
def engine_of_world(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.fault_long
@pytest.mark.timeout(TIMEOUT_S)
async def test_outages(engine_of_world: str, docker_world: DockerWorld) -> None:
    print(f"{engine_of_world}: ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    await KINDS[engine_of_world](docker_world).run()
