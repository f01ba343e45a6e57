"""The processes of a launcher: a process group of its own, within the session of the bridge.

roost signals the group of the bridge, so that the launcher gets no signal twice. The group ends with the bridge, also
if the bridge is killed.

A launcher also takes requests: one JSON object in each connection to its `comm_port`. It takes one connection after the
other, and closes each when it has read the request. It asks for no key.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from roost.launchers.daemon.group_guard import GroupGuard
from roost.launchers.daemon.process import Watch, end_with_parent, start_time

_ENDS_S = 1.0
"""How long a launcher may take to end after SIGTERM."""
_DIES_S = 5.0
"""How long a launcher may take to end after SIGKILL. If it takes longer, it hangs in the operating system."""

_DEADLINE_S = 1.0
"""How long a launcher may take to read a request."""


class Launcher:
    """A running launcher. `start` creates one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._guard: GroupGuard | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The exit code in the form of `subprocess`. The rest of the group has ended too."""
        self._watch = Watch(process.pid, start_time(process.pid), self._on_end)

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str]) -> Launcher:
        """Start a launcher. Raises `OSError`."""
        launcher = cls(process := _spawn(argv, env))
        try:
            launcher._guard = await GroupGuard.start(process.pid)
        except BaseException:
            await launcher.end(grace_s=0)
            raise
        return launcher

    def signal(self, signum: int) -> None:
        """Signal all processes of the group."""
        if not self.ended.done():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signum)

    async def end(self, *, grace_s: float = _ENDS_S) -> int:
        """End the launcher, if it runs, and return its exit code."""
        if grace_s > 0:
            self.signal(signal.SIGTERM)
            await asyncio.wait([self.ended], timeout=grace_s)
        self.signal(signal.SIGKILL)
        await asyncio.wait([self.ended], timeout=_DIES_S)
        if self._guard is not None and self.ended.done():
            self._guard.end()
            await asyncio.wait([self._guard.ended], timeout=_DIES_S)
        return self.ended.result() if self.ended.done() else -signal.SIGKILL

    def _on_end(self) -> None:
        # The process is not reaped yet, so no other group can have its number.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.ended.set_result(self._process.wait())


def _spawn(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, env=dict(env), stdin=subprocess.DEVNULL, preexec_fn=_begin)


def _begin() -> None:  # in the new process
    os.setpgid(0, 0)
    end_with_parent()


async def send_interrupt(port: int, signum: int) -> bool:
    """Ask the launcher to signal its kernel. Return False if the launcher has not read the request in time."""
    return await _send(port, {"signum": signum})


async def send_shutdown(port: int) -> bool:
    """Ask the launcher to stop its listener, so that its process can end. Return False as `send_interrupt`."""
    return await _send(port, {"shutdown": 1})


async def _send(port: int, request: dict[str, int]) -> bool:
    try:
        return await asyncio.wait_for(_exchange(port, json.dumps(request).encode()), _DEADLINE_S)
    except (OSError, TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
        return False


async def _exchange(port: int, content: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(content)
        writer.write_eof()
        return await reader.read(1) == b""
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
