"""The files with which OpenSSH's client reaches the hosts: `ssh -F FOLDER/config n1`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.testing.deadlines import allow_s

_CONFIG = """\
Host {names}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  IdentityAgent none
  KexAlgorithms curve25519-sha256
"""
# OpenSSH's default key exchange takes 0.1 s of a CPU at both ends.
_KEYGEN_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a host's sshd listens."""

    address: str
    port: int = 22


def make_key(path: Path, comment: str) -> None:
    """Make a key without a passphrase at `path`, and its public part at `path`.pub, in the place of older ones."""
    for file in (path, public(path)):
        file.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=allow_s(_KEYGEN_S))


def public(key: Path) -> Path:
    """Return the path of a key's public part."""
    return key.with_name(f"{key.name}.pub")


def write_client(
    folder: Path, user: str, key: Path, places: Mapping[str, Place], *, seen_as: str = ""
) -> None:
    """Write a client folder with `config` and a copy of the key. `write_known_hosts` adds the hosts' keys.

    `seen_as` is the folder's path where the client runs, if that is not `folder`.
    """
    folder.mkdir(parents=True, mode=0o700)
    shutil.copy(key, folder / "key")
    (folder / "key").chmod(0o600)
    lines = []
    for name, place in places.items():
        lines += [
            f"Host {name}",
            f"  HostName {place.address}",
            f"  Port {place.port}",
            f"  HostKeyAlias {name}",
        ]
    common = _CONFIG.format(names=" ".join(places), user=user, folder=seen_as or folder)
    (folder / "config").write_text("\n".join(lines) + f"\n{common}")


def write_known_hosts(folder: Path, host_keys: Mapping[str, Path]) -> None:
    """Write the file with the public key of each host, by host name. `host_keys` are the private parts."""
    lines = [f"{name} {' '.join(public(key).read_text().split()[:2])}\n" for name, key in host_keys.items()]
    (folder / "known_hosts").write_text("".join(lines))
