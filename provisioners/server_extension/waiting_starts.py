"""The starts of one server whose kernels do not run yet: listed, followed, withdrawn or begun again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from tornado.web import HTTPError

from roost.provisioners.jupyter_internals import (
    begin_connections,
    find_restarter,
    forget_connections,
    forget_pending,
    list_kernel,
    reset_connections,
)
from roost.provisioners.kernel_connection import hurry_clients

from .adopted_kernels import take_over_state
from .early_client import let_wait
from .pending_start import PendingStart
from .quick_manager import make_quick
from .reasons import describe, describe_end
from .restarter import Restarter, following_state
from .server_state import ServerState
from .waiting_report import WaitingReport

if TYPE_CHECKING:
    from .pending_starts import PendingStarts

_LOOK_S = 0.1
"""How often a restart is looked at, until it is known to wait."""
_NOT_RESTARTED = "The kernel was not restarted."
_RESTARTED = "The kernel was restarted while it waited: run the cell again."
_WITHDRAWN_WITHIN_S = 3.0
"""How long the withdrawal of a start waits for the service. The service's own clean-up goes on."""


class WaitingStarts:
    """The starts of one kernel manager that are not over. `pending` has them by kernel id."""

    def __init__(self, kernels: PendingStarts, state: ServerState) -> None:
        self.pending: dict[str, PendingStart] = {}
        self._kernels = kernels
        self._state = state

    def find_waiting(self, kernel_id: str) -> PendingStart | None:
        """Return the start of a kernel that does not run yet; None for other kernels."""
        start = self.pending.get(kernel_id)
        return None if start is None or start.has_kernel else start

    async def start(self, kernel_id: str, arguments: Mapping[str, Any]) -> None:
        """Start a kernel. Return once it runs, has a lease or has to wait, but after `answer_after_s` at the latest.

        If the start fails earlier, this raises the error. Otherwise the rest of the start is pending.
        """
        start = PendingStart(kernel_id, arguments, self._kernels.log)
        self.begin(start)
        try:
            await start.until_admitted(self._kernels.answer_after_s)
            await start.until_made()
        except asyncio.CancelledError:
            start.task.cancel()
            self.pending.pop(kernel_id, None)
            raise
        if not start.task.done():
            self.list_start(start)
            return
        if start.task.cancelled() or start.problem or start.task.exception() is not None:
            self.pending.pop(kernel_id, None)  # a stop of the server forgets it as well
            if start.problem:
                raise HTTPError(503, start.problem)
            start.task.result()
        await self.open(start)

    def begin(self, start: PendingStart) -> None:
        """Begin a start or an adoption. `start.task` does it."""
        state, held = self._state, start.held
        start.shows_others = self._kernels.shows_others
        held.on_change = lambda: state.note_held(start.kernel_id, held.cells)
        if start.is_adoption:
            self._kernels.adopting.add(start.kernel_id)
        start.task = asyncio.create_task(self._start(start))
        self.pending[start.kernel_id] = start

    async def _start(self, start: PendingStart) -> str:
        try:
            kernel_id = await self._kernels.start_at_once(kernel_id=start.kernel_id, **start.arguments)
            if start.is_adoption:
                await take_over_state(self._kernels.get_kernel(kernel_id))
            return kernel_id
        except BaseException:
            # jupyter_client would keep it, and `shutdown_all` would then stop at a kernel that does not exist.
            forget_pending(self._kernels, start.kernel_id)
            raise
        finally:
            self._kernels.adopting.discard(start.kernel_id)

    def prepare(self, kernel_id: str, km: Any) -> None:
        """Prepare the new manager of a kernel whose start is pending. Leave other managers alone."""
        start = self.pending.get(kernel_id)
        if start is None:
            return
        start.km = km
        make_quick(km)
        # Before it is listed: until then the server cannot describe it, and `GET /api/kernels` would fail.
        km.execution_state, km.reason, km.last_activity = "starting", "", datetime.now(timezone.utc)
        if km.restarter_class is AsyncIOLoopKernelRestarter:
            km.restarter_class = Restarter
        start.made.set()
        if start.is_listed:  # it starts again
            self._list(start)

    def list_start(self, start: PendingStart) -> None:
        """List the kernel of a start that waits, and follow the start."""
        self._list(start)
        start.is_listed = True
        start.following = asyncio.create_task(self._follow(start))

    def _list(self, start: PendingStart) -> None:
        km = start.km
        list_kernel(self._kernels, start.kernel_id, km)
        begin_connections(self._kernels, start.kernel_id)
        for connection in start.connections:
            connection.parent = km
            connection.attach(start)

        def client(**options: Any) -> Any:
            made = type(km).client(km, **options)
            return made if km.ready.done() else let_wait(made, km)

        km.client = client

    async def _follow(self, start: PendingStart) -> None:
        """Wait for the end of a pending start. Then connect the kernel's clients, or show them the error."""
        reporting = asyncio.create_task(self._report(start))
        await asyncio.wait([start.task])
        reporting.cancel()
        start.km.__dict__.pop("client", None)
        hurry_clients(start.km)
        if start.task.cancelled() or start.task.exception() is not None or start.problem:
            await self._clean_up(start)
            start.fail(start.problem or describe(start.task.exception()))
            return
        await self.open(start)

    async def _report(self, start: PendingStart) -> None:
        """Show what the start waits for, and keep the kernel and the server active, so that nothing culls them."""

        def show(text: str) -> None:
            if start.waiting is not None:
                start.km.execution_state = start.find_state()
            start.km.reason = text
            start.km.last_activity = self._kernels.last_kernel_activity = datetime.now(timezone.utc)
            start.line.change(text)

        await WaitingReport(start, show).run()

    async def follow_restart(self, km: Any, restart: Coroutine[Any, Any, None]) -> None:
        """Await a restart. While it waits for room, it is among the starts, and its clients see what it waits for."""
        task = asyncio.ensure_future(restart)
        while not task.done() and not _is_queued(km):
            await asyncio.wait([task], timeout=_LOOK_S)
        earlier = self.pending.get(km.kernel_id)
        if earlier is not None and earlier.is_restart and not earlier.has_kernel:
            self._list_restart(km, task, earlier)
        elif not task.done():
            self._list_restart(km, task, None)
        await asyncio.wait([task])
        task.result()

    def _list_restart(self, km: Any, task: asyncio.Task[Any], earlier: PendingStart | None) -> None:
        """List a restart. It takes over the clients of an `earlier` one that has failed, or that still waits."""
        start = PendingStart(km.kernel_id, {}, self._kernels.log)
        start.km, start.task, start.is_restart, start.is_listed = km, task, True, True
        if earlier is not None:
            if earlier.following is not None and earlier.state == "waiting":
                earlier.following.cancel()
            start.connections, earlier.connections = earlier.connections, []
            earlier.end_cells(_RESTARTED)
            for connection in start.connections:
                if not connection.channels:  # it came while the kernel had no process
                    connection.attach(start)
        start.made.set()
        start.shows_others = self._kernels.shows_others
        start.held.on_change = lambda: self._state.note_held(start.kernel_id, start.held.cells)
        self.pending[start.kernel_id] = start
        start.following = asyncio.create_task(self._follow_restart(start))
        km.wake()  # connections let the start hold what they have held

    async def _follow_restart(self, start: PendingStart) -> None:
        """Wait for the end of a restart. Then connect the clients that have come meanwhile, or show them the reason."""
        km = start.km
        reporting = asyncio.create_task(self._report(start))
        async with following_state(km):
            await asyncio.wait([start.task])
            reporting.cancel()
        if await km.is_alive():
            km.reason, km.shutting_down = "", False
            await self.open(start)
            return
        if (restarter := find_restarter(km)) is not None:
            restarter.stop()  # a person begins the next start
        start.fail(start.problem or describe_end(km) or _NOT_RESTARTED)

    async def open(self, start: PendingStart) -> None:
        """Connect the clients that came before the start was over, and forget the start.

        A kernel that runs is listed at once, so clients come also to a start that never waited.
        """
        if start.is_restart:
            for connection in start.connections:
                connection.count_again()
        else:
            reset_connections(self._kernels, start.kernel_id)  # each is counted when it opens its channels
        try:
            await start.open()
        finally:
            if self.pending.get(start.kernel_id) is start:
                del self.pending[start.kernel_id]

    async def _clean_up(self, start: PendingStart) -> None:
        """Clean up after a failed or withdrawn start, and stop its kernel if it has begun to run."""
        km = start.km
        forget_pending(self._kernels, start.kernel_id)
        if km.has_kernel:
            self._kernels.stop_watching_activity(start.kernel_id)
            await km.shutdown_kernel(now=True)
        if not km.ready.done():
            km.ready.cancel()  # other extensions may wait for it

    async def start_again(self, failed: PendingStart) -> None:
        """Begin a failed start again, for the same clients."""
        start = PendingStart(failed.kernel_id, failed.arguments, self._kernels.log)
        start.connections = failed.connections
        self._kernels.remove_kernel(start.kernel_id)
        start.is_listed = True
        self.begin(start)
        await start.until_made()
        if start.task.done():
            del self.pending[start.kernel_id]
            start.task.result()
        start.following = asyncio.create_task(self._follow(start))

    async def withdraw(self, start: PendingStart, sentence: str) -> None:
        """Withdraw a start that waits; `sentence` tells its clients why. May be repeated.

        A kernel that has come meanwhile is stopped, as long as no client is connected with it.
        """
        if start.has_kernel or start.state == "failed":
            return
        start.problem = start.problem or sentence
        if start.km is not None:
            start.km.shutting_down = True  # or the provisioner would warn of the end
        if start.is_restart:
            start.km.provisioner.service.cancel(start.kernel_id)
        else:
            start.task.cancel()
        end = start.following or asyncio.create_task(self._end_unlisted(start))
        await asyncio.wait([end], timeout=_WITHDRAWN_WITHIN_S)

    async def _end_unlisted(self, start: PendingStart) -> None:
        await asyncio.wait([start.task])
        if start.km is not None:
            await self._clean_up(start)

    def forget(self, start: PendingStart) -> None:
        """Remove the kernel of a start that was withdrawn or has failed."""
        self.pending.pop(start.kernel_id, None)
        if not start.is_restart:  # Jupyter shuts down a kernel that has run
            self._kernels.remove_kernel(start.kernel_id)
            forget_connections(self._kernels, start.kernel_id)
        start.send("status", {"execution_state": "dead"}, {})


def _is_queued(km: Any) -> bool:
    """True if the start or restart of a roost kernel is known to wait."""
    kernel = getattr(km.provisioner, "waiting", None)
    return kernel is not None and kernel.state == "queued" and bool(kernel.waits_for)
