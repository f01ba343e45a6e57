"""Runs a foreign policy, which roost does not ship, in a process of its own, and checks its decisions.

A thread would not do: the policy could hold the interpreter, or a lock that the service needs, and Python cannot end
it. Each answer has a deadline, which includes the decision's explanation. A process that misses it is ended. Between
its answers the process is stopped (SIGSTOP), so that threads of the policy take no processor time. A policy that
computes for long is stopped most of the time (`duty_cycle`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import TypeVar

import psutil

from roost.launchers.daemon.group_guard import GroupGuard
from roost.launchers.daemon.process import describe_exit
from roost.launchers.daemon.tasks import Timers, backoff, in_thread, join_shared, start_shared
from roost.placement import Decision, Request, Snapshot, Workload
from roost.scheduler.errors import ConfigError

from .decision_check import read_decision
from .duty_cycle import DutyCycle
from .loader import format_error
from .policy_messages import PolicySource, Question, Setup

log = logging.getLogger(__name__)

T = TypeVar("T")

LOAD_S = 15.0
"""How long loading a policy may take. A client waits longer for its answer."""
_FREE_S = 0.2
"""How long a policy may compute for an answer without stops. Most answer within 2 ms."""
_LOADS_FREE_S = 3.0
"""The same for its loading, which takes 0.2 to 0.5 s of processor time."""
_RESTS_S = (1.0, 60.0)
"""First and longest time for which a policy is not asked after its process was ended."""
_UNUSED_S = 600.0
"""A process that was not asked for so long ends. The next question starts another."""
_UNASKED_S = 30.0
"""The same for one that was never asked. `roost doctor` loads all configured policies."""
_ENDS_S = 5.0
"""How long `SandboxedPolicy.close` waits for the end of the process."""
_CLOSED_S = 1.0
"""How long after the end of its socket a process may take to end. Else its policy has closed the socket."""
_MOST_BYTES = 1 << 20
_MOST_BYTES_PER_NODE = 1 << 10
"""An answer may have `_MOST_BYTES`, and so many more for each node: it may refuse all of them for several reasons."""
_MANY_NODES = 1_000
"""If more nodes have changed, or an answer is as long, pickling and reading take place in a thread."""
_LONG_BYTES = 100 * _MANY_NODES


class PolicyFailed(Exception):
    """The policy made no usable decision. The text completes "policy NAME …", as in `did not answer within 1 s`."""


class SandboxedPolicy:
    """A policy that roost does not ship, in a process. It answers one question after the other."""

    def __init__(self, source: PolicySource, *, timeout_s: float, memory_bytes: int) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._turn = asyncio.Lock()
        self._process: _PolicyProcess | None = None
        self._loading: asyncio.Task[_PolicyProcess] | None = None
        self._pauses = backoff(*_RESTS_S)
        self._why = ""
        self._rests_until = 0.0
        self._is_closed = False
        self._timers = Timers()

    @property
    def pid(self) -> int | None:
        """The process, which leads a session; None if there is none."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    async def load(self) -> None:
        """Start the process. Raises `ConfigError` if the policy cannot be loaded."""
        self._process = await self._start()
        self._timers.later(_UNASKED_S, self._end_unused, key="unused")

    async def place(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> Decision:
        """Return the policy's checked decision; raises `PolicyFailed`. A cancelled caller does not end the process."""
        return await join_shared(start_shared(self._place(request, snapshot, avoid, workload)))

    async def close(self) -> None:
        """End the process. Questions that wait raise `PolicyFailed`."""
        self._is_closed = True
        self._timers.close()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading], timeout=2 * _ENDS_S)  # its process ends
        if self._process is not None:
            await self._process.end()

    async def _place(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> Decision:
        async with self._turn:
            process = await self._find_process()
            self._timers.cancel("unused")
            try:
                content = await process.ask(request, snapshot, avoid, workload, self._timeout_s)
            except _ProcessFailed as problem:
                await process.end()
                self._check_open()
                self._rest(str(problem))
                raise PolicyFailed(str(problem)) from None
            self._pauses = backoff(*_RESTS_S)
            self._timers.later(_UNUSED_S, self._end_unused, key="unused")
        try:
            if len(content) < _LONG_BYTES:
                return _read_answer(content, request, snapshot, avoid)
            return await in_thread(lambda: _read_answer(content, request, snapshot, avoid))
        except (ValueError, TypeError, LookupError, AttributeError) as problem:
            raise PolicyFailed(f"failed ({format_error(problem)})") from None

    async def _find_process(self) -> _PolicyProcess:
        """Return the running process. Start another if there is none, unless the policy has failed just now."""
        self._check_open()
        if self._process is not None:
            if self._process.is_running:
                return self._process
            self._process.kill()  # what it has left behind
            self._process = None
        rests_s = self._rests_until - time.monotonic()
        if rests_s > 0:
            raise PolicyFailed(f"{self._why}; it is asked again in {math.ceil(rests_s)} s")
        if self._loading is None:
            self._loading = start_shared(self._start())
        await asyncio.wait([self._loading], timeout=self._timeout_s)
        if not self._loading.done():
            raise PolicyFailed("is still loading")
        loading, self._loading = self._loading, None
        try:
            self._process = loading.result()
        except ConfigError as problem:
            self._rest(f"cannot be loaded again ({problem.user_message.rstrip('.')})")
            raise PolicyFailed(self._why) from None
        return self._process

    def _check_open(self) -> None:
        if self._is_closed:
            raise PolicyFailed("was replaced by another of this name")

    def _end_unused(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    async def _start(self) -> _PolicyProcess:
        has_log = bool(logging.getLogger().handlers)
        setup = Setup(self._source, tuple(sys.path), _find_folder(), self._memory_bytes, has_log)
        return await _PolicyProcess.start(setup)

    def _rest(self, why: str) -> None:
        log.error("policy=%s %s", self._source.name, why)
        self._why = why
        self._rests_until = time.monotonic() + next(self._pauses)


def _find_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def _read_answer(content: bytes, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the decision. Raise `PolicyFailed` if the answer describes an error, else what `read_decision` raises."""
    if content.startswith(b'{"problem":'):
        raise PolicyFailed(f"failed ({json.loads(content)['problem']})")
    return read_decision(content, request, snapshot, avoid)


class _ProcessFailed(Exception):
    """The process cannot go on. The text completes "policy NAME …"."""


class _PolicyProcess:
    """A process that runs `policy_process`, and the socket to it. `start` creates one."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        self._reader = reader
        self._writer = writer
        self._ended = asyncio.ensure_future(process.wait())
        self._ended.add_done_callback(lambda _: self._end_group())  # it may have children
        self._guard: GroupGuard | None = None
        self._duty = DutyCycle(self._signal, self._count)
        self._sent: Snapshot | None = None
        self._workload: Workload | None = None

    @classmethod
    async def start(cls, setup: Setup) -> _PolicyProcess:
        """Start the process and wait until it has loaded its policy. Raises `ConfigError`."""
        name = setup.source.name
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    f"{__package__}.policy_process",
                    str(theirs.fileno()),
                    cwd="/",  # a module of the service's folder must not replace one of roost
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException as problem:
            ours.close()
            if not isinstance(problem, OSError):
                raise
            raise ConfigError(
                f"policy {name} cannot be loaded: no process could start ({problem})."
            ) from None
        made = cls(process, reader, writer)
        try:
            made._guard = await GroupGuard.start(process.pid)
            made._duty.begin(_LOADS_FREE_S)
            writer.write(pickle.dumps(setup))
            answer = await made._within(
                LOAD_S, made._receive(), f"did not load within {LOAD_S:g} s; choose another"
            )
            if refusal := json.loads(answer).get("problem"):
                raise ConfigError(refusal)
        except BaseException as problem:
            await made.end()
            if isinstance(problem, _ProcessFailed):
                raise ConfigError(f"policy {name} {problem}.") from None
            if isinstance(problem, OSError):
                raise ConfigError(
                    f"policy {name} cannot be loaded: no shell could start ({problem})."
                ) from None
            raise
        made._pause()
        return made

    @property
    def is_running(self) -> bool:
        return not self._ended.done()

    async def ask(
        self,
        request: Request,
        snapshot: Snapshot,
        avoid: Mapping[str, str],
        workload: Workload,
        timeout_s: float,
    ) -> bytes:
        """Return the policy's answer; raises `_ProcessFailed`. The deadline begins when it knows the snapshot."""
        nodes, removed = snapshot.difference(self._sent)
        question = Question(
            request,
            dict(avoid),
            None if workload is self._workload else workload,
            nodes,
            removed,
            snapshot.ages.tobytes(),
            snapshot.version,
        )
        if len(nodes) > _MANY_NODES:
            content = await in_thread(lambda: pickle.dumps(question))
        else:
            content = pickle.dumps(question)
        self._signal(signal.SIGCONT)
        self._writer.write(content)
        await self._within(LOAD_S, self._receive(), f"did not take the snapshot within {LOAD_S:g} s")
        self._sent, self._workload = snapshot, workload
        self._duty.begin(_FREE_S)
        most = _MOST_BYTES + len(snapshot) * _MOST_BYTES_PER_NODE
        answer = await self._within(timeout_s, self._receive(most), f"did not answer within {timeout_s:g} s")
        self._pause()
        return answer

    def kill(self) -> None:
        """End the process and all others of its group."""
        self._duty.end()
        self._end_group()
        self._writer.close()

    async def end(self) -> None:
        """End the process, and wait until it has ended."""
        self.kill()
        endings = [self._ended] if self._guard is None else [self._ended, self._guard.ended]
        await asyncio.wait(endings, timeout=_ENDS_S)

    def _end_group(self) -> None:
        self._signal(signal.SIGKILL)
        if self._guard is not None:
            self._guard.end()

    def _pause(self) -> None:
        self._duty.end()
        self._signal(signal.SIGSTOP)

    def _signal(self, signum: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)

    def _count(self) -> int:
        """Return how many processes the policy's group has."""
        count = 0
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError):
                count += os.getpgid(pid) == self.pid
        return count

    async def _within(self, deadline_s: float, answer: Awaitable[T], late: str) -> T:
        """Return the result of `answer`. Raise `_ProcessFailed` if it comes too late, or if the process ends first."""
        reading = asyncio.ensure_future(answer)
        try:
            await asyncio.wait(
                [reading, self._ended], timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                return reading.result()
        except (OSError, asyncio.IncompleteReadError):
            late = "failed (its process closed the socket to the service)"
            await asyncio.wait([self._ended], timeout=_CLOSED_S)  # its end is about to be known
        finally:
            reading.cancel()
        if self._ended.done():
            raise _ProcessFailed(f"failed (its process {describe_exit(self._ended.result())})")
        raise _ProcessFailed(late)

    async def _receive(self, most_bytes: int = _MOST_BYTES) -> bytes:
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        if length > most_bytes:
            raise _ProcessFailed(f"failed (its answer has {length} bytes)")
        return await self._reader.readexactly(length)
