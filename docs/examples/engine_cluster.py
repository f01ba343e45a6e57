"""The Docker engine of the tour: a real dockerd on this machine, in namespaces and folders of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))


def why_not() -> str | None:
    """Return why no engine can start here, in one sentence, or None."""
    if importlib.util.find_spec("docker") is None:
        return "a Python package is missing: pip install docker"
    from kit.clusters.docker_engine import why_not as why_no_engine

    return why_no_engine()


class EngineCluster:
    """An engine of `tests/kit/clusters/docker_engine`. `address` is its socket."""

    def __init__(self) -> None:
        from kit.clusters.docker_engine import DockerEngine

        self._engine = DockerEngine()

    @property
    def folder(self) -> Path:
        return self._engine.folder

    @property
    def address(self) -> str:
        return self._engine.address

    def __enter__(self) -> EngineCluster:
        self._engine.__enter__()
        return self

    def close(self) -> None:
        """End the engine with all of its processes. May be repeated."""
        self._engine.close()

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return roost's settings for this engine, with two declared T4. The service's keys are a file in `folder`."""
        from kit.clusters.docker.shared_cluster import cluster_settings

        return cluster_settings(self._engine, folder / "keys")

    def describe(self) -> str:
        """Return the engine's version, its machine, and the networks of its containers."""
        return self._engine.run(
            "info", "--format", "{{.Name}}, {{.NCPU}} CPUs, Docker {{.ServerVersion}}"
        ).strip()

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the engine, those in containers too."""
        return [*self._engine.processes(), *self.kernel_processes()]

    def kernel_processes(self) -> list[psutil.Process]:
        """Return the processes in containers."""
        return self._engine.contained()

    def leftovers(self) -> list[str]:
        """Return the engine's remains after its end: folders, control groups, network devices, mounts, processes."""
        from kit.clusters.docker_engine import leftovers

        return leftovers(self.folder)


ASK = """
import json, sys
import docker
client = docker.APIClient(base_url=sys.argv[1], timeout=20)
left = [name for container in client.containers(all=True) for name in container["Names"]]
left += [volume["Name"] for volume in client.volumes()["Volumes"] or ()]
print(json.dumps(left))
"""
"""A program that prints the containers and volumes that are left."""
