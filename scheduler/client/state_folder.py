"""Private files of this user that outlive a reboot: `$XDG_STATE_HOME/roost`, else `~/.local/state/roost`."""

from __future__ import annotations

import os
from pathlib import Path

from roost.launchers.daemon.private_files import private_folder
from roost.launchers.daemon.private_files import read_json as read_json
from roost.launchers.daemon.private_files import remove_unfinished as remove_unfinished
from roost.launchers.daemon.private_files import write_private_json as write_private_json
from roost.launchers.daemon.private_files import write_whole as write_whole


def state_folder(*names: str) -> Path:
    """Create and return the folder `names` below the state folder.

    Only this user can enter it. Raises `OSError`, and the error's text has the remedy.
    """
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return private_folder(Path(base, "roost", *names))
