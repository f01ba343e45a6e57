"""The file from which a kernel reads its ports and keys, and whether the kernel's command can see it.

A command such as `apptainer exec` enters a container that shows only a part of this machine's files.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from roost.launchers.daemon.private_files import private_folder, write_private_json
from roost.launchers.protocol.messages import Connection, name_connection_file
from roost.placement.model.json_codec import encode


def write_connection(folder: Path, kernel_id: str, connection: Connection, *, shown_in: str = "") -> Path:
    """Write the connection file of a kernel in its `folder`, or in `shown_in` where that is possible. Raises `OSError`.

    A link in `folder` then leads to it, so that `remove_folder` finds it.
    """
    path = folder / name_connection_file(kernel_id)
    content = {key: value for key, value in encode(connection).items() if value is not None}
    content.pop("interrupt_mode", None)
    _remove_shown(folder)
    if shown_in:
        with suppress(OSError):
            shown = private_folder(Path(shown_in)) / path.name
            path.symlink_to(shown)
            write_private_json(shown, content)
            return shown
        _remove_shown(folder)
    write_private_json(path, content)
    return path


def find_file(folder: Path, kernel_id: str) -> Path:
    """Return the connection file of the kernel with this folder, as `write_connection` has returned it."""
    path = folder / name_connection_file(kernel_id)
    return path.readlink() if path.is_symlink() else path


def remove_folder(folder: Path) -> None:
    """Remove the folder of a kernel, and its connection file elsewhere. Errors are ignored."""
    _remove_shown(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_shown(folder: Path) -> None:
    """Remove the connection file elsewhere, and the link to it."""
    for link in folder.glob("kernel-*.json"):
        with suppress(OSError):
            Path(os.readlink(link)).unlink(missing_ok=True)
            link.unlink()


def find_blind(path: Path) -> frozenset[int]:
    """Return the processes whose command lines name this file, and which see none or another one in its place.

    ipykernel writes a file of its own if there is none. Reads all command lines.
    """
    found = set()
    own = _stat(path)
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            command = Path("/proc", entry, "cmdline").read_bytes() if entry.isdecimal() else b""
            if os.fsencode(path) not in command:
                continue
            root = f"/proc/{entry}/root"
            os.stat(f"{root}/.")  # another user's files cannot be seen from here: then nothing is known
            seen = _stat(f"{root}{path}")
            if seen is None or (own is not None and not os.path.samestat(own, seen)):
                found.add(int(entry))
    return frozenset(found)


def _stat(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
