"""The kernels of one node: started by fork or exec, watched, recorded in files, found again after a crash."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import ports
from .files import read_json, tail, write_private_json
from .messages import Connection, KernelProcess, Launch, Owner
from .process import Watch, describe_exit, is_running, signal_group, start_time
from .reaper import Reaper
from .rpc import RemoteError
from .wire import WireError, decode, encode
from .zygotes import Forked, KernelDiedEarly, Zygotes, ipykernel_command

log = logging.getLogger(__name__)

LOG_TAIL_BYTES = 4_096


@dataclass(slots=True)
class _Kernel:
    """One kernel; `started` is the launch under way or done, `ended` is set when the process is gone."""

    launch_id: str
    folder: Path
    started: asyncio.Task[KernelProcess]
    ended: asyncio.Event
    process: KernelProcess | None = None
    watch: Watch | None = None
    was_signalled: bool = False


class Kernels:
    """Starts and keeps kernels. `on_launched` and `on_exited` are told of each change, once."""

    def __init__(
        self,
        folder: Path,
        zygotes: Zygotes,
        *,
        on_launched: Callable[[KernelProcess], None],
        on_exited: Callable[[KernelProcess], None],
    ) -> None:
        self._folder = folder
        self._zygotes = zygotes
        self._on_launched = on_launched
        self._on_exited = on_exited
        self._kernels: dict[str, _Kernel] = {}
        self._leaders: set[int] = set()
        self._reaper = Reaper(before_reap=self._sweep_group, others=zygotes.on_reaped)
        folder.mkdir(mode=0o700, exist_ok=True)

    def list(self) -> tuple[KernelProcess, ...]:
        """All kernels that were launched and whose lease is not released yet."""
        return tuple(kernel.process for kernel in self._kernels.values() if kernel.process is not None)

    @property
    def running_count(self) -> int:
        return sum(not kernel.ended.is_set() for kernel in self._kernels.values())

    def is_running(self, kernel_id: str) -> bool:
        """Whether that kernel runs or is being started."""
        kernel = self._kernels.get(kernel_id)
        return kernel is not None and not kernel.ended.is_set()

    async def launch(self, request: Launch, owner: Owner, environment: Mapping[str, str]) -> KernelProcess:
        """Start a kernel; repeated with the same launch id it joins the start or answers the same."""
        known = self._kernels.get(request.kernel_id)
        if known is None or known.launch_id != request.launch_id:
            if known is not None and not known.ended.is_set():
                raise RemoteError("bad_request", f"kernel {request.kernel_id} still runs; stop it first")
            known = self._begin(request, owner, {**request.env, **environment})
        return await asyncio.shield(known.started)

    def signal(self, kernel_id: str, signum: int) -> bool:
        """Send `signum` to the kernel's process group; False when it has ended."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.process is None or kernel.ended.is_set():
            return False
        if signum in (signal.SIGTERM, signal.SIGKILL):
            kernel.was_signalled = True
        return signal_group(kernel.process.pid, signum)

    async def stop(self, kernel_id: str, grace_s: float) -> KernelProcess | None:
        """End a kernel and wait until it is gone; None when there is none."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            return None
        if kernel.process is None:
            kernel.started.cancel()
            await asyncio.wait([kernel.started])
        if self.signal(kernel_id, signal.SIGTERM if grace_s > 0 else signal.SIGKILL):
            try:
                await asyncio.wait_for(kernel.ended.wait(), max(grace_s, 0.001))
            except asyncio.TimeoutError:
                self.signal(kernel_id, signal.SIGKILL)
            await kernel.ended.wait()
        return kernel.process

    def log_text(self, kernel_id: str, tail_bytes: int) -> str | None:
        """The end of a kernel's log; None when there is no such kernel."""
        kernel = self._kernels.get(kernel_id)
        return None if kernel is None else tail(kernel.folder / "log", tail_bytes)

    def forget(self, kernel_id: str) -> None:
        """Drop a kernel that has ended, with its files."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and kernel.ended.is_set():
            del self._kernels[kernel_id]
            shutil.rmtree(kernel.folder, ignore_errors=True)

    def adopt(self, lease_ids: set[str]) -> None:
        """Take over what an earlier agent left: running kernels are watched, others noted as ended."""
        for folder in sorted(self._folder.iterdir()):
            try:
                process = decode(KernelProcess, read_json(folder / "record.json"))
            except WireError:
                self._end_unrecorded(folder)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if process.lease_id not in lease_ids:
                if _lives(process):
                    signal_group(process.pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            self._adopt_one(folder, process)

    def close(self) -> None:
        """Stop watching; all kernels live on."""
        for kernel in self._kernels.values():
            kernel.started.cancel()
            if kernel.watch is not None:
                kernel.watch.close()
        self._reaper.close()

    def _begin(self, request: Launch, owner: Owner, env: dict[str, str]) -> _Kernel:
        earlier = self._kernels.pop(request.kernel_id, None)
        folder = self._folder / hashlib.sha256(request.kernel_id.encode()).hexdigest()[:32]
        if earlier is not None:
            (folder / "record.json").unlink(missing_ok=True)
        kernel = _Kernel(
            launch_id=request.launch_id,
            folder=folder,
            started=asyncio.get_running_loop().create_task(self._start(request, owner, env, folder)),
            ended=asyncio.Event(),
        )
        self._kernels[request.kernel_id] = kernel
        kernel.started.add_done_callback(lambda task: self._started(request.kernel_id, kernel, task))
        return kernel

    def _started(self, kernel_id: str, kernel: _Kernel, task: asyncio.Task[KernelProcess]) -> None:
        """The launch is over. One that failed is kept, ended, so that a repeated call hears the same."""
        if task.cancelled() or task.exception() is not None:
            kernel.ended.set()
            shutil.rmtree(kernel.folder, ignore_errors=True)

    async def _start(self, request: Launch, owner: Owner, env: dict[str, str], folder: Path) -> KernelProcess:
        if not os.path.isdir(request.cwd):
            raise RemoteError(
                "bad_command", f"the working directory {request.cwd} does not exist on this machine"
            )
        if not request.argv:
            raise RemoteError("bad_command", "the kernelspec has no command (argv is empty)")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(
                folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as problem:
            raise _state_error(problem, self._folder) from None
        try:
            start = self._start_in(folder, request, owner, env, descriptor)
            return await asyncio.wait_for(start, request.deadline_s)
        except (TimeoutError, asyncio.TimeoutError):  # one class only since Python 3.11
            raise RemoteError(
                "launch_timeout",
                f"the kernel did not open its ports within {request.deadline_s:g} s",
                {"log_tail": tail(folder / "log", LOG_TAIL_BYTES)},
            ) from None
        finally:
            os.close(descriptor)

    async def _start_in(
        self, folder: Path, request: Launch, owner: Owner, env: dict[str, str], descriptor: int
    ) -> KernelProcess:
        connection_file = folder / "connection.json"
        started = time.perf_counter()
        pid, code, connection, how, timing_ms = 0, None, request.connection, "exec", {}
        try:
            forked = await self._fork(request, env, connection_file, descriptor)
            if forked is not None:
                pid, how, timing_ms = forked.pid, "forked", forked.timing_ms
                connection = connection.with_ports(forked.ports)
                self._leaders.add(pid)
                code = self._reaper.exit_code(pid)
            else:
                connection = ports.choose(connection)
                self._write_connection(connection_file, connection)
                pid = self._spawn(request, env, connection_file, descriptor)
                code = self._reaper.exit_code(pid)
                timing_ms["spawned"] = (time.perf_counter() - started) * 1e3
                await self._until_listening(pid, code, connection)
                timing_ms["listening"] = (time.perf_counter() - started) * 1e3
            process = KernelProcess(
                kernel_id=request.kernel_id,
                launch_id=request.launch_id,
                lease_id=request.lease_id,
                owner=owner,
                pid=pid,
                process_started_at=start_time(pid),
                how="forked" if how == "forked" else "exec",
                connection=connection,
                launched_at=time.time(),
                timing_ms=timing_ms,
            )
            write_private_json(folder / "record.json", encode(process))
        except KernelDiedEarly as problem:
            raise self._died(folder, await self._reaper.exit_code(problem.pid)) from None
        except _EndedEarly as problem:
            raise self._died(folder, problem.code) from None
        except OSError as problem:
            await self._undo(pid, code)
            raise _state_error(problem, self._folder) from None
        except BaseException:
            await self._undo(pid, code)
            raise
        self._running_now(process, code)
        return process

    async def _fork(
        self, request: Launch, env: dict[str, str], connection_file: Path, descriptor: int
    ) -> Forked | None:
        command = ipykernel_command(request.argv) if request.may_fork else None
        if command is None:
            return None
        self._write_connection(connection_file, request.connection)
        return await self._zygotes.launch(
            command,
            connection_file=connection_file,
            env=env,
            cwd=request.cwd,
            log_fd=descriptor,
            deadline_s=request.deadline_s,
        )

    def _spawn(self, request: Launch, env: dict[str, str], connection_file: Path, descriptor: int) -> int:
        argv = [part.replace("{connection_file}", str(connection_file)) for part in request.argv]
        executable = shutil.which(argv[0], path=env.get("PATH", os.defpath))
        if executable is None:
            raise RemoteError(
                "bad_command", f"the kernelspec's command {argv[0]!r} was not found on this machine"
            )
        try:
            process = subprocess.Popen(
                argv,
                executable=executable,
                cwd=request.cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        except OSError as problem:
            raise RemoteError("bad_command", f"cannot run {executable}: {problem.strerror}") from None
        process.returncode = 0  # the reaper waits for it: keep subprocess from doing so
        self._leaders.add(process.pid)
        return process.pid

    async def _until_listening(self, pid: int, code: asyncio.Future[int], connection: Connection) -> None:
        listening = asyncio.ensure_future(ports.until_listening(connection))
        waiting: list[asyncio.Future[Any]] = [listening, code]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if code.done():
                raise _EndedEarly(code.result())
            listening.result()
        finally:
            listening.cancel()

    async def _undo(self, pid: int, code: asyncio.Future[int] | None) -> None:
        """Kill a kernel whose start did not succeed, and see it gone."""
        if pid and code is not None and not code.done():
            signal_group(pid, signal.SIGKILL)
            await asyncio.shield(code)

    def _running_now(self, process: KernelProcess, code: asyncio.Future[int]) -> None:
        kernel = self._kernels[process.kernel_id]
        kernel.process = process
        log.info("kernel=%s pid=%d %s", process.kernel_id, process.pid, process.how)
        self._on_launched(process)
        code.add_done_callback(lambda future: self._exited(kernel, future.result()))

    def _exited(self, kernel: _Kernel, code: int | None) -> None:
        assert kernel.process is not None
        self._leaders.discard(kernel.process.pid)
        kernel.process = replace(
            kernel.process,
            is_running=False,
            exit_code=code,
            reason=f"the kernel {describe_exit(code, was_asked=kernel.was_signalled)}",
            log_tail=tail(kernel.folder / "log", LOG_TAIL_BYTES),
        )
        try:
            write_private_json(kernel.folder / "record.json", encode(kernel.process))
        except OSError as problem:
            log.warning("kernel=%s its end is not recorded: %s", kernel.process.kernel_id, problem)
        kernel.ended.set()
        log.info("kernel=%s %s", kernel.process.kernel_id, kernel.process.reason)
        self._on_exited(kernel.process)

    def _sweep_group(self, pid: int) -> None:
        """What a kernel leaves in its process group goes with it; called while its pid is still its own."""
        if pid in self._leaders:
            self._leaders.discard(pid)
            try:
                os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def _died(self, folder: Path, code: int) -> RemoteError:
        last = tail(folder / "log", LOG_TAIL_BYTES).strip()
        message = f"the kernel {describe_exit(code)} while it was starting"
        message += f"; its last line: {last.splitlines()[-1]}" if last else "; it wrote nothing to its log"
        return RemoteError("kernel_died", message, {"exit_code": code, "log_tail": last})

    def _write_connection(self, path: Path, connection: Connection) -> None:
        write_private_json(
            path, {key: value for key, value in encode(connection).items() if value is not None}
        )

    def _adopt_one(self, folder: Path, process: KernelProcess) -> None:
        async def done() -> KernelProcess:
            return process

        kernel = _Kernel(
            launch_id=process.launch_id,
            folder=folder,
            started=asyncio.get_running_loop().create_task(done()),
            ended=asyncio.Event(),
            process=process,
        )
        self._kernels[process.kernel_id] = kernel
        if not process.is_running:
            kernel.ended.set()
            return
        log.info("kernel=%s pid=%d adopted", process.kernel_id, process.pid)
        kernel.watch = Watch(process.pid, process.process_started_at, lambda: self._exited(kernel, None))

    def _end_unrecorded(self, folder: Path) -> None:
        """End a kernel whose start an earlier agent did not live to record: whoever asked for it asks again."""
        path = str(folder / "log")
        for name in os.listdir("/proc") if os.path.isdir("/proc/self/fd") else ():
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                links = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            except OSError:
                continue
            if path in links:
                log.warning("pid=%s ended: its start was not finished", name)
                signal_group(int(name), signal.SIGKILL)


class _EndedEarly(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def _lives(process: KernelProcess) -> bool:
    return process.is_running and is_running(process.pid, process.process_started_at)


def _state_error(problem: OSError, folder: Path) -> RemoteError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return RemoteError("no_space", f"no space left for {folder}: free some, then try again")
    return RemoteError("internal", f"cannot write to {folder}: {problem.strerror or problem}")
