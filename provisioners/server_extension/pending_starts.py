"""Pending starts: a kernel of roost's that has to wait is listed at once, and its clients can connect.

`add_pending_starts` makes a subclass of the configured kernel manager class. Starts of other kernels are as before.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, cast

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError

from roost.placement.model.format import format_age, format_count
from roost.provisioners import RoostProvisioner
from roost.provisioners.application import to_http_error
from roost.provisioners.jupyter_internals import (
    answer_info,
    begin_connections,
    find_restarter,
    forget_connections,
    forget_pending,
    list_kernel,
    read_launch_arguments,
    reset_connections,
)
from roost.provisioners.kernel_json import PROVISIONER, check_spec, find_provisioner
from roost.scheduler.errors import ConfigError, LaunchError, RoostError

from .adoption import FoundKernel
from .pending_start import PendingStart
from .quick_manager import make_quick
from .reasons import describe, describe_end
from .restarter import Restarter, following_state
from .waiting_report import WaitingReport

if TYPE_CHECKING:
    from .extension import RoostExtension

ANSWER_AFTER_S = 0.12
"""How long a start may take before its kernel is listed as starting.

JupyterLab drops cells that are run before the kernel is listed.
"""
_CULLED = 1_000
"""At most this many reasons of kernels' ends, and times of clients' disconnections, are kept: the latest ones."""
_STATE_S = 2.0
"""How long an adoption waits for the kernel's execution state from its agent."""
_WITHDRAWN_WITHIN_S = 3.0
"""How long the withdrawal of a start waits for the service. The service's own clean-up goes on."""
_REPEAT_STOP_S = 300.0
"""How long the request to stop a kernel out of reach is repeated, if the scheduler has not recorded it."""
_RESTARTED_WITHIN_S = 10.0
"""How long a shutdown waits for a restart that is under way."""
_DELETED = "The kernel was shut down before it had started."
_INTERRUPTED = "The start of this kernel was withdrawn by an interrupt: restart the kernel to ask again."
_RESTARTED = "The kernel was restarted while it waited, and keeps its place: run the cell again."
_OUT_OF_REACH = "The kernel is out of reach: nobody knows whether it runs. Shut it down, or wait."
_KEPT = "The Jupyter Server stopped. The kernel's start keeps its place for a while: run the cell again."
_STOPPING = "The Jupyter Server stopped before the kernel had started."


class PendingStarts(AsyncMappingKernelManager):  # type: ignore[misc]
    """A kernel manager whose starts of roost's kernels do not block. `pending` has the starts by kernel id.

    For the provisioner it is the `Holder`.
    """

    def __init__(self, **kwargs: Any) -> None:
        from .extension import RoostExtension  # which imports this module

        super().__init__(**kwargs)
        self.begin(RoostExtension(parent=self.parent))
        self.may_wait = True

    def begin(self, extension: RoostExtension) -> None:
        """Set the attributes of this class, because the object may have been made by the original class."""
        self.queue_timeout_s = extension.queue_timeout_s
        self.server_name = extension.state.name if extension.state.has_lock else ""
        self.may_wait = False
        """True if starts need not block, because the websockets can answer for a waiting kernel."""
        self.adopting: set[str] = set()
        self.closed_at: dict[str, float] = {}
        """The `time.monotonic()` at which clients of roost's kernels disconnected, by session key."""
        self.seen_sessions: set[str] = set()
        """The keys of the sessions that have had their replay after the adoption of their kernels."""
        self._extension = extension
        self._kept: set[str] = set()
        self.pending: dict[str, PendingStart] = {}
        self.culled: dict[str, str] = {}
        """The reasons why kernels were culled or not adopted, as sentences, by kernel id."""

    def note_waiting(self, kernel_id: str) -> None:
        """Wake the tasks that wait for a change of a start's state. Any thread may call this."""
        start = self.pending.get(kernel_id)
        if start is not None:
            start.note_change()

    async def start_kernel(self, *, kernel_id: str | None = None, **kwargs: Any) -> str:
        """Start a kernel and return its id, perhaps before the start has ended.

        This returns once the start has ended, has a lease or has to wait, but after `ANSWER_AFTER_S` at the latest. If
        the start fails earlier, this raises the error. Otherwise the rest of the start is pending.
        """
        is_there = kernel_id is not None and kernel_id in self
        if is_there or not self._is_of_roost(kwargs.get("kernel_name")) or not self.may_wait:
            return cast(str, await super().start_kernel(kernel_id=kernel_id, **kwargs))
        kernel_id = kernel_id or cast(str, self.new_kernel_id(**kwargs))
        start = PendingStart(kernel_id, kwargs, self.log)
        self._begin(start)
        try:
            await start.until_admitted(ANSWER_AFTER_S)
            await start.until_made()
        except asyncio.CancelledError:
            start.task.cancel()
            self.pending.pop(kernel_id, None)
            raise
        if not start.task.done():
            self._list(start)
            start.is_listed = True
            start.following = asyncio.create_task(self._follow(start))
            return kernel_id
        if start.task.cancelled() or start.task.exception() is not None:
            self.pending.pop(kernel_id, None)  # a stop of the server forgets it as well
            if start.task.cancelled():
                raise HTTPError(503, start.problem)
            return start.task.result()
        await self._open(start)
        return kernel_id

    async def adopt_kernels(self, found: Sequence[FoundKernel], within_s: float) -> None:
        """Adopt kernels of an earlier server and list them.

        After `within_s`, a kernel that is not adopted yet is listed as unknown, and its adoption goes on. A kernel that
        has ended meanwhile is not listed. `/roost/api/kernels/ID` says why it has ended.
        """
        began = time.monotonic()
        starts = [self._begin_adoption(kernel) for kernel in found]
        adopted = sum(await asyncio.gather(*(self._settle(start, began + within_s) for start in starts)))
        if starts:
            took_s = time.monotonic() - began
            count = format_count(len(starts), "kernel")
            name = self._extension.state.name
            self.log.info("roost: adopted %d of %s in %.2f s, as the server %s", adopted, count, took_s, name)

    def _begin_adoption(self, kernel: FoundKernel) -> PendingStart:
        environment = {"JPY_SESSION_NAME": kernel.session} if kernel.session else {}
        arguments: dict[str, Any] = {"kernel_name": kernel.name, "env": {**os.environ, **environment}}
        if kernel.cwd:
            arguments["cwd"] = kernel.cwd
        start = PendingStart(kernel.kernel_id, arguments, self.log)
        start.is_adoption = True
        self._begin(start)
        return start

    async def _settle(self, start: PendingStart, deadline: float) -> bool:
        """Wait until an adoption is over, or until it must be listed because it waits. Return True if it succeeded."""
        await start.until_settled(deadline - time.monotonic())
        await start.until_made()
        if not start.task.done():
            self._list(start)
            start.km.execution_state = start.find_state()
            start.is_listed = True
            start.following = asyncio.create_task(self._follow(start))
            return False
        if not self._note_adopted(start):
            self.pending.pop(start.kernel_id, None)
            return False
        await self._open(start)
        return True

    def _note_adopted(self, start: PendingStart) -> bool:
        """Log the outcome of an adoption. Return True if it has succeeded."""
        problem = None if start.task.cancelled() else start.task.exception()
        if problem is None:
            self.log.debug("roost: kernel %s is adopted.", start.kernel_id)
            return True
        self.log.warning("roost: kernel %s is not adopted: %s", start.kernel_id, describe(problem))
        self._extension.state.forget(start.kernel_id)
        self._keep_reason(start.kernel_id, describe(problem))
        return False

    async def _read_state(self, kernel_id: str) -> None:
        """Take over the state of an adopted kernel, and its time of last activity."""
        km = self.get_kernel(kernel_id)
        known: concurrent.futures.Future[Any] = concurrent.futures.Future()
        known.set_result({})
        answer_info(km, known)  # or a websocket waits for the answer of a busy kernel
        km.adopted_at = time.monotonic()
        state, idle_s = "idle", 0.0
        with suppress(RoostError, asyncio.TimeoutError):
            kernel = await km.provisioner.service.kernel(kernel_id, with_use=True).within(_STATE_S)
            if kernel.use is not None:
                state, idle_s = kernel.use.execution_state or state, kernel.use.idle_s
        km.execution_state = state
        km.last_activity = datetime.now(timezone.utc) - timedelta(seconds=idle_s)

    def _begin(self, start: PendingStart) -> None:
        state, held = self._extension.state, start.held
        held.on_change = lambda: state.note_held(start.kernel_id, held.cells)
        if start.is_adoption:
            self.adopting.add(start.kernel_id)
        start.task = asyncio.create_task(self._start(start))
        self.pending[start.kernel_id] = start

    async def _start(self, start: PendingStart) -> str:
        try:
            kernel_id = cast(str, await super().start_kernel(kernel_id=start.kernel_id, **start.arguments))
            if start.is_adoption:
                await self._read_state(kernel_id)
            return kernel_id
        except BaseException:
            # jupyter_client would keep it, and `shutdown_all` would then stop at a kernel that does not exist.
            forget_pending(self, start.kernel_id)
            raise
        finally:
            self.adopting.discard(start.kernel_id)

    def _remember(self, km: Any) -> None:
        """Keep the facts about a kernel on disk, for the next server."""
        arguments = read_launch_arguments(km)
        session = (arguments.get("env") or {}).get("JPY_SESSION_NAME", "")
        cwd = os.fspath(arguments.get("cwd") or "")
        self._extension.state.note(km.kernel_id, name=km.kernel_name, cwd=cwd, session=session)

    def remove_kernel(self, kernel_id: str) -> Any:
        self._extension.state.forget(kernel_id)
        return super().remove_kernel(kernel_id)

    def pre_start_kernel(self, kernel_name: str | None, kwargs: Any) -> Any:
        km, name, kernel_id = super().pre_start_kernel(kernel_name, kwargs)
        if kernel_id in self.pending:
            start = self.pending[kernel_id]
            start.km = km
            make_quick(km)
            # Before it is listed: until then the server cannot describe it, and `GET /api/kernels` would fail.
            km.execution_state, km.reason, km.last_activity = "starting", "", datetime.now(timezone.utc)
            if km.restarter_class is AsyncIOLoopKernelRestarter:
                km.restarter_class = Restarter
            start.made.set()
            if start.is_listed:  # it starts again
                self._list(start)
        return km, name, kernel_id

    def interrupt_kernel(self, kernel_id: str) -> Any:
        """Interrupt a kernel. The start of a waiting kernel is withdrawn."""
        start = self.pending.get(kernel_id)
        if start is None or start.has_kernel:
            return super().interrupt_kernel(kernel_id)
        if start.is_adoption:
            raise HTTPError(503, _OUT_OF_REACH)
        return self._withdraw(start, _INTERRUPTED)

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Shut a kernel down. The start of a waiting kernel is withdrawn."""
        start = self.pending.get(kernel_id)
        if start is None or kernel_id not in self:
            await self._until_restarted(kernel_id)
            await super().shutdown_kernel(kernel_id, now=now, restart=restart)
            return
        if start.is_adoption and not start.has_kernel:  # nobody knows whether it runs; the scheduler ends it
            start.km.provisioner.service.stop(kernel_id, grace_s=1.0, repeat_s=_REPEAT_STOP_S)
        await self._withdraw(start, _DELETED)
        if start.has_kernel:
            start.abort(_DELETED)
            await super().shutdown_kernel(kernel_id, now=now, restart=restart)
        else:
            self._forget(start)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> Any:
        """Restart a kernel. A waiting kernel keeps its place, and its held cells end. A failed start begins again."""
        start = self.pending.get(kernel_id)
        if start is None or start.has_kernel:
            km = self.get_kernel(kernel_id)
            async with following_state(km):
                answer = await super().restart_kernel(kernel_id, now=now)
            if not await km.is_alive():  # Jupyter's restarter tries again
                km.reason = describe_end(km) or km.reason
            return answer
        if start.is_adoption and start.state == "waiting":
            raise HTTPError(503, _OUT_OF_REACH)
        if start.state == "waiting":
            start.end_cells(_RESTARTED)
        else:
            await self._start_again(start)
        return None

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Cull a kernel if it is idle. A waiting kernel does not count as idle."""
        start = self.pending.get(kernel_id)
        if start is not None and start.state == "waiting":
            return
        km = self.get_kernel(kernel_id)
        await super().cull_kernel_if_idle(kernel_id)
        if kernel_id not in self and isinstance(km.provisioner, RoostProvisioner):
            idle = format_age((datetime.now(timezone.utc) - km.last_activity).total_seconds())
            self._keep_reason(
                kernel_id, f"Jupyter Server ended the kernel, because nobody had used it for {idle}."
            )

    def take_lost_cells(self, kernel_id: str, session: str) -> list[dict[str, Any]]:
        """Return, and forget, the headers of a client's cells that an earlier server held and that will never run."""
        return self._extension.state.take_lost_cells(kernel_id, session)

    def note_closed(self, session_key: str) -> None:
        """Note that a client has disconnected. When it comes back, it gets a replay."""
        self.closed_at[session_key] = time.monotonic()
        if len(self.closed_at) > _CULLED:
            del self.closed_at[next(iter(self.closed_at))]

    def _keep_reason(self, kernel_id: str, reason: str) -> None:
        self.culled[kernel_id] = reason
        if len(self.culled) > _CULLED:
            del self.culled[next(iter(self.culled))]

    async def shutdown_all(self, now: bool = False) -> None:
        """Leave the kernels that outlive the server to the next one; withdraw other starts, and stop other kernels."""
        kept = self._let_go()
        starts = list(self.pending.values())
        await asyncio.gather(*(self._withdraw(start, _STOPPING) for start in starts))
        for start in starts:
            if not start.has_kernel:
                self._forget(start)
        await asyncio.gather(*map(self._until_restarted, self.list_kernel_ids()))
        await super().shutdown_all(now=now)
        self._extension.say_what_is_kept(kept)

    def _let_go(self) -> list[RoostProvisioner]:
        """Leave the kernels that outlive this server to the next one. Return their provisioners."""
        kept = []
        for kernel_id in self.list_kernel_ids():
            km = self.get_kernel(kernel_id)
            provisioner, start = km.provisioner, self.pending.get(kernel_id)
            if not isinstance(provisioner, RoostProvisioner) or not self._extension.keeps(
                provisioner.backend
            ):
                continue
            if start is not None and start.state == "failed":
                continue
            if start is not None and not start.has_kernel:
                start.held.on_change = None  # the next server tells the clients that were away
                start.end_cells(_KEPT)
            kept.append(provisioner)
            self.pending.pop(kernel_id, None)
            km.stop_restarter()
            provisioner.let_go()
            self.stop_watching_activity(kernel_id)
            self.stop_buffering(kernel_id)
            km.cleanup_connection_file()
            self._kept.add(kernel_id)
        return kept

    def start_buffering(self, kernel_id: str, session_key: str, channels: Any) -> None:
        """Keep messages for a client that has disconnected, unless the kernel is left to the next server."""
        if kernel_id not in self._kept:
            super().start_buffering(kernel_id, session_key, channels)
            return
        for stream in channels.values():
            stream.close()

    async def _async_shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        # A kept kernel stays listed until the end: if it were missing, an open page would take it for dead.
        if kernel_id not in self._kept:
            await super()._async_shutdown_kernel(kernel_id, now=now, restart=restart)

    async def _until_restarted(self, kernel_id: str) -> None:
        """Wait for the end of a restart that is under way, about 10 s at most.

        A shutdown during the restart would leave the new kernel running.
        """
        km = self.get_kernel(kernel_id) if kernel_id in self else None
        provisioner = getattr(km, "provisioner", None)
        if km is None or not isinstance(provisioner, RoostProvisioner):
            return
        began = time.monotonic()
        while not km.ready.done() and time.monotonic() - began < _RESTARTED_WITHIN_S:
            if provisioner.waiting is not None and provisioner.waiting.state == "queued":
                provisioner.service.cancel(kernel_id)  # it could wait for a minute
            await asyncio.wait([km.ready], timeout=_RESTARTED_WITHIN_S)

    def _is_of_roost(self, kernel_name: str | None) -> bool:
        """True if the kernelspec starts kernels through roost. Raises an `HTTPError` if it is malformed."""
        spec = self.kernel_spec_manager.get_kernel_spec(kernel_name or self.default_kernel_name)
        default = os.environ.get("JUPYTER_DEFAULT_PROVISIONER_NAME", "")
        if (find_provisioner(spec.to_dict()) or default) != PROVISIONER:
            return False
        try:
            check_spec(spec)  # jupyter_client would fail without a reason before it makes the provisioner
        except ConfigError as problem:
            raise to_http_error(problem) from None
        return True

    def _list(self, start: PendingStart) -> None:
        km = start.km
        list_kernel(self, start.kernel_id, km)
        begin_connections(self, start.kernel_id)
        for connection in start.connections:
            connection.parent = km
            connection.attach(start)

        def client(**options: Any) -> Any:
            if not km.ready.done():
                raise LaunchError(f"Kernel {start.kernel_id} has not started yet: wait for its `ready`.")
            return type(km).client(km, **options)

        km.client = client

    async def _finish_kernel_start(self, kernel_id: str) -> None:
        """Watch a kernel that has started. If it ends by itself, the REST model shows the reason."""
        await super()._finish_kernel_start(kernel_id)
        km = self.get_kernel(kernel_id)

        def note_end() -> None:
            km.reason = describe_end(km) or km.reason

        for event in ("restart", "dead"):
            self.add_restart_callback(kernel_id, note_end, event)
        if not isinstance(km.provisioner, RoostProvisioner):
            return
        self._remember(km)
        restarter = find_restarter(km)
        if restarter is not None:
            # With new ports, as Jupyter takes them for a kernel that dies soon, open notebooks would get no answers.
            restarter.random_ports_until_alive = False

    async def _follow(self, start: PendingStart) -> None:
        """Wait for the end of a pending start. Then connect the kernel's clients, or show them the error."""
        reporting = asyncio.create_task(self._report(start))
        await asyncio.wait([start.task])
        reporting.cancel()
        start.km.__dict__.pop("client", None)
        if start.task.cancelled() or start.task.exception() is not None or start.problem:
            await self._clean_up(start)
            start.fail(start.problem or describe(start.task.exception()))
            return
        await self._open(start)

    async def _open(self, start: PendingStart) -> None:
        """Connect the clients that came before the start was over, and forget the start.

        A kernel that runs is listed at once, so clients come also to a start that never waited.
        """
        reset_connections(self, start.kernel_id)  # each is counted when it opens its channels
        try:
            await start.open()
        finally:
            if self.pending.get(start.kernel_id) is start:
                del self.pending[start.kernel_id]

    async def _clean_up(self, start: PendingStart) -> None:
        """Clean up after a failed or withdrawn start, and stop its kernel if it has begun to run."""
        km = start.km
        forget_pending(self, start.kernel_id)
        if km.has_kernel:
            self.stop_watching_activity(start.kernel_id)
            await km.shutdown_kernel(now=True)
        if not km.ready.done():
            km.ready.cancel()  # other extensions may wait for it

    async def _start_again(self, failed: PendingStart) -> None:
        """Begin a failed start again, for the same clients."""
        start = PendingStart(failed.kernel_id, failed.arguments, self.log)
        start.connections = failed.connections
        self.remove_kernel(start.kernel_id)
        start.is_listed = True
        self._begin(start)
        await start.until_made()
        if start.task.done():
            del self.pending[start.kernel_id]
            start.task.result()
        start.following = asyncio.create_task(self._follow(start))

    async def _report(self, start: PendingStart) -> None:
        """Show what the start waits for, and keep the kernel and the server active, so that nothing culls them."""

        def show(text: str) -> None:
            if start.waiting is not None:
                start.km.execution_state = start.find_state()
            start.km.reason = text
            start.km.last_activity = self.last_kernel_activity = datetime.now(timezone.utc)
            start.line.change(text)

        await WaitingReport(start, show).run()

    async def _withdraw(self, start: PendingStart, sentence: str) -> None:
        """Withdraw a start that waits. May be repeated."""
        if start.task.done():
            return
        start.problem = start.problem or sentence
        if start.km is not None:
            start.km.shutting_down = True  # or the provisioner would warn of the end
        start.task.cancel()
        ends = [start.task] if start.following is None else [start.following]
        await asyncio.wait(ends, timeout=_WITHDRAWN_WITHIN_S)

    def _forget(self, start: PendingStart) -> None:
        self.pending.pop(start.kernel_id, None)
        self.remove_kernel(start.kernel_id)
        forget_connections(self, start.kernel_id)
        start.send("status", {"execution_state": "dead"}, {})


def add_pending_starts(kind: type[Any]) -> type[Any]:
    """Return a subclass of the kernel manager class `kind` that does not wait for starts of roost's kernels."""
    bases = (PendingStarts,) if kind is AsyncMappingKernelManager else (PendingStarts, kind)
    return type(f"Roost{kind.__name__}", bases, {})
