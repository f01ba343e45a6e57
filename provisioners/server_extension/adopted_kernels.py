"""Lists the kernels of an earlier server under their old ids, and takes over their state."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from roost.placement.model.format import format_count
from roost.provisioners.jupyter_internals import answer_info
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import hide_output

from .adoption import FoundKernel
from .pending_start import PendingStart
from .reasons import describe
from .server_state import ServerState

if TYPE_CHECKING:
    from .pending_starts import PendingStarts

_STATE_S = 2.0
"""How long an adoption waits for the kernel's execution state from its agent."""


class Adoption:
    """The adoption of an earlier server's kernels by one kernel manager."""

    def __init__(self, kernels: PendingStarts, state: ServerState) -> None:
        self._kernels = kernels
        self._state = state

    async def adopt(self, found: Sequence[FoundKernel], within_s: float) -> None:
        """Adopt kernels of an earlier server and list them.

        After `within_s`, a kernel that is not adopted yet is listed as unknown, and its adoption goes on. A kernel that
        has ended meanwhile is not listed. `/roost/api/kernels/ID` says why it has ended.
        """
        began = time.monotonic()
        starts = [self._begin(kernel) for kernel in found]
        adopted = sum(await asyncio.gather(*(self._settle(start, began + within_s) for start in starts)))
        if starts:
            took_s = time.monotonic() - began
            count = format_count(len(starts), "kernel")
            name = self._state.name
            self._kernels.log.info(
                "roost: adopted %d of %s in %.2f s, as the server %s", adopted, count, took_s, name
            )

    def _begin(self, kernel: FoundKernel) -> PendingStart:
        environment = self._kernels.find_environment(kernel.kernel_id)
        if kernel.session:
            environment["JPY_SESSION_NAME"] = kernel.session
        arguments: dict[str, Any] = {"kernel_name": kernel.name, "env": environment}
        if kernel.cwd:
            arguments["cwd"] = kernel.cwd
        start = PendingStart(kernel.kernel_id, arguments, self._kernels.log)
        start.is_adoption = True
        self._kernels.starts.begin(start)
        return start

    async def _settle(self, start: PendingStart, deadline: float) -> bool:
        """Wait until an adoption is over, or until it must be listed because it waits. Return True if it succeeded."""
        starts = self._kernels.starts
        await start.until_settled(deadline - time.monotonic())
        await start.until_made()
        if not start.task.done():
            starts.list_start(start)
            start.km.execution_state = start.find_state()
            return False
        if not self._note_outcome(start):
            starts.pending.pop(start.kernel_id, None)
            return False
        await starts.open(start)
        return True

    def _note_outcome(self, start: PendingStart) -> bool:
        """Log the outcome of an adoption. Return True if it has succeeded."""
        log = self._kernels.log
        problem = None if start.task.cancelled() else start.task.exception()
        if problem is None:
            log.debug("roost: kernel %s is adopted.", start.kernel_id)
            return True
        log.warning("roost: kernel %s is not adopted: %s", start.kernel_id, hide_output(describe(problem)))
        self._state.forget(start.kernel_id)
        self._kernels.keep_reason(start.kernel_id, describe(problem))
        return False


async def take_over_state(km: Any) -> None:
    """Give the manager of an adopted kernel the state of its kernel, and the time of its last activity."""
    known: concurrent.futures.Future[Any] = concurrent.futures.Future()
    known.set_result({})
    answer_info(km, known)  # or a websocket waits for the answer of a busy kernel
    km.adopted_at = time.monotonic()
    state, idle_s = "idle", 0.0
    with suppress(RoostError, asyncio.TimeoutError):
        kernel = await km.provisioner.service.kernel(km.kernel_id, with_use=True).within(_STATE_S)
        if kernel.use is not None:
            state, idle_s = kernel.use.execution_state or state, kernel.use.idle_s
    km.execution_state = state
    km.last_activity = datetime.now(timezone.utc) - timedelta(seconds=idle_s)
