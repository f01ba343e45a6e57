"""The agent's warm zygotes: one per Python and import-time environment, used only while their fingerprint holds.

`ZygotePool.launch` forks a kernel where it can and says None where it cannot, at once: the agent then execs that start,
and a zygote is made in the background for the next one.  Every reason for which forking fails ends in None, never in
a failed start: no ipykernel, no Linux, a package just upgraded, a zygote killed.

The agent itself never forks Python code (it has ZeroMQ's threads): it spawns zygotes, and is the subreaper that their
kernels fall to.  It reaps every child itself and tells `on_reaped`.
"""

from __future__ import annotations

import asyncio
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

from roost.launchers.protocol.messages import ZygoteStats

from .fingerprint import (
    Fingerprint,
    KernelCommand,
    choose_import_folder,
    parse_ipykernel_command,
    resolve_python,
    select_import_environment,
)
from .fork_report import ForkedKernel, KernelDiedEarly, read_report

__all__ = [
    "ForkedKernel",
    "KernelCommand",
    "KernelDiedEarly",
    "ZygotePool",
    "become_subreaper",
    "parse_ipykernel_command",
]

_SCRIPT = Path(__file__).parents[1] / "zygote" / "main.py"
_PR_SET_CHILD_SUBREAPER = 36
_READY_S = 60.0
"""A zygote that is not ready by then is killed, and its key left alone for `_PAUSE_S`."""
_PAUSE_S = 60.0
_MAX_UNUSED = 2
"""No more are made for one key while so many have served nobody: something differs at each start."""
_REFUSAL_PAUSE_S = 600.0
"""The same for one that says that kernels must not be forked from it: what it imported may change."""
_PACKET_BYTES = 1 << 20
_ROOM = "-" * 512
"""Place for the command line that a kernel shows in ps."""

Key = tuple[str, tuple[str, ...], str, tuple[tuple[str, str], ...]]


@dataclass(slots=True, kw_only=True, eq=False)
class _Zygote:
    key: Key
    pid: int
    socket: socket.socket
    environment: dict[str, str | None]
    fingerprint: Fingerprint
    used_at: float
    launches: int = 0
    check: asyncio.Task[str | None] | None = None

    def serves(self, key: Key, env: Mapping[str, str]) -> bool:
        """Whether what it has imported is what a start with that key and environment would import."""
        return key == self.key and all(
            env.get(name) == value for name, value in self.environment.items() if not is_per_kernel(name)
        )

    async def checked(self) -> str | None:
        """`Fingerprint.broken_by` as of now or later: launches that come in a burst share the next check.

        Who asks once it has begun waits for another, so that no change before a launch is missed.
        """

        async def check() -> str | None:
            await asyncio.sleep(0)
            self.check = None
            return self.fingerprint.broken_by()

        if self.check is None:
            self.check = asyncio.create_task(check())
        return await asyncio.shield(self.check)


def is_per_kernel(name: str) -> bool:
    """Whether an environment variable differs from kernel to kernel by nature: zygotes never have it."""
    return name.startswith(("JPY_", "KERNEL_"))


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process; False where the system has no such thing."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


class ZygotePool:
    """Zygotes by key, the least recently used out first; belongs to one event loop.

    `output` is a file for what the latest zygote prints, tracebacks mostly.
    """

    def __init__(
        self,
        *,
        max_zygotes: int = 4,
        idle_s: float = 600.0,
        preload: tuple[str, ...] = (),
        warm_delay_s: float = 1.0,
        output: Path | str = os.devnull,
        log: logging.Logger | None = None,
    ) -> None:
        self._max_zygotes = max_zygotes
        self._idle_s = idle_s
        self._preload = tuple(preload)
        self._warm_delay_s = warm_delay_s
        self._output = output
        self._log = log or logging.getLogger(__name__)
        self._zygotes: list[_Zygote] = []
        self._pids: set[int] = set()
        self._warming: dict[Key, asyncio.Task[None]] = {}
        self._refused_until: dict[Key, float] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._is_possible = become_subreaper()
        if not self._is_possible:
            self._log.info("kernels are not forked here: this system has no child subreaper")

    async def launch(
        self,
        command: KernelCommand,
        *,
        connection_file: Path,
        env: Mapping[str, str],
        cwd: Path | str,
        log_fd: int,
        deadline_s: float,
        on_pid: Callable[[int], object] = lambda pid: None,
    ) -> ForkedKernel | None:
        """Fork a kernel, or None: the caller execs this start, and a zygote is made for the next.

        `on_pid` is told of the process before it has its ports. Raises `KernelDiedEarly` when the kernel ended
        before they were bound, and `TimeoutError`, with the kernel killed, when they were not in `deadline_s`.
        Cancelled, it leaves no kernel behind.
        """
        started = time.perf_counter()
        key = self._key(command, env, str(cwd))
        if key is None:
            return None
        zygote = next((zygote for zygote in self._zygotes if zygote.serves(key, env)), None)
        broken_by = await zygote.checked() if zygote else None
        if zygote and broken_by and zygote in self._zygotes:
            self._log.info("zygote=%d retired: %s changed", zygote.pid, broken_by)
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
                socket.send_fds(zygote.socket, [request], [report_in, log_fd])
            except OSError as problem:
                self._log.info("zygote=%d took no request: %s", zygote.pid, problem)
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
        """Bring a zygote for such starts up and wait until it is ready, or known not to be possible."""
        key = self._key(command, env, str(cwd))
        if key is not None and not any(zygote.serves(key, env) for zygote in self._zygotes):
            await asyncio.shield(self._warm_later(key, command, env, delay_s=0.0))

    def on_reaped(self, pid: int, status: int) -> bool:
        """Take note of a child that the agent has reaped; True if it was a zygote. `status` as from waitpid."""
        if pid not in self._pids:
            return False
        self._pids.discard(pid)
        for zygote in [zygote for zygote in self._zygotes if zygote.pid == pid]:
            self._log.warning("zygote=%d ended by itself: %d", pid, os.waitstatus_to_exitcode(status))
            self._retire(zygote)
        return True

    def describe(self) -> tuple[ZygoteStats, ...]:
        """What is warm."""
        return tuple(
            ZygoteStats(
                pid=zygote.pid,
                python=zygote.key[0],
                files=len(zygote.fingerprint.files),
                launches=zygote.launches,
                idle_s=time.monotonic() - zygote.used_at,
            )
            for zygote in self._zygotes
        )

    async def close(self) -> None:
        """Let all zygotes go; their kernels live on."""
        self._is_possible = False
        tasks = list(self._warming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for zygote in list(self._zygotes):
            self._retire(zygote)
        if self._expiry is not None:
            self._expiry.cancel()

    def _key(self, command: KernelCommand, env: Mapping[str, str], cwd: str) -> Key | None:
        python = resolve_python(command.python, env) if self._is_possible else None
        if python is None:
            return None
        key = (
            python,
            command.flags,
            choose_import_folder(env, cwd),
            tuple(select_import_environment(env).items()),
        )
        return None if time.monotonic() < self._refused_until.get(key, 0.0) else key

    def _warm_later(
        self, key: Key, command: KernelCommand, env: Mapping[str, str], delay_s: float | None = None
    ) -> asyncio.Task[None]:
        """Make a zygote in the background: after a moment, so that it does not slow the start of now."""

        async def later() -> None:
            await asyncio.sleep(self._warm_delay_s if delay_s is None else delay_s)
            try:
                await self._make(key, command, env)
            except Exception:  # noqa: BLE001 - nobody waits for this task: it logs, and starts go on being exec'ed
                self._refused_until[key] = time.monotonic() + _PAUSE_S
                self._log.exception("no zygote for %s", key[0])

        if key not in self._warming:
            task = self._warming[key] = asyncio.create_task(later())
            task.add_done_callback(lambda _: self._warming.pop(key, None))
        return self._warming[key]

    async def _make(self, key: Key, command: KernelCommand, env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET_BYTES)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PACKET_BYTES)
        ours.setblocking(False)
        started = time.perf_counter()
        with theirs:
            pid = self._spawn(key, theirs.fileno(), env)
        try:
            answer = await self._prepared(ours, command)
        except BaseException:
            ours.close()
            raise
        if answer["op"] != "ready":
            ours.close()
            if pid in self._pids:
                os.kill(pid, signal.SIGKILL)
            pause_s = _REFUSAL_PAUSE_S if answer["op"] == "refused" else _PAUSE_S
            self._refused_until[key] = time.monotonic() + pause_s
            self._log.warning("kernels of %s are not forked: %s", key[0], answer["reason"])
            return
        zygote = _Zygote(
            key=key,
            pid=pid,
            socket=ours,
            environment=answer["environment"],
            fingerprint=Fingerprint(
                files={path: (stamp[0], stamp[1], stamp[2]) for path, *stamp in answer["files"]},
                folders={path: (stamp[0], stamp[1], stamp[2]) for path, *stamp in answer["folders"]},
                imported_names=frozenset(answer["names"]),
            ),
            used_at=time.monotonic(),
        )
        self._zygotes.append(zygote)
        self._log.info("zygote=%d ready in %.2f s for %s", pid, time.perf_counter() - started, key[0])
        self._retire_surplus()

    async def _prepared(self, ours: socket.socket, command: KernelCommand) -> dict[str, Any]:
        """Have a new zygote load, and hear what it has loaded: in a file, since a packet holds some 2,000 paths."""
        ended = {"op": "failed", "reason": f"it ended while loading; see {self._output}"}
        request = json.dumps({"preload": self._preload, "args": command.args}).encode()
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
        python, flags, folder, _ = key
        flags_of_file = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        output = os.open(self._output, flags_of_file, 0o600)
        try:
            process = subprocess.Popen(
                [python, *flags, str(_SCRIPT), str(fd), _ROOM],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: value for name, value in env.items() if not is_per_kernel(name)},
                cwd=folder,
                start_new_session=True,
            )
        finally:
            os.close(output)
        process.returncode = 0  # the agent reaps it: keep subprocess from doing so
        self._pids.add(process.pid)
        return process.pid

    def _retire(self, zygote: _Zygote) -> None:
        """Hang up on a zygote: it ends, and its spares with it."""
        if zygote in self._zygotes:
            self._zygotes.remove(zygote)
            zygote.socket.close()

    def _retire_surplus(self) -> None:
        """Retire what is idle for too long, and the least recently used of too many; called again when due."""
        self._zygotes.sort(key=lambda zygote: zygote.used_at, reverse=True)
        oldest = time.monotonic() - self._idle_s
        for index, zygote in enumerate(list(self._zygotes)):
            if index >= self._max_zygotes or zygote.used_at <= oldest:
                self._log.info("zygote=%d retired: not used", zygote.pid)
                self._retire(zygote)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if self._zygotes:
            due_s = max(0.0, self._zygotes[-1].used_at - oldest) + 0.01
            self._expiry = asyncio.get_running_loop().call_later(due_s, self._retire_surplus)
