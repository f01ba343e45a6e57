"""`PendingLeases`: the leases that wait for their image. They have no container until it is pulled.

They exist in this process only. If the service ends, so does the pull, and the client repeats its start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from roost.launchers.daemon.tasks import cancel_all, spawn
from roost.launchers.protocol.messages import Launch, Lease
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange
from roost.scheduler.errors import LaunchError, RoostError

from .container_state import End, build_lost
from .engine import Engine
from .pulls import ImagePulls

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Pending:
    lease: Lease
    launch: Launch | None
    image: str
    task: asyncio.Task[Any] | None = None
    is_creating: bool = False
    """True from the end of the pull until the container is made."""
    lost: Pod | None = None
    """Set once the pull or the creation has failed."""


class PendingLeases:
    """The leases that wait for their image, by lease id.

    `create` makes a container once the image is there. `report` gets each change of these leases.
    """

    def __init__(
        self,
        engine: Engine,
        create: Callable[[Lease, Launch | None], Awaitable[Pod]],
        report: Callable[[PodChange], object],
    ) -> None:
        self._pulls = ImagePulls(engine, self._show)
        self._create, self._report = create, report
        self._pending: dict[str, _Pending] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._pending

    def ids(self) -> set[str]:
        return set(self._pending)

    def renew(self, change: PodChange) -> PodChange | None:
        """Return a change that was reported as it is now; None if its lease waits no more."""
        if change.pod is None or change.pod.lease.state == "held":
            return change
        pod = self.find(change.pod.lease.id)
        return None if pod is None else PodChange(kind="pod", pod=pod)

    def pods(self) -> list[Pod]:
        """Return these leases as pods without an address. Those whose image was not pulled are lost."""
        return [self._build(pending) for pending in self._pending.values()]

    def find(self, lease_id: str) -> Pod | None:
        """Return one lease as in `pods`; None if it does not wait."""
        pending = self._pending.get(lease_id)
        return None if pending is None else self._build(pending)

    def start(self, lease: Lease, launch: Launch | None, image: str) -> Pod:
        """Let a lease wait for its image, and return it, pending."""
        pending = self._pending[lease.id] = _Pending(lease=lease, launch=launch, image=image)
        pending.task = spawn(self._await_image(pending), self._tasks, log)
        return self._build(pending)

    async def drop(self, lease_id: str) -> None:
        """Let a lease wait no longer. A container that is being made for it is there afterwards. May be repeated."""
        pending = self._pending.pop(lease_id, None)
        if pending is not None and pending.task is not None:
            await self._end(pending.task, pending)

    async def close(self) -> None:
        """Give up all leases that wait. Containers that are being made are there afterwards."""
        pending = list(self._pending.values())
        self._pending.clear()
        await asyncio.gather(*(self._end(each.task, each) for each in pending if each.task is not None))
        await self._pulls.close()

    async def _end(self, task: asyncio.Task[Any], pending: _Pending) -> None:
        if pending.is_creating:  # it ends as a whole, so that a deletion finds its container
            await asyncio.wait([task])
        else:
            await cancel_all({task})

    async def _await_image(self, pending: _Pending) -> None:
        try:
            await self._pulls.wait(pending.image)
            pending.is_creating = True
            pod = await self._create(pending.lease, pending.launch)
        except RoostError as problem:
            self._lose(pending, problem.user_message, is_final=isinstance(problem, LaunchError))
        except Exception:
            log.exception("lease=%s its container was not made", pending.lease.id)
            self._lose(pending, "roost has failed to make its container, as its log says", is_final=True)
        else:
            if self._is_known(pending):
                del self._pending[pending.lease.id]
                self._report(PodChange(kind="pod", pod=pod))

    def _lose(self, pending: _Pending, problem: str, *, is_final: bool) -> None:
        pending.lost = build_lost(pending.lease, End(reason=problem.rstrip("."), is_final=is_final))
        if self._is_known(pending):
            self._report(PodChange(kind="pod", pod=pending.lost))
            self._report(PodChange(kind="nodes"))

    def _show(self, image: str) -> None:
        """Report the progress of a pull to all that wait for it."""
        for pending in list(self._pending.values()):
            if pending.image == image and pending.lost is None and not pending.is_creating:
                self._report(PodChange(kind="pod", pod=self._build(pending)))

    def _build(self, pending: _Pending) -> Pod:
        if pending.lost is not None:
            return pending.lost
        reason = "its container is being made" if pending.is_creating else self._pulls.describe(pending.image)
        return Pod(lease=replace(pending.lease, state="pending", reason=reason))

    def _is_known(self, pending: _Pending) -> bool:
        """True unless the lease was dropped meanwhile."""
        return self._pending.get(pending.lease.id) is pending
