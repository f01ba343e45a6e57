"""The files that dead agents have left in the folders of the book, and their removal. A promise that counts stays.

`roost doctor --fix` calls this. Agents leave such files alone, and do not count them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile

from .promise import NAME, find_pid_namespace, lives, name_unfinished, read_promise

_UNFINISHED = re.compile(rf"\.{NAME.pattern}\.(\d{{1,10}})(?:-[0-9a-f]{{16}})?\.tmp")
"""The name of a promise's file that is being written, with the uid of its user and the pid of its writer."""
_WRITTEN_S = 60.0
"""A file that has not changed for this long is not being written. Its writer may have a pid of another container."""


def find_unfinished(folder: Path) -> list[tuple[Path, int]]:
    """Return the files that a writer has left when it was killed, each with the uid of its owner. Never raises."""
    found: list[tuple[Path, int]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if named := _UNFINISHED.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    is_old = time.time() - status.st_mtime > _WRITTEN_S
                    if is_old and not os.path.exists(f"/proc/{named[2]}"):
                        found.append((Path(entry.path), status.st_uid))
    return sorted(found)


def find_foreign(folder: Path) -> list[tuple[Path, int]]:
    """Return the entries of root's folder that no roost has made, each with the uid of its owner. Never raises."""
    found: list[tuple[Path, int]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not NAME.fullmatch(entry.name) and not _UNFINISHED.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False).st_uid))
    return sorted(found)


def remove_dead(path: Path, uid: int) -> bool:
    """Remove a promise of a user if all its processes have ended. Return False if it lives or is no promise.

    The caller holds the lock on the folder. Raises `OSError`.
    """
    try:
        before = path.lstat()
        owner, promise = read_promise(path)
    except (FileNotFoundError, UnfitFile):
        return False
    namespace = find_pid_namespace()
    if owner != uid or promise.pid_namespace != namespace or lives(promise, uid, {}):
        return False
    # The next agent of the user may write the promise again at this moment, without the lock. Each write makes
    # another file of the same name. So the file is moved first, and put back if another file has come in between.
    aside = path.with_name(name_unfinished(path.name))
    path.rename(aside)
    is_same = aside.lstat().st_ino == before.st_ino
    if not is_same:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path, follow_symlinks=False)
    aside.unlink()
    return is_same
