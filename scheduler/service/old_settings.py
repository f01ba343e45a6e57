"""Whether this service is older than the files of its settings: it reads them only when it starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from roost.launchers.daemon.tasks import in_thread
from roost.scheduler.client.advice import write_command
from roost.scheduler.config.read_files import FileChange, ReadFiles
from roost.scheduler.errors import ConfigError, LimitExceeded, NoNodeEver, NotAllowed, RoostError
from roost.scheduler.messages import Finding, end_sentence

_LOOK_S = 2.0
"""How long the files may take to read, on a file system that hangs."""
_FROM_SETTINGS = (ConfigError, LimitExceeded, NotAllowed, NoNodeEver)
"""The errors that another setting may avoid, unless they say that none does."""


class OldSettings:
    """The files of the service's settings, for findings and for the errors that follow from them."""

    def __init__(self, read: ReadFiles, backend: str, options: Mapping[str, Any]) -> None:
        self._read = read
        self.command = write_command("restart-service", backend, options)
        """The command with which a user starts the next service."""

    async def find_problems(self) -> list[Finding]:
        """Return a warning for each file that has changed since it was read."""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self._read.read_at))
        return [
            {
                "level": "warning",
                "what": f"{change}, and the service has the settings of {since}",
                "do": f"run `{self.command}`: kernels live on",
            }
            for change in await self._list_changes()
        ]

    async def explain(self, problem: RoostError) -> RoostError:
        """Return the error, with a sentence about changed files if another setting could be its remedy."""
        if not isinstance(problem, _FROM_SETTINGS) or problem.fields.get("with_any_settings"):
            return problem
        if note := await self.describe():
            problem.user_message = f"{end_sentence(problem.user_message)}{note}"
            problem.fields["about_settings"] = note
        return problem

    async def describe(self) -> str:
        """Return a sentence about the files that have changed, with a space before it; empty if none has."""
        changes = await self._list_changes()
        if not changes:
            return ""
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        return f" The service is older than its settings: {changes[0]}{more}. Run `{self.command}`."

    async def _list_changes(self) -> list[FileChange]:
        try:
            return await in_thread(self._read.list_changes, deadline_s=_LOOK_S)
        except asyncio.TimeoutError:
            return []
