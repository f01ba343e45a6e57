"""One host as root: a first process and an sshd in namespaces of their own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from roost.testing.clusters.cluster_folder import answers, wait_until
from roost.testing.deadlines import allow_s

from .accounts import ACCOUNTS, Account, etc_script, home_script
from .client_folder import Place
from .held_process import HeldProcess, first_command
from .requirements import SSHD
from .switch import Switch
from .visible_paths import OWN, hide_script, needed_paths

START_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc")


class NamespaceHost:
    """The host `n<index>`. The folders `homes`, `ssh_folder` (its /etc/ssh) and `etc` outlast its power.

    /etc is a copy of this machine's in memory, made at each start, with the files in `etc`.
    """

    def __init__(
        self,
        index: int,
        folder: Path,
        homes: Path,
        switch: Switch,
        accounts: Sequence[Account],
        environment: Mapping[str, str],
    ) -> None:
        self.name = f"n{index}"
        self.place = Place(switch.address(index))
        self.homes, self.etc, self.ssh_folder = homes, folder / "etc", folder / "ssh"
        self.host_key = self.ssh_folder / "host_key"
        self._index, self._folder, self._switch = index, folder, switch
        (folder / "etc-in-memory").mkdir()
        self._accounts, self._environment = accounts, {**environment, "PATH": _PATH}
        self._process: HeldProcess | None = None
        self._first_pid = self._pid_namespace = 0
        self._first = -1

    def begin(self) -> None:
        """Turn the power on. `await_sshd` waits until the host is up."""
        assert self._process is None, f"{self.name} is on"
        (self._folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        options = ("--fork", "--kill-child", "--mount-proc", "--propagation", "private")
        command = ["unshare", *_NAMESPACES, *options, "sh", "-euc", self._script()]
        self._process = HeldProcess(command, self._folder / "log", self._environment)
        self._process.await_step()
        (first,) = psutil.Process(self._process.pid).children()
        self._first_pid = first.pid
        self._first = os.pidfd_open(first.pid)
        self._pid_namespace = os.stat(f"/proc/{first.pid}/ns/pid").st_ino
        self._switch.plug(self._index, self._process.pid)
        self._process.go()

    def await_sshd(self) -> None:
        assert self._process is not None
        self._process.await_step()
        address = f"{self.place.address}:{self.place.port}"
        wait_until(lambda: answers(address), f"no sshd on {self.name}", timeout_s=allow_s(START_S))

    def off(self) -> None:
        """Kill all processes at once. No packet reports their end. May be repeated."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.CalledProcessError):  # it has not come up
                self._switch.cut(self._index)
            if self._first_pid:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._first, signal.SIGKILL)
                os.close(self._first)
                self._first_pid = 0
            process.end()
            self._switch.unplug(self._index)

    def cut(self) -> None:
        self._switch.cut(self._index)

    def mend(self) -> None:
        self._switch.mend(self._index)

    def restart_sshd(self) -> None:
        """Let a new sshd take over, with the present host key. Sessions live on."""
        signal.pidfd_send_signal(self._first, signal.SIGHUP)

    @property
    def root(self) -> Path | None:
        """The host's files, as this machine's root sees them. None: the host is off."""
        return Path(f"/proc/{self._first_pid}/root") if self._process is not None else None

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the host, but the first one."""
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                namespace = os.stat(f"/proc/{process.pid}/ns/pid").st_ino
                if self._first_pid not in (0, process.pid) and namespace == self._pid_namespace:
                    found.append(process)
        return found

    def command(self, user: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` on the host as a user, in the user's home."""
        assert self._process is not None, f"{self.name} is off"
        uid, home, shell = 0, "/root", "/bin/bash"
        if user != "root":
            account = ACCOUNTS[user]
            uid, home, shell = account.uid, account.home, account.shell
        cwd = home if user == "root" or ACCOUNTS[user].has_home else "/"
        variables = {
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": shell,
        }
        return [
            "nsenter", *_NAMESPACES, "--target", str(self._first_pid), "--",
            "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
            "setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups", "env", "-C", cwd, *argv,
        ]  # fmt: skip

    def _script(self) -> str:
        """Return the host's start: its namespaces, then the network from outside, then mounts and the first process."""
        tmpfs = "mount -t tmpfs -o mode={:o} tmpfs {}".format
        mounts = f"""
            mount --bind '{self._folder}/boot_id' /proc/sys/kernel/random/boot_id
            {etc_script(self.etc, self.ssh_folder, self._folder / "etc-in-memory")}
            mount --bind '{self.homes}' /home
            {tmpfs(0o755, "/run")}
            {tmpfs(0o1777, "/tmp")}
            {tmpfs(0o755, "/var/log")}
        """
        assert all(f" {path}\n" in mounts for path in OWN if path != "/dev/shm")
        homes = "\n".join(map(home_script, self._accounts))
        return f"""
            echo; read -r go
            ip link set lo up
            ip addr add {self.place.address}/24 dev eth0
            ip link set eth0 up
            echo {self.name} > /proc/sys/kernel/hostname
            {hide_script(needed_paths(), mounts)}
            mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts /dev/pts
            mount --bind /dev/pts/ptmx /dev/ptmx
            mkdir /run/sshd /run/user
            mkdir -m 1777 /run/lock
            {homes}
            {SSHD} -t
            exec {shlex.join(first_command(str(SSHD), "-D", "-e"))}
        """
