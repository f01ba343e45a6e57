"""Kernels in containers of a Docker engine that fails, and the checks that follow each fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.docker.shared_cluster import cluster_settings
from kit.clusters.docker_engine import DockerEngine
from kit.clusters.faults import ClusterWorld, say
from kit.jupyter.kernelspecs import IPYKERNEL
from kit.jupyter.notebook import Notebook
from roost.scheduler.backends.docker.names import LEASE_LABEL
from roost.scheduler.messages import Kernel


class DockerWorld(ClusterWorld):
    """A Docker engine with roost's service, and its notebooks."""

    def __init__(
        self, engine: DockerEngine, home: Path, folder: Path, patch: pytest.MonkeyPatch, **settings: Any
    ) -> None:
        super().__init__("docker", home, folder, ["python3", *IPYKERNEL[1:]], cpus=0.1)
        folder.chmod(0o700)
        self.engine = engine
        patch.setenv("JUPYTER_CONFIG_DIR", str(folder))
        self.configure(**{**cluster_settings(engine, folder), **settings})

    def held(self) -> dict[str, str]:
        """Return the node of each lease whose container runs."""
        shown = self.engine.run("ps", "--format", f'{{{{.Label "{LEASE_LABEL}"}}}}').splitlines()
        leases = [json.loads(line) for line in shown]
        return {lease["id"]: lease["node_id"] for lease in leases}

    def key_of(self, notebook: Notebook, kernel: Kernel) -> str:
        return kernel.lease_id

    async def outlives_absence(self, notebook: Notebook) -> None:
        """Kill the engine, and start it again. Meanwhile no kernel starts, and this one answers."""
        self.engine.kill()
        try:
            say(await self.refusal())
            assert await notebook.value("mine") == "42"
        finally:
            self.engine.start()

    def left(self) -> list[str]:
        return self.engine.objects()

    async def container(self, notebook: Notebook) -> str:
        """Return the id of a kernel's container."""
        lease_id = (await self.kernel_of(notebook)).lease_id
        shown = self.engine.run("ps", "--format", f'{{{{.ID}}}} {{{{.Label "{LEASE_LABEL}"}}}}').splitlines()
        pairs = [line.split(" ", 1) for line in shown]
        return next(container for container, lease in pairs if json.loads(lease)["id"] == lease_id)
