"""A real sshd on loopback for one test, with its own configuration, keys and folder. It needs no root.

The keys and the client's configuration are files of the test. The user's own `~/.ssh` is neither read nor changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until_blocking

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""


def why_not() -> str:
    """Return why there can be no sshd of a test here; empty if there can."""
    if not SSHD or shutil.which("ssh") is None:
        return "there is no sshd: install openssh-server"
    if os.getuid() == 0 and not Path("/run/sshd").is_dir():
        made = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False, timeout=10)
        if made.returncode:
            return "root's sshd wants the folder /run/sshd, and no mount namespace can be made here"
    return ""


@dataclass
class OwnSshd:
    """One sshd. `host` is its alias in the client's configuration, and `ssh` is the client with that configuration."""

    folder: Path
    port: int
    options: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    host = "n1"

    @property
    def ssh(self) -> tuple[str, ...]:
        return ("ssh", "-F", str(self.folder / "config"))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def configure_client(self, lines: str = "", **options: str) -> None:
        """Write the client's configuration. `options` replace the usual ones of the host."""
        usual = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": pwd.getpwuid(os.getuid()).pw_name,
            "IdentityFile": str(self.folder / "user_key"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            # The default takes 0.1 s of processor time at both ends.
            "KexAlgorithms": "curve25519-sha256",
        }
        text = "".join(f"    {name} {value}\n" for name, value in (usual | options).items())
        (self.folder / "config").write_text(f"{lines}\nHost {self.host}\n{text}")

    def know(self, key: str = "host_key") -> None:
        """Let the client know the host by this key."""
        public = (self.folder / f"{key}.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")

    def start(self, **options: str) -> None:
        """Start sshd with these options besides the usual ones, and wait until it listens."""
        usual = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": str(self.folder / "host_key"),
            "AuthorizedKeysFile": str(self.folder / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitUserRC": "no",
            "PrintMotd": "no",
            "LogLevel": "VERBOSE",
        }
        text = "".join(f"{name} {value}\n" for name, value in (usual | options).items())
        (self.folder / "sshd_config").write_text(text)
        command = [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")]
        if os.getuid() == 0 and not Path("/run/sshd").is_dir():
            script = 'mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        until_blocking(self._listens, lambda: f"sshd listens: {self.log}", 10, 0.01)

    def _listens(self) -> bool:
        """True if sshd listens. Raise AssertionError if it has ended."""
        assert self.process is not None
        is_there = (self.folder / "log").exists() and "Server listening" in self.log
        assert is_there or self.process.poll() is None, self.log
        return is_there

    def stop(self) -> None:
        """End sshd. Sessions end with their clients."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(allow_s(10))
            self.process = None
            (self.folder / "log").unlink(missing_ok=True)


@contextlib.contextmanager
def own_sshd(folder: Path) -> Iterator[OwnSshd]:
    """Give a configured sshd that is not yet started."""
    for name in ("host_key", "other_host_key", "user_key", "other_user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)],
            check=True,
            timeout=allow_s(10),
        )
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    sshd = OwnSshd(folder, free_port())
    sshd.configure_client()
    sshd.know()
    try:
        yield sshd
    finally:
        sshd.stop()


PYTHON = sys.executable
"""The Python of the tests. It has what an agent needs."""
