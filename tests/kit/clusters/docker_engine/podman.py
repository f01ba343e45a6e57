"""Podman's service as the engine of a `DockerEngine`: it has the same API."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from kit.machine import debian_packages

PACKAGES = ("podman", "netavark", "runc", "slirp4netns", "uidmap")
"""The Debian packages that it needs besides."""
SOCKET = "docker.sock"
_SETTINGS, _REGISTRIES = "containers.conf", "registries.conf"


def why_not(*, with_root: bool) -> str | None:
    """Return why Podman cannot be an engine here, in one sentence, or None."""
    programs = ("podman",) if with_root else ("podman", "slirp4netns", "newuidmap")
    if any(shutil.which(program) is None for program in programs):
        return f"Podman is not installed: apt-get install --no-install-recommends {' '.join(PACKAGES)}"
    if not with_root and not _may_divide_users():
        return (
            "a user without rights may not make user namespaces here: see user.max_user_namespaces (sysctl)"
        )
    return None


@functools.cache
def _may_divide_users() -> bool:
    command = [*_as_user(), "unshare", "--user", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=_PROBE_S).returncode == 0


def _as_user() -> list[str]:
    return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]


def install() -> None:
    """Install the packages, unless they are there, if that is possible here."""
    if why_not(with_root=False):
        with suppress(subprocess.CalledProcessError):  # its tests are then skipped
            debian_packages.install(*PACKAGES)


def command(folder: Path, number: int) -> list[str]:
    """Return the command of the service with its files in `folder`."""
    return [
        "env", f"CONTAINERS_CONF={folder}/{_SETTINGS}", f"CONTAINERS_REGISTRIES_CONF={folder}/{_REGISTRIES}",
        "podman", f"--root={folder}/data", f"--runroot={folder}/exec",
        "--storage-driver=overlay", "system", "service", "--time=0", f"unix://{folder}/{SOCKET}",
    ]  # fmt: skip


USER = 4242
"""The user without rights. Nothing but this engine's own namespaces knows it."""
_PROBE_S = 30.0
_USERS_MAP = "podman:165536:65536"
"""The users of its containers, as in `/etc/subuid`."""


def become_possible(folder: Path) -> str:
    """Return commands that let the user start containers, in the engine's own namespace of mounts."""
    lines = {
        "passwd": f"podman:x:{USER}:{USER}::{folder}/home:/bin/sh",
        "group": f"podman:x:{USER}:",
        "subuid": _USERS_MAP,
        "subgid": _USERS_MAP,
    }
    commands = [f"mkdir -p {folder}/home {folder}/exec {folder}/run"]
    for name, line in lines.items():
        commands += [f"echo {line} > {folder}/{name}", f"mount --bind {folder}/{name} /etc/{name}"]
    return "; ".join(
        [
            *commands,
            "mount -t tmpfs -o mode=755 tmpfs /dev/net",
            "mknod -m 666 /dev/net/tun c 10 200",
            f"chown {USER}:{USER} {folder} {folder}/data {folder}/home {folder}/exec {folder}/run {folder}/networks",
            f"chmod 700 {folder}/run",
        ]
    )


def rootless_command(folder: Path, number: int) -> list[str]:
    """Return the command of the service as the user without rights."""
    own = [f"HOME={folder}/home", f"XDG_RUNTIME_DIR={folder}/run"]
    return [*_as_user(), "env", *own, *command(folder, number)]


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
