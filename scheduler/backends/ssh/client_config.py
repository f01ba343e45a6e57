"""The configuration with which roost runs OpenSSH's client: the person's own, and what may differ from it.

Options of a command line do not reach the client that ssh starts for a jump host. A file given by `-F` does. So roost's
options are a file that includes the person's files. For ssh the first value of an option counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path
from shlex import join

from roost.launchers.daemon.private_files import private_folder, runtime_dir, write_private

from .problems import HostProblem, clean, explain

_FIXED = """\
ControlMaster no
ClearAllForwardings yes
ForwardAgent no
ForwardX11 no
PermitLocalCommand no
RemoteCommand none
RequestTTY no
LogLevel INFO
"""
"""What no configuration may change.

Without ControlMaster, a session of roost would leave a process behind. LogLevel QUIET would hide ssh's reasons.
"""
_UNASKED = """\
BatchMode yes
StrictHostKeyChecking yes
"""
"""How a client behaves that nobody watches: it asks nothing, and takes no key of a host that is not known."""
_USUAL = """\
Host *
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 3
"""
"""What counts if the person's configuration does not say otherwise."""


def prepare_command(ssh: Sequence[str]) -> list[str]:
    """Return the client's command with roost's configuration, which includes the person's. Writes it on first use.

    `ssh` is the client and its options. A `-F` among them names the configuration that is included. Raises `OSError`
    or `HostProblem`.
    """
    own, kept = _take_file(ssh[1:])
    included = ["~/.ssh/config", "/etc/ssh/ssh_config"]
    if own is not None:
        included = [] if own == "none" else [_whole_path(own)]
    else:
        with contextlib.suppress(KeyError):  # a uid without a name: ssh says so itself
            _check_owner(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh/config")
    text = "".join(
        [
            _FIXED,
            _UNASKED,
            *(f'Include "{path}"\n' for path in included),
            _USUAL,
        ]
    )
    return [ssh[0], "-F", str(_store(text)), *kept]


def check_file(ssh: Sequence[str]) -> None:
    """Raise `HostProblem` if a `-F` among the options names a file that cannot be read.

    ssh checks this itself, but not for a file that another one includes.
    """
    own, _ = _take_file(ssh[1:])
    if own is None or own == "none":
        return
    try:
        with open(_whole_path(own), "rb"):
            pass
    except OSError as problem:
        text = (
            f"ssh cannot read its configuration: {clean(_whole_path(own))}: {problem.strerror}: correct -F in "
            "c.RoostSshBackend.ssh"
        )
        raise HostProblem(text, kind="ssh") from None


def show_command(ssh: Sequence[str]) -> str:
    """Return the client's command as a person types it, to reach a host as roost does.

    >>> show_command(["ssh", "-F", "/etc/lab/config", "-o", "ConnectTimeout=10"])
    'ssh -F /etc/lab/config'
    """
    words = list(ssh)
    while len(words) > 2 and words[-2] == "-o" and words[-1].startswith("ConnectTimeout="):
        del words[-2:]
    return join(words)


def _take_file(options: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the file that the last `-F` names, None without one, and the other options."""
    own: str | None = None
    kept: list[str] = []
    words = iter(options)
    for word in words:
        if word == "-F":
            own = next(words, "none")
        elif word.startswith("-F"):
            own = word[2:]
        else:
            kept.append(word)
            if len(word) == 2 and word[1] in "BbcDEeIiJLlmOopQRSWw":  # its value is the next word
                kept += [value] if (value := next(words, None)) is not None else []
    return own, kept


def _whole_path(file: str) -> str:
    return os.path.abspath(os.path.expanduser(file))


def _check_owner(config: Path) -> None:
    """Raise `HostProblem` if another user may write to the person's configuration.

    ssh checks this itself, but not for a file that another one includes.
    """
    try:
        status = config.stat()
    except OSError:
        return
    if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
        raise explain("", 255, f"Bad owner or permissions on {config}")


def _store(text: str) -> Path:
    """Return a file of this user with this text. Its name is a digest, so that nobody changes it in use."""
    folder = private_folder(runtime_dir() / "ssh")
    path = folder / f"config-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not path.exists():
        write_private(path, text.encode())
    return path
