"""A YARN cluster of real daemons on this machine, for the tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from roost.testing.clusters.cluster_folder import FOLDER, DaemonCluster, inherit_environment, tail, wait_until
from roost.testing.deadlines import allow_s

from . import settings
from .build import jars, java, java_home
from .rest import Rest
from .settings import GPU, PARTITION, Layout, Machine, Settings

START_TIMEOUT_S = 300.0
ADMIN_TIMEOUT_S = 180.0
_NOT_INHERITED = ("HADOOP_", "YARN_", "PYTEST_", "ROOST_", "JAVA_TOOL_OPTIONS", "CUDA_VISIBLE_DEVICES")
_SERVER = "org.apache.hadoop.yarn.server"
_MAIN = {
    "rm": ("-Xmx384m", f"{_SERVER}.resourcemanager.ResourceManager"),
    "nm": ("-Xmx192m", f"{_SERVER}.nodemanager.NodeManager"),
}
_LAUNCHED = re.compile(r"(container_\w+) Container Transitioned from \w+ to RUNNING")
_JVM = (
    "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.net.preferIPv4Stack=true",
    "--add-opens=java.base/java.lang=ALL-UNNAMED", "--add-opens=java.base/java.util=ALL-UNNAMED",
)  # fmt: skip


class HadoopNodes(DaemonCluster):
    """A cluster that starts on entry and ends on exit, or with this process.

    Its daemons are the ResourceManager `rm1`, and the NodeManagers `nm1`, `nm2` and so on. YARN names a node
    by its address. `settings` replace settings of Hadoop. With `has_standby` there is also a ResourceManager
    `rm2`, which takes over by `fail_over`. Daemons have `environment` and this process's own environment,
    without ROOST_*. Containers inherit `environment` only.
    """

    def __init__(
        self,
        *machines: Machine,
        settings: Settings | None = None,
        has_standby: bool = False,
        network: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("hn-", network, environment)
        self.machines = {f"nm{index}": machine for index, machine in enumerate(machines, 1)}
        self.resource_managers = ("rm1", "rm2") if has_standby else ("rm1",)
        self.settings = dict(settings or {})
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._active = "rm1"

    @property
    def layout(self) -> Layout:
        return self._layout_in(self._network)

    @property
    def configuration(self) -> Path:
        """The HADOOP_CONF_DIR of clients."""
        return self.layout.configuration("client")

    @property
    def rest(self) -> Rest:
        """The REST interface of the active ResourceManager."""
        return Rest(f"{self.address_of(self._active)}:8088")

    def rest_of(self, name: str) -> Rest:
        """Return the REST interface of a daemon."""
        return Rest(f"{self.address_of(name)}:{8088 if name.startswith('rm') else 8042}")

    def address_of(self, name: str) -> str:
        """Return the address of a daemon. The address of a NodeManager is the name of its node in YARN."""
        return self.layout.address(name)

    # Daemons

    def runs(self, name: str) -> bool:
        """True if the process of a daemon lives."""
        return name in self._daemons and self._daemons[name].poll() is None

    def start(self, name: str) -> None:
        """Start a daemon that does not run. It reads the files of its earlier runs."""
        assert not self.runs(name), f"{name} runs"
        self._daemons[name] = program = start_daemon(self.folder, name, self.environment)
        self._programs.append(program)

    def kill(self, name: str) -> None:
        """Kill a daemon and wait for its end. Containers outlive their NodeManager."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def stop(self, name: str) -> None:
        """End a ResourceManager with SIGTERM. For a NodeManager use `kill`: its containers outlive both signals."""
        self._daemons[name].terminate()
        self._daemons[name].wait(allow_s(START_TIMEOUT_S))

    def pause(self, name: str) -> None:
        """Stop a daemon with SIGSTOP. It answers nothing until `resume`."""
        self._daemons[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._daemons[name].send_signal(signal.SIGCONT)

    def power_off(self, node: str) -> None:
        """Kill a NodeManager and all processes in its containers."""
        self.kill(node)

        def is_empty() -> bool:
            left = self.container_processes(node)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not left

        wait_until(is_empty, f"the containers of {node} do not end")

    def fail_over(self, to: str) -> None:
        """Make the ResourceManager `to` the active one. The other one may be dead."""
        (old,) = [name for name in self.resource_managers if name != to]
        if self.runs(old):
            self.admin("-transitionToStandby", old)
        self.admin("-transitionToActive", "--forceactive", to)  # it does not ask a dead one first
        self._active = to
        self._await("the new active ResourceManager", lambda: self._is_active(to))

    def admin(self, *arguments: str) -> str:
        """Run `yarn rmadmin`, and return its output. It takes 2 s. Raise RuntimeError if it fails."""
        main = "org.apache.hadoop.yarn.client.cli.RMAdminCLI"
        done = subprocess.run(
            [*java_command(self.configuration, "-Xmx96m"), main, *arguments],
            env=java_environment(self.folder, self.configuration, self.environment),
            cwd=self.folder, capture_output=True, text=True, timeout=allow_s(ADMIN_TIMEOUT_S),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"rmadmin {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    # The state

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the ResourceManager's REST record of each node, by the names `nm1` and so on."""
        found = (self.rest.get("/ws/v1/cluster/nodes")["nodes"] or {}).get("node", [])
        at = {self.address_of(name): name for name in self.machines}
        # A lost node that is back may be listed twice: its new row is not LOST.
        rows = sorted(found, key=lambda row: str(row["state"]) == "RUNNING")
        return {at[row["nodeHostName"]]: row for row in rows}

    def applications(self) -> list[dict[str, Any]]:
        """Return all applications that have not ended."""
        states = "NEW,NEW_SAVING,SUBMITTED,ACCEPTED,RUNNING"
        found = self.rest.get(f"/ws/v1/cluster/apps?states={states}")["apps"] or {}
        return list(found.get("app", []))

    def containers(self, node: str) -> list[dict[str, Any]]:
        """Return the containers that a NodeManager runs, as it reports them itself; none if it is dead."""
        if not self.runs(node):
            return []
        found = self.rest_of(node).get("/ws/v1/node/containers")["containers"] or {}
        return [row for row in found.get("container", []) if row["state"] not in ("DONE", "COMPLETE")]

    def launched(self) -> set[str]:
        """Return the ids of all containers that a ResourceManager has seen run. Other containers end with their master.

        Only its log shows this, because REST reports every granted container as running.
        """
        logs = (self.log(name).read_text(errors="replace") for name in self.resource_managers)
        return {container for log in logs for container in _LAUNCHED.findall(log)}

    def container_processes(self, node: str | None = None, container: str = "") -> list[psutil.Process]:
        """Return the live processes in the containers of one node or all, or in one container."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error, OSError):
                own = process.environ()
                is_here = node is None or own.get("NM_HOST") == self.address_of(node)
                if is_here and own.get("CONTAINER_ID") and container in ("", own["CONTAINER_ID"]):
                    found.append(process)
        return found

    def await_node(self, node: str, state: str = "RUNNING", timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the ResourceManager gives a node a state, such as RUNNING or LOST."""

        def has_state() -> bool:
            row = self.nodes().get(node)
            return row is not None and row["state"] == state

        self._await(f"{node} to be {state}", has_state, timeout_s)

    def await_answer(self, node: str) -> None:
        """Wait until a NodeManager that was started again answers."""
        self._await(node, lambda: bool(self.rest_of(node).get("/ws/v1/node/info")))

    def await_up(self) -> None:
        """Wait until all daemons answer, all nodes run, and their GPUs are known."""
        self._await("the ResourceManager", lambda: self._is_active(self._active))
        self._await("the nodes", self._are_nodes_ready)

    def log(self, name: str) -> Path:
        """Return the log of a daemon."""
        return self.folder / f"{name}.log"

    # The start

    def _layout_in(self, network: str) -> Layout:
        return Layout(
            folder=self.folder,
            network=network,
            resource_managers=self.resource_managers,
            machines=self.machines,
        )

    def _is_free(self, network: str) -> bool:
        for address in self._layout_in(network).ports():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                except OSError:
                    return False
        return True

    def _start(self) -> None:
        inherited = (FOLDER, *self.environment)
        settings.write(self.layout, self.settings, inherited)
        for path in ("labels", "attributes", "store", *(f"{name}/home" for name in self.machines)):
            (self.folder / path).mkdir(parents=True)
        for name in (*self.resource_managers, *self.machines):
            self.start(name)
        self.address = self.rest.address
        if len(self.resource_managers) > 1:
            for name in self.resource_managers:
                self._await(name, lambda name=name: bool(self._ha_state(name)))  # type: ignore[misc]
            self.admin("-transitionToActive", "rm1")
        self.await_up()
        self._set_labels()

    def _set_labels(self) -> None:
        """Create the partition and put its machines into it."""
        chosen = [name for name, machine in self.machines.items() if machine.label]
        if not chosen:
            return
        assert all(self.machines[name].label == PARTITION for name in chosen), f"the one label is {PARTITION}"
        label = {"nodeLabelInfo": [{"name": PARTITION, "exclusivity": True}]}
        self.rest.call("POST", "/ws/v1/cluster/add-node-labels", label)
        rows = [{"nodeId": f"{self.address_of(name)}:8041", "labels": [PARTITION]} for name in chosen]
        self.rest.call("POST", "/ws/v1/cluster/replace-node-to-labels", {"nodeToLabels": rows})
        wait = f"the label {PARTITION}"
        self._await(wait, lambda: all(self.nodes()[name].get("nodeLabels") for name in chosen))

    def _ha_state(self, name: str) -> str:
        return str(self.rest_of(name).get("/ws/v1/cluster/info")["clusterInfo"]["haState"])

    def _is_active(self, name: str) -> bool:
        return self._ha_state(name) == "ACTIVE"

    def _are_nodes_ready(self) -> bool:
        found = self.nodes()
        return all(
            name in found and found[name]["state"] == "RUNNING" and gpus_of(found[name]) == machine.gpus
            for name, machine in self.machines.items()
        )

    def _await(self, what: str, is_true: Callable[[], bool], timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until something is true. A daemon that does not answer counts as false.

        Raise RuntimeError with the ends of logs if a daemon has died meanwhile, or after `timeout_s`.
        """
        expected = [name for name, program in self._daemons.items() if program.poll() is None]

        def is_done() -> bool:
            for name in expected:
                if self._daemons[name].poll() is not None:
                    raise RuntimeError(f"{name} has ended in the wait for {what}")
            try:
                return is_true()
            except (OSError, ValueError):
                return False

        try:
            wait_until(is_done, f"waited for {what} in vain", timeout_s=allow_s(timeout_s))
        except RuntimeError as error:
            ended = [name for name in expected if self._daemons[name].poll() is not None]
            logs = "\n".join(f"{name}: {tail(self.log(name))}" for name in ended or self._daemons)
            raise RuntimeError(f"{error}\n{logs}") from None


def gpus_of(row: Mapping[str, Any], kind: str = "totalResource") -> int:
    """Return the GPUs in a node's row from the ResourceManager. `kind` is another amount, such as `usedResource`."""
    amounts = row[kind]["resourceInformations"]["resourceInformation"]
    return next((int(each["value"]) for each in amounts if each["name"] == GPU), 0)


def start_daemon(folder: Path, name: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon of the cluster in `folder`, which also has its settings. Return its process."""
    heap, main = _MAIN[name[:2]]
    configuration = folder / "conf" / name
    with open(folder / f"{name}.log", "ab") as log:
        program = subprocess.Popen(
            [*java_command(configuration, heap), main],
            env=java_environment(folder, configuration, environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C must not reach the cluster
        )
    (folder / f"{name}.pid").write_text(str(program.pid))
    return program


def java_command(configuration: Path, *options: str) -> list[str]:
    """Return the beginning of a command that runs a class of Hadoop, with options of Java."""
    program = java()
    assert program is not None, "Java is missing"
    return [program, *options, *_JVM, "-cp", f"{configuration}{os.pathsep}{jars()}/*"]


def java_environment(folder: Path, configuration: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a `java_command`. Its `folder` marks the process as part of the cluster."""
    return {
        **inherit_environment(*_NOT_INHERITED),
        **more,
        "JAVA_HOME": java_home(),
        "HADOOP_CONF_DIR": str(configuration),
        FOLDER: str(folder),
    }
