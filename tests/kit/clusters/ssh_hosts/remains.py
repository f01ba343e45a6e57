"""The folders of hosts, and the remains of hosts after their test was killed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from kit.machine.network_cables import disconnect, find_devices
from roost.launchers.daemon.process import is_running, start_time
from roost.testing.clusters.cluster_folder import wait_until
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
    owner = {"pid": os.getpid(), "start_time": start_time(os.getpid())}
    (folder / f"{_OWNER}.new").write_text(json.dumps(owner))
    (folder / f"{_OWNER}.new").rename(folder / _OWNER)
    return folder


def remove(folder: Path) -> None:
    """End the processes of a folder's hosts, and remove their network device and the folder. May be repeated."""
    _kill_processes(folder)
    for device in find_devices(str(folder)):
        disconnect(device)
    shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    """Return a line for each process, mount and network device that is left of hosts, and for their folder."""
    found = [f"process {process.pid}" for process in _find_processes(folder)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if f" {folder}/" in line]
    found += [f"device {name}" for name in find_devices(str(folder))]
    return found + ([f"folder {folder}"] if folder.exists() else [])


def _has_owner(folder: Path) -> bool:
    """True unless the process that made a folder has ended. True for folders of other users, and for gone ones."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return True
    if status.st_uid != os.geteuid():
        return True
    try:
        owner = json.loads((folder / _OWNER).read_text())
    except FileNotFoundError:
        return time.time() - status.st_mtime < _WRITES_S
    return is_running(owner["pid"], owner["start_time"])


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
