"""The process that owns a cluster. Its arguments are FOLDER [--tied], and the machines are JSON on its input.

The keeper starts everything, reports `ready` or an error on its output, and then obeys the orders that arrive at the
socket `control` in the folder. SIGTERM ends it. A tied keeper also ends when its input ends, which is when its parent
dies. At its end, the keeper removes everything. If it is killed with SIGKILL, all processes, mounts and network devices
vanish with it. The next cluster with the same number removes the cgroups and files.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from roost.testing.deadlines import allow_s

from .api import Api, Refused
from .control_plane import ControlPlane
from .credentials import ADMINISTRATORS
from .namespaces import Namespaces
from .network import Network, connect_machine, disconnect_machine
from .node import CGROUPS, GPUS, Machine, Node

MARK = "KUBELETS_FOLDER"
"""The environment variable of all processes, except those in containers. It names the cluster's folder."""
START_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
REVIVE_S = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FIRST, _LATER = ("etcd", "apiserver"), ("controllers", "scheduler")


class HasDescriptor(Protocol):
    """A file or a socket, for `select`."""

    def fileno(self) -> int: ...


class Keeper:
    """All processes of a cluster. A process of a node is known as `<node>/<part>`.

    The start of the cluster gives up as soon as one of `ends` can be read.
    """

    def __init__(self, folder: Path, machines: list[Machine], ends: Sequence[HasDescriptor]) -> None:
        self._ends = ends
        self._folder = folder
        self._environment = {"PATH": _PATH, "HOME": str(folder), MARK: str(folder)}
        self._machines = machines
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._killed: set[str] = set()
        self._nodes: dict[str, Node] = {}
        self._namespaces: Namespaces | None = None

    def start_all(self) -> None:
        """Start everything, and return when all nodes are ready and their GPUs are known."""
        namespaces = self._namespaces = Namespaces(self._environment)
        network = network_of(self._folder)
        connect_machine(network, namespaces.pid)
        (self._folder / "control-plane").mkdir()
        plane = self._plane = ControlPlane(self._folder / "control-plane", namespaces, network)
        plane.authority.write_kubeconfig(
            self._folder / "admin.kubeconfig", plane.server, "admin", [ADMINISTRATORS]
        )
        plane.set_up()
        for part in _FIRST:
            self.start(part)
        for index, machine in enumerate(self._machines, 1):
            node = Node(self._folder / f"n{index}", index, machine, network, network.cgroup)
            node.prepare(plane.authority, plane.server)
            self._nodes[node.name] = node
            node.set_up(self._environment, namespaces)
            self.start(f"{node.name}/containerd")
        api = Api(self._folder / "admin.kubeconfig")
        self._await("the API server", api.is_ready)
        for part in _LATER:
            self.start(part)
        for node in self._nodes.values():
            for part in node.parts[1:]:
                self.start(f"{node.name}/{part}")
        self._await("the nodes", lambda: self._are_nodes_ready(api))
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._await("the service account", lambda: api.has(account))

    def start(self, part: str) -> None:
        """Start a part that does not run."""
        running = self._processes.get(part)
        assert running is None or running.poll() is not None, f"{part} runs"
        self._killed.discard(part)
        owner, _, name = part.rpartition("/")
        self._processes[part] = self._nodes[owner].start(name) if owner else self._plane.start(name)

    def kill(self, part: str) -> None:
        """Kill a part and wait for its end. Containers outlive their kubelet and containerd."""
        self._killed.add(part)
        self._processes[part].kill()
        self._processes[part].wait(allow_s(END_TIMEOUT_S))

    def revive_kubelets(self) -> None:
        """Start kubelets that have ended by themselves, as systemd does. A kubelet needs its containerd to start."""
        for name, node in self._nodes.items():
            kubelet, containerd = f"{name}/kubelet", f"{name}/containerd"
            if (
                node.is_on
                and not {kubelet, containerd} & self._killed
                and self._processes[kubelet].poll() is not None
            ):
                self.start(kubelet)

    def pause(self, part: str) -> None:
        """Stop a part with SIGSTOP. It answers nothing until `resume`."""
        self._processes[part].send_signal(signal.SIGSTOP)

    def resume(self, part: str) -> None:
        self._processes[part].send_signal(signal.SIGCONT)

    def power_off(self, name: str) -> None:
        """Kill all processes of a node at once, those in containers too."""
        node = self._nodes[name]
        node.namespaces.kill()
        for part in node.parts:
            self._processes[f"{name}/{part}"].wait(allow_s(END_TIMEOUT_S))
        node.clear()
        # A machine that boots has no cgroups of old pods. A kubelet waits 3 s for each of them.
        remove_cgroups(f"{network_of(self._folder).cgroup}/{name}")

    def power_on(self, name: str) -> None:
        """Start a node again after `power_off`. It has its old files."""
        assert self._namespaces is not None
        node = self._nodes[name]
        assert not node.is_on, f"{name} is on"
        node.set_up(self._environment, self._namespaces)
        for part in node.parts:
            self.start(f"{name}/{part}")

    def cut(self, name: str) -> None:
        """Cut a node off from the network until `reconnect`. Its processes live on."""
        self._set_link(name, "down")

    def reconnect(self, name: str) -> None:
        self._set_link(name, "up")

    def close(self) -> None:
        """Kill everything and remove all that is left of it."""
        disconnect_machine(network_of(self._folder))  # at once; the kernel may take a second
        everywhere = [node.namespaces for node in self._nodes.values() if node.is_on]
        for namespaces in [*everywhere, *([self._namespaces] if self._namespaces else [])]:
            namespaces.kill()
        with contextlib.suppress(ChildProcessError):
            while True:  # a pid namespace ends when its last process is reaped
                os.waitpid(-1, 0)
        remove(self._folder)

    def _set_link(self, name: str, state: str) -> None:
        assert self._namespaces is not None
        self._namespaces.run(f"ip link set {name} {state}", self._folder / "control-plane" / "setup.log")

    def _are_nodes_ready(self, api: Api) -> bool:
        ready = 0
        for node in api.call("GET", "/api/v1/nodes")["items"]:
            machine = self._machines[int(node["metadata"]["name"][1:]) - 1]
            conditions = {each["type"]: each["status"] for each in node["status"]["conditions"]}
            gpus = int(node["status"]["allocatable"].get(GPUS, 0))
            is_tainted = bool(node["spec"].get("taints"))
            ready += conditions.get("Ready") == "True" and gpus == machine.gpus and not is_tainted
        return ready == len(self._machines)

    def _await(self, name: str, is_there: Callable[[], bool]) -> None:
        """Wait until something is there.

        Raise RuntimeError if a part has ended, if one of `ends` can be read, or after START_TIMEOUT_S.
        """
        deadline = time.monotonic() + allow_s(START_TIMEOUT_S)
        while True:
            with contextlib.suppress(Refused, OSError):
                if is_there():
                    return
            ended = [part for part, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(f"{part}: {self._tail(part)}" for part in ended or self._processes)
                raise RuntimeError(f"waited for {name} in vain\n{logs}")
            if select.select(self._ends, [], [], 0.1)[0]:
                raise RuntimeError(f"stopped while it waited for {name}")

    def _tail(self, part: str) -> str:
        path = self._folder / (f"{part}.log" if "/" in part else f"control-plane/{part}.log")
        return path.read_text(errors="replace")[-2000:]


def network_of(folder: Path) -> Network:
    """Return the network of a cluster. The folder's name is its number."""
    return Network(int(folder.name))


def remove(folder: Path) -> None:
    """Remove the cgroups and the files of a cluster without processes. May be repeated."""
    remove_cgroups(network_of(folder).cgroup)
    if folder.exists():
        shutil.rmtree(folder)


def remove_cgroups(name: str) -> None:
    """Remove the cgroups of that name and all below them. Wait until Linux has finished with their processes."""
    deadline = time.monotonic() + allow_s(END_TIMEOUT_S)
    for group in cgroups(name):
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def cgroups(name: str) -> list[Path]:
    """Return the cgroups of that name and all below them, each before its parent."""
    return [Path(at) for top in top_cgroups(name) for at, _, _ in os.walk(top, topdown=False)]


def top_cgroups(name: str) -> list[Path]:
    """Return the cgroup of that name in each hierarchy."""
    return [*CGROUPS.glob(name), *CGROUPS.glob(f"*/{name}")]


def main() -> None:
    folder, is_tied = Path(sys.argv[1]), "--tied" in sys.argv
    machines = [Machine(**each) for each in json.loads(sys.stdin.readline())]
    alarm, alarmed = socket.socketpair()
    alarm.setblocking(False)
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends: list[HasDescriptor] = [alarmed, *([sys.stdin] if is_tied else [])]
    keeper = Keeper(folder, machines, ends)
    with socket.socket(socket.AF_UNIX) as control:
        try:
            (folder / "pid").write_text(str(os.getpid()))
            control.bind(str(folder / "control"))
            control.listen()
            keeper.start_all()
            print(json.dumps("ready"), flush=True)
            while (ready := select.select([control, *ends], [], [], REVIVE_S)[0]) in ([], [control]):
                if ready:
                    _obey(keeper, control)
                keeper.revive_kubelets()
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
            with contextlib.suppress(BrokenPipeError):  # the parent is gone
                print(json.dumps(f"{type(error).__name__}: {error}"), flush=True)
        finally:
            keeper.close()


def _obey(keeper: Keeper, control: socket.socket) -> None:
    """Carry out one order, `[name, argument]`, and reply with an error or null."""
    connection, _ = control.accept()
    with connection, connection.makefile("rw") as stream:
        name, argument = json.loads(stream.readline())
        try:
            getattr(keeper, name)(argument)
            reply = None
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            reply = f"{type(error).__name__}: {error}"
        stream.write(json.dumps(reply) + "\n")
