"""The archive that starts an agent for one kernel: the agent's code, its settings and its `Assignment`.

The archive is a program: `python ARCHIVE FOLDER LABEL` runs `agent/first_process.py`. Other bytes may be before it
in its file, and up to 60 kB after it. It has secrets, so its file must be private.
"""

from __future__ import annotations

import io
import zipfile

START_FILE = "start.json"
"""The member of the archive with the agent's settings and its `Assignment`, as `first_process.py` reads them."""


def add_start(archive: bytes, start: bytes) -> bytes:
    """Return the archive with `start` (from `node_archive.dump_start`) as one more member. Takes half a millisecond.

    `archive` is from `node_archive.pack(is_imported=True)`: the same for all agents. `start` is secret.
    """
    content = io.BytesIO(archive)
    with zipfile.ZipFile(content, "a") as file:
        file.writestr(zipfile.ZipInfo(START_FILE), start)
    return content.getvalue()
