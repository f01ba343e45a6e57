"""roost's plugin in a Dask cluster's workers. It holds back kernels' resources from tasks. See `scheduler_plugin`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from typing import Any

from distributed.diagnostics.plugin import WorkerPlugin
from distributed.worker_state_machine import CancelComputeEvent, UnpauseEvent

from roost.launchers.daemon.tasks import Timers, spawn

from .nanny_plugin import AgentStarter
from .scheduler_plugin import NAME
from .slot_ledger import CRUMB, DIGITS, GPU, Amounts

_ASK_S = 5.0
_AGAIN_S = 1.0
_GATHER_S = 0.02
"""How long changes of a worker's free resources are collected before they are reported together."""

log = logging.getLogger(__name__)


class RoostWorkerPlugin(WorkerPlugin):  # type: ignore[misc,unused-ignore]
    """A plugin that holds back from tasks the resources that leases claim. `starter` is for workers without a nanny."""

    name = NAME
    idempotent = True

    def __init__(self, starter: AgentStarter) -> None:
        self._starter = starter

    async def setup(self, worker: Any) -> None:
        self.worker = worker
        self._number = -1
        self._moved = asyncio.Event()
        self._reported: Amounts | None = None
        self._timers = Timers()
        self._is_handing_back = False
        self._tasks: set[asyncio.Task[Any]] = set()
        # The claims of an earlier plugin in this worker stay: by lease, and the ids of the granted ones.
        self._claims, self._granted = worker.__dict__.setdefault("_roost_claims", ({}, set()))
        worker.handlers.update(roost_claims=self.claims, roost_report=self.report)
        await self.report()
        if not worker.nanny:
            spawn(self._starter.start(worker), self._tasks, log)

    async def report(self) -> bool:
        """Report this worker's resources and devices, and hold back the claims of the answer. Return True."""
        from distributed.system import MEMORY_LIMIT  # here, because it is this machine's

        worker = self.worker
        found = {
            "worker": worker.contact_address or worker.address,
            "resources": dict(worker.state.total_resources),
            "devices": self._read_devices(),
            "memory_bytes": int(MEMORY_LIMIT),
        }
        while True:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                answer = await asyncio.wait_for(worker.scheduler.roost_worker(**found), _ASK_S)
                break
            await asyncio.sleep(_AGAIN_S)
        await self.claims(**answer)
        self._report_free()
        return True

    async def claims(
        self, claims: dict[str, Amounts], number: int, asked: str = "", wait_s: float = 0.0
    ) -> bool:
        """Hold back exactly these claims.

        Return True if the lease `asked` has all of its claim, or if `asked` is empty.

        Waits up to `wait_s` for tasks to end. `number` orders the calls, so that a late one is ignored.
        """
        if number > self._number:
            self._number = number
            self._apply(claims)

        async def wait_for_grant() -> None:
            while asked in self._claims and asked not in self._granted:
                self._moved.clear()
                await self._moved.wait()

        if asked:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(wait_for_grant(), wait_s)
        return not asked or asked in self._granted

    def transition(self, key: Any, start: Any, finish: Any, **_: Any) -> None:
        if finish == "constrained" and self._claims and not self._is_handing_back:
            # The task may have been sent before Dask's scheduler knew of the claims.
            self._is_handing_back = True
            asyncio.get_running_loop().call_soon(self._hand_back)
        if self.worker.state.total_resources:
            self._look()

    async def teardown(self, worker: Any) -> None:
        self._timers.close()
        if not worker.nanny:
            await self._starter.end(worker)

    def _apply(self, claims: dict[str, Amounts]) -> None:
        available = self.worker.state.available_resources
        for lease_id in [name for name, claim in self._claims.items() if claims.get(name) != claim]:
            for name, amount in self._claims.pop(lease_id).items():
                available[name] = round(available[name] + amount, DIGITS)
            self._granted.discard(lease_id)
        for lease_id, claim in claims.items():
            if lease_id not in self._claims and claim.keys() <= available.keys():
                self._claims[lease_id] = dict(claim)
                for name, amount in claim.items():
                    available[name] = round(available[name] - amount, DIGITS)
        self._look()
        self._hand_back()
        if self.worker.state.running:  # start tasks that waited for resources which are free again
            self.worker.handle_stimulus(UnpauseEvent(stimulus_id=f"roost-{time.time()}"))

    def _look(self) -> None:
        """Grant claims from the resources that tasks leave, in the order in which the claims came."""
        left = dict(self.worker.state.available_resources)
        waiting = {name: claim for name, claim in self._claims.items() if name not in self._granted}
        for claim in waiting.values():
            for name, amount in claim.items():
                left[name] += amount
        for lease_id, claim in waiting.items():
            for name, amount in claim.items():
                left[name] -= amount
            if all(left[name] > -CRUMB for name in claim):
                self._granted.add(lease_id)
                self._moved.set()
        if self._count_free() != self._reported and "free" not in self._timers:
            self._timers.later(_GATHER_S, self._report_free, key="free")

    def _count_free(self) -> dict[str, float]:
        """Return the amounts that neither tasks nor granted leases hold."""
        free = dict(self.worker.state.available_resources)
        for lease_id, claim in self._claims.items():
            if lease_id not in self._granted:
                for name, amount in claim.items():
                    free[name] += amount
        return {name: max(0.0, round(amount, DIGITS)) for name, amount in free.items()}

    def _report_free(self) -> None:
        self._reported = self._count_free()
        spawn(self._send_free(self._reported), self._tasks, log)

    async def _send_free(self, free: Amounts) -> None:
        try:
            address = self.worker.contact_address or self.worker.address
            await self.worker.scheduler.roost_free(worker=address, free=dict(free))
        except OSError:
            self._reported = None  # so that it is sent with the next change

    def _hand_back(self) -> None:
        """Return to Dask's scheduler the tasks that wait here for resources which kernels hold now."""
        self._is_handing_back = False
        left = dict(self.worker.state.total_resources)
        for claim in self._claims.values():
            for name, amount in claim.items():
                left[name] -= amount
        for task in list(self.worker.state.constrained):
            if any(amount > left[name] + CRUMB for name, amount in task.resource_restrictions.items()):
                cause = f"roost-{time.time()}"
                self.worker.handle_stimulus(CancelComputeEvent(key=task.key, stimulus_id=cause))
                self.worker.batched_stream.send({"op": "reschedule", "key": task.key, "stimulus_id": cause})

    def _read_devices(self) -> list[str] | None:
        """Return the ids of the GPUs that tasks use: the first of CUDA_VISIBLE_DEVICES; None if it is not set."""
        count = math.ceil(self.worker.state.total_resources.get(GPU, 0.0))
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        return None if seen is None else [name.strip() for name in seen.split(",") if name.strip()][:count]
