"""The agent's warm zygotes: one per Python and import environment, used only while their fingerprint holds.

The agent cannot fork Python code itself, because ZeroMQ gives it threads. It spawns zygotes, and it is a subreaper, so
it becomes the parent of their kernels. If a kernel cannot be forked, the start executes it instead.
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
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from roost.launchers.daemon.tasks import Timers, cancel_all, join_shared, spawn
from roost.launchers.protocol.agent_settings import Forking
from roost.launchers.protocol.process_context import UNKNOWN, ProcessContext, choose_groups
from roost.placement.model.last_entries import LastEntries

from .fingerprint import Fingerprint, find_shadow
from .fork_report import ForkedKernel, read_report, refuse
from .kernel_command import KernelCommand, NotForked, check_command, find_program
from .zygote_key import Key, build_key, drop_per_kernel
from .zygote_start import SCRIPT, Attempt, Zygote, ZygoteStarter, explain_program, runs_program

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_PAUSE_S, _REFUSAL_PAUSE_S = 60.0, 600.0
"""How long no zygote is made for a `Key` after one failed to load, and after one refused to fork."""
_IDLE_S = 600.0
_MAX_UNUSED = 2
"""At most this many zygotes of a key are unused. A third would not help: each start has other variables."""
MOST_SPARES = 5
"""At most this many spares wait in a zygote for launches. After fewer recent launches, fewer spares wait."""
_NO_SUBREAPER = "kernels are not forked here: this system has no child subreaper"
_NONE_READY = "no warm process for its Python and environment was ready"
_MOST_PYTHONS = 64


def become_subreaper() -> bool:
    """Make this process the parent of its orphaned descendants. Return False if the system cannot do that."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


class ZygotePool:
    """The zygotes of an agent. If there are too many, the least recently used one ends. `output` is for tracebacks.

    `scratch` is a folder for files that zygotes need while they load. `on_spawned` gets the pid of each zygote before
    the zygote forks. `on_problems` is called when `problems` has changed.
    """

    def __init__(
        self,
        forking: Forking = Forking(),  # noqa: B008 - it cannot change
        *,
        max_zygotes: int = 4,
        warm_delay_s: float = 1.0,
        output: Path | str = os.devnull,
        scratch: Path | None = None,
        on_spawned: Callable[[int], object] = lambda pid: None,
        on_problems: Callable[[], object] = lambda: None,
        script: Path = SCRIPT,
    ) -> None:
        self._max_zygotes = max_zygotes
        self._warm_delay_s = warm_delay_s
        self._on_problems = on_problems
        self._zygotes: list[Zygote] = []
        self._most_spares = MOST_SPARES
        self.pids: set[int] = set()  # of the zygotes that have not been reaped, ready or not

        def on_process(pid: int) -> None:
            self.pids.add(pid)
            on_spawned(pid)

        self._starter = ZygoteStarter(
            forking=forking, output=output, scratch=scratch, on_spawned=on_process, script=script
        )
        self._warming: dict[Key, asyncio.Task[None]] = {}
        self._refused: dict[Key, tuple[float, str]] = {}  # until when, and why
        self._has_startup_code: LastEntries[Key, bool] = LastEntries(_MOST_PYTHONS)  # keys that are not whole
        self._problems: dict[Key, list[str]] = {}  # of the latest attempt to make a zygote
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers = Timers()
        self._is_possible = become_subreaper()
        if not self._is_possible:
            log.info(_NO_SUBREAPER)

    async def launch(
        self,
        command: KernelCommand,
        *,
        connection_file: Path,
        env: Mapping[str, str],
        cwd: Path | str,
        log_fd: int,
        deadline_s: float,
        context: ProcessContext = UNKNOWN,
        listeners: tuple[int, ...] = (),
        entries: tuple[int, ...] = (),
        on_pid: Callable[[int], object] = lambda pid: None,
    ) -> ForkedKernel:
        """Fork a kernel. Raise `NotForked` if no zygote can: the caller then executes the kernel.

        `listeners` are descriptors of sockets that listen on the kernel's ports. `entries` are those of its control
        group. `on_pid` gets the pid before the kernel does anything. Raises the errors of `read_report`. If no
        zygote serves the launch, the pool may make one for later launches.

        The pool checks the zygote's fingerprint while the forked kernel gets ready. The kernel does nothing before the
        pool has done that, and `on_pid` has returned.
        """
        started = time.perf_counter()
        key = self._key(command, env, str(cwd), context)
        if (refusal := self._find_refusal(key)) is not None:
            raise refusal
        argv = ["-f", str(connection_file), *command.args]
        order: dict[str, Any] = {
            "program": command.python,
            "argv": argv,
            "env": dict(env),
            "cwd": str(cwd),
            "umask": context.umask,
            "groups": choose_groups(context),
            "listeners": len(listeners),
        }
        request = json.dumps(order).encode()
        timing_ms: dict[str, float] = {}
        reason = self._say_none(key)
        while (zygote := next((each for each in self._zygotes if each.serves(key, env)), None)) is not None:
            if shadow := find_shadow(str(cwd), zygote.late_names):
                raise NotForked(
                    f"its working folder has {shadow}, and warm processes have imported their modules without it"
                )
            channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with channel:
                with theirs:
                    problem = zygote.send(request, (theirs.fileno(), log_fd, *listeners, *entries))
                if problem is not None:
                    log.info("zygote=%d took no request: %s", zygote.pid, problem)
                    # EMSGSIZE: the environment is too large for a packet. EAGAIN: too many requests wait.
                    if problem.errno not in (errno.EMSGSIZE, errno.EAGAIN):
                        self._retire(zygote)
                        self._warm_later(key, command, env, str(cwd))
                    raise NotForked(f"its warm process took no request ({problem.strerror})")
                channel.setblocking(False)
                broken_by = await zygote.fingerprint.check()
                timing_ms["fingerprint"] = (time.perf_counter() - started) * 1e3
                if broken_by is None:
                    return await read_report(
                        channel, started=started, timing_ms=timing_ms, deadline_s=deadline_s, on_pid=on_pid
                    )
                log.info("zygote=%d retired: %s changed", zygote.pid, broken_by)
                reason = f"{broken_by} has changed since its warm process imported it"
                self._retire(zygote)
                await refuse(channel)
        unused = sum(zygote.key == key and not zygote.launches for zygote in self._zygotes)
        if unused < _MAX_UNUSED:
            self._warm_later(key, command, env, str(cwd))
        raise NotForked(reason)

    async def warm(
        self,
        command: KernelCommand,
        env: Mapping[str, str],
        cwd: Path | str = "/",
        context: ProcessContext = UNKNOWN,
    ) -> None:
        """Start a zygote for this command and environment if none serves them. Return once it is ready or failed."""
        with contextlib.suppress(NotForked):
            key = self._key(command, env, str(cwd), context)
            if self._find_refusal(key) is not None or any(
                zygote.serves(key, env) for zygote in self._zygotes
            ):
                return
            await join_shared(self._warm_later(key, command, env, str(cwd), delay_s=0.0))

    def limit_spares(self, most: int) -> None:
        """Set how many spares each zygote may keep. Surplus spares end at once."""
        most = max(0, min(most, MOST_SPARES))
        if most != self._most_spares:
            self._most_spares = most
            for zygote in self._zygotes:
                self._limit(zygote)

    def _limit(self, zygote: Zygote) -> None:
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
        """Return the Python of each ready zygote, by pid."""
        return {zygote.pid: zygote.key.python for zygote in self._zygotes}

    def problems(self) -> list[str]:
        """Return what the zygotes could not do, and why others could not be made, as clauses, sorted."""
        if not self._is_possible:
            return [_NO_SUBREAPER]
        now = time.monotonic()
        current = {zygote.key for zygote in self._zygotes}
        current |= {key for key, (until, _) in self._refused.items() if now < until}
        self._problems = {key: self._problems[key] for key in self._problems if key in current}
        return sorted({problem for problems in self._problems.values() for problem in problems})

    async def close(self) -> None:
        self._is_possible = False
        await cancel_all(self._tasks)
        for zygote in list(self._zygotes):
            self._retire(zygote)
        self._timers.close()

    def _key(self, command: KernelCommand, env: Mapping[str, str], cwd: str, context: ProcessContext) -> Key:
        """Return the key of a start. Raises `NotForked` for a command that no zygote can stand for."""
        if not self._is_possible:
            raise NotForked(_NO_SUBREAPER)
        python = check_command(command, find_program(command.python, env, cwd))
        key = build_key(python, command.flags, env, cwd, context)
        return key.with_all(env, cwd) if key in self._has_startup_code else key

    def _say_none(self, key: Key) -> str:
        """Return why no zygote serves a key now. The pool makes one for later kernels."""
        others = [zygote.key for zygote in self._zygotes if zygote.key.python == key.python]
        if others and all(other.stack != key.stack for other in others):
            return "no warm process has its limit of the stack (RLIMIT_STACK) yet"
        if others and all(other.cpus != key.cpus for other in others):
            return "no warm process runs on its CPUs (its affinity) yet"
        return _NONE_READY

    def _find_refusal(self, key: Key) -> NotForked | None:
        until, reason = self._refused.get(key, (0.0, ""))
        return NotForked(reason) if time.monotonic() < until else None

    def _warm_later(
        self,
        key: Key,
        command: KernelCommand,
        env: Mapping[str, str],
        cwd: str,
        delay_s: float | None = None,
    ) -> asyncio.Task[None]:
        """Make a zygote in the background, after a moment, so that it does not slow down the current start."""

        async def later() -> None:
            await asyncio.sleep(self._warm_delay_s if delay_s is None else delay_s)
            try:
                await self._make(key, command, env, cwd)
            except Exception as problem:
                self._pause(key, _PAUSE_S, f"its warm process could not be made: {problem}")
                log.exception("no zygote for %s", key.python)

        if key not in self._warming:
            task = self._warming[key] = spawn(later(), self._tasks, log)
            task.add_done_callback(lambda _: self._warming.pop(key, None))
        return self._warming[key]

    def _pause(self, key: Key, pause_s: float, reason: str) -> None:
        """Use no zygote for this key for a while, for this reason."""
        now = time.monotonic()
        self._refused = {each: found for each, found in self._refused.items() if now < found[0]}
        self._refused[key] = now + pause_s, reason

    async def _make(self, key: Key, command: KernelCommand, env: Mapping[str, str], cwd: str) -> None:
        """Make a zygote, unless one serves the same starts."""
        if any(zygote.serves(key, env) for zygote in self._zygotes):
            return
        started = time.perf_counter()
        attempt = await self._starter.start(key, command, drop_per_kernel(env))
        pid, answer = attempt.pid, attempt.answer
        if answer["op"] == "ready" and not runs_program(pid, key.python):
            answer = {"op": "refused", "reason": explain_program(pid, key.python)}
        if answer["op"] != "ready":
            self._end(attempt)
        if answer["op"] == "startup":
            self._has_startup_code[key] = True
            log.info("%s runs start-up code: %s", key.python, ", ".join(answer["code"]))
            await self._make(key.with_all(env, cwd), command, env, cwd)
            return
        if answer["op"] != "ready":
            self._pause(key, _REFUSAL_PAUSE_S if answer["op"] == "refused" else _PAUSE_S, answer["reason"])
            problem = f"kernels of {key.python} are not forked: {answer['reason']}"
            log.warning(problem)
            self._note_problems(key, [problem])
            return
        fingerprint = Fingerprint(
            files={path: (mtime, size, inode) for path, mtime, size, inode in answer["files"]},
            folders={path: (mtime, size, inode) for path, mtime, size, inode in answer["folders"]},
            absent=tuple(answer["absent"]),
            imported_names=frozenset(answer["names"]),
        )
        for older in [zygote for zygote in self._zygotes if zygote.serves(key, env)]:  # made at the same time
            log.info("zygote=%d retired: zygote=%d replaces it", older.pid, pid)
            self._retire(older)
        self._zygotes.append(
            Zygote(
                key,
                pid,
                attempt.socket,
                answer["environment"],
                fingerprint,
                used_at=time.monotonic(),
                late_names=frozenset(answer["late_names"]),
            )
        )
        self._limit(self._zygotes[-1])  # it may have changed meanwhile
        self._note_problems(key, [f"kernels of {key.python}: {problem}" for problem in answer["problems"]])
        notes = [*answer["problems"], *answer["notes"]]
        text = "".join(f"; {note}" for note in notes)
        log.info("zygote=%d ready in %.2f s for %s%s", pid, time.perf_counter() - started, key.python, text)
        self._retire_surplus()

    def _end(self, attempt: Attempt) -> None:
        """End a process that has not become a zygote."""
        attempt.socket.close()
        if attempt.pid in self.pids:
            os.kill(attempt.pid, signal.SIGKILL)

    def _note_problems(self, key: Key, problems: list[str]) -> None:
        before = self.problems()
        self._problems[key] = problems
        if self.problems() != before:
            self._on_problems()

    def _retire(self, zygote: Zygote) -> None:
        """Close the socket of a zygote, which ends the zygote and its spares."""
        if zygote in self._zygotes:
            self._zygotes.remove(zygote)
            zygote.socket.close()

    def _retire_surplus(self) -> None:
        """Retire zygotes that are idle too long or exceed the limit. Set a timer for the next check."""
        self._zygotes.sort(key=lambda zygote: zygote.used_at, reverse=True)
        oldest = time.monotonic() - _IDLE_S
        for index, zygote in enumerate(list(self._zygotes)):
            if index >= self._max_zygotes or zygote.used_at <= oldest:
                log.info("zygote=%d retired: not used", zygote.pid)
                self._retire(zygote)
        if self._zygotes:
            due_s = max(0.0, self._zygotes[-1].used_at - oldest) + 0.01
            self._timers.later(due_s, self._retire_surplus, key="idle")
