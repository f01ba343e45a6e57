"""The packages and rights that hosts need on this machine."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kit.machine import debian_packages
from roost.testing.deadlines import allow_s

from .accounts import ACCOUNTS, PLAIN

SSHD = Path("/usr/sbin/sshd")
_PROGRAMS = {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "ip": "iproute2", "bridge": "iproute2"}
_SHELLS = {"/bin/tcsh": "tcsh", "/usr/bin/fish": "fish"}
_NAMESPACES = ("--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")
_PROBE_S = 60.0


def why_not(hosts: int = 1, accounts: Sequence[str] = PLAIN) -> str | None:
    """Return why this number of hosts with these accounts cannot start here, in one sentence, or None."""
    if sys.platform != "linux":
        return "SSH hosts need Linux"
    if missing := _missing_packages(accounts):
        return f"SSH hosts need packages: apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() == 0:
        return None if _may_make_namespaces() else "SSH hosts need namespaces, which root cannot make here"
    if hosts > 1:
        return "several SSH hosts need root, which gives each host namespaces of its own"
    if accounts != PLAIN:
        return "accounts of SSH hosts need root: without it there is the caller's own account"
    return None


def install() -> None:
    """Install the Debian packages of hosts with all accounts, if this is root on Debian and packages are missing."""
    if missing := _missing_packages(tuple(ACCOUNTS)):
        debian_packages.install(*missing)


def _missing_packages(accounts: Sequence[str]) -> list[str]:
    missing = {package for name, package in _PROGRAMS.items() if shutil.which(name) is None}
    shells = {ACCOUNTS[name].shell for name in accounts}
    missing |= {package for shell, package in _SHELLS.items() if shell in shells and not Path(shell).exists()}
    return sorted(missing if SSHD.exists() else missing | {"openssh-server"})


@functools.cache
def _may_make_namespaces() -> bool:
    probe = ["unshare", *_NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return subprocess.run(probe, capture_output=True, timeout=allow_s(_PROBE_S)).returncode == 0
