"""The kernels of one agent: it starts them, watches them, and records them in files for the next agent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import signal
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import zmq

from roost.launchers.agent.limits.limits import Limits
from roost.launchers.agent.machine.disk_room import DiskRoom
from roost.launchers.agent.machine.sessions import find_by_output
from roost.launchers.agent.output.journal import Journal, subscribe_to
from roost.launchers.agent.output.state_question import StateQuestion
from roost.launchers.agent.warm.zygote_pool import ZygotePool
from roost.launchers.daemon.file_input import (
    MOST_OWN_BYTES,
    UnfitFile,
    put_aside,
    read_document,
)
from roost.launchers.daemon.private_files import tail, write_private_json
from roost.launchers.daemon.process import Watch, describe_exit, is_running, signal_group
from roost.launchers.daemon.tasks import join_shared
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.protocol.messages import JournalPage, KernelProcess, Launch, Lease
from roost.launchers.protocol.rpc import MOST_SOCKETS, RemoteError
from roost.placement.model.json_codec import WireError, decode, encode

from .child_reaper import Reaper
from .connection_file import remove_folder
from .place import Place
from .start import DIES_S, LOG_TAIL_BYTES, Starter

log = logging.getLogger(__name__)

T = TypeVar("T")
Prepare = Callable[[Launch, Lease], Awaitable[tuple[Launch, tuple[str, ...]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Starting:
    """The content of `starting.json`: the process of an unfinished start."""

    pid: int
    started_at: float


@dataclass(slots=True)
class _TrackedKernel:
    """One kernel of the agent."""

    kernel_id: str
    launch_id: str
    lease_id: str
    folder: Path
    starting: asyncio.Future[KernelProcess]
    """The kernel's start, in progress or done."""
    launched: asyncio.Future[KernelProcess]
    """The kernel's process, or the error of its start.

    It is set some steps of the event loop before `starting` ends.
    """
    ended: asyncio.Event
    """Set when the kernel's process has ended."""
    journal: Journal
    process: KernelProcess | None = None
    watch: Watch | None = None
    was_signalled: bool = False


class Kernels:
    """All kernels of an agent. `on_launched` and `on_exited` are called once per launch and exit.

    `prepare` is called once per launch, with its lease. It returns the launch as this node needs it, and its devices.
    """

    def __init__(
        self,
        folder: Path,
        zygotes: ZygotePool,
        room: DiskRoom,
        limits: Limits,
        *,
        prepare: Prepare,
        on_launched: Callable[[KernelProcess], None],
        on_exited: Callable[[KernelProcess], None],
        place: Place,
        book: MachineBook | None = None,
    ) -> None:
        self._folder = folder
        self._room = room
        self._limits = limits
        self._zygotes = zygotes
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None  # of all journals
        self._prepare = prepare
        self._on_launched = on_launched
        self._on_exited = on_exited
        self._kernels: dict[str, _TrackedKernel] = {}
        self._session = place.session
        self._reaper = Reaper(others=zygotes.on_reaped, session=self._session)
        self._starter = Starter(
            zygotes,
            self._reaper,
            self._on_started,
            place,
            limits,
            book,
        )
        folder.mkdir(mode=0o700, exist_ok=True)

    def list(self) -> tuple[KernelProcess, ...]:
        return tuple(kernel.process for kernel in self._kernels.values() if kernel.process is not None)

    def pids(self) -> dict[str, int]:
        """Return the pids of the kernels that run, by lease id."""
        return {lease_id: process.pid for lease_id, process in self.running().items()}

    def running(self) -> dict[str, KernelProcess]:
        """Return the processes of the kernels that run, by lease id."""
        running = (kernel.process for kernel in self._kernels.values() if not kernel.ended.is_set())
        return {process.lease_id: process for process in running if process is not None}

    def runs_in(self, lease: Lease) -> bool:
        kernel = self._in_lease(lease)
        return kernel is not None and not kernel.ended.is_set()

    async def launch(self, request: Launch, lease: Lease) -> KernelProcess:
        """Start a kernel in the lease and return its process.

        A repeated call with the same launch id joins the first one, also if that has failed. The kernel may have ended
        since the first call. Raises `RemoteError`.
        """
        known = self._kernels.get(request.kernel_id)
        if known is None or known.launch_id != request.launch_id:
            if known is not None and not known.ended.is_set():
                raise RemoteError("bad_request", f"kernel {request.kernel_id} still runs; stop it first")
            # Nothing waits between the look and the entry. Of two calls at once, the second one joins the first.
            known = self._begin(request, lease)
        # A caller that gives up must not cancel the others' start.
        process = await join_shared(known.launched)
        return known.process or process

    def signal(self, kernel_id: str, signum: int) -> bool:
        return self._signal(self._kernels.get(kernel_id), signum)

    def _signal(self, kernel: _TrackedKernel | None, signum: int) -> bool:
        if kernel is None or kernel.process is None or kernel.ended.is_set():
            return False
        if signum in (signal.SIGTERM, signal.SIGKILL):
            kernel.was_signalled = True
        return self._session.signal(kernel.process.pid, signum)

    async def stop(self, kernel_id: str, grace_s: float = 5.0) -> KernelProcess:
        """Stop a kernel: send SIGTERM to its process group, and SIGKILL after `grace_s`.

        Return once it has ended.
        """
        kernel = self._find(kernel_id)
        await self._end(kernel, grace_s)
        if kernel.process is None:
            raise RemoteError("unknown_kernel", f"this agent has no kernel {kernel_id}")
        return kernel.process

    def _find(self, kernel_id: str) -> _TrackedKernel:
        if (kernel := self._kernels.get(kernel_id)) is None:
            raise RemoteError("unknown_kernel", f"this agent has no kernel {kernel_id}")
        return kernel

    async def _end(self, kernel: _TrackedKernel, grace_s: float) -> None:
        if kernel.process is None:
            kernel.starting.cancel()
            await asyncio.wait([kernel.starting])  # the start undoes itself, unless it is recorded already
        signum = signal.SIGTERM if grace_s > 0 else signal.SIGKILL
        if kernel.process is None or not self._signal(kernel, signum):
            return
        try:
            await asyncio.wait_for(kernel.ended.wait(), max(grace_s, 0.001))
        except asyncio.TimeoutError:
            self._signal(kernel, signal.SIGKILL)
            await wait_for_end(kernel.process, kernel.ended)

    def _in_lease(self, lease: Lease) -> _TrackedKernel | None:
        kernel = self._kernels.get(lease.kernel_id)
        return kernel if kernel is not None and kernel.lease_id == lease.id else None

    def find_logs(self) -> tuple[Path, ...]:
        """Return the logs of the kernels that run."""
        return tuple(each.folder / "log" for each in self._kernels.values() if not each.ended.is_set())

    def log_text(self, kernel_id: str, tail_bytes: int) -> str:
        return tail(self._find(kernel_id).folder / "log", tail_bytes)

    def journal(
        self, kernel_id: str, after: int = 0, offset: int = 0, session: str = "", since_s: float | None = None
    ) -> JournalPage:
        """Return a part of a kernel's journal, as `Journal.read` chooses it."""
        journal = self._find(kernel_id).journal
        return journal.read(after=after, offset=offset, session=session, since_s=since_s)

    def activity(self, kernel_id: str) -> tuple[str, float]:
        """Return a kernel's execution state, and for how long it has done nothing."""
        kernel = self._kernels.get(kernel_id)
        return (kernel.journal.state, kernel.journal.idle_s) if kernel is not None else ("", 0.0)

    async def release(self, lease: Lease, grace_s: float) -> None:
        """End the kernel in a lease, if there is one, and forget it."""
        kernel = self._in_lease(lease)
        if kernel is not None:
            await self._end(kernel, grace_s)
            # While this waited, the kernel may have been started again, in another lease.
            if self._kernels.get(kernel.kernel_id) is kernel:
                del self._kernels[kernel.kernel_id]
                remove_folder(kernel.folder)
                await kernel.journal.close()

    def adopt(self, lease_ids: Container[str]) -> None:
        """Take over the kernels of an earlier agent. Kill a kernel without a lease, or with an unfinished start."""
        for folder in sorted(self._folder.iterdir()):
            if folder.is_symlink() or not folder.is_dir():
                log.error("%s is removed: it is no folder of a kernel", folder)
                folder.unlink()
                continue
            try:
                process = self._read_file(folder / "record.json", KernelProcess)
            except UnfitFile as problem:  # nobody could reach or stop the kernel any more
                process, reason = None, f"its record {problem.reason}"
            else:
                reason = "no lease" if process else "its start was not finished"
            if process is not None and process.kernel_id in self._kernels:  # its process has been adopted
                log.error("%s is removed: another folder has the same kernel", folder)
                remove_folder(folder)
                continue
            if process is not None and process.lease_id in lease_ids:
                try:
                    self._adopt_one(folder, process)
                    continue
                except (ValueError, zmq.ZMQError) as problem:
                    reason = f"its record names no possible connection: {problem}"
                    self._put_aside(folder / "record.json", f"names no possible connection: {problem}")
            if process is not None:
                pid, started_at = process.pid, process.process_started_at if process.is_running else 0.0
            else:
                pid, started_at = self._read_starting(folder / "starting.json")
            # The agent may have died between the beginning of the kernel's process and its note.
            for left in (pid,) if is_running(pid, started_at) else find_by_output(folder / "log"):
                log.warning("pid=%d ended: %s", left, reason)
                signal_group(left, signal.SIGKILL)
            remove_folder(folder)

    def _read_file(self, path: Path, kind: type[T]) -> T | None:
        """Return the value in a file of a kernel's folder; None if there is no file.

        A file that cannot be used is put aside, and raises `UnfitFile`.
        """
        try:
            try:
                return decode(kind, read_document(path, most_bytes=MOST_OWN_BYTES), ignore_unknown=True)
            except WireError as problem:
                raise UnfitFile(path, f"cannot be read: {problem}") from None
        except FileNotFoundError:
            return None
        except UnfitFile as problem:
            self._put_aside(path, problem.reason)
            raise

    def _put_aside(self, path: Path, reason: str) -> None:
        """Move a file out of a kernel's folder, which is removed next."""
        aside = self._folder.with_name(f"{self._folder.name}.unreadable")
        with contextlib.suppress(OSError):
            aside.mkdir(mode=0o700, exist_ok=True)
        put_aside(path, reason, log, aside=aside / f"{path.parent.name}-{path.name}")

    def _read_starting(self, path: Path) -> tuple[int, float]:
        """Return the pid and start time from a start's `starting.json`; zeros if there is no good file."""
        try:
            noted = self._read_file(path, _Starting)
        except UnfitFile:
            noted = None
        return (noted.pid, noted.started_at) if noted is not None else (0, 0.0)

    async def close(self) -> None:
        for kernel in self._kernels.values():
            kernel.starting.cancel()
            await kernel.journal.close()
            if kernel.watch is not None:
                kernel.watch.close()
        if self._context is not None:
            self._context.term()
        self._reaper.close()

    def _begin(self, request: Launch, lease: Lease) -> _TrackedKernel:
        earlier = self._kernels.pop(request.kernel_id, None)
        digest = hashlib.sha256(request.kernel_id.encode(errors="surrogatepass")).hexdigest()
        folder = self._folder / digest[:32]
        if earlier is not None:  # after a crash, the old record must not hide that this start is unfinished
            (folder / "record.json").unlink(missing_ok=True)
        kernel = _TrackedKernel(
            kernel_id=request.kernel_id,
            launch_id=request.launch_id,
            lease_id=request.lease_id,
            folder=folder,
            starting=asyncio.get_running_loop().create_task(self._start(folder, request, lease)),
            launched=asyncio.get_running_loop().create_future(),
            ended=asyncio.Event(),
            journal=Journal(request.journal) if earlier is None else earlier.journal,
        )
        self._kernels[request.kernel_id] = kernel
        kernel.starting.add_done_callback(lambda task: self._on_start_done(kernel, task))
        return kernel

    async def _start(self, folder: Path, request: Launch, lease: Lease) -> KernelProcess:
        # A part of the start, so that a release meanwhile cancels it: no kernel starts in a lease that is gone.
        ready, device_ids = await self._prepare(request, lease)
        return await self._starter.start(folder, ready, device_ids)

    def _on_start_done(self, kernel: _TrackedKernel, task: asyncio.Future[KernelProcess]) -> None:
        """Mark a kernel whose launch failed as ended. It stays listed, so that a repeated call gets the same error."""
        # A launch that is cancelled in its last step has recorded its process already. That kernel runs.
        if (task.cancelled() or task.exception() is not None) and kernel.process is None:
            kernel.ended.set()
            remove_folder(kernel.folder)
            if problem := None if task.cancelled() else task.exception():
                kernel.launched.set_exception(problem)
                kernel.launched.exception()  # or asyncio would log it if nobody waits for it
            else:
                kernel.launched.cancel()

    def _on_started(self, process: KernelProcess, code: asyncio.Future[int]) -> None:
        # In the step that has recorded the start. A cancellation after it finds a kernel that runs.
        kernel = self._kernels[process.kernel_id]
        kernel.process = process
        kernel.launched.set_result(process)
        self._follow(kernel, process)
        reason = f": {process.why_not_forked}" if process.why_not_forked else ""
        log.info("kernel=%s pid=%d %s%s", process.kernel_id, process.pid, process.how, reason)
        self._on_launched(process)
        # The code of a kernel that has ended already is handled in a later step, and so after its launch.
        code.add_done_callback(lambda future: self._on_end(kernel, future.result()))
        self._room.watch()

    def _on_end(self, kernel: _TrackedKernel, code: int | None) -> None:
        assert kernel.process is not None
        held = self._limits.get(kernel.lease_id)
        excess = held.explain_end(code) if held is not None else ""
        spent = self._reaper.spent(kernel.process.pid)
        kernel.process = replace(
            kernel.process,
            is_running=False,
            exit_code=code,
            reason=f"the kernel {excess or describe_exit(code, was_asked=kernel.was_signalled)}",
            is_out_of_memory=bool(excess),
            cpu_s=spent.cpu_s,
            peak_bytes=(held.peak_bytes if held is not None else 0) or spent.peak_bytes,
            log_tail=tail(kernel.folder / "log", LOG_TAIL_BYTES),
        )
        record = encode(kernel.process)
        # Recorded before it is reported: an agent that dies in between leaves a record that the next one lists.
        try:
            write_private_json(kernel.folder / "record.json", record)
        except OSError as problem:
            log.warning("kernel=%s its end cannot be recorded: %s", kernel.process.kernel_id, problem)
        kernel.ended.set()
        log.info("kernel=%s %s", kernel.process.kernel_id, kernel.process.reason)
        self._on_exited(kernel.process)

    def _adopt_one(self, folder: Path, process: KernelProcess) -> None:
        """Take over one kernel. Raises `ValueError` or `ZMQError` if its record names no possible connection."""
        kernel = _TrackedKernel(
            kernel_id=process.kernel_id,
            launch_id=process.launch_id,
            lease_id=process.lease_id,
            folder=folder,
            starting=asyncio.get_running_loop().create_future(),
            launched=asyncio.get_running_loop().create_future(),
            ended=asyncio.Event(),
            journal=Journal(process.journal),
            process=process,
        )
        if process.is_running:
            self._follow(kernel, process, is_adopted=True)
        kernel.starting.set_result(process)
        kernel.launched.set_result(process)
        self._kernels[process.kernel_id] = kernel
        if not process.is_running:
            kernel.ended.set()
            return
        self._room.watch()
        log.info("kernel=%s pid=%d adopted", process.kernel_id, process.pid)

        def end() -> None:
            self._session.sweep(process.pid)
            self._on_end(kernel, None)

        kernel.watch = Watch(process.pid, process.process_started_at, end)

    def _follow(self, kernel: _TrackedKernel, process: KernelProcess, *, is_adopted: bool = False) -> None:
        if process.connection is None:
            return
        output = subscribe_to(process.connection, self._sockets())
        question: StateQuestion | None = None
        if is_adopted:
            try:
                question = StateQuestion(process.connection, self._sockets())
            except (ValueError, zmq.ZMQError) as problem:  # its state is known from its next cell on
                log.warning("kernel=%s cannot be asked for its state: %s", process.kernel_id, problem)
        kernel.journal.follow(output, question)

    def _sockets(self) -> zmq.Context[zmq.Socket[bytes]]:
        if self._context is None:
            self._context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, MOST_SOCKETS)
        return self._context


async def wait_for_end(process: KernelProcess, ended: asyncio.Event, deadline_s: float = DIES_S) -> None:
    try:
        await asyncio.wait_for(ended.wait(), deadline_s)
    except asyncio.TimeoutError:
        problem = f"process {process.pid} of kernel {process.kernel_id} does not die: it hangs in the operating system"
        hint = "often on a file system that does not answer; its lease stays until it ends"
        raise RemoteError("internal", f"{problem}, {hint}") from None
