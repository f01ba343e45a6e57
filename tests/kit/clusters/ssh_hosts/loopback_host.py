"""One host without root: this machine's loopback, with an sshd of the caller that only lets the caller in."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from roost.testing.clusters.cluster_folder import answers, wait_until
from roost.testing.deadlines import allow_s

from .client_folder import Place
from .held_process import HeldProcess, first_command
from .requirements import SSHD

_LOOPBACK = "127.0.0.1"
_START_S = 60.0
_CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
SetEnv {variables}
"""


class LoopbackHost:
    """The host `n1`. Its sessions have variables that keep them off the caller's own agent and book."""

    name = "n1"

    def __init__(self, folder: Path, sshd_options: Sequence[str], environment: Mapping[str, str]) -> None:
        self.place = Place(_LOOPBACK, _free_port())
        self.host_key = folder / "host_key"
        self._folder, self._mark = folder, environment
        self._process: HeldProcess | None = None
        (folder / "machine").mkdir(parents=True)
        variables = {
            **environment,
            "ROOST_RUNTIME_DIR": folder / "run",
            "ROOST_MACHINE_DIR": folder / "machine",
        }
        ours = _CONFIG.format(
            address=_LOOPBACK, port=self.place.port, folder=folder,
            variables=" ".join(f"{name}={value}" for name, value in variables.items()),
        )  # fmt: skip
        (folder / "sshd_config").write_text("".join(f"{line}\n" for line in sshd_options) + ours)

    def begin(self) -> None:
        assert self._process is None, f"{self.name} is on"
        (self._folder / "run").mkdir(mode=0o700, exist_ok=True)
        sshd = (str(SSHD), "-D", "-e", "-f", str(self._folder / "sshd_config"))
        environment = {"PATH": os.defpath, **self._mark}
        self._process = HeldProcess(first_command(*sshd), self._folder / "log", environment)
        self._process.await_step()

    def await_sshd(self) -> None:
        address = f"{self.place.address}:{self.place.port}"
        wait_until(lambda: answers(address), "no sshd on the loopback", timeout_s=allow_s(_START_S))

    def off(self) -> None:
        """Kill sshd and all that it has started. The ends of its connections are reported. May be repeated."""
        process, self._process = self._process, None
        if process is not None:
            process.end()
            shutil.rmtree(self._folder / "run")

    def cut(self) -> None:
        raise NotImplementedError("the loopback cannot be cut: ask `why_not(hosts=2)`")

    mend = cut

    def restart_sshd(self) -> None:
        """Let a new sshd take over, with the present host key. Sessions live on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGHUP)

    @property
    def root(self) -> Path | None:
        """This machine's files. None: the host is off."""
        return Path("/") if self._process is not None else None

    def processes(self) -> list[psutil.Process]:
        """Return sshd and all processes that its sessions have started, also those whose parents have ended."""
        return psutil.Process(self._process.pid).children(recursive=True) if self._process else []

    def command(self, user: str, argv: Sequence[str]) -> list[str]:
        assert user == getpass.getuser(), "without root there is the caller's account alone"
        return [
            "env",
            "-C",
            str(Path.home()),
            *(f"{name}={value}" for name, value in self._mark.items()),
            *argv,
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
