"""Kernels on a YARN cluster whose daemons fail, and the checks that follow each fault."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.clusters.faults import ClusterWorld, read_name, show_logs, until
from kit.clusters.hadoop_nodes import PARTITION, HadoopNodes, Machine
from kit.clusters.yarn.shared_cluster import assert_nothing_left, cluster_settings, container_of, in_use
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import settle
from kit.machine.tcp_proxy import TcpProxy
from roost.scheduler.client.client import disconnect
from roost.scheduler.messages import Kernel

MACHINES = (
    Machine(vcores=4, gpus=2, gpu_model="T4"),
    Machine(vcores=4),
    Machine(vcores=2, label=PARTITION),
)
"""The nodes of a cluster whose daemons tests kill."""
SPARE = {"options": {"label": PARTITION}}
"""The request of kernels for `nm3`, whose daemon tests kill. Masters run on the other nodes."""
EXPIRY_S = 120.0
"""How long a node may be silent before YARN takes it for lost. A restarted NodeManager may need 20 s."""
TYPE = "roost"
"""The type of roost's applications in YARN."""

_PREEMPTION = "yarn.resourcemanager.monitor.capacity.preemption"
_EXCLUDE = "yarn.resourcemanager.nodes.exclude-path"
_HEALTH = "yarn.nodemanager.health-checker"


def fault_settings(folder: Path) -> dict[str, object]:
    """Return the settings of a cluster for faults. `YarnWorld.exclude` writes node names into a file in `folder`.

    If a node's configuration folder has a file `unhealthy`, the node becomes unhealthy within a second.
    """
    exclude, script = folder / "exclude", folder / "health"
    exclude.touch()
    script.write_text('#!/bin/sh\ntest ! -e "$HADOOP_CONF_DIR/unhealthy" || echo "ERROR the disk is full"\n')
    script.chmod(0o755)
    return {
        "yarn.nm.liveness-monitor.expiry-interval-ms": int(EXPIRY_S * 1000),
        "yarn.resourcemanager.am.max-attempts": 10,
        f"{_PREEMPTION}.monitoring_interval": 1000,
        f"{_PREEMPTION}.max_wait_before_kill": 5000,
        f"{_PREEMPTION}.total_preemption_per_round": 1.0,
        f"{_PREEMPTION}.natural_termination_factor": 1.0,
        _EXCLUDE: exclude,
        f"{_HEALTH}.script.path": script,
        f"{_HEALTH}.interval-ms": 1000,
        f"{_HEALTH}.script.interval-ms": 1000,
    }


class YarnWorld(ClusterWorld):
    """A YARN cluster with roost's service, and its notebooks. The service reaches the web addresses by `proxies`.

    Use it in a `with` block, which opens and closes the proxies.
    """

    clean_s = 60.0
    """How long YARN may take to free the resources of a lost node: until the node has expired or is back."""

    def __init__(
        self, cluster: HadoopNodes, home: Path, folder: Path, patch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        super().__init__("yarn", home, folder, cpus=0.1)
        folder.chmod(0o700)
        self.cluster = cluster
        hosts = {name: cluster.address_of(name) for name in cluster.resource_managers}
        self.proxies = {name: TcpProxy(host, 8088) for name, host in hosts.items()}
        self._open = ExitStack()
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        self.configure(**cluster_settings(cluster, folder))
        addresses = ",".join(f"http://127.0.0.1:{proxy.port}" for proxy in self.proxies.values())
        schedulers = [f"{host}:8030" for host in hosts.values()]
        self.configure(address=addresses, schedulers=schedulers, **settings)

    def __enter__(self) -> YarnWorld:
        for proxy in self.proxies.values():
            self._open.enter_context(proxy)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def held(self) -> dict[str, str]:
        """Return the node of each kernel's container, by the container's id."""
        masters = {master["container"] for master in self.masters()}
        return {
            row["id"]: self.cluster.address_of(node)
            for node in self.cluster.machines
            for row in self.cluster.containers(node)
            if row["id"] not in masters
        }

    def key_of(self, notebook: Notebook, kernel: Kernel) -> str:
        return container_of(notebook.pid)

    def left(self) -> list[str]:
        """Return a line for each thing that ended kernels have left. Masters stay while the service runs."""
        return in_use(self.cluster, but=[master["container"] for master in self.masters()])

    def cpus_of_backend(self) -> dict[str, float]:
        """Return the virtual cores of masters on each node. Each master has one."""
        return dict(Counter(row["amHostHttpAddress"].partition(":")[0] for row in self.masters()))

    def masters(self) -> list[dict[str, Any]]:
        """Return roost's running applications, each with the id of its master's `container`."""
        found = [row for row in self.cluster.applications() if row["applicationType"] == TYPE]
        return [
            {**row, "container": row["amContainerLogs"].split("/")[-2]}
            for row in found
            if row.get("amContainerLogs")
        ]

    def processes(self, notebook: Notebook) -> list[psutil.Process]:
        """Return the processes in a kernel's container, the agent first."""
        return self._processes_in(container_of(notebook.pid))

    def master_processes(self) -> list[psutil.Process]:
        """Return the processes of all masters."""
        return [process for master in self.masters() for process in self._processes_in(master["container"])]

    async def until_known(self, *notebooks: Notebook) -> None:
        """Wait until the ResourceManager knows that these kernels run. Earlier they would end with their master."""
        expected = {container_of(notebook.pid) for notebook in notebooks}
        await until(lambda: expected <= self.cluster.launched(), "YARN knows that the containers run")

    def kill_masters(self) -> None:
        signal_all(self.master_processes(), signal.SIGKILL)

    def set(self, daemon: str, key: str, value: object) -> None:
        """Set a value in the configuration of a daemon, which reads it at its next start."""
        file = self.cluster.layout.configuration(daemon) / "yarn-site.xml"
        row = f"<property><name>{key}</name><value>{value}</value></property>\n</configuration>"
        file.write_text(file.read_text().replace("</configuration>", row))

    def exclude(self, *nodes: str) -> None:
        """Write the nodes that YARN should decommission. `yarn rmadmin -refreshNodes` reads them."""
        file = Path(str(self.cluster.settings[_EXCLUDE]))
        file.write_text("".join(f"{self.cluster.address_of(node)}\n" for node in nodes))

    def end_container(self, notebook: Notebook) -> None:
        """End a kernel's container as an operator does with `yarn container -signal`."""
        container = container_of(notebook.pid)
        path = f"/ws/v1/cluster/containers/{container}/signal/FORCEFUL_SHUTDOWN"
        self.cluster.rest.call("POST", path)

    def end_application(self, application: str) -> None:
        """End an application as an operator does with `yarn application -kill`."""
        path = f"/ws/v1/cluster/apps/{application}/state"
        self.cluster.rest.call("PUT", path, {"state": "KILLED"})

    def end_all(self) -> None:
        """End all masters after the end of their service. Check that nothing of roost is left in YARN."""
        for master in self.masters():
            self.end_application(master["id"])
        assert_nothing_left(self.cluster)

    def _processes_in(self, container: str) -> list[psutil.Process]:
        """Return the processes of a container without the shell that waits for them, the oldest first."""
        found = [
            process
            for process in self.cluster.container_processes(container=container)
            if read_name(process) not in ("bash", "")
        ]
        return sorted(found, key=lambda process: process.create_time())


def signal_all(processes: Sequence[psutil.Process], signum: int) -> None:
    """Send a signal to all live processes, without psutil: it refuses if the clock has jumped since their start."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signum)


@asynccontextmanager
async def opened(world: YarnWorld) -> AsyncIterator[YarnWorld]:
    """Open a world. At the end its notebooks are closed, and nothing of roost is left in YARN."""
    with world:
        try:
            with show_logs(world.home):
                yield world
                await world.close()
        finally:
            disconnect()
            settle(world.home)
            world.end_all()


OpenYarnWorld = Callable[..., AbstractAsyncContextManager[YarnWorld]]
"""The type of the fixture `open_yarn_world`, a function that starts a cluster and opens a `YarnWorld` on it."""
