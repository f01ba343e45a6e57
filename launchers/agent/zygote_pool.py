"""The agent's warm zygotes: one per Python and import environment, used only while their fingerprint holds.

The agent cannot fork Python code itself, because ZeroMQ gives it threads. It spawns zygotes, and it is a subreaper, so
it becomes the parent of their kernels. No obstacle to forking makes a start fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.launchers.daemon.open_files import restore_limit
from roost.launchers.daemon.tasks import Timers, cancel_all, spawn
from roost.placement.json_codec import encode

from .fingerprint import (
    Fingerprint,
    KernelCommand,
    choose_import_folder,
    resolve_python,
    select_import_environment,
)
from .fork_report import ForkedKernel, read_report
from .settings import Forking

log = logging.getLogger(__name__)

_SCRIPT = Path(__file__).parents[1] / "zygote" / "main.py"
_PR_SET_CHILD_SUBREAPER = 36
_READY_S = 60.0
"""How long a zygote may load. If one fails to load or refuses to fork, none is made for its key for a while."""
_PAUSE_S = 60.0
_REFUSAL_PAUSE_S = 600.0
_IDLE_S = 600.0
_MAX_UNUSED = 2
"""At most this many unused zygotes per key. If more would be needed, something differs at every start."""
MOST_SPARES = 5
"""At most this many spares wait in a zygote for launches. Fewer kernels lately: fewer spares."""
_PACKET_BYTES = 1 << 20
_ROOM = "-" * 512
"""Room for the command line that `ps` shows for a kernel."""

Key = tuple[str, tuple[str, ...], str, tuple[tuple[str, str], ...]]


@dataclass(slots=True, eq=False)
class _Zygote:
    key: Key
    pid: int
    socket: socket.socket
    environment: dict[str, str | None]
    fingerprint: Fingerprint
    used_at: float
    launches: int = 0

    def serves(self, key: Key, env: Mapping[str, str]) -> bool:
        """True if a start with this key and environment would import what the zygote has imported."""
        return key == self.key and all(
            env.get(name) == value for name, value in self.environment.items() if not is_per_kernel(name)
        )


def is_per_kernel(name: str) -> bool:
    """True if an environment variable differs from kernel to kernel. Zygotes never have such variables."""
    return name.startswith(("JPY_", "KERNEL_"))


def become_subreaper() -> bool:
    """Make this process the parent of its orphaned descendants. Return False if the system cannot do that."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


class ZygotePool:
    """A set of zygotes, by key. If there are too many, the least recently used one ends. `output` is for tracebacks.

    `on_spawned` gets the pid of each zygote before it forks.
    """

    def __init__(
        self,
        forking: Forking = Forking(),  # noqa: B008 - it cannot change
        *,
        max_zygotes: int = 4,
        warm_delay_s: float = 1.0,
        output: Path | str = os.devnull,
        on_spawned: Callable[[int], object] = lambda pid: None,
        script: Path = _SCRIPT,
    ) -> None:
        self._max_zygotes = max_zygotes
        self._forking = forking
        self._warm_delay_s = warm_delay_s
        self._output = output
        self._on_spawned = on_spawned
        self._script = script
        self._zygotes: list[_Zygote] = []
        self._most_spares = MOST_SPARES
        self.pids: set[int] = set()  # of the zygotes that have not been reaped, ready or not
        self._warming: dict[Key, asyncio.Task[None]] = {}
        self._refused_until: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers = Timers()
        self._is_possible = become_subreaper()
        if not self._is_possible:
            log.info("kernels are not forked here: this system has no child subreaper")

    async def launch(
        self,
        command: KernelCommand,
        *,
        connection_file: Path,
        env: Mapping[str, str],
        cwd: Path | str,
        log_fd: int,
        deadline_s: float,
        entries: tuple[int, ...] = (),
        on_pid: Callable[[int], object] = lambda pid: None,
    ) -> ForkedKernel | None:
        """Fork a kernel. If no zygote can, return None: the caller then executes it, and the pool may warm one.

        `entries` are those of its control group. `on_pid` gets the pid before the kernel binds its ports. Raises the
        errors of `read_report`.
        """
        started = time.perf_counter()
        key = self._key(command, env, str(cwd))
        if key is None:
            return None
        zygote = next((zygote for zygote in self._zygotes if zygote.serves(key, env)), None)
        broken_by = await zygote.fingerprint.check() if zygote else None
        # During the check, the zygote may have ended or been retired by another launch.
        if zygote and broken_by and zygote in self._zygotes:
            log.info("zygote=%d retired: %s changed", zygote.pid, broken_by)
            self._retire(zygote)
        if zygote is None or zygote not in self._zygotes:
            unused = sum(zygote.key == key and not zygote.launches for zygote in self._zygotes)
            if unused < _MAX_UNUSED:
                self._warm_later(key, command, env)
            return None
        timing_ms = {"fingerprint": (time.perf_counter() - started) * 1e3}
        argv = ["-f", str(connection_file), *command.args]
        request = json.dumps({"argv": argv, "env": dict(env), "cwd": str(cwd)}).encode()
        report, report_in = os.pipe()
        try:
            try:
                socket.send_fds(zygote.socket, [request], [report_in, log_fd, *entries])
            except OSError as problem:
                log.info("zygote=%d took no request: %s", zygote.pid, problem)
                # EMSGSIZE: the environment is too large for a packet. EAGAIN: too many requests wait.
                if problem.errno not in (errno.EMSGSIZE, errno.EAGAIN):
                    self._retire(zygote)
                    self._warm_later(key, command, env)
                return None
            finally:
                os.close(report_in)
            zygote.used_at = time.monotonic()
            zygote.launches += 1
            return await read_report(
                report, started=started, timing_ms=timing_ms, deadline_s=deadline_s, on_pid=on_pid
            )
        finally:
            os.close(report)

    async def warm(self, command: KernelCommand, env: Mapping[str, str], cwd: Path | str = "/") -> None:
        """Start a zygote for such kernels. Return when it is ready, or when it is known to be impossible."""
        key = self._key(command, env, str(cwd))
        if key is not None and not any(zygote.serves(key, env) for zygote in self._zygotes):
            await asyncio.shield(self._warm_later(key, command, env, delay_s=0.0))

    def limit_spares(self, most: int) -> None:
        """Set how many spares each zygote may keep. Surplus spares end at once."""
        most = max(0, min(most, MOST_SPARES))
        if most != self._most_spares:
            self._most_spares = most
            for zygote in self._zygotes:
                self._limit(zygote)

    def _limit(self, zygote: _Zygote) -> None:
        with contextlib.suppress(OSError):  # it has ended
            zygote.socket.send(json.dumps({"most_spares": self._most_spares}).encode())

    def on_reaped(self, pid: int, status: int) -> bool:
        """Record the end of a child that the agent has reaped. Return True if it was a zygote."""
        if pid not in self.pids:
            return False
        self.pids.discard(pid)
        for zygote in [zygote for zygote in self._zygotes if zygote.pid == pid]:
            log.warning("zygote=%d ended by itself: %d", pid, os.waitstatus_to_exitcode(status))
            self._retire(zygote)
        return True

    def interpreters(self) -> dict[int, str]:
        """Return the Python of each ready zygote, by pid. The zygote used last comes first."""
        return {zygote.pid: zygote.key[0] for zygote in self._zygotes}

    async def close(self) -> None:
        self._is_possible = False
        await cancel_all(self._tasks)
        for zygote in list(self._zygotes):
            self._retire(zygote)
        self._timers.close()

    def _key(self, command: KernelCommand, env: Mapping[str, str], cwd: str) -> Key | None:
        python = resolve_python(command.python, env) if self._is_possible else None
        if python is None:
            return None
        environment = tuple(select_import_environment(env).items())
        key = (python, command.flags, choose_import_folder(env, cwd), environment)
        return None if time.monotonic() < self._refused_until.get(key, 0.0) else key

    def _warm_later(
        self, key: Key, command: KernelCommand, env: Mapping[str, str], delay_s: float | None = None
    ) -> asyncio.Task[None]:
        """Make a zygote in the background, after a moment, so that it does not slow down the current start."""

        async def later() -> None:
            await asyncio.sleep(self._warm_delay_s if delay_s is None else delay_s)
            try:
                await self._make(key, command, env)
            except Exception:
                self._refused_until[key] = time.monotonic() + _PAUSE_S
                log.exception("no zygote for %s", key[0])

        if key not in self._warming:
            task = self._warming[key] = spawn(later(), self._tasks, log)
            task.add_done_callback(lambda _: self._warming.pop(key, None))
        return self._warming[key]

    async def _make(self, key: Key, command: KernelCommand, env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, buffer, _PACKET_BYTES)
        ours.setblocking(False)
        started = time.perf_counter()
        with theirs:
            pid = self._spawn(key, theirs.fileno(), env)
        own = {name: value for name, value in env.items() if not is_per_kernel(name)}
        try:
            answer = await self._prepare(ours, key, command, own)
        except BaseException:
            ours.close()
            raise
        if answer["op"] != "ready":
            ours.close()
            if pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            pause_s = _REFUSAL_PAUSE_S if answer["op"] == "refused" else _PAUSE_S
            self._refused_until[key] = time.monotonic() + pause_s
            log.warning("kernels of %s are not forked: %s", key[0], answer["reason"])
            return
        fingerprint = Fingerprint(
            files={path: (mtime, size, inode) for path, mtime, size, inode in answer["files"]},
            folders={path: (mtime, size, inode) for path, mtime, size, inode in answer["folders"]},
            imported_names=frozenset(answer["names"]),
        )
        environment = answer["environment"]
        self._zygotes.append(_Zygote(key, pid, ours, environment, fingerprint, used_at=time.monotonic()))
        self._limit(self._zygotes[-1])  # it may have changed meanwhile
        notes = "".join(f"; {note}" for note in answer["notes"])
        log.info("zygote=%d ready in %.2f s for %s%s", pid, time.perf_counter() - started, key[0], notes)
        self._retire_surplus()

    async def _prepare(
        self, ours: socket.socket, key: Key, command: KernelCommand, env: Mapping[str, str]
    ) -> dict[str, Any]:
        """Have a new zygote load, and return its answer. It comes in a file: a packet has room for 2,000 paths only."""
        ended = {"op": "failed", "reason": f"it ended while loading; see {self._output}"}
        preload = self._forking.choose_preloads(key[0])
        settings = {**encode(self._forking), "preload": preload}
        request = json.dumps({"args": command.args, "env": env, **settings}).encode()
        with tempfile.TemporaryFile() as file:
            try:
                socket.send_fds(ours, [request], [file.fileno()])
                loop = asyncio.get_running_loop()
                if not await asyncio.wait_for(loop.sock_recv(ours, _PACKET_BYTES), _READY_S):
                    return ended
            except asyncio.TimeoutError:
                return {"op": "failed", "reason": f"not ready in {_READY_S:g} s; see {self._output}"}
            except OSError:
                return ended
            file.seek(0)
            return dict(json.load(file))

    def _spawn(self, key: Key, fd: int, env: Mapping[str, str]) -> int:
        """Start the process. Its first variables are shown in /proc for each kernel; the others come in a packet.

        All kernels of this zygote have the first ones, and roost's own variables are no secrets.
        """
        python, flags, folder, environment = key
        output = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            process = subprocess.Popen(
                [python, *flags, str(self._script), str(fd), _ROOM],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**dict(environment), **{name: env[name] for name in env if name.startswith("ROOST_")}},
                cwd=folder,
                start_new_session=True,
            )
        finally:
            os.close(output)
        process.returncode = 0  # the `Reaper` waits for it, so subprocess must not
        restore_limit(process.pid)
        self.pids.add(process.pid)
        self._on_spawned(process.pid)
        return process.pid

    def _retire(self, zygote: _Zygote) -> None:
        """Close the socket of a zygote, which ends the zygote and its spares."""
        if zygote in self._zygotes:
            self._zygotes.remove(zygote)
            zygote.socket.close()

    def _retire_surplus(self) -> None:
        """Retire zygotes that are idle for too long or too many. Set a timer for the next one."""
        self._zygotes.sort(key=lambda zygote: zygote.used_at, reverse=True)
        oldest = time.monotonic() - _IDLE_S
        for index, zygote in enumerate(list(self._zygotes)):
            if index >= self._max_zygotes or zygote.used_at <= oldest:
                log.info("zygote=%d retired: not used", zygote.pid)
                self._retire(zygote)
        if self._zygotes:
            due_s = max(0.0, self._zygotes[-1].used_at - oldest) + 0.01
            self._timers.later(due_s, self._retire_surplus, key="idle")
