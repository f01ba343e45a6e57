"""Private files of this user that outlive a reboot: `$XDG_STATE_HOME/roost`, else `~/.local/state/roost`."""

from __future__ import annotations

from roost.launchers.daemon.file_input import UnfitFile as UnfitFile
from roost.launchers.daemon.file_input import open_checked as open_checked
from roost.launchers.daemon.file_input import put_aside as put_aside
from roost.launchers.daemon.file_input import take_json as take_json
from roost.launchers.daemon.private_files import remove_unfinished as remove_unfinished
from roost.launchers.daemon.private_files import state_folder as state_folder
from roost.launchers.daemon.private_files import write_private_json as write_private_json
