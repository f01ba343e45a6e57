"""SSH hosts fail again and again under live kernels (see `cluster_outages`)."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from kit.clusters.outages import ROUNDS, SEED, TIMEOUT_S, ClusterOutages, Repair
from kit.clusters.ssh.faults import SshWorld, kill_process, on_host
from kit.jupyter.notebook import Notebook

HOST = "n3"
"""The host that tests turn off and cut. The kernel with a GPU is on another one."""


class Outages(ClusterOutages):
    world: SshWorld
    faults = {
        "service": 3,
        "agent": 3,
        "sshd": 2,
        "sessions": 2,
        "ssh": 2,
        "kernel": 1,
        "cut": 3,
        "cut of the other host": 1,
        "off": 2,
    }
    ends_victim = ("kernel",)
    ends_spare = ("off",)
    first = ("kernel",)
    covers = {"off": ("cut",), "kernel": ("off",)}
    spare = on_host(HOST)
    back_s = 90.0

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        """Return the agent of a kernel, and the kernel."""
        name = (await self.world.kernel_of(notebook)).node_id
        return [*self.world.agents(name), self.world.process_of(notebook, name)]

    async def break_part(self, fault: str, victim: Notebook, processes: list[psutil.Process]) -> Repair:
        world, hosts = self.world, self.world.hosts
        other = self.dice.choice([name for name in hosts.names if name != HOST])
        if fault == "service":
            world.kill_service()
        elif fault == "agent":
            for process in processes[:-1]:
                kill_process(process)
        elif fault == "kernel":
            kill_process(processes[-1])
        elif fault == "cut":
            hosts.cut(HOST)
            return lambda: hosts.mend(HOST)
        elif fault == "cut of the other host":
            hosts.cut(other)
            return lambda: hosts.mend(other)
        elif fault == "off":
            await asyncio.to_thread(hosts.off, HOST)
            return lambda: hosts.on(HOST)
        else:
            self._kill(fault)
        return None

    def _kill(self, fault: str) -> None:
        """Kill the ssh processes here, the sshd processes that listen on the hosts, or those of sessions."""
        hosts, user = self.world.hosts, self.world.user
        if fault == "ssh":
            found = self.world.contacts()
        elif fault == "sshd":
            found = hosts.processes(user="root")
        else:
            found = [each for each in hosts.processes(user=user) if each.name().startswith("sshd")]
        for process in found:
            kill_process(process)


@pytest.mark.long
@pytest.mark.timeout(TIMEOUT_S)
async def test_outages(ssh_world: SshWorld) -> None:
    print(f"ROOST_OUTAGES={ROUNDS} ROOST_OUTAGES_SEED={SEED}", flush=True)
    await Outages(ssh_world).run()
