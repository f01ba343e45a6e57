"""Debian's packages that the tests need."""

from __future__ import annotations

import os
import shutil
import subprocess

LOCK_S = 300
"""How long to wait in seconds until another program has ended its installation of packages."""


def install(*packages: str) -> None:
    """Install packages, if this is root on Debian. Otherwise do nothing."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        options = ["--quiet", "--option", f"DPkg::Lock::Timeout={LOCK_S}"]
        subprocess.run(["apt-get", *options, *command], env=environment, check=True)
