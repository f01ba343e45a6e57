"""A Ray cluster of real raylets on this machine, for the tour and the tests. Each node has its own loopback address.

    with Raylets(Machine(cpus=4, gpus=2, gpu_model="T4"), Machine(cpus=2)) as cluster:
        ray.init(address=cluster.address)

`ray start` starts the nodes, as an operator would. This process never imports Ray. Every process of a node works in
the node's folder, and its environment names the cluster's folder. The end of the cluster therefore finds exactly its
own processes. All files are in that folder. The cluster listens on every interface of the machine, as Ray does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .cluster_folder import (
    FOLDER,
    DaemonCluster,
    answers,
    end,
    inherit_environment,
    processes,
    tail,
    wait_until,
    why_no_cluster,
)
from .free_ports import free_port

START_TIMEOUT_S = 120.0

# The `ray` program as a plain `pip install ray` has it. The additions of `ray[default]` (a dashboard, the server of
# `ray://` with its fixed port) are of no use here.
PROGRAM = """
import sys
sys.modules.update({"grpc": None, "ray.dashboard.optional_deps": None, "rfc3987_syntax": None})
from ray.scripts.scripts import main
sys.exit(main())
"""
# Ray imports jsonschema, which imports this module if Jupyter has installed it. This takes 1.5 of the 2 s of processor
# time of `import ray`, twice for each worker. Ray's processes therefore find an empty module first. It removes its
# folder from PYTHONPATH at once, so that agents and kernels do not see it. (setup_worker.py becomes the worker.)
_STUB = "rfc3987_syntax.py"
_STUB_SOURCE = """
import os, sys
folder = os.path.dirname(__file__)
if not sys.argv[0].endswith("setup_worker.py"):
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", folder)]
    os.environ.pop("PYTHONPATH", None)
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
sys.path[:] = [entry for entry in sys.path if entry != folder]
raise ImportError
"""
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}
"""The environment of a cluster that asks for no token, and of its drivers.

Without it, Ray reads `~/.ray/auth_token` if the user has one, and a cluster that `ray.init` starts writes it.
"""
_SETTINGS = {
    **WITHOUT_TOKEN,
    "PYTHONWARNINGS": "ignore",
    "RAY_enable_worker_prestart": "0",  # otherwise 75 MiB for each declared CPU
    "RAY_prestart_worker_first_driver": "0",
}
_OBJECT_STORE_BYTES = 80_000_000  # Ray's minimum is 75 MiB; memory is taken only when it is used


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The declared resources of one node. `memory_bytes` is Ray's `memory`. `environment` reaches its workers."""

    cpus: int = 1
    memory_bytes: int = 2 << 30
    gpus: int = 0
    gpu_model: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedNode:
    """A started node; `folder` holds its session, logs and sockets."""

    address: str
    raylet_pid: int
    folder: Path


def why_not() -> str | None:
    """Return why no cluster can start here, or None."""
    return why_no_cluster("ray", "Ray")


class Raylets(DaemonCluster):
    """A Ray cluster that starts on entry and ends on exit. The first machine is the head.

    Nodes are at `network`.2, .3 and so on. By default the network is random, so that two clusters have different
    addresses. With `keeps_state` the GCS writes its state to a file (Ray ≥ 2.60), as it would to Redis. Nodes, actors
    and placement groups then outlive `kill_gcs` and `restart_gcs`. Every worker gets `environment` and this process's
    own environment, without RAY_* and CUDA_VISIBLE_DEVICES. The cluster asks for a token only if `environment` says so.
    """

    def __init__(
        self,
        *machines: Machine,
        network: str | None = None,
        keeps_state: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("rl-", network, environment)
        self._machines = machines
        self._keeps_state = keeps_state
        self._nodes: dict[str, StartedNode] = {}
        self._started = 0
        self._machine_at: dict[str, Machine] = {}
        self._gcs: tuple[list[str], dict[str, str], str] | None = None
        self._restarted: subprocess.Popen[bytes] | None = None

    @property
    def nodes(self) -> list[StartedNode]:
        """The nodes that were started and not stopped, the head first. Nodes with a killed raylet are included."""
        return list(self._nodes.values())

    def _start(self) -> None:
        stub = self.folder / "stub" / _STUB
        stub.parent.mkdir()
        stub.write_text(_STUB_SOURCE)
        head, *others = self._machines
        self._finish([self._begin(head, is_head=True)])
        for process in _named(self.nodes[0].folder, "dashboard.py"):
            process.kill()  # it takes 80 MiB and serves nothing here
        self._finish([self._begin(machine) for machine in others])

    def add_node(self, machine: Machine) -> StartedNode:
        """Start one more node, at the next address. Takes 3 to 10 s."""
        return self._finish([self._begin(machine)])[0]

    def start_again(self, address: str) -> StartedNode:
        """Start a raylet at the address of an ended one. At the head's address, also start a GCS if there is none."""
        node = self._nodes[address]
        wait_until(lambda: not _named(node.folder, "raylet"), f"the raylet at {address} has not ended")
        is_head = address == self.address.rpartition(":")[0] and not answers(self.address)
        return self._finish([self._begin(self._machine_at[address], address, is_head=is_head)])[0]

    def stop_node(self, address: str) -> None:
        """End a node as `ray stop` does, so that it leaves the cluster at once."""
        node = self._nodes.pop(address)
        psutil.Process(node.raylet_pid).terminate()
        wait_until(lambda: not _named(node.folder, "raylet"), f"the raylet at {address} does not stop")
        end(node.folder)

    def kill_raylet(self, address: str) -> None:
        """Kill a raylet, as Linux's OOM killer would. Ray's processes on the node end too; detached processes stay."""
        psutil.Process(self._nodes[address].raylet_pid).kill()

    def kill_gcs(self) -> None:
        """Kill the GCS. Raylets and drivers wait 60 s for it, and then exit with code 1."""
        process = _find(self.folder, "gcs_server")
        self._gcs = process.cmdline(), process.environ(), process.cwd()
        process.kill()
        if self._restarted is not None:
            self._restarted.wait()
        wait_until(lambda: not answers(self.address), f"the GCS at {self.address} survives")

    def restart_gcs(self) -> None:
        """Start the GCS at the same address again. It is empty unless the cluster `keeps_state`."""
        assert self._gcs is not None, "kill_gcs() comes first"
        argv, environment, cwd = self._gcs
        self._restarted = self._run(argv, environment=environment, cwd=Path(cwd), log=Path(os.devnull))
        wait_until(lambda: answers(self.address), f"no GCS at {self.address}")

    def _begin(
        self, machine: Machine, address: str = "", *, is_head: bool = False
    ) -> tuple[str, Path, subprocess.Popen[bytes]]:
        """Run `ray start` for a machine. Return address, folder and program, which ends when the node has joined."""
        self._started += 1
        address = address or f"{self._network}.{len(self._machine_at) + 2}"
        folder = self.folder / str(self._started)
        folder.mkdir()
        self._machine_at[address] = machine
        command = [sys.executable, "-c", PROGRAM, "start", *self._options(machine, address, folder, is_head)]
        log = folder / "start.log"
        program = self._run(command, environment=self._environment_of(machine), cwd=folder, log=log)
        return address, folder, program

    def _options(self, machine: Machine, address: str, folder: Path, is_head: bool) -> list[str]:
        """Return the options of `ray start`. Ray chooses all ports but the head's, which stays the same."""
        resources, labels = dict(machine.resources), dict(machine.labels)
        if machine.gpu_model:  # as Ray declares a GPU that it finds
            resources[f"accelerator_type:{machine.gpu_model}"] = 1
            labels["ray.io/accelerator-type"] = machine.gpu_model
        options = {
            "node-ip-address": address,
            "temp-dir": folder,
            "num-cpus": machine.cpus,
            "num-gpus": machine.gpus,
            "memory": machine.memory_bytes,
            "object-store-memory": _OBJECT_STORE_BYTES,
            "resources": json.dumps(resources),
            "labels": ",".join(f"{key}={value}" for key, value in labels.items()),
            "min-worker-port": 0,
            "max-worker-port": 0,
            "dashboard-agent-listen-port": 0,
            "include-log-monitor": "false",
        }
        if is_head:
            port = self.address.rpartition(":")[2] or free_port()
            options |= {"port": port, "include-dashboard": "false", "dashboard-host": address}
        else:
            options |= {"address": self.address}
        flags = ["--disable-usage-stats", *(["--head", "--no-monitor"] if is_head else [])]
        return [*flags, *(f"--{name}={value}" for name, value in options.items())]

    def _environment_of(self, machine: Machine) -> dict[str, str]:
        own = {
            **inherit_environment("RAY_", "CUDA_VISIBLE_DEVICES"),
            **_SETTINGS,
            **self.environment,
            **machine.environment,
        }
        own[FOLDER] = str(self.folder)
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.folder / "stub"), own.get("PYTHONPATH")]))
        if self._keeps_state:
            own |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.folder / "gcs")}
        return own

    def _finish(self, begun: list[tuple[str, Path, subprocess.Popen[bytes]]]) -> list[StartedNode]:
        """Wait until all nodes have joined. Raise RuntimeError with the end of the log of a node that has not."""
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            for address, folder, program in begun:
                if program.wait(max(0.0, deadline - time.monotonic())):
                    raise RuntimeError(f"no Ray node at {address}:\n{tail(folder / 'start.log')}")
        finally:
            for _, _, program in begun:
                if program.poll() is None:
                    program.kill()
                    program.wait()
        nodes = [
            StartedNode(address=address, raylet_pid=_find(folder, "raylet").pid, folder=folder)
            for address, folder, _ in begun
        ]
        self.address = self.address or (nodes[0].folder / "ray_current_cluster").read_text().strip()
        self._nodes |= {node.address: node for node in nodes}
        return nodes


def _named(folder: Path, program: str) -> list[psutil.Process]:
    """Return the processes in `folder` whose command begins with `program`, or with Python and `program`."""
    found = []
    for process in processes(folder):
        try:
            if program in [Path(word).name for word in process.cmdline() if not word.startswith("-")][:2]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def _find(folder: Path, program: str) -> psutil.Process:
    """Return the process in `folder` that runs `program`. Raise RuntimeError if there is none."""
    found = _named(folder, program)
    if not found:
        raise RuntimeError(f"no {program} runs in {folder}")
    return found[0]
