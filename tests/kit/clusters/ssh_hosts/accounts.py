"""The accounts of hosts, plain and hard ones, and the files that a host has for them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_FULL_KIB = 64
_NOISE = """\
echo "Welcome to the lab"; echo "quota: 93 % used" >&2
for i in 1 2 3; do echo "{not json $i"; done
"""
_SYSTEM_USERS = """\
root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
sshd:x:110:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_SYSTEM_GROUPS = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\n"
_SSHD = """\
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys/%u
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account on every host. Its group has its uid as number."""

    name: str
    uid: int
    shell: str = "/bin/bash"
    is_noisy: bool = False
    """Each login file of the shell prints, so the output of every command begins with these lines."""
    may_exec: bool = True
    """False if the file system of the home is mounted with `noexec`."""
    is_full: bool = False
    """The file system of the home has no free byte."""
    has_home: bool = True
    has_run_folder: bool = True
    """True if /run/user/UID exists, as systemd makes it. cleo has none."""

    @property
    def home(self) -> str:
        return f"/home/{self.name}"


ACCOUNTS: Mapping[str, Account] = {
    account.name: account
    for account in (
        Account(name="ada", uid=3001),
        Account(name="bob", uid=3002),
        Account(name="cleo", uid=3003, has_run_folder=False),
        Account(name="csh", uid=3004, shell="/bin/tcsh"),
        Account(name="fish", uid=3005, shell="/usr/bin/fish"),
        Account(name="noisy", uid=3006, is_noisy=True),
        Account(name="noexec", uid=3007, may_exec=False),
        Account(name="full", uid=3008, is_full=True),
        Account(name="nohome", uid=3009, has_home=False),
    )
}
PLAIN = ("ada", "bob", "cleo")
HARD = tuple(name for name in ACCOUNTS if name not in PLAIN)
"""The accounts that have defeated other programs. csh and fish need packages of these names."""


def write_etc(etc: Path, addresses: Mapping[str, str], accounts: Sequence[Account]) -> None:
    """Write the files of a host's /etc that are not this machine's: accounts and the names of hosts."""
    etc.mkdir()
    users = _SYSTEM_USERS + "".join(f"{a.name}:x:{a.uid}:{a.uid}::{a.home}:{a.shell}\n" for a in accounts)
    names = [line.partition(":")[0] for line in users.splitlines()]
    hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    files = {
        "passwd": users,
        "group": _SYSTEM_GROUPS + "".join(f"{a.name}:x:{a.uid}:\n" for a in accounts),
        "shadow": "".join(f"{name}:*:19000:0:99999:7:::\n" for name in names),
        "hosts": "\n".join(hosts) + "\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\n",
        "machine-id": f"{uuid.uuid4().hex}\n",
    }
    for name, text in files.items():
        (etc / name).write_text(text)
    (etc / "shadow").chmod(0o640)


def write_ssh_folder(folder: Path, public_keys: Mapping[str, Path], sshd_options: Sequence[str]) -> None:
    """Write a host's /etc/ssh, but for its key. `sshd_options` are lines of `sshd_config`, which come before ours."""
    (folder / "authorized_keys").mkdir(parents=True)
    for user, key in public_keys.items():
        shutil.copy(key, folder / "authorized_keys" / user)
    (folder / "sshd_config").write_text("".join(f"{line}\n" for line in sshd_options) + _SSHD)


def etc_script(etc: Path, ssh_folder: Path, place: Path) -> str:
    """Return the shell commands that mount /etc: a copy of this machine's with other files, in memory at `place`."""
    return f"""
        mount -t tmpfs -o mode=755 tmpfs '{place}'
        cp --archive /etc/. '{place}'
        rm -rf '{place}/ssh'
        mkdir '{place}/ssh'
        cp --archive --remove-destination '{etc}/.' '{place}'
        mount --bind '{place}' /etc
        mount --bind '{ssh_folder}' /etc/ssh
    """


def make_home(home: Path, account: Account) -> None:
    """Make the files of an account's home. The caller then gives them to the account with `give`."""
    home.mkdir(parents=True)
    if account.is_noisy:
        for name in (".bashrc", ".bash_profile", ".profile"):
            (home / name).write_text(_NOISE)


def give(folder: Path, account: Account) -> None:
    """Make the account the owner of a private folder and of all in it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.uid, account.uid)
    folder.chmod(0o700)


def home_script(account: Account) -> str:
    """Return the shell commands that give an account its special home and its folder in /run, on its host."""
    lines, owner = [], f"uid={account.uid},gid={account.uid},mode=700"
    if not account.may_exec:
        lines += [
            f"mount --bind {account.home} {account.home}",
            f"mount -o remount,bind,noexec {account.home}",
        ]
    if account.is_full:
        lines += [
            f"mount -t tmpfs -o size={_FULL_KIB}k,{owner} tmpfs {account.home}",
            f"head -c {2 * _FULL_KIB}K /dev/zero > {account.home}/filler 2> /dev/null || true",
        ]
    if account.has_run_folder:
        folder = f"/run/user/{account.uid}"
        lines += [f"mkdir -m 700 {folder}", f"chown {account.uid}:{account.uid} {folder}"]
    return "\n".join(lines)
