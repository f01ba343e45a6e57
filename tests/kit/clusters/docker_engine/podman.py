"""Podman's service as the engine of a `DockerEngine`: it has the same API."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from kit.machine import debian_packages

PACKAGES = ("podman", "netavark", "runc")
"""The Debian packages that it needs besides."""
SOCKET = "docker.sock"
_SETTINGS, _REGISTRIES = "containers.conf", "registries.conf"


def why_not() -> str | None:
    """Return why Podman cannot be an engine here, in one sentence, or None."""
    if shutil.which("podman") is None:
        return f"Podman is not installed: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    return None


def install() -> None:
    """Install the packages, unless they are there, if that is possible here."""
    if why_not():
        with suppress(subprocess.CalledProcessError):  # its tests are then skipped
            debian_packages.install(*PACKAGES)


def command(folder: Path, number: int) -> list[str]:
    """Return the command of the service with its files in `folder`."""
    return [
        "env", f"CONTAINERS_CONF={folder}/{_SETTINGS}", f"CONTAINERS_REGISTRIES_CONF={folder}/{_REGISTRIES}",
        "podman", f"--root={folder}/data", f"--runroot={folder}/exec",
        "--storage-driver=overlay", "system", "service", "--time=0", f"unix://{folder}/{SOCKET}",
    ]  # fmt: skip


def trust(folder: Path, registry: str) -> None:
    """Let the service that starts next use this registry without TLS."""
    (folder / _REGISTRIES).write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')


def write_settings(folder: Path, number: int) -> str:
    """Return a command that writes its settings. crun does not work where both versions of control groups are."""
    lines = [
        "[engine]", 'cgroup_manager = "cgroupfs"', 'events_logger = "file"', 'runtime = "runc"',
        "[network]", 'network_backend = "netavark"', f'network_config_dir = "{folder}/networks"',
        f'default_subnet = "10.248.{number}.64/26"',
    ]  # fmt: skip
    files = f"mkdir -p {folder}/networks; touch {folder}/{_REGISTRIES}"
    return f"{files}; printf '%s\\n' {shlex.join(lines)} > {folder}/{_SETTINGS}"
