"""Private files of this user that outlive a reboot: `$XDG_STATE_HOME/roost`, else `~/.local/state/roost`."""

from __future__ import annotations

import os
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile as UnfitFile
from roost.launchers.daemon.file_input import clear_place as clear_place
from roost.launchers.daemon.file_input import open_checked as open_checked
from roost.launchers.daemon.file_input import put_aside as put_aside
from roost.launchers.daemon.file_input import take_json as take_json
from roost.launchers.daemon.private_files import private_folder
from roost.launchers.daemon.private_files import remove_unfinished as remove_unfinished
from roost.launchers.daemon.private_files import write_private_json as write_private_json
from roost.launchers.daemon.private_files import write_whole as write_whole


def state_folder(*names: str) -> Path:
    """Create and return the folder `names` below the state folder.

    Only this user can enter it. Raises `OSError`, and the error's text has the remedy.
    """
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return private_folder(Path(base, "roost", *names))
