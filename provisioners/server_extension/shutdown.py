"""Shuts down one kernel, which may wait or restart, or all kernels when the server stops.

Kernels that outlive the server are left to the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from roost.placement.model.format import format_count
from roost.provisioners import RoostProvisioner

if TYPE_CHECKING:
    from .extension import RoostExtension
    from .pending_starts import PendingStarts

_REPEAT_STOP_S = 300.0
"""How long the request to stop a kernel out of reach is repeated, if the scheduler has not recorded it."""
_END_S = 2.5
"""How long kernels have to end with their server. Jupyter gives each 5 s, some of them one after the other."""
_KILL_S = 1.0
_RESTARTED_WITHIN_S = 10.0
"""How long a shutdown waits for a restart that is under way."""
_DELETED = "The kernel was shut down before it had started."
_KEPT = "The Jupyter Server stopped. The kernel's start keeps its place for a while: run the cell again."
_STOPPING = "The Jupyter Server stopped before the kernel had started."


class Shutdown:
    """The shutdowns of one kernel manager. `kept` has the ids of the kernels that are left to the next server."""

    def __init__(self, kernels: PendingStarts, extension: RoostExtension) -> None:
        self.kept: set[str] = set()
        self._kernels = kernels
        self._extension = extension

    async def prepare(self, kernel_id: str) -> bool:
        """Withdraw the start of a kernel that waits, and wait for a restart that is under way.

        Return True if the caller must shut the kernel down, and False if there is none any more.
        """
        starts = self._kernels.starts
        start = starts.pending.get(kernel_id)
        if start is None or kernel_id not in self._kernels:
            await self._until_restarted(kernel_id)
            return True
        if start.is_adoption and not start.has_kernel:  # nobody knows whether it runs; the scheduler ends it
            start.km.provisioner.service.stop(kernel_id, grace_s=1.0, repeat_s=_REPEAT_STOP_S)
        await starts.withdraw(start, _DELETED)
        if start.has_kernel:
            start.abort(_DELETED)
            return True
        starts.forget(start)
        if start.is_restart:
            await self._until_restarted(kernel_id)
        return start.is_restart

    async def end_all(self, shut_down: Callable[..., Awaitable[None]], now: bool) -> None:
        """Leave the kernels that outlive the server to the next one, and shut the others down by `shut_down`.

        Kernels that do not end in time are killed, so that the server ends.
        """
        self._kernels.is_stopping = True
        kept = self._let_go()
        try:
            await asyncio.wait_for(self._end_others(shut_down, now), _END_S)
        except asyncio.TimeoutError:
            await self._kill_others()
        self._extension.say_what_is_kept(kept)

    async def _kill_others(self) -> None:
        """Kill the kernels that have not ended."""
        left = {
            id_: self._kernels.get_kernel(id_)
            for id_ in self._kernels.list_kernel_ids()
            if id_ not in self.kept
        }
        count = format_count(len(left), "kernel is", "kernels are")
        self._extension.log.warning("roost: %s killed, because the server stops.", count)
        killed = [asyncio.create_task(km.shutdown_kernel(now=True)) for km in left.values()]
        done, _ = await asyncio.wait(killed, timeout=_KILL_S)
        if lost := [
            id_ for id_, task in zip(left, killed, strict=True) if task not in done or task.exception()
        ]:
            text = (
                "roost: the server stops, but these kernels may go on, because nothing answers for them: %s"
            )
            self._extension.log.error(text, ", ".join(lost))

    async def _end_others(self, shut_down: Callable[..., Awaitable[None]], now: bool) -> None:
        """Withdraw the starts of kernels that are not kept, wait for restarts, and shut the kernels down."""
        starts = self._kernels.starts
        pending = list(starts.pending.values())
        await asyncio.gather(*(starts.withdraw(start, _STOPPING) for start in pending))
        for start in pending:
            if not start.has_kernel:
                starts.forget(start)
        await asyncio.gather(*map(self._until_restarted, self._kernels.list_kernel_ids()))
        await shut_down(now=now)

    def _let_go(self) -> list[RoostProvisioner]:
        """Leave the kernels that outlive this server to the next one. Return their provisioners."""
        kernels, pending = self._kernels, self._kernels.starts.pending
        kept = []
        for kernel_id in kernels.list_kernel_ids():
            km = kernels.get_kernel(kernel_id)
            provisioner, start = km.provisioner, pending.get(kernel_id)
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
            pending.pop(kernel_id, None)
            km.stop_restarter()
            provisioner.let_go()
            kernels.stop_watching_activity(kernel_id)
            kernels.stop_buffering(kernel_id)
            km.cleanup_connection_file()
            self.kept.add(kernel_id)
        return kept

    async def _until_restarted(self, kernel_id: str) -> None:
        """Wait for the end of a restart that is under way, about 10 s at most.

        A shutdown during the restart would leave the new kernel running.
        """
        km = self._kernels.get_kernel(kernel_id) if kernel_id in self._kernels else None
        provisioner = getattr(km, "provisioner", None)
        if km is None or not isinstance(provisioner, RoostProvisioner):
            return
        began = time.monotonic()
        while not km.ready.done() and time.monotonic() - began < _RESTARTED_WITHIN_S:
            if provisioner.waiting is not None and provisioner.waiting.state == "queued":
                provisioner.service.cancel(kernel_id)  # it could wait for a minute
            await asyncio.wait([km.ready], timeout=_RESTARTED_WITHIN_S)
