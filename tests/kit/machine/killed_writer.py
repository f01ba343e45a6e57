"""A process that is killed in the middle of writing a file."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from roost.testing.deadlines import allow_s

_PROGRAM = """
import os, signal, sys
from pathlib import Path
from roost.launchers.daemon.private_files import write_private
os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
write_private(Path(sys.argv[1]), b"half")
"""


def die_while_writing(path: Path) -> None:
    """Let a process write `path`, and kill it after it has written the content, before the file has its name."""
    ended = subprocess.run([sys.executable, "-c", _PROGRAM, str(path)], timeout=allow_s(60), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not path.exists()
