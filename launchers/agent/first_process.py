"""The first process of a pod or container: roost's agent, from one archive.

    python ARCHIVE FOLDER LABEL

ARCHIVE has this file as its `__main__`, roost's part of a node, and `start.json` (see `start_archive.py`). FOLDER, the
agent's folder, is made in the working directory unless it is absolute. LABEL tells people which kernel this is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zipimport


def main() -> int:
    # The system ignores SIGTERM for the first process of a pod until it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    from roost.launchers.agent.main import main as run_agent

    start = json.loads(zipimport.zipimporter(sys.argv[0]).get_data("start.json"))
    return run_agent([os.path.abspath(sys.argv[1]), json.dumps(start["settings"])], start["assignment"])


if __name__ == "__main__":
    sys.exit(main())
