"""Runs a Python program on a host through OpenSSH's client: one process, one session, one answer.

    run_on_host ──> prepare_command                    client_config
                ──> asks a person's open master whether it answers
                ──> ssh HOST "exec /bin/sh -c '…'"     remote_line
                      standard input:   the program, then the archive if the program wants it
                      standard output:  noise of login files, then lines with a mark
                ──> HostProblem                        problems

Keys are never in the command, because `ps` shows it on both sides. The program comes on standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast, get_args

from roost.launchers.daemon.private_files import FolderError

from .client_config import check_file, prepare_command, show_command
from .problems import HostProblem, Kind, clean, explain, explain_end, explain_python, explain_silence
from .remote_line import is_fit, write_line, write_mark, write_program

__all__ = ["HostProblem", "run_on_host"]

_MOST_BYTES = 1 << 20
_LINE_BYTES = 1 << 18
_ERRORS_BYTES = 4096
_CHECK_S = 1.5
"""How long a person's open master may take to answer. It takes some milliseconds."""
_LEAVE_S = 1.0
"""How long ssh may take to end after the answer, before it is killed."""
_REAP_S = 5.0


async def run_on_host(
    host: str,
    program: str,
    arguments: Mapping[str, Any],
    *,
    archive: Callable[[], bytes],
    python: str = "",
    ssh: Sequence[str] = ("ssh",),
    deadline_s: float = 30.0,
    report: Callable[[str], object] = lambda step: None,
) -> dict[str, Any]:
    """Run a Python program on a host and return its answer. Raises `HostProblem`.

    The program finds four names. MARK begins each of its lines, ARGUMENTS is a dict, `say(value)` prints a line with
    the mark, and `fetch_archive()` returns the bytes of `archive`. The answer is a dict, the first one that it says. An
    answer with a "problem" raises `HostProblem` with that text, and with its "kind" if it has one.

    `python` is the interpreter on the host, which may begin with `~/`; empty: the first good one of the usual names.
    `ssh` is the client and its options. `report` gets each step that is done: "master" (an open connection is used),
    "shell" (the login), "python", and what the program says as {"step": …}. An error of `report` or `archive` is raised
    here.
    """
    if not host or host.startswith("-") or not host.isprintable() or " " in host:
        raise HostProblem(f"{host!r} is no name of a host: correct the list of hosts", kind="ssh")
    if not is_fit(python):
        raise HostProblem(
            f"the option python cannot be {clean(python)!r}: give a path without quotes and backslashes",
            kind="python",
        )
    secret = secrets.token_hex(8)
    content = write_program(program, arguments, secret, deadline_s)
    line = write_line(secret, len(content), python)
    client = _Client(_build_environment())
    shown = show_command(ssh)
    exchange = _Exchange(host, write_mark(secret), content, archive, python, report, shown)
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + deadline_s
    check_file(ssh)
    try:
        command = prepare_command(ssh)
    except OSError as problem:  # FolderError is one
        reason = problem if isinstance(problem, FolderError) else problem.strerror
        raise HostProblem(f"ssh's configuration cannot be written: {reason}", kind="ssh") from None
    if await _has_master(client, host, command, min(_CHECK_S, deadline_s)):
        report("master")
    else:
        command += ["-o", "ControlPath=none"]
    command += ["-o", "BatchMode=yes"]
    async with client.running([*command, "-T", "--", host, line], exchange):
        await asyncio.wait([exchange.outcome], timeout=max(0.0, ends_at - loop.time()))
        if not exchange.outcome.done():
            raise explain_silence(host, deadline_s, has_shell=exchange.has_shell, ssh=shown)
        return exchange.outcome.result()


async def read_options(
    host: str, *, ssh: Sequence[str] = ("ssh",), deadline_s: float = 2.0
) -> dict[str, str]:
    """Return the options that ssh would use for a host, by their names in small letters (`ssh -G`).

    An option that may be repeated has its first value. Without an answer the dict is empty.
    """
    asked = _Printing()
    try:
        command = prepare_command(ssh)
        client = _Client(_build_environment())
        async with client.running([*command, "-G", "--", host], asked, leave_s=0):
            await asyncio.wait([asked.closed], timeout=deadline_s)
    except (OSError, HostProblem):
        return {}
    options: dict[str, str] = {}
    for line in asked.printed.decode(errors="replace").splitlines() if asked.code == 0 else ():
        name, _, value = line.partition(" ")
        options.setdefault(name, value)
    return options


def _build_environment() -> dict[str, str]:
    """Return the environment of ssh: this process's, without all that could open a window to ask."""
    environment = dict(os.environ)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_ASKPASS"):
        environment.pop(name, None)
    return {**environment, "SSH_ASKPASS_REQUIRE": "never"}


class _Client:
    """Starts ssh processes, and ends them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    @contextlib.asynccontextmanager
    async def running(
        self, command: Sequence[str], protocol: _Process, *, leave_s: float = _LEAVE_S
    ) -> AsyncIterator[None]:
        """Run a command until the end of the block. Then it has `leave_s` to end, before it is killed and reaped."""
        try:
            transport, _ = await asyncio.get_running_loop().subprocess_exec(
                lambda: protocol,
                *command,
                env=self._environment,
                cwd="/",
                start_new_session=True,  # without a terminal, ssh cannot ask
            )
        except OSError as problem:
            is_missing = isinstance(problem, FileNotFoundError)
            why = "install OpenSSH's client" if is_missing else f"{problem.strerror}"
            raise HostProblem(
                f"{command[0]} cannot be run here: {why}, or set its path", kind="ssh"
            ) from None
        try:
            yield
            protocol.close_input()
            await asyncio.wait([protocol.closed], timeout=leave_s)
        finally:
            if not protocol.closed.done():
                self._kill(transport)
                await asyncio.wait([protocol.ended], timeout=_REAP_S)
            transport.close()
            # A program that has left the group may still hold the pipes. This side of them is closed now.
            await asyncio.wait([protocol.closed], timeout=_LEAVE_S)

    def _kill(self, transport: asyncio.SubprocessTransport) -> None:
        """Kill ssh and the programs that it has started for a jump host.

        ssh may have ended a second ago. The kernel gives numbers in turn, so the group's is not yet another's.
        """
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)


class _Process(asyncio.SubprocessProtocol):
    """One process. `ended` is set when it has ended, and `closed` when its pipes are closed as well."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def process_exited(self) -> None:
        self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    @property
    def code(self) -> int | None:
        return None if self._transport is None else self._transport.get_returncode()

    def write(self, content: bytes) -> None:
        pipe = None if self._transport is None else self._transport.get_pipe_transport(0)
        if isinstance(pipe, asyncio.WriteTransport) and not pipe.is_closing():
            pipe.write(content)

    def close_input(self) -> None:
        pipe = None if self._transport is None else self._transport.get_pipe_transport(0)
        if pipe is not None:
            pipe.close()


class _Exchange(_Process):
    """The exchange with one program on a host. `outcome` is its answer, or a `HostProblem`."""

    def __init__(
        self,
        host: str,
        mark: str,
        program: bytes,
        archive: Callable[[], bytes],
        python: str,
        report: Callable[[str], object],
        ssh: str,
    ) -> None:
        super().__init__()
        self.outcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._host, self._mark, self._python, self._ssh = host, mark.encode(), python, ssh
        self._program, self._archive, self._report = program, archive, report
        self._unread = bytearray()
        self._noise = bytearray()
        self._read_bytes = 0
        self._errors = bytearray()
        self._has_sent = False
        self.has_shell = False
        """True if the host's shell has answered: the login succeeded."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.write(self._program)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._fail_at_end()

    def process_exited(self) -> None:
        super().process_exited()
        # A program that ssh has left behind may hold the pipes open. What ssh wrote is read by then.
        asyncio.get_running_loop().call_later(_LEAVE_S, self._fail_at_end)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._errors += data
            del self._errors[:-_ERRORS_BYTES]
        elif not self.outcome.done():
            self._unread += data
            try:
                self._read()
            except Exception as problem:  # noqa: BLE001 - of `report` or `archive`; it is raised in the caller
                self.outcome.set_exception(problem)

    def _read(self) -> None:
        """Read all whole lines that have the mark, and drop what stands before them."""
        while not self.outcome.done():
            start = self._unread.find(self._mark)
            if start < 0:
                # Keep an end that may be the beginning of the mark.
                self._drop(max(0, len(self._unread) - len(self._mark) + 1))
                return
            self._drop(start)
            end = self._unread.find(b"\n")
            if end < 0:
                if len(self._unread) > _LINE_BYTES:
                    self._fail("answered with a line without an end: is something else printing there?")
                return
            line = bytes(self._unread[len(self._mark) : end])
            self._count(end + 1)
            del self._unread[: end + 1]
            self._read_line(line.decode(errors="replace").strip())

    def _drop(self, count: int) -> None:
        self._noise += self._unread[:count]
        del self._noise[:-_ERRORS_BYTES]
        del self._unread[:count]
        self._count(count)

    def _count(self, count: int) -> None:
        self._read_bytes += count
        if self._read_bytes > _MOST_BYTES:
            self._fail("printed more than 1 MiB before it answered: silence its login files")

    def _read_line(self, text: str) -> None:
        if text == "shell":
            self.has_shell = True
            self._report("shell")
            return
        if text.startswith("none "):
            self._settle(explain_python(self._host, self._python, text.split()[1:]))
            return
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._fail(f"answered with what roost cannot read ({clean(text)[:60]})")
        elif value.get("want") == "archive":
            if self._has_sent:  # each time takes memory here
                self._fail("asked twice for the archive: is something else answering there?")
                return
            self._has_sent = True
            content = self._archive()
            self.write(b"%d\n" % len(content) + content)
        elif isinstance(value.get("step"), str):
            self._report(value["step"])
        elif "problem" in value:
            kind = cast(Kind, value["kind"]) if value.get("kind") in get_args(Kind) else "answer"
            self._settle(HostProblem(f"{self._host}: {clean(str(value['problem']), 600)}", kind=kind))
        else:
            self.outcome.set_result(value)

    def _fail(self, what: str) -> None:
        self._settle(HostProblem(f"{self._host} {what}", kind="answer"))

    def _fail_at_end(self) -> None:
        """Explain why ssh has ended without an answer."""
        if self.outcome.done():
            return
        errors = self._errors.decode(errors="replace")
        if self._unread.startswith(self._mark):
            self._fail("ended its answer in the middle of a line: check the connection to it")
        elif self.has_shell:
            self._settle(explain_end(self._host, self.code, errors))
        else:
            noise = bytes(self._noise + self._unread).decode(errors="replace")
            self._settle(explain(self._host, self.code, errors, noise, ssh=self._ssh))

    def _settle(self, problem: HostProblem) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(problem)


class _Printing(_Process):
    """A process that prints its answer, at most 1 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.printed = bytearray()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 1 and len(self.printed) < _MOST_BYTES:
            self.printed += data


async def _has_master(client: _Client, host: str, command: Sequence[str], deadline_s: float) -> bool:
    """True if a person keeps a connection to the host open, and it answers within `deadline_s`."""
    asked = _Printing()
    async with client.running([*command, "-O", "check", "--", host], asked, leave_s=0):
        await asyncio.wait([asked.ended], timeout=deadline_s)
    return asked.code == 0
