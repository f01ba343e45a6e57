"""The folders of hosts, and what is left of hosts whose test was killed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from kit.machine.network_cables import disconnect
from roost.bench.clusters.cluster_folder import wait_until
from roost.launchers.daemon.process import is_running, start_time
from roost.testing.deadlines import allow_s

MARK = "ROOST_SSH_HOSTS"
"""The environment variable of the kit's processes. It names the folder of the hosts."""
_BASE, _PREFIX = Path("/tmp"), "ssh-hosts-"  # short: a socket's path has at most 107 bytes
_OWNER = "owner.json"
_WRITES_S = 60.0


def make_folder() -> Path:
    """Make a private folder of this process for hosts. First remove the remains of processes that have ended."""
    for folder in _BASE.glob(f"{_PREFIX}*"):
        if not _has_owner(folder):
            remove(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_BASE))
    note_device(folder, "")
    return folder


def note_device(folder: Path, device: str) -> None:
    """Note the owner of a folder, which is this process, and the network device of its hosts."""
    owner = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "device": device}
    (folder / f"{_OWNER}.new").write_text(json.dumps(owner))
    (folder / f"{_OWNER}.new").rename(folder / _OWNER)


def remove(folder: Path) -> None:
    """End the processes of a folder's hosts, and remove their network device and the folder."""
    _kill_processes(folder)
    with suppress(OSError, ValueError):
        if device := json.loads((folder / _OWNER).read_text())["device"]:
            disconnect(device)
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    """Return a line for each process and mount that is left of hosts, and for their folder and its device."""
    found = [f"process {process.pid}" for process in _find_processes(folder)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if f" {folder}/" in line]
    if folder.exists():
        found.append(f"folder {folder}")
        device = json.loads((folder / _OWNER).read_text())["device"]
        found += [f"device {name}" for _, name in socket.if_nameindex() if name == device]
    return found


def _has_owner(folder: Path) -> bool:
    """True if the process that made a folder runs, if it belongs to another user, or if it is being made."""
    try:
        status = folder.stat()
        if status.st_uid != os.geteuid():
            return True
        owner = json.loads((folder / _OWNER).read_text())
        return is_running(owner["pid"], owner["start_time"])
    except (OSError, ValueError):
        return folder.exists() and time.time() - folder.stat().st_mtime < _WRITES_S


def _find_processes(folder: Path) -> list[psutil.Process]:
    """Return the kit's processes for the hosts of a folder. Processes of sessions end with them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def _kill_processes(folder: Path) -> None:
    def is_empty() -> bool:
        left = _find_processes(folder)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return not left

    wait_until(is_empty, f"processes of {folder} cannot be killed", timeout_s=allow_s(_WRITES_S))
