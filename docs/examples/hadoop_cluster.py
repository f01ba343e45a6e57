"""The YARN cluster of the tour: a real ResourceManager and three NodeManagers on this machine."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

_LEAVES_S = 30.0
_POLL_S = 0.2


def why_not() -> str | None:
    """Return why no cluster can start here, in one sentence, or None."""
    if importlib.util.find_spec("yarn_api_client") is None:
        return "Python packages are missing: pip install yarn-api-client"
    from kit.clusters.hadoop_nodes import why_not as why_no_hadoop

    return why_no_hadoop()


class HadoopCluster:
    """A cluster of `tests/kit/clusters/hadoop_nodes`. `address` is the folder of a client's configuration."""

    def __init__(self) -> None:
        from kit.clusters.hadoop_nodes import MACHINES, HadoopNodes

        self.machines = MACHINES
        self._nodes = HadoopNodes(*MACHINES)
        self._is_up = False

    @property
    def folder(self) -> Path:
        return self._nodes.folder

    @property
    def address(self) -> str:
        return str(self._nodes.configuration)

    @property
    def addresses(self) -> list[str]:
        """The addresses of the nodes, which are their names in YARN."""
        return [self._nodes.address_of(name) for name in self._nodes.machines]

    def __enter__(self) -> HadoopCluster:
        self._nodes.__enter__()
        self._is_up = True
        return self

    def close(self) -> None:
        """End the cluster with all of its processes. May be repeated."""
        if self._is_up:
            self._is_up = False
            self._nodes.close()

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return roost's settings for this cluster. The service's keys are a file in `folder`."""
        return {
            "address": self.address,
            "python": sys.executable,
            "gpus_per_node": max(machine.gpus for machine in self.machines),  # none is real
            "identity_file": str(folder / "keys" / "identity.json"),
        }

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the cluster, those in containers too."""
        return self._nodes.processes()

    def kernel_processes(self) -> list[psutil.Process]:
        """Return the processes in containers of kernels: all but the first container of each application."""
        containers = self._nodes.container_processes()
        return [each for each in containers if not each.environ()["CONTAINER_ID"].endswith("_000001")]

    def await_applications(self) -> list[str]:
        """Wait until all applications have ended by themselves. Return a line for each application that is left."""
        give_up_at = time.monotonic() + _LEAVES_S
        while (left := self._nodes.applications()) and time.monotonic() < give_up_at:
            time.sleep(_POLL_S)
        return [f"{row['id']} is {row['state']}" for row in left]

    def leftovers(self) -> list[str]:
        """Return the processes that are left of the cluster after its end."""
        return [str(process.pid) for process in self.processes()]


ASK = """
import json, sys, time, urllib.request
import xml.etree.ElementTree as xml
rows = xml.parse(sys.argv[1] + "/yarn-site.xml").iter("property")
host = {row.findtext("name"): row.findtext("value") for row in rows}["yarn.resourcemanager.hostname"]
end = time.monotonic() + 20
while True:
    with urllib.request.urlopen(f"http://{host}:8088/ws/v1/cluster/nodes", timeout=10) as reply:
        nodes = json.load(reply)["nodes"]["node"]
    with urllib.request.urlopen(f"http://{host}:8088/ws/v1/cluster/apps?states=RUNNING", timeout=10) as reply:
        apps = (json.load(reply)["apps"] or {"app": []})["app"]
    containers = sum(node["numContainers"] for node in nodes) - len(apps)
    if containers <= 0 or time.monotonic() > end:
        break
    time.sleep(0.2)
print(json.dumps([f"{containers} containers"] if containers > 0 else []))
"""
"""A program that prints how many containers are left, as a JSON list, without those of application masters."""
