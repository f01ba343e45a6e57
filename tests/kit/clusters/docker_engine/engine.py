"""An engine, its faults, and what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from kit.clusters.ssh_hosts.held_process import HeldProcess
from kit.machine.network_cables import connect, disconnect, find_devices, has_route, ip
from roost.launchers.daemon.process import is_running, start_time
from roost.testing.clusters.cluster_folder import wait_until
from roost.testing.deadlines import allow_s

from . import build, podman
from .build import image_file
from .start_script import DEVICE, LOG, SOCKET, Program, network, separate_network, write_script

if TYPE_CHECKING:
    import docker

MARK = "ROOST_DOCKER_ENGINE"
"""The environment variable of the engine's processes. It names the engine's folder."""
SEPARATE = "kernels"
"""A network of the engine where containers cannot reach each other."""
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")
_OPTIONS = ("--fork", "--kill-child", "--mount-proc", "--propagation", "private")
_BASE, _PREFIX = Path("/tmp"), "docker-engine-"  # short: a socket's path has at most 107 bytes
_OWNER = "owner.json"
_LOCK = _BASE / "docker-engine.lock"
"""Held while an engine takes a network."""
_CGROUPS = Path("/sys/fs/cgroup")
_NUMBERS = range(1, 255)
_START_S, _LOAD_S, _ENDS_S = 60.0, 120.0, 60.0
_WRITES_S = 60.0
_GPU_HOOK = "nvidia-container-runtime-hook"
"""The program with which an engine gives GPUs to a container. Ours does nothing, so any number may be declared."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerEngine:
    """An engine with the image `IMAGE`, which starts on entry and ends on exit, or with this process.

    `program` is Docker's engine or the service of Podman. `address` is that of its socket. This machine reaches its
    containers by their addresses. Raise RuntimeError if it cannot start.
    """

    def __init__(self, program: Program = "dockerd") -> None:
        self.program = program
        self.folder = Path(os.devnull)  # until it starts
        self._process: HeldProcess | None = None
        self._number = 0

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/{SOCKET}"

    def __enter__(self) -> DockerEngine:
        if reason := why_not(self.program):
            raise RuntimeError(reason)
        self.folder = _make_folder()
        try:
            self._begin()
            self.start()
            self.run("load", "--input", str(image_file()), timeout_s=_LOAD_S)
            if self.program == "dockerd":  # Podman has no such networks
                separate = "com.docker.network.bridge.enable_icc=false"
                subnet = separate_network(self._number)
                self.run("network", "create", "--opt", separate, "--subnet", subnet, SEPARATE)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine with all its processes, and remove its network and files. May be repeated."""
        process, self._process = self._process, None
        if process is not None:
            if self.program == "podman":  # the control groups of its containers have a place of their own
                with suppress(RuntimeError):
                    self.run("container", "prune", "--force")
                    self.run("rm", "--force", *self.run("ps", "--quiet").split())
            process.end()
        if self.folder != Path(os.devnull):
            _remove(self.folder)

    def start(self) -> None:
        """Start the engine, and wait until it answers. dockerd first ends what ran in its containers."""
        self._command("start")
        try:
            wait_until(self._answers, f"{self.program} does not start", timeout_s=allow_s(_START_S))
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n{self._log()}") from error

    def kill(self) -> None:
        """Kill the engine. The containers of dockerd live on until it is started again, those of Podman for longer."""
        self._command("kill")

    def trust(self, registry: str) -> None:
        """Let the engine use a registry of its loopback without TLS. Docker's engine does so anyway."""
        if self.program == "podman":
            podman.trust(self.folder, registry)
            self.kill()
            self.start()

    def run(self, *words: str, timeout_s: float = _START_S) -> str:
        """Return the output of `docker WORDS`. Raise RuntimeError with its complaint if it fails."""
        environment = {**os.environ, "DOCKER_HOST": self.address, "DOCKER_CONFIG": str(self.folder)}
        command = ["docker", *words]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=allow_s(timeout_s)
        )
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def client(self) -> AbstractContextManager[docker.APIClient]:
        """Return a client of the engine, which closes at the end of a `with`."""
        import docker  # all tests import this module, also where Docker's library is not installed

        return closing(docker.APIClient(base_url=self.address, version="auto", timeout=allow_s(_START_S)))

    def inside(self, *command: str) -> list[str]:
        """Return a command that runs `command` in the engine's network, and ends with the engine if it is marked."""
        assert self._process is not None, "the engine has ended"
        return ["nsenter", f"--net=/proc/{self._process.pid}/ns/net", *command]

    def objects(self) -> list[str]:
        """Return a line for each container and volume, and for each network that the engine did not start with."""
        usual = {"bridge", "host", "none", "podman", SEPARATE}
        containers = self.run("ps", "--all", "--format", "container {{.Names}} {{.Status}}").splitlines()
        volumes = [f"volume {name}" for name in self.run("volume", "ls", "--quiet").split()]
        names = self.run("network", "ls", "--format", "{{.Name}}").split()
        return [*containers, *volumes, *(f"network {name}" for name in names if name not in usual)]

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the engine, without those in containers."""
        return _find_processes(self.folder)

    def contained(self) -> list[psutil.Process]:
        """Return the processes in containers, by their pids on this machine."""
        if self.program == "podman":
            assert self._process is not None, "the engine has ended"
            own = {process.pid for process in self.processes()}
            below = psutil.Process(self._process.pid).children(recursive=True)
            return [process for process in below if process.pid not in own]
        found: dict[int, psutil.Process] = {}
        for file in _CGROUPS.glob(f"**/{self.folder.name}/**/cgroup.procs"):
            with suppress(OSError):  # its container has just ended
                for pid in map(int, file.read_text().split()):
                    with suppress(psutil.NoSuchProcess):
                        found[pid] = psutil.Process(pid)
        return list(found.values())

    def _begin(self) -> None:
        """Start the first process, and connect its network to this machine."""
        programs = self.folder / "bin"
        programs.mkdir()
        hook = programs / _GPU_HOOK
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o755)
        environment = {
            MARK: str(self.folder),
            "PATH": f"{programs}:{_PATH}",
            "HOME": str(self.folder),
        }
        with open(_LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another engine would choose the same network
            self._connect(environment)
        assert self._process is not None
        self._process.go()
        self._process.await_step()

    def _connect(self, environment: dict[str, str]) -> None:
        """Start the first process, and give it a free network."""
        self._number = _find_free_number()
        command = [
            "unshare", *_NAMESPACES, *_OPTIONS, "sh", "-euc", write_script(self.folder, self._number, self.program),
        ]  # fmt: skip
        self._process = HeldProcess(command, self.folder / "log", environment)
        self._process.await_step()
        device = f"dockerengine{self._number}"
        connect(device, DEVICE, self._process.pid)
        ip("link", "set", device, "alias", str(self.folder))
        ip("addr", "add", f"10.248.{self._number}.2/30", "dev", device)
        ip("link", "set", device, "up")
        ip("route", "add", network(self._number), "via", f"10.248.{self._number}.1", "dev", device)

    def _command(self, word: str) -> None:
        assert self._process is not None, "the engine has ended"
        self._process.go(word)
        self._process.await_step()

    def _answers(self) -> bool:
        with suppress(RuntimeError):
            return bool(self.run("version", "--format", "{{.Server.Version}}"))
        return False

    def _log(self) -> str:
        with suppress(OSError):
            return (self.folder / LOG).read_text(errors="replace")[-2000:]
        return ""


def why_not(program: Program = "dockerd") -> str | None:
    """Return why no engine of this program can start here, in one sentence, or None."""
    return build.why_not() or (podman.why_not() if program == "podman" else None)


def leftovers(folder: Path) -> list[str]:
    """Return a line for each process, mount, control group and network device of an engine, and for its folder."""
    found = [f"process {process.pid}" for process in _find_processes(folder)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if f" {folder}/" in line]
    found += [f"control group {path}" for path in _CGROUPS.glob(f"**/{folder.name}")]
    found += [f"device {name}" for name in find_devices(str(folder))]
    return found + ([f"folder {folder}"] if folder.exists() else [])


def _find_free_number() -> int:
    for number in _NUMBERS:
        if not has_route(network(number)) and not Path(f"/sys/class/net/dockerengine{number}").exists():
            return number
    raise RuntimeError("every network of Docker engines is in use")


def _make_folder() -> Path:
    """Make a private folder of this process. First remove the remains of engines whose process has ended."""
    for folder in _BASE.glob(f"{_PREFIX}*"):
        if not _has_owner(folder):
            _remove(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_BASE))
    owner = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    (folder / f"{_OWNER}.new").write_text(json.dumps(owner))
    (folder / f"{_OWNER}.new").rename(folder / _OWNER)
    return folder


def _has_owner(folder: Path) -> bool:
    """True unless the process that made a folder has ended. True for gone folders."""
    try:
        owner = json.loads((folder / _OWNER).read_text())
        return is_running(owner["pid"], owner["start_time"])
    except FileNotFoundError:
        return not folder.exists() or time.time() - folder.stat().st_mtime < _WRITES_S


def _remove(folder: Path) -> None:
    """End an engine's processes, and remove its network device, control groups and folder. May be repeated."""

    def is_empty() -> bool:
        left = _find_processes(folder)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return not left

    wait_until(is_empty, f"processes of {folder} cannot be killed", timeout_s=allow_s(_ENDS_S))
    for device in find_devices(str(folder)):
        disconnect(device)

    def has_no_groups() -> bool:
        for group in _CGROUPS.glob(f"**/{folder.name}"):
            for path in (*sorted(group.glob("**/"), reverse=True), group):
                with suppress(OSError):  # a process in it has not ended yet
                    path.rmdir()
        return not any(_CGROUPS.glob(f"**/{folder.name}"))

    wait_until(has_no_groups, f"control groups of {folder} cannot be removed", timeout_s=allow_s(_ENDS_S))
    shutil.rmtree(folder, ignore_errors=True)


def _find_processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder):
                found.append(process)
    return found
