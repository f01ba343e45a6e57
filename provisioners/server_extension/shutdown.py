"""Shuts down one kernel, which may wait or restart, or all kernels when the server stops.

Kernels that outlive the server are left to the next one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from roost.provisioners import RoostProvisioner

if TYPE_CHECKING:
    from .extension import RoostExtension
    from .pending_starts import PendingStarts

_REPEAT_STOP_S = 300.0
"""How long the request to stop a kernel out of reach is repeated, if the scheduler has not recorded it."""
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
        return False

    async def prepare_all(self) -> list[RoostProvisioner]:
        """Leave the kernels that outlive the server to the next one, and withdraw the other starts.

        Return the provisioners of the kernels that are kept.
        """
        kept = self._let_go()
        starts = self._kernels.starts
        pending = list(starts.pending.values())
        await asyncio.gather(*(starts.withdraw(start, _STOPPING) for start in pending))
        for start in pending:
            if not start.has_kernel:
                starts.forget(start)
        await asyncio.gather(*map(self._until_restarted, self._kernels.list_kernel_ids()))
        return kept

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
