"""The hosts of one test, and all that a test does with them."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil

from roost.testing.clusters.cluster_folder import wait_until
from roost.testing.deadlines import allow_s

from .accounts import ACCOUNTS, PLAIN, Account, give, make_home, write_etc, write_ssh_folder
from .client_folder import Place, make_key, public, write_client, write_known_hosts
from .loopback_host import LoopbackHost
from .namespace_host import NamespaceHost
from .remains import MARK, make_folder, remove
from .requirements import why_not
from .switch import Switch

AnyHost = NamespaceHost | LoopbackHost
_RUN_S = 60.0


class SshHosts:
    """Hosts `n1`, `n2` and so on, which start on entry and end on exit, or with this process.

    `users` are the accounts on each host. A client folder of a user has `config`, `known_hosts` and `key`, so that
    `ssh -F FOLDER/config n1` logs in as that user; `ssh` returns this command. On the hosts, users reach all hosts with
    a plain `ssh n2`. `sys.executable` runs there, with this checkout.

    `accounts` come from ACCOUNTS. `shared_home` makes /home one file system for all hosts. `sshd_options` are lines of
    `sshd_config`. `rules` has the content of /etc/roost/machine.toml of some hosts, by name. Without root there is one
    host, and the caller's account. Raise RuntimeError if hosts cannot start.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        accounts: Sequence[str] = PLAIN,
        shared_home: bool = False,
        sshd_options: Sequence[str] = (),
        rules: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = Path(os.devnull)  # until it starts
        self.users = tuple(accounts) if os.geteuid() == 0 else (getpass.getuser(),)
        self._count, self._accounts, self._has_shared_home = count, accounts, shared_home
        self._sshd_options, self._rules = sshd_options, rules
        self._hosts: dict[str, AnyHost] = {}
        self._clients: list[Path] = []
        self._switch: Switch | None = None

    def __enter__(self) -> SshHosts:
        if reason := why_not(self._count, self._accounts):
            raise RuntimeError(reason)
        self.folder = make_folder()
        try:
            self._make_keys()
            if os.geteuid() == 0:
                self._make_hosts()
            else:
                self._make_loopback()
            self._make_clients()
            for host in self._hosts.values():
                host.begin()
            for host in self._hosts.values():
                host.await_sshd()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the hosts with all of their processes, and remove their network and files. May be repeated."""
        hosts, self._hosts = self._hosts, {}
        for host in hosts.values():
            host.off()
        if self._switch is not None:
            self._switch.close()
            self._switch = None
        if self.folder != Path(os.devnull):
            remove(self.folder)

    # How a client reaches the hosts

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._hosts)

    def address(self, name: str) -> str:
        """Return the IP address of a host."""
        return self._hosts[name].place.address

    def client(self, user: str = "") -> Path:
        """Return the client folder of a user, by default of the first one. It belongs to the caller."""
        return self.folder / "clients" / (user or self.users[0])

    def ssh(self, user: str = "") -> tuple[str, ...]:
        """Return the beginning of an `ssh` command that logs in as a user, by default as the first one."""
        return ("ssh", "-F", str(self.client(user) / "config"))

    def trust(self) -> None:
        """Let all clients know the present host keys, as they do at the start."""
        for client in self._clients:
            write_known_hosts(client, self._host_keys())

    # Faults

    def off(self, name: str) -> None:
        """Turn a host's power off: all its processes end at once, and it answers no packet. May be repeated."""
        self._hosts[name].off()

    def on(self, name: str) -> None:
        """Turn a host on again, with the old homes, an empty /run and /tmp, and another boot id."""
        self._hosts[name].begin()
        self._hosts[name].await_sshd()

    def cut(self, name: str) -> None:
        """Drop all packets from and to a host until `mend`. Its processes live on."""
        self._hosts[name].cut()

    def mend(self, name: str) -> None:
        self._hosts[name].mend()

    def change_host_key(self, name: str) -> None:
        """Give a host another key, which no client knows until `trust`. Sessions live on."""
        host = self._hosts[name]
        make_key(host.host_key, name)
        host.restart_sshd()
        expected = public(host.host_key).read_text().split()[1]
        scan = ["ssh-keyscan", "-T", "5", "-t", "ed25519", "-p", str(host.place.port), host.place.address]

        def is_known() -> bool:
            return expected in subprocess.run(scan, capture_output=True, text=True).stdout

        wait_until(is_known, f"{name} keeps its old key", timeout_s=allow_s(_RUN_S))

    # Processes on hosts

    def processes(self, name: str = "", user: str = "") -> list[psutil.Process]:
        """Return the processes of a user, or of all, on a host, or on all. Each has a pid of this machine.

        An open session has an `sshd` of its user. The listening sshd belongs to root. A host that is off has none.
        """
        hosts = [self._hosts[name]] if name else self._hosts.values()
        found = []
        for process in (process for host in hosts for process in host.processes()):
            try:
                is_wanted = not user or process.uids().real == _uid(user)
                if is_wanted and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def is_on(self, name: str) -> bool:
        return self._hosts[name].root is not None

    def root(self, name: str) -> Path:
        """Return where this machine sees the files of a host that is on. After a new start that is another folder."""
        root = self._hosts[name].root
        assert root is not None, f"{name} is off"
        return root

    def command(self, name: str, user: str, argv: Sequence[str]) -> list[str]:
        """Return the command that runs `argv` on a host as a user, or as `root`, in the user's home. It uses no ssh."""
        return self._hosts[name].command(user, argv)

    def run(
        self, name: str, user: str, argv: Sequence[str], *, timeout_s: float = _RUN_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as `command` describes it, and return its output and exit code."""
        return subprocess.run(
            self.command(name, user, argv),
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=allow_s(timeout_s),
        )  # fmt: skip

    # The start

    @property
    def _mark(self) -> Mapping[str, str]:
        return {MARK: str(self.folder)}

    def _make_keys(self) -> None:
        (self.folder / "keys").mkdir()
        for user in self.users:
            make_key(self._key(user), user)

    def _make_hosts(self) -> None:
        self._switch = Switch(self.folder, self._mark)
        accounts = [ACCOUNTS[name] for name in self._accounts]
        hosts = []
        for index in range(1, self._count + 1):
            folder = self.folder / f"n{index}"
            folder.mkdir()
            homes = self.folder / "home" if self._has_shared_home else folder / "home"
            homes.mkdir(exist_ok=True)
            hosts.append(NamespaceHost(index, folder, homes, self._switch, accounts, self._mark))
        addresses = {host.name: host.place.address for host in hosts}
        for host in hosts:
            write_etc(host.etc, addresses, accounts)
            if host.name in self._rules:
                (host.etc / "roost").mkdir()
                (host.etc / "roost" / "machine.toml").write_text(self._rules[host.name])
            keys = {user: public(self._key(user)) for user in self.users}
            write_ssh_folder(host.ssh_folder, keys, self._sshd_options)
            make_key(host.host_key, host.name)
            self._hosts[host.name] = host
        for homes in {host.homes for host in hosts}:
            for account in accounts:
                if account.has_home:
                    self._make_home(homes / account.name, account)

    def _make_home(self, home: Path, account: Account) -> None:
        """Make a home from which `ssh n2` works."""
        make_home(home, account)
        write_client(home / ".ssh", account.name, self._key(account.name), self._places(), seen_as="~/.ssh")
        self._clients.append(home / ".ssh")
        write_known_hosts(home / ".ssh", self._host_keys())
        give(home, account)

    def _make_loopback(self) -> None:
        host = LoopbackHost(self.folder / "n1", self._sshd_options, self._mark)
        make_key(host.host_key, host.name)
        shutil.copy(public(self._key(self.users[0])), self.folder / "n1" / "authorized_keys")
        self._hosts[host.name] = host

    def _make_clients(self) -> None:
        for user in self.users:
            write_client(self.client(user), user, self._key(user), self._places())
            self._clients.append(self.client(user))
        self.trust()

    def _key(self, user: str) -> Path:
        return self.folder / "keys" / user

    def _places(self) -> dict[str, Place]:
        return {name: host.place for name, host in self._hosts.items()}

    def _host_keys(self) -> dict[str, Path]:
        return {name: host.host_key for name, host in self._hosts.items()}


def _uid(user: str) -> int:
    if user in ACCOUNTS and os.geteuid() == 0:
        return ACCOUNTS[user].uid
    return pwd.getpwnam(user).pw_uid
