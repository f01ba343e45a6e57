"""Runs a foreign policy, which roost does not ship, in a process of its own, and checks its decisions.

A thread would not do: the policy could hold the interpreter, or a lock that the service needs, and Python cannot end
it. Each answer has a deadline, which includes the decision's explanation. If an answer is late, the whole process group
is ended, and the policy rests. Between its answers the group is stopped (SIGSTOP), so that threads of the policy take
no processor time. The group ends with the service (`policy_process`).
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
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from io import FileIO

from roost.launchers.daemon.process import describe_exit
from roost.launchers.daemon.tasks import backoff, in_thread, join_shared, start_shared
from roost.placement import Decision, Request, Snapshot, Workload
from roost.scheduler.errors import ConfigError

from .decision_check import read_decision
from .loader import format_error
from .policy_messages import PolicySource, Question, Setup

log = logging.getLogger(__name__)

LOAD_S = 15.0
"""How long loading a policy may take. A client waits longer for its answer."""
_READ_S = 1e-4
"""How much longer an answer may take for each node. The process reads the whole snapshot, 0.04 ms for each node."""
_RESTS_S = (1.0, 60.0)
"""First and longest time for which a policy is not asked after its process was ended."""
_ENDS_S = 2.0
"""How long `SandboxedPolicy.close` waits for the end of the process."""
_CLOSED_S = 1.0
"""How long after the end of its socket a process may take to end. Else its policy has closed the socket."""
_MOST_BYTES = 1 << 20
_MOST_BYTES_PER_NODE = 1 << 10
"""An answer may have `_MOST_BYTES`, and so many more for each node: it may refuse all of them for several reasons."""
_MANY_NODES = 1_000
"""With more nodes, pickling and reading take place in a thread."""


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

    @property
    def pid(self) -> int | None:
        """The process, which leads a session; None if there is none."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    async def load(self) -> None:
        """Start the process. Raises `ConfigError` if the policy cannot be loaded."""
        self._process = await self._start()

    async def place(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> Decision:
        """Return the policy's checked decision; raises `PolicyFailed`. A cancelled caller does not end the process."""
        content = await join_shared(start_shared(self._ask(request, snapshot, avoid, workload)))
        try:
            if len(snapshot) <= _MANY_NODES:
                return _read_answer(content, request, snapshot, avoid)
            return await in_thread(lambda: _read_answer(content, request, snapshot, avoid))
        except (ValueError, TypeError, LookupError, AttributeError) as problem:
            raise PolicyFailed(f"failed ({format_error(problem)})") from None

    async def close(self) -> None:
        """End the process. Questions that wait raise `PolicyFailed`."""
        self._is_closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading], timeout=2 * _ENDS_S)  # its process ends
        if self._process is not None:
            await self._process.end()

    async def _ask(
        self, request: Request, snapshot: Snapshot, avoid: Mapping[str, str], workload: Workload
    ) -> bytes:
        async with self._turn:
            process = await self._find_process()
            nodes = [snapshot.raw(row) for row in range(len(snapshot))]
            question = Question(
                request, dict(avoid), workload, nodes, snapshot.ages.tobytes(), snapshot.version
            )
            try:
                content = await process.ask(question, self._timeout_s)
            except _ProcessFailed as problem:
                await process.end()
                self._check_open()
                self._rest(str(problem))
                raise PolicyFailed(str(problem)) from None
            self._pauses = backoff(*_RESTS_S)
            return content

    async def _find_process(self) -> _PolicyProcess:
        """Return the running process. Start another if there is none, unless the policy has failed just now."""
        self._check_open()
        if self._process is not None and self._process.is_running:
            return self._process
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

    async def _start(self) -> _PolicyProcess:
        try:
            folder = os.getcwd()
        except OSError:  # it was removed
            folder = "/"
        has_log = bool(logging.getLogger().handlers)
        return await _PolicyProcess.start(
            Setup(self._source, tuple(sys.path), folder, self._memory_bytes, has_log)
        )

    def _rest(self, why: str) -> None:
        log.error("policy=%s %s", self._source.name, why)
        self._why = why
        self._rests_until = time.monotonic() + next(self._pauses)


def _read_answer(content: bytes, request: Request, snapshot: Snapshot, avoid: Mapping[str, str]) -> Decision:
    """Return the decision. Raise `PolicyFailed` if the answer describes an error, else what `read_decision` raises."""
    if content.startswith(b'{"problem":'):
        raise PolicyFailed(f"failed ({json.loads(content)['problem']})")
    return read_decision(content, request, snapshot, avoid)


class _ProcessFailed(Exception):
    """The process cannot go on. The text completes "policy NAME …"."""


class _PolicyProcess:
    """A process that runs `policy_process`, with the socket and the pipe to it. `start` creates one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pipe: FileIO,
    ) -> None:
        self.pid = process.pid
        self._reader = reader
        self._writer = writer
        self._pipe = pipe
        self._is_killed = False
        self._ended = asyncio.ensure_future(process.wait())
        self._ended.add_done_callback(lambda _: self._kill())  # it may have children

    @classmethod
    async def start(cls, setup: Setup) -> _PolicyProcess:
        """Start the process and wait until it has loaded its policy. Raises `ConfigError`."""
        name = setup.source.name
        try:
            made = await cls._execute()
        except OSError as problem:
            raise ConfigError(
                f"policy {name} cannot be loaded: no process could start ({problem})."
            ) from None
        try:
            made._writer.write(pickle.dumps(setup))
            answer = await made._receive(LOAD_S, f"did not load within {LOAD_S:g} s; choose another")
            if refusal := json.loads(answer).get("problem"):
                raise ConfigError(refusal)
        except BaseException as problem:
            await made.end()
            if isinstance(problem, _ProcessFailed):
                raise ConfigError(f"policy {name} {problem}.") from None
            raise
        made._signal(signal.SIGSTOP)
        return made

    @classmethod
    async def _execute(cls) -> _PolicyProcess:
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        pipe = os.fdopen(write_end, "wb", 0)
        with theirs, os.fdopen(read_end, "rb", 0) as their_pipe, ExitStack() as unless_started:
            unless_started.callback(ours.close)
            unless_started.callback(pipe.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                f"{__package__}.policy_process",
                str(theirs.fileno()),
                cwd="/",  # a module of the service's folder must not replace one of roost
                stdin=their_pipe,
                stdout=2,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            unless_started.pop_all()
        return cls(process, reader, writer, pipe)

    @property
    def is_running(self) -> bool:
        return not self._ended.done()

    async def ask(self, question: Question, timeout_s: float) -> bytes:
        """Return the policy's answer; raises `_ProcessFailed`."""
        count = len(question.nodes)
        if count > _MANY_NODES:
            content = await in_thread(lambda: pickle.dumps(question))
        else:
            content = pickle.dumps(question)
        self._signal(signal.SIGCONT)
        self._writer.write(content)
        late, most_bytes = (
            f"did not answer within {timeout_s:g} s",
            _MOST_BYTES + count * _MOST_BYTES_PER_NODE,
        )
        answer = await self._receive(timeout_s + count * _READ_S, late, most_bytes)
        self._signal(signal.SIGSTOP)
        return answer

    async def end(self) -> None:
        """End the process and all others of its group, and wait until it has ended."""
        self._kill()
        await asyncio.wait([self._ended], timeout=_ENDS_S)

    def _kill(self) -> None:
        """End all processes of the group, once: the system may give the number of an ended group to another."""
        if not self._is_killed:
            self._signal(signal.SIGKILL)
            self._is_killed = True
            self._writer.close()
            self._pipe.close()

    def _signal(self, signum: int) -> None:
        if not self._is_killed:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signum)

    async def _receive(self, deadline_s: float, late: str, most_bytes: int = _MOST_BYTES) -> bytes:
        """Return the next frame. Raise `_ProcessFailed` if it comes too late, or if the process ends first."""
        reading = asyncio.ensure_future(self._read(most_bytes))
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

    async def _read(self, most_bytes: int) -> bytes:
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        if length > most_bytes:
            raise _ProcessFailed(f"failed (its answer has {length} bytes)")
        return await self._reader.readexactly(length)
