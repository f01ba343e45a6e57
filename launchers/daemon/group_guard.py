"""Ends a process group with its owner, however the owner ends.

The group's processes may be stopped, or run foreign code, so they do not notice the end of their owner. A shell outside
the group waits for it. The shell holds one end of a pipe, and the owner alone holds the other end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

_SCRIPT = """\
read -r _
kill -s KILL -- "-$0"
"""
"""Wait for the end of the pipe, then end the process group `$0`. SIGKILL ends stopped processes too."""


class GroupGuard:
    """The shell that waits for the end of this process. It takes less than 1 MB. `start` creates one."""

    def __init__(self, shell: asyncio.subprocess.Process) -> None:
        self._pid = shell.pid
        self._is_ending = False
        self.ended: asyncio.Future[int] = asyncio.ensure_future(shell.wait())

    @classmethod
    async def start(cls, group: int) -> GroupGuard:
        """Guard a process group, given by its number. Raises `OSError` if no shell can start."""
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _SCRIPT,
            str(group),
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return cls(shell)

    def end(self) -> None:
        """Let the group be: it has ended, and another group may get its number. May be called again."""
        if self._is_ending or self.ended.done():
            return
        self._is_ending = True
        # `Process.kill` first looks whether the shell has ended, and may take its exit code from asyncio.
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
