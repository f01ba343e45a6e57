"""The kernels of one node: started by fork or exec, watched, recorded in files, found again after a crash."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import signal
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roost.launchers.daemon.private_files import read_json, tail, write_private_json
from roost.launchers.daemon.process import Watch, describe_exit, is_running, signal_group
from roost.launchers.protocol.json_codec import WireError, decode, encode
from roost.launchers.protocol.messages import KernelProcess, Launch, Owner
from roost.launchers.protocol.rpc import RemoteError

from .child_reaper import Reaper, sweep_group
from .start import DIES_S, LOG_TAIL_BYTES, Starter
from .zygote_pool import ZygotePool

log = logging.getLogger(__name__)

_LOG_MAX_BYTES = 8 << 20
_LOG_KEPT_BYTES = 1 << 20
_LOG_INTERVAL_S = 15.0


@dataclass(slots=True)
class _Kernel:
    """One kernel; `started` is the launch under way or done, `ended` is set when the process is gone."""

    kernel_id: str
    launch_id: str
    lease_id: str
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
        zygotes: ZygotePool,
        *,
        on_launched: Callable[[KernelProcess], None],
        on_exited: Callable[[KernelProcess], None],
    ) -> None:
        self._folder = folder
        self._on_launched = on_launched
        self._on_exited = on_exited
        self._kernels: dict[str, _Kernel] = {}
        self._log_timer: asyncio.TimerHandle | None = None
        self._reaper = Reaper(others=zygotes.on_reaped)
        self._starter = Starter(zygotes, self._reaper, on_started=self._running_now)
        folder.mkdir(mode=0o700, exist_ok=True)

    def list(self) -> tuple[KernelProcess, ...]:
        """All kernels that were launched and whose lease is not released yet."""
        return tuple(kernel.process for kernel in self._kernels.values() if kernel.process is not None)

    @property
    def running_count(self) -> int:
        return sum(not kernel.ended.is_set() for kernel in self._kernels.values())

    def runs_in(self, lease_id: str) -> bool:
        """Whether a kernel runs, or is being started, in that lease."""
        kernel = self._in_lease(lease_id)
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
        return kernel is not None and self._signal(kernel, signum)

    def _signal(self, kernel: _Kernel, signum: int) -> bool:
        if kernel.process is None or kernel.ended.is_set():
            return False
        if signum in (signal.SIGTERM, signal.SIGKILL):
            kernel.was_signalled = True
        return signal_group(kernel.process.pid, signum)

    async def stop(self, kernel_id: str, grace_s: float) -> KernelProcess | None:
        """End a kernel and wait until it is gone; None when there is none."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            return None
        await self._end(kernel, grace_s)
        return kernel.process

    async def _end(self, kernel: _Kernel, grace_s: float) -> None:
        if kernel.process is None:
            kernel.started.cancel()
            await asyncio.wait([kernel.started])
        if kernel.process is None or not self._signal(
            kernel, signal.SIGTERM if grace_s > 0 else signal.SIGKILL
        ):
            return
        try:
            await asyncio.wait_for(kernel.ended.wait(), max(grace_s, 0.001))
        except asyncio.TimeoutError:
            self._signal(kernel, signal.SIGKILL)
            await _until_dead(kernel)

    def _in_lease(self, lease_id: str) -> _Kernel | None:
        return next((kernel for kernel in self._kernels.values() if kernel.lease_id == lease_id), None)

    def log_text(self, kernel_id: str, tail_bytes: int) -> str | None:
        """The end of a kernel's log; None when there is no such kernel."""
        kernel = self._kernels.get(kernel_id)
        return None if kernel is None else tail(kernel.folder / "log", tail_bytes)

    async def release(self, lease_id: str, grace_s: float) -> None:
        """End the kernel in that lease, if there is one, and drop it with its files."""
        kernel = self._in_lease(lease_id)
        if kernel is not None:
            await self._end(kernel, grace_s)
            if self._kernels.get(kernel.kernel_id) is kernel:  # and not started again, in another lease
                del self._kernels[kernel.kernel_id]
                shutil.rmtree(kernel.folder, ignore_errors=True)

    def adopt(self, lease_ids: Container[str]) -> None:
        """Take over what an earlier agent left: running kernels are watched, others noted as ended."""
        for folder in sorted(self._folder.iterdir()):
            pid, started_at = _process_of(read_json(folder / "starting.json"))
            lives = is_running(pid, started_at)
            has_record = (folder / "record.json").exists()
            try:
                process = decode(KernelProcess, read_json(folder / "record.json"), ignore_unknown=True)
            except WireError as problem:
                if has_record and lives:
                    log.error("pid=%d is left alone: its record cannot be read (%s)", pid, problem)
                    continue
            else:
                if process.lease_id in lease_ids:
                    self._adopt_one(folder, process)
                    continue
                pid = process.pid
                lives = process.is_running and is_running(pid, process.process_started_at)
            if lives:
                log.warning(
                    "pid=%d ended: %s", pid, "no lease" if has_record else "its start was not finished"
                )
                signal_group(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Stop watching; all kernels live on."""
        for kernel in self._kernels.values():
            kernel.started.cancel()
            if kernel.watch is not None:
                kernel.watch.close()
        if self._log_timer is not None:
            self._log_timer.cancel()
        self._reaper.close()

    def _begin(self, request: Launch, owner: Owner, env: dict[str, str]) -> _Kernel:
        earlier = self._kernels.pop(request.kernel_id, None)
        folder = self._folder / hashlib.sha256(request.kernel_id.encode()).hexdigest()[:32]
        if earlier is not None:
            (folder / "record.json").unlink(missing_ok=True)
        kernel = _Kernel(
            kernel_id=request.kernel_id,
            launch_id=request.launch_id,
            lease_id=request.lease_id,
            folder=folder,
            started=asyncio.get_running_loop().create_task(self._starter.start(folder, request, owner, env)),
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

    def _running_now(self, process: KernelProcess, code: asyncio.Future[int]) -> None:
        kernel = self._kernels[process.kernel_id]
        kernel.process = process
        log.info("kernel=%s pid=%d %s", process.kernel_id, process.pid, process.how)
        self._on_launched(process)
        code.add_done_callback(lambda future: self._exited(kernel, future.result()))
        self._watch_logs()

    def _exited(self, kernel: _Kernel, code: int | None) -> None:
        assert kernel.process is not None
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

    def _adopt_one(self, folder: Path, process: KernelProcess) -> None:
        async def done() -> KernelProcess:
            return process

        kernel = _Kernel(
            kernel_id=process.kernel_id,
            launch_id=process.launch_id,
            lease_id=process.lease_id,
            folder=folder,
            started=asyncio.get_running_loop().create_task(done()),
            ended=asyncio.Event(),
            process=process,
        )
        self._kernels[process.kernel_id] = kernel
        if not process.is_running:
            kernel.ended.set()
            return
        self._watch_logs()
        log.info("kernel=%s pid=%d adopted", process.kernel_id, process.pid)
        kernel.watch = Watch(process.pid, process.process_started_at, lambda: self._adopted_exited(kernel))

    def _adopted_exited(self, kernel: _Kernel) -> None:
        assert kernel.process is not None
        sweep_group(kernel.process.pid)
        self._exited(kernel, None)

    def _watch_logs(self) -> None:
        """Look at the logs' sizes now and then while kernels run: they often lie in memory (tmpfs)."""
        if self._log_timer is None and self.running_count:
            self._log_timer = asyncio.get_running_loop().call_later(_LOG_INTERVAL_S, self._shorten_logs)

    def _shorten_logs(self) -> None:
        self._log_timer = None
        for kernel in self._kernels.values():
            shorten(kernel.folder / "log", over_bytes=_LOG_MAX_BYTES, keep_bytes=_LOG_KEPT_BYTES)
        self._watch_logs()


async def _until_dead(kernel: _Kernel) -> None:
    try:
        await asyncio.wait_for(kernel.ended.wait(), DIES_S)
    except asyncio.TimeoutError:
        assert kernel.process is not None
        raise RemoteError(
            "internal",
            f"process {kernel.process.pid} of kernel {kernel.process.kernel_id} does not die: it hangs in the "
            "operating system, often on a file system that does not answer; its lease stays until it is gone",
        ) from None


def shorten(path: Path, *, over_bytes: int, keep_bytes: int) -> None:
    """Cut a log that others append to (O_APPEND) to its end; what is written to it meanwhile may be lost."""
    try:
        with path.open("r+b") as file:
            length = file.seek(0, os.SEEK_END)
            if length <= over_bytes:
                return
            file.seek(length - keep_bytes)
            kept = file.read(keep_bytes)
            file.truncate(0)
            with path.open("ab") as end:
                end.write(b"[roost: what was here before is left out]\n" + kept.partition(b"\n")[2])
    except OSError as problem:
        log.warning("%s cannot be shortened: %s", path, problem)


def _process_of(found: Any) -> tuple[int, float]:
    """Pid and start time of a process from what a file says of it; zeros where it says nothing."""
    try:
        return int(found["pid"]), float(found["started_at"])
    except (TypeError, KeyError, ValueError):
        return 0, 0.0
