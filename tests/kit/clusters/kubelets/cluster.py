"""A Kubernetes cluster of real kubelets on this machine, for the tests."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from . import keeper
from .api import Api
from .build import cache
from .credentials import Authority
from .image import PAUSE_COMMAND
from .network import NUMBERS, free_networks
from .node import Machine

_KIT = Path(__file__).parents[3]
_KEEPER = "from kit.clusters.kubelets.keeper import main; main()"


class Kubelets:
    """A cluster that starts on entry and ends on exit, or with this process.

    The nodes are `n1`, `n2` and so on. This machine reaches the API server, the nodes and the IP of every pod. Pods
    reach each other, the API server and this machine. A cluster has no DNS, and enforces no NetworkPolicy.

    Parts are `etcd`, `apiserver`, `controllers`, `scheduler`, and `<node>/containerd`, `<node>/kubelet`, `<node>/gpus`.
    """

    def __init__(self, *machines: Machine) -> None:
        self.folder = Path(os.devnull)  # until it starts
        self._machines = machines
        self._keeper: subprocess.Popen[str] | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig file."""
        return self.folder / "admin.kubeconfig"

    @property
    def api(self) -> Api:
        """The API with the administrator's rights."""
        return Api(self.kubeconfig)

    def write_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Write a kubeconfig file for a user. RBAC gives rights to the name and to the groups."""
        return write_kubeconfig(self.folder, user, groups)

    def __enter__(self) -> Kubelets:
        with claim() as (self.folder, lock):
            self._keeper = start_keeper(self.folder, lock, self._machines, is_tied=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper is not None
        end_keeper(self._keeper.pid)
        self._keeper.communicate()
        with contextlib.suppress(BlockingIOError), locked(self.folder.name):
            keeper.remove(self.folder)  # a keeper that was killed has not done it

    def pids(self, uid: str) -> list[int]:
        """Return the pids of all processes in the containers of a pod, as this machine sees them."""
        return [pid for pid in self._all_pids(uid) if not is_pause(pid)]

    def pause_pid(self, uid: str) -> int | None:
        """Return the pid of the process that holds the namespaces of a pod from its beginning to its end, or None."""
        return next(filter(is_pause, self._all_pids(uid)), None)

    def _all_pids(self, uid: str) -> list[int]:
        groups = keeper.cgroups(keeper.network_of(self.folder).cgroup)
        pods = [group for group in groups if group.parent.name == f"pod{uid}"]
        return sorted({int(pid) for group in pods for pid in (group / "cgroup.procs").read_text().split()})

    def kill(self, part: str) -> None:
        """Kill a part and wait for its end. Containers outlive their kubelet and containerd."""
        order(self.folder, "kill", part)

    def start(self, part: str) -> None:
        """Start a part again after `kill`."""
        order(self.folder, "start", part)

    def pause(self, part: str) -> None:
        """Stop a part with SIGSTOP. It answers nothing until `resume`."""
        order(self.folder, "pause", part)

    def resume(self, part: str) -> None:
        order(self.folder, "resume", part)

    def power_off(self, node: str) -> None:
        """Kill all processes of a node at once, those in containers too."""
        order(self.folder, "power_off", node)

    def power_on(self, node: str) -> None:
        """Start a node again after `power_off`. It has its old files."""
        order(self.folder, "power_on", node)

    def cut(self, node: str) -> None:
        """Cut a node off from the network until `reconnect`. Its processes live on."""
        order(self.folder, "cut", node)

    def reconnect(self, node: str) -> None:
        order(self.folder, "reconnect", node)


def write_kubeconfig(folder: Path, user: str, groups: Sequence[str] = ()) -> Path:
    """Write a user's kubeconfig file into a cluster's `folder`."""
    admin = json.loads((folder / "admin.kubeconfig").read_text())
    authority = Authority(folder / "control-plane")
    return authority.write_kubeconfig(
        folder / f"{user}.kubeconfig", admin["clusters"][0]["cluster"]["server"], user, groups
    )


@contextlib.contextmanager
def claim(number: int = 0) -> Iterator[tuple[Path, int]]:
    """Claim a number for a cluster, by default any free one but the first. Yield its folder and the claim.

    The claim is a file descriptor with a lock. The lock lasts as long as this block, or a process that
    inherits the descriptor. Remains of a dead cluster with this number are removed. Raise RuntimeError if no
    number is free.
    """
    for network in free_networks():
        if number != network.number and (number or network.number == NUMBERS[0]):
            continue
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context(locked(str(network.number)))
            except BlockingIOError:
                continue
            folder = clusters() / str(network.number)
            keeper.remove(folder)
            folder.mkdir(parents=True, mode=0o700)
            yield folder, lock
            return
    raise RuntimeError(f"the number {number or 'of every cluster'} is in use")


@contextlib.contextmanager
def locked(number: str) -> Iterator[int]:
    """Hold the lock of a number. Raise BlockingIOError if another process has it."""
    file = cache() / "locks" / number
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock.fileno()


def start_keeper(
    folder: Path, lock: int, machines: Sequence[Machine], *, is_tied: bool
) -> subprocess.Popen[str]:
    """Start a cluster in a claimed folder. Raise RuntimeError, with nothing left, if it does not come up."""
    with open(folder / "keeper.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _KEEPER, str(folder), *(["--tied"] if is_tied else [])],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_KIT), keeper.MARK: str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[lock],
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([dataclasses.asdict(machine) for machine in machines]) + "\n")
    process.stdin.flush()
    report = json.loads(process.stdout.readline() or '"it has died"')
    if report != "ready":
        process.wait()
        raise RuntimeError(f"no Kubernetes cluster: {report}")
    return process


def end_keeper(pid: int) -> None:
    """End a cluster and wait until all of it is gone. Raise TimeoutError if this takes too long."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            if not select.select([descriptor], [], [], 2 * keeper.END_TIMEOUT_S)[0]:
                raise TimeoutError(f"the cluster of process {pid} does not end")
        finally:
            os.close(descriptor)


def order(folder: Path, name: str, argument: str) -> None:
    """Let the keeper carry out an order, and wait until it is done. Raise RuntimeError if it fails."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(2 * keeper.END_TIMEOUT_S)
        control.connect(str(folder / "control"))
        with control.makefile("rw") as stream:
            stream.write(json.dumps([name, argument]) + "\n")
            stream.flush()
            if error := json.loads(stream.readline()):
                raise RuntimeError(error)


def clusters() -> Path:
    """Return the folder with the folders of all clusters."""
    return cache() / "running"


def is_pause(pid: int) -> bool:
    """True if a process is a pod's pause container, or has ended."""
    try:
        return psutil.Process(pid).cmdline() == PAUSE_COMMAND
    except psutil.NoSuchProcess:
        return True


def leftovers(folder: Path | None = None) -> list[str]:
    """Return a line for each folder, cgroup, network device, mount and process of one cluster, or of all clusters."""
    folders = [folder] if folder else [clusters() / str(number) for number in NUMBERS]
    devices = [name for _, name in socket.if_nameindex()]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found = []
    for each in folders:
        network = keeper.network_of(each)
        found += [f"folder {each}"] if each.exists() else []
        found += [f"cgroup {path}" for path in keeper.top_cgroups(network.cgroup)]
        found += [f"device {name}" for name in devices if name == network.device]
        found += [f"mount {line}" for line in mounts if f"{each}/" in line]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(keeper.MARK) in map(str, folders):
                found.append(f"process {process.pid} {' '.join(process.cmdline())[:160]}")
    return found
