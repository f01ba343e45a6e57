"""The start of one kernel, by fork or exec. A start that fails is undone.

A start writes to its kernel's folder, in this order: `log`, `kernel-ID.json` or a link to it, `starting.json` (pid and
start time of the process) and `record.json`. An agent that finds `starting.json` but no record ends that process.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from roost.launchers.agent.limits.cgroups import enter
from roost.launchers.agent.limits.limits import Limits
from roost.launchers.agent.machine import ports
from roost.launchers.agent.machine.disk_room import NO_ROOM
from roost.launchers.agent.machine.sessions import Session
from roost.launchers.agent.warm.fork_report import KernelDiedEarly
from roost.launchers.agent.warm.kernel_command import (
    NotForked,
    NotInterpreter,
    find_program,
    parse_ipykernel_command,
    suggest_interpreter,
)
from roost.launchers.agent.warm.zygote_pool import ZygotePool
from roost.launchers.daemon.open_files import restore_limit
from roost.launchers.daemon.private_files import tail, write_private_json
from roost.launchers.daemon.process import describe_exit, start_time
from roost.launchers.daemon.tasks import in_thread
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.promise import Keeper
from roost.launchers.protocol.launch_checks import find_impossible
from roost.launchers.protocol.messages import (
    LAST_LINE,
    Connection,
    KernelProcess,
    Launch,
)
from roost.launchers.protocol.process_context import (
    ProcessContext,
    choose_groups,
    find_obstacle,
    set_context,
)
from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model.json_codec import encode

from .child_reaper import Reaper
from .connection_file import find_blind, find_file, write_connection
from .place import Place

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 4_096
DIES_S = 10.0
"""How long a process may take to end after SIGKILL. If it takes longer, it hangs in the operating system."""
_LOOK_S = 2.0
"""How long a kernel that does not listen runs between two looks whether it sees its connection file."""
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_OOM_SCORE = 500  # if memory runs out, the system kills kernels before the agent
_MOST_TRIES = 3
"""How many kernels are executed, one after the other, if other processes take their ports."""
_NO_PARENT = "1"
"""The value of JPY_PARENT_PID, which libraries take as the sign of a notebook. ipykernel does not watch process 1."""
_NO_IPYKERNEL = "its command is not that of an interpreter with `-m ipykernel_launcher -f {connection_file}`"


@dataclass(slots=True)
class _Child:
    """The process of a start. `pid` is 0 until there is one."""

    folder: Path
    lease_id: str
    reaper: Reaper
    session: Session
    book: MachineBook | None
    pid: int = 0
    started_at: float = 0.0
    code: asyncio.Future[int] | None = None

    def record(self, pid: int, *, is_ours: bool = False) -> asyncio.Future[int]:
        """Record the process in memory and in `starting.json`, and return a future of its exit code."""
        self.pid = pid
        self.code = self.reaper.exit_code(pid, is_ours=is_ours)
        self.started_at = start_time(pid)
        noted = {"pid": pid, "started_at": self.started_at}
        with writing(self.folder):
            write_private_json(self.folder / "starting.json", noted)
            if self.book is not None:
                self.book.keep_by(self.lease_id, Keeper(pid=pid, started_at=self.started_at))
        return self.code

    async def end(self) -> int | None:
        """Kill the process and return its exit code. Return None if there is no process, or it does not die."""
        if self.code is not None and not self.code.done():
            self.session.signal(self.pid, signal.SIGKILL)
            await asyncio.wait([self.code], timeout=DIES_S)
            if not self.code.done():
                log.error("pid=%d does not die: it hangs in the operating system", self.pid)
        return self.code.result() if self.code is not None and self.code.done() else None


@dataclass(slots=True)
class Starter:
    """A starter of kernels. It calls `on_started` in the same step of the event loop in which it records a start."""

    zygotes: ZygotePool
    reaper: Reaper
    on_started: Callable[[KernelProcess, asyncio.Future[int]], None]
    place: Place
    limits: Limits
    book: MachineBook | None = None

    async def start(self, folder: Path, request: Launch, device_ids: tuple[str, ...] = ()) -> KernelProcess:
        """Start a kernel. Its log, connection file and record are in `folder`; `device_ids` go into the record.

        Raises `RemoteError`; then no process is left behind.
        """
        if impossible := find_impossible(request.argv, request.env, request.cwd):
            raise RemoteError("bad_command", impossible)
        if not os.path.isdir(request.cwd):
            problem = f"the working directory {request.cwd:.500} does not exist on this machine"
            raise RemoteError("bad_command", problem)
        if obstacle := find_obstacle(request.context):
            raise RemoteError("bad_command", obstacle)
        if not request.argv:
            raise RemoteError("bad_command", "the kernelspec has no command (argv is empty)")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with writing(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            # A pipe in the log's place fails, instead of waiting for a reader.
            log_fd = os.open(folder / "log", flags | os.O_NONBLOCK, 0o600)
            if self.book is not None:
                self.book.begin_launch(request.lease_id)
        try:
            return await asyncio.wait_for(
                self._start(folder, request, device_ids, log_fd), request.deadline_s
            )
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            problem = f"the kernel did not open its ports within {request.deadline_s:.3g} s"
            last = tail(folder / "log", LOG_TAIL_BYTES)
            raise RemoteError("launch_timeout", problem, {"log_tail": last}) from None
        finally:
            os.close(log_fd)

    async def _start(
        self, folder: Path, request: Launch, device_ids: tuple[str, ...], log_fd: int
    ) -> KernelProcess:
        child = _Child(folder, request.lease_id, self.reaper, self.place.session, self.book)
        held = self.limits.get(request.lease_id)
        try:
            why_not_forked = ""
            try:
                connection, timing_ms = await self._fork(child, request, log_fd)
            except NotForked as reason:
                why_not_forked = str(reason)
                connection, timing_ms = await self._exec(child, request, log_fd)
                if isinstance(reason, NotInterpreter) and (python := suggest_interpreter(child.pid)):
                    why_not_forked += f": write {python} in its kernelspec's argv"
            if held is not None:
                held.begin(child.pid)
            process = request.build_process(
                child.pid,
                child.started_at,
                connection,
                timing_ms=timing_ms,
                device_ids=device_ids,
                why_not_forked=why_not_forked,
            )
            with writing(folder):
                write_private_json(folder / "record.json", encode(process))
        except BaseException as problem:  # a cancelled start must not leave a process behind, either
            code = await child.end()
            if isinstance(problem, KernelDiedEarly):
                excess = held.explain_end(code) if held is not None else ""
                raise _build_death_error(folder, code, excess) from None
            if isinstance(problem, OSError) and not isinstance(problem, TimeoutError):
                raise RemoteError("internal", f"the kernel cannot be started: {problem}") from None
            raise
        assert child.code is not None
        self.on_started(process, child.code)
        return process

    async def _fork(self, child: _Child, request: Launch, log_fd: int) -> tuple[Connection, dict[str, float]]:
        """Fork the kernel and return its connection and times. Raises `NotForked` if it must be executed."""
        if not request.may_fork:
            raise NotForked("its kernelspec sets `fork` to false")
        if self.place.why_never_forked:
            raise NotForked(self.place.why_never_forked)
        command = parse_ipykernel_command(request.argv)
        if command is None:
            raise NotForked(_NO_IPYKERNEL)

        def begin(pid: int) -> None:
            child.record(pid)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                set_context(request.context, pid)

        with (
            self.limits.open_entries(request.lease_id) as entries,
            ports.listen(request.connection, self.place.kernel_ports) as (connection, listeners),
        ):
            forked = await self.zygotes.launch(
                command,
                connection_file=_write_connection(child.folder, request, connection),
                env=request.env,
                cwd=request.cwd,
                context=request.context,
                log_fd=log_fd,
                deadline_s=request.deadline_s,
                listeners=listeners,
                entries=entries,
                on_pid=begin,
            )
        return connection, forked.timing_ms

    async def _exec(self, child: _Child, request: Launch, log_fd: int) -> tuple[Connection, dict[str, float]]:
        """Execute the kernel and return its connection and times.

        If the kernel ends because another process has taken one of its ports meanwhile, try other ports.
        """
        tries = 1
        while True:
            started = time.perf_counter()
            code, connection = self._spawn(child, request, log_fd)
            timing_ms = {"spawned": (time.perf_counter() - started) * 1e3}
            try:
                await _wait_until_listening(code, connection, find_file(child.folder, request.kernel_id))
            except KernelDiedEarly:
                if tries == _MOST_TRIES or ports.are_free(connection):
                    raise
                tries += 1
                log.info("kernel=%s another process has one of its ports: trying others", request.kernel_id)
                if self.book is not None:
                    with writing(child.folder):
                        self.book.begin_launch(request.lease_id)
                continue
            timing_ms["listening"] = (time.perf_counter() - started) * 1e3
            return connection, timing_ms

    def _spawn(self, child: _Child, request: Launch, log_fd: int) -> tuple[asyncio.Future[int], Connection]:
        """Start the kernel's process. Its ports are claimed until it ends."""
        with contextlib.ExitStack() as claims:
            connection = claims.enter_context(ports.claim(request.connection, self.place.kernel_ports))
            connection_file = _write_connection(child.folder, request, connection, request.connection_folder)
            with self.limits.open_entries(request.lease_id) as entries:
                pid = spawn_kernel(
                    request,
                    connection_file,
                    log_fd,
                    entries=entries,
                    ends_with_parent=self.place.ends_kernels,
                    shares_session=self.place.session.is_shared,
                )
            code = child.record(pid, is_ours=True)
            claims_until_end = claims.pop_all()
        code.add_done_callback(lambda _: claims_until_end.close())
        return code, connection


def _end_with_parent() -> None:
    """Have the system kill this process when its parent ends. Linux only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn_kernel(
    request: Launch,
    connection_file: Path,
    log_fd: int,
    *,
    entries: tuple[int, ...] = (),
    ends_with_parent: bool = False,
    shares_session: bool = False,
) -> int:
    """Start the process of a kernel and return its pid. Raises `RemoteError`.

    `entries` are the open files through which the process enters its control group (`Cgroup.open_entries`).
    """

    def begin() -> None:  # in the new process
        if ends_with_parent:
            _end_with_parent()
        enter(entries)
        set_context(request.context)

    has_context = request.context != ProcessContext(umask=request.context.umask)
    groups = choose_groups(request.context)

    argv = [part.replace("{connection_file}", str(connection_file)) for part in request.argv]
    executable = find_program(argv[0], request.env, request.cwd)
    if executable is None:
        problem = f"the kernelspec's command {argv[0]!r} was not found where the kernel runs"
        raise RemoteError("bad_command", f"{problem}: install it there, or change `argv` in the kernelspec")
    try:
        process = subprocess.Popen(
            argv,
            executable=executable,
            cwd=request.cwd,
            env={**request.env, "JPY_PARENT_PID": _NO_PARENT},
            umask=-1 if request.context.umask is None else request.context.umask,
            group=None if groups is None else groups[0],
            extra_groups=None if groups is None else groups[1:],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=not shares_session,
            preexec_fn=begin if ends_with_parent or entries or has_context else None,
        )
    except OSError as error:
        raise RemoteError("bad_command", f"cannot run {executable}: {error.strerror}") from None
    except subprocess.SubprocessError as error:
        problem = "the kernel cannot get the limits and priorities of its application"
        raise RemoteError("internal", f"{problem}: {error}") from None
    process.returncode = 0  # the `Reaper` waits for it, so subprocess must not
    if "NOFILE" not in request.context.limits:
        restore_limit(process.pid)
    with contextlib.suppress(OSError):  # not on Linux, or the process has ended
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(_OOM_SCORE))
    return process.pid


async def _wait_until_listening(code: asyncio.Future[int], connection: Connection, path: Path) -> None:
    """Wait until a kernel listens. Raises `KernelDiedEarly`, and `RemoteError` if it cannot see the file at `path`."""
    blind: frozenset[int] = frozenset()
    listening = asyncio.ensure_future(ports.until_listening(connection))
    waiting: list[asyncio.Future[Any]] = [listening, code]
    try:
        while not (await asyncio.wait(waiting, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED))[0]:
            before, blind = blind, await in_thread(partial(find_blind, path))
            if before & blind:
                problem = f"the kernel runs, but where its command has taken it there is no file {path}"
                remedy = f"have it show the folder {path.parent} there, as `apptainer exec --bind` does"
                raise RemoteError("bad_command", f"{problem}: {remedy}")
        if code.done():
            raise KernelDiedEarly
        listening.result()
    finally:
        listening.cancel()


def _write_connection(folder: Path, request: Launch, connection: Connection, shown_in: str = "") -> Path:
    with writing(folder):
        return write_connection(folder, request.kernel_id, connection, shown_in=shown_in)


def _build_death_error(folder: Path, code: int | None, excess: str) -> RemoteError:
    last = tail(folder / "log", LOG_TAIL_BYTES).strip()
    message = f"the kernel {excess or describe_exit(code)} while it was starting"
    line = "".join(each if each.isprintable() else " " for each in last.splitlines()[-1]) if last else ""
    message += f"{LAST_LINE}{line}" if last else "; it wrote nothing to its log"
    return RemoteError("kernel_died", message, {"exit_code": code, "log_tail": last})


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn an `OSError` in the block, which writes to `folder`, into a `RemoteError` for people."""
    try:
        yield
    except OSError as problem:
        if problem.errno in NO_ROOM:
            # Without a name, or with one in the folder, it is the folder. Else it is that of the machine's book.
            is_here = str(problem.filename or folder).startswith(str(folder))
            full = folder if is_here else problem.filename
            raise RemoteError("no_space", f"no space left for {full}: free some, then try again") from None
        place = problem.filename or folder
        raise RemoteError("internal", f"cannot write to {place}: {problem.strerror or problem}") from None
