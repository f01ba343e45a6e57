"""A Dask cluster of real processes on this machine, for the tour and the tests. Each machine has a loopback address.

    with DaskMachines(Machine(cpus=4, gpus=2), Machine(cpus=2, gpus=2, is_split=True)) as cluster:
        Client(cluster.address)

`dask scheduler` and `dask worker` start the processes, as an operator would. Every process of a machine works in the
machine's folder, and its environment names the cluster's folder. The end of the cluster therefore finds exactly its
own processes. All files are in that folder. All addresses can be reached only from this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from .cluster_folder import (
    END_TIMEOUT_S,
    FOLDER,
    DaemonCluster,
    answers,
    inherit_environment,
    tail,
    wait_until,
    why_no_cluster,
)
from .free_ports import free_port

START_TIMEOUT_S = 60.0
_JOINED = "Registered to:"  # a worker logs this when the scheduler knows it
_NOT_INHERITED = ("DASK_", "PYTEST_", "CUDA_VISIBLE_DEVICES")
_ROLES = ("client", "scheduler", "worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The declared resources of one machine. It has one worker, or one per GPU if it `is_split`.

    Dask accepts no more memory than this machine has.
    """

    cpus: int = 1
    memory_bytes: int = 2 << 30
    gpus: int = 0
    is_split: bool = False
    """True if each GPU has a worker of its own, which sees only this GPU."""
    has_nanny: bool = True
    resources: Mapping[str, float] = field(default_factory=dict)
    """Dask's abstract resources."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that reach the nannies and all their descendants."""
    options: tuple[str, ...] = ()
    """More options of `dask worker`, such as --lifetime."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nanny:
    """One `dask worker` program. Without nannies on its machine, this program is the worker itself."""

    process: subprocess.Popen[bytes]
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedMachine:
    """A started machine. `folder` holds its logs and its workers' files."""

    address: str
    machine: Machine
    nannies: tuple[Nanny, ...]
    folder: Path


def why_not() -> str | None:
    """Return why no cluster can start here, or None."""
    return why_no_cluster("distributed", "Dask")


class DaskMachines(DaemonCluster):
    """A Dask cluster that starts on entry and ends on exit.

    The scheduler is at `network`.2, and the machines are at .3, .4 and so on. By default the network is random, so that
    two clusters have different addresses. With `is_encrypted` all connections need the certificate in the cluster's
    folder; `security` has the arguments for `distributed.Security`. Every process gets `environment` and this process's
    own environment, without DASK_*, PYTEST_* and CUDA_VISIBLE_DEVICES.
    """

    def __init__(
        self,
        *machines: Machine,
        network: str | None = None,
        is_encrypted: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__("dm-", network, environment)
        self._machines = machines
        self._is_encrypted = is_encrypted
        self._hosts: dict[str, StartedMachine] = {}
        self._started = 0
        self._last = 2
        self._scheduler: subprocess.Popen[bytes] | None = None

    @property
    def hosts(self) -> list[StartedMachine]:
        """The started machines. Machines with killed nannies are included."""
        return list(self._hosts.values())

    @property
    def security(self) -> dict[str, str | bool]:
        """The arguments for `Security(**cluster.security)` in every role; empty without encryption."""
        if not self._is_encrypted:
            return {}
        files = {
            f"tls_{role}_{kind}": f"{self.folder}/tls/{kind}.pem"
            for role in _ROLES
            for kind in ("cert", "key")
        }
        return {"require_encryption": True, "tls_ca_file": f"{self.folder}/tls/cert.pem", **files}

    def _start(self) -> None:
        if self._is_encrypted:
            write_certificate(self.folder / "tls")
        self._begin_scheduler()
        hosts = [self._begin(machine, self._next_address()) for machine in self._machines]
        self._await_scheduler()
        self._finish(hosts)

    def start_machine_again(self, address: str) -> StartedMachine:
        """Start a machine at its address again, after its nannies have ended."""
        host = self._hosts[address]
        for nanny in host.nannies:
            nanny.process.wait(START_TIMEOUT_S)
        return self._finish([self._begin(host.machine, address)])[0]

    def kill_nanny(self, address: str, index: int = 0) -> None:
        """Kill one nanny. Its worker ends as soon as it notices."""
        nanny = self._hosts[address].nannies[index]
        nanny.process.kill()
        nanny.process.wait(END_TIMEOUT_S)

    def kill_worker(self, address: str, index: int = 0) -> int:
        """Kill a nanny's worker, as Linux's OOM killer would. The nanny starts another. Return the killed pid."""
        pid = self.worker_pids(address)[index]
        if not self._hosts[address].machine.has_nanny:
            self.kill_nanny(address, index)
            return pid
        worker = psutil.Process(pid)
        worker.kill()
        worker.wait(END_TIMEOUT_S)
        return pid

    def worker_pids(self, address: str) -> list[int]:
        """Return the pids of a machine's workers, in the order of their nannies."""
        host = self._hosts[address]
        programs = [nanny.process.pid for nanny in host.nannies]
        if not host.machine.has_nanny:
            return programs
        return [pid for program in programs for pid in _workers(program)]

    def kill_scheduler(self) -> None:
        """Kill the scheduler. Workers and nannies end by themselves after 4 s, or 34 s if a task does not end.

        A nanny that is starting its worker does not end. It waits for a scheduler at that address.
        """
        assert self._scheduler is not None, "it has never run"
        self._scheduler.kill()
        self._scheduler.wait(END_TIMEOUT_S)

    def start_scheduler_again(self) -> None:
        """Start an empty scheduler at the same address. Machines with ended nannies are not started."""
        self._begin_scheduler()
        self._await_scheduler()

    def _next_address(self) -> str:
        self._last += 1
        return f"{self._network}.{self._last}"

    def _begin_scheduler(self) -> None:
        address = f"{self._network}.2"
        if not self.address:
            self.address = f"{'tls' if self._is_encrypted else 'tcp'}://{address}:{free_port()}"
        options = [f"--host={self.address}", "--no-dashboard", "--dashboard-address=:0"]
        self._scheduler = self._run_dask("scheduler", options, {}, self.folder / "scheduler")

    def _await_scheduler(self) -> None:
        """Wait until the scheduler listens. Raise RuntimeError with the end of its log if it ends instead."""
        assert self._scheduler is not None
        there, scheduler = self.address.partition("://")[2], self._scheduler
        wait_until(
            lambda: scheduler.poll() is not None or answers(there),
            f"no scheduler at {self.address}",
            timeout_s=START_TIMEOUT_S,
        )
        if scheduler.poll() is not None:
            log = self.folder / "scheduler" / "log"
            raise RuntimeError(f"the scheduler at {self.address} has ended:\n{tail(log)}")

    def _begin(self, machine: Machine, address: str) -> StartedMachine:
        """Start the `dask worker` programs of one machine."""
        self._started += 1
        folder = self.folder / str(self._started)
        count = max(1, machine.gpus) if machine.is_split else 1
        nannies = []
        for index in range(count):
            resources = dict(machine.resources)
            if machine.gpus:
                resources["GPU"] = machine.gpus // count
            options = [
                self.address,
                f"--host={address}",
                f"--name={address}" + (f"-{index}" if machine.is_split else ""),
                f"--nthreads={max(1, machine.cpus // count)}",
                f"--memory-limit={machine.memory_bytes // count}",
                f"--local-directory={folder}/{index}",
                "--no-dashboard",
                *(["--resources=" + " ".join(f"{k}={v}" for k, v in resources.items())] if resources else []),
                *([] if machine.has_nanny else ["--no-nanny"]),
                *machine.options,
            ]
            device = {"CUDA_VISIBLE_DEVICES": str(index)} if machine.is_split else {}
            process = self._run_dask(
                "worker", options, {**machine.environment, **device}, folder / str(index)
            )
            nannies.append(Nanny(process=process, log=folder / str(index) / "log"))
        return StartedMachine(address=address, machine=machine, nannies=tuple(nannies), folder=folder)

    def _run_dask(
        self, program: str, options: list[str], environment: Mapping[str, str], folder: Path
    ) -> subprocess.Popen[bytes]:
        """Start one of `dask`'s programs, which works and logs in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dask", program, *options]
        if self._is_encrypted:
            tls = self.folder / "tls"
            command += [
                f"--tls-ca-file={tls}/cert.pem",
                f"--tls-cert={tls}/cert.pem",
                f"--tls-key={tls}/key.pem",
            ]
        environment = {
            **inherit_environment(*_NOT_INHERITED),
            **self.environment,
            **environment,
            FOLDER: str(self.folder),
        }
        return self._run(command, environment=environment, cwd=folder, log=folder / "log")

    def _finish(self, begun: list[StartedMachine]) -> list[StartedMachine]:
        """Wait until all workers have joined. Raise RuntimeError with the end of the log of a worker that has ended."""
        deadline = time.monotonic() + START_TIMEOUT_S
        for host in begun:
            for nanny in host.nannies:
                wait_until(
                    lambda nanny=nanny: nanny.process.poll() is not None or _JOINED in nanny.log.read_text(),
                    f"no Dask worker at {host.address}",
                    timeout_s=deadline - time.monotonic(),
                )
                if nanny.process.poll() is not None:
                    raise RuntimeError(f"the Dask worker at {host.address} has ended:\n{tail(nanny.log)}")
        self._hosts |= {host.address: host for host in begun}
        return begun


def write_certificate(folder: Path) -> None:
    """Write key.pem and the self-signed cert.pem, for scheduler, workers and clients."""
    from distributed.security import Security

    made = Security.temporary()  # needs cryptography
    folder.mkdir(mode=0o700)
    for name, text in (("cert.pem", made.tls_ca_file), ("key.pem", made.tls_client_key)):
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)


def _workers(nanny_pid: int) -> list[int]:
    """Return the pids of a nanny's workers: the children that multiprocessing has spawned for it."""

    def is_worker(process: psutil.Process) -> bool:
        try:
            return any("spawn_main" in word for word in process.cmdline())
        except psutil.Error:  # it has just ended
            return False

    try:
        return [child.pid for child in psutil.Process(nanny_pid).children() if is_worker(child)]
    except psutil.NoSuchProcess:
        return []
