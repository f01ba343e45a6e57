"""The start of one zygote: its process and its answer."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.open_files import restore_limit
from roost.launchers.protocol.agent_settings import Forking
from roost.launchers.protocol.process_context import UNKNOWN, ProcessContext, select_at_start, set_context
from roost.placement.model.json_codec import encode

from .fingerprint import Fingerprint
from .kernel_command import KernelCommand
from .zygote_key import Key, varies_by_kernel

SCRIPT = Path(__file__).parents[2] / "zygote" / "main.py"
_READY_S = 60.0
"""How long a zygote may take to load."""
_PACKET_BYTES = 1 << 20
_ROOM = "-" * 512
"""An argument that only takes room. The command line that `ps` shows for a kernel is written there."""


@dataclass(slots=True, eq=False)
class Zygote:
    """A ready zygote."""

    key: Key
    pid: int
    socket: socket.socket
    variables: dict[str, str | None]
    """The environment variables that its imports have read, with their values."""
    fingerprint: Fingerprint
    used_at: float
    late_names: frozenset[str]
    """The modules that a fresh kernel would import from its working folder, if the folder had them."""
    launches: int = 0

    def send(self, request: bytes, fds: Sequence[int]) -> OSError | None:
        """Send a launch. Return the error if that fails."""
        try:
            socket.send_fds(self.socket, [request], fds)
        except OSError as problem:
            return problem
        self.used_at = time.monotonic()
        self.launches += 1
        return None

    def serves(self, key: Key, env: Mapping[str, str]) -> bool:
        """True if a start with this key and environment would import what the zygote has imported."""
        return key == self.key and all(
            env.get(name) == value or varies_by_kernel(name) for name, value in self.variables.items()
        )


def runs_program(pid: int, program: str) -> bool:
    """True if the process runs the file that `program` names, links followed, and no other program that it started."""
    try:
        return os.path.samefile(f"/proc/{pid}/exe", program)
    except OSError:
        return False


def explain_program(pid: int, program: str) -> str:
    """Return why `runs_program` is false, as a clause."""
    if os.readlink("/proc/self") != str(os.getpid()):
        return "/proc shows the processes of another PID namespace (mount it again: unshare --mount-proc)"
    return f"{program} starts another program as its interpreter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A process that was to become a zygote.

    `answer` is the zygote's answer, as `zygote/main.py` describes it.
    """

    pid: int
    socket: socket.socket
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteStarter:
    """A starter of zygotes."""

    forking: Forking
    output: Path | str
    """A file for tracebacks."""
    scratch: Path | None
    """The folder for the files of rehearsals, if there is one."""
    on_spawned: Callable[[int], object]
    """Gets each pid before its process forks."""
    script: Path = SCRIPT

    async def start(self, key: Key, command: KernelCommand, env: Mapping[str, str]) -> Attempt:
        """Start a zygote, and wait until it has loaded or failed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, buffer, _PACKET_BYTES)
        ours.setblocking(False)
        request = {
            **encode(self.forking),
            "preload": self.forking.choose_preloads(key.python),
            "folder": key.folder,
            "cpus": key.cpus,
            "is_whole": key.is_whole,
            "args": command.args,
            "env": env,
            "scratch": str(self.scratch) if self.scratch else None,
        }
        try:
            with theirs:
                pid = self._spawn(key, theirs.fileno(), env)
            answer = await self._prepare(ours, json.dumps(request).encode())
        except BaseException:
            ours.close()
            raise
        return Attempt(pid=pid, socket=ours, answer=answer)

    async def _prepare(self, ours: socket.socket, request: bytes) -> dict[str, Any]:
        """Have a new zygote import its packages, and return its answer: ready, or why not.

        The answer comes in a file, because a packet is too small for it.
        """
        problem = f"it ended while loading; see {self.output}"
        with tempfile.TemporaryFile() as file:
            try:
                socket.send_fds(ours, [request], [file.fileno()])
                loop = asyncio.get_running_loop()
                if await asyncio.wait_for(loop.sock_recv(ours, _PACKET_BYTES), _READY_S):
                    problem = ""
            except asyncio.TimeoutError:
                problem = f"not ready in {_READY_S:g} s; see {self.output}"
            except OSError:  # it has ended
                pass
            if problem:
                return {"op": "failed", "reason": problem}
            file.seek(0)
            return dict(json.load(file))

    def _spawn(self, key: Key, fd: int, env: Mapping[str, str]) -> int:
        """Start the process of a zygote and return its pid.

        /proc shows the process's first variables for each of its kernels. Therefore it starts with only those
        of `key` and roost's own, which are no secrets. The others follow in a packet. The key of a Python with start-up
        code has all variables.
        """
        context = ProcessContext(cpus=key.cpus, limits={"STACK": key.stack})
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        # A pipe in the log's place fails, instead of waiting for a reader.
        output = os.open(self.output, flags | os.O_NONBLOCK, 0o600)
        try:
            process = subprocess.Popen(
                [key.python, *key.flags, str(self.script), str(fd), _ROOM],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**dict(key.variables), **{name: env[name] for name in env if name.startswith("ROOST_")}},
                cwd=key.folder,
                start_new_session=True,
                preexec_fn=None if select_at_start(UNKNOWN) == context else lambda: set_context(context),
            )
        finally:
            os.close(output)
        process.returncode = 0  # the `Reaper` waits for it, so subprocess must not
        restore_limit(process.pid)
        self.on_spawned(process.pid)
        return process.pid
