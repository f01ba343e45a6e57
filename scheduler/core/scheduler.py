"""The scheduler: what can be asked of it, over one queue in front of one backend.

Every start is a task of its own, named by (kernel id, launch id): see `starts`. The table of kernels is
`keeper`'s, and holds nothing that cannot be read back from the cluster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from roost.launchers.protocol.messages import Owner, Warm
from roost.placement.model import Request
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    LaunchError,
    RoostError,
    UnknownKernel,
)
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.explain import build_explanation, find_soonest
from roost.scheduler.policies.recent_requests import RecentRequests
from roost.scheduler.service.messages import Finding, Kernel, StartKernel
from roost.scheduler.service.operations import WarmUp

from .agent_calls import Agents
from .cluster import Cluster
from .diagnosis import findings
from .events import EventStream
from .keeper import Keeper
from .kernel_record import Record
from .limits import admit, with_defaults
from .queue import Queue
from .starts import Starts, no_node


class Scheduler:
    """`name` marks the leases that are this scheduler's own; `folder` is for what it may remember.

    `clock` is monotonic. Belongs to the event loop that calls `open`. Everything that can be asked may be
    repeated, and raises `RoostError`.
    """

    def __init__(
        self,
        backend: Backend,
        agents: Agents,
        settings: Settings,
        *,
        name: str = "scheduler",
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.events = EventStream()
        self._settings = settings
        self._queue = Queue(on_moved=self._on_moved, clock=clock)
        self._cluster = Cluster(backend, agents, folder / "drained.json" if folder else None)
        self.keeper = Keeper(self._cluster, settings, self.events, self._queue, name=name, ending=self)
        self._workload = RecentRequests(folder / "requests.json" if folder else None, clock=clock)
        self.policies = PolicyCatalog(settings, self._workload)
        self._starts = Starts(
            self._cluster, self.keeper, self._queue, self.policies, self.events, settings, clock=clock
        )
        self._records = self.keeper.records

    async def open(self) -> None:
        """Join the cluster and read back what earlier schedulers left."""
        await self._cluster.backend.open()
        await self.keeper.open()

    async def close(self) -> None:
        """Leave. Kernels, leases and starts under way stay as they are, for the next scheduler."""
        self._starts.is_closing = True
        tasks = [t for record in self._records.values() for t in (record.start, record.end) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._queue.close()
        self._workload.close()
        await self.policies.close()
        await self.keeper.close()
        await self._cluster.backend.close()
        await self._cluster.agents.close()

    @property
    def address(self) -> str:
        """Where the cluster is, for people."""
        return self._cluster.backend.address

    async def start(self, start: StartKernel) -> Kernel:
        """Start a kernel, or join a start of the same launch id, or answer again what that one did."""
        await self._load_policy(start.request)  # first, for it may wait
        failure = self._starts.failure(start)
        if failure is not None:
            raise failure
        record = self._records.get(start.kernel_id)
        while record is not None and record.end is not None:
            await asyncio.wait([record.end])
            record = self._records.get(start.kernel_id)
        if record is not None and record.start is not None:
            if record.launch_id == start.launch_id:
                return await asyncio.shield(record.start)
            raise LaunchError(f"kernel {start.kernel_id} is being started already; cancel that start first.")
        if record is not None and record.process is not None:
            if record.process.launch_id == start.launch_id:
                return record.view(self._queue, with_connection=True)
            if record.process.is_running:
                raise LaunchError(f"kernel {start.kernel_id} still runs; stop it before starting it again.")
        has_lease = record is not None and record.lease is not None
        request = self._admitted(start.request, start.owner, but=start.kernel_id, has_lease=has_lease)
        self.keeper.owners.watch(start.owner)
        if not self.keeper.owners.is_alive(start.owner):
            raise Cancelled(f"kernel {start.kernel_id} is not started: its owner has ended.")
        if record is None:
            record = self.keeper.add(start, request)
            self._workload.note(request)
        elif record.lease is None:
            record.request = request
        record.launch_id, record.owner, record.reason = start.launch_id, start.owner, ""
        record.is_begun = record.is_taken_back = False
        task = record.start = asyncio.get_running_loop().create_task(self._starts.run(record, start))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(task)

    async def cancel(self, kernel_id: str, launch_id: str = "") -> None:
        """Take a start back; with a launch id also one that is unknown yet, or that has just succeeded."""
        record = self._records.get(kernel_id)
        if record is not None and launch_id in ("", record.launch_id):
            if record.start is not None:
                await self._starts.take_back(record)
                return
            if launch_id and record.process is not None and record.process.is_running:
                await self.stop(kernel_id, 0.0, "its start was taken back")
        if launch_id:
            self._starts.fail(kernel_id, launch_id, Cancelled(f"the start of {kernel_id} was taken back."))

    async def stop(self, kernel_id: str, grace_s: float, reason: str = "stopped") -> Kernel:
        """End a kernel or its start and give its lease back; answers the same once it is gone.

        Where its agent cannot be reached this raises, and is carried out when it can.
        """
        record = self._records.get(kernel_id)
        if record is None:
            return self._ended(kernel_id)
        if record.end is None:
            record.end = asyncio.get_running_loop().create_task(self._end(record, grace_s, reason))
            record.end.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(record.end)

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to a running kernel's process group."""
        await self._cluster.call(self._lease_of(kernel_id), lambda agent: agent.signal(kernel_id, signum))

    async def logs(self, kernel_id: str, tail_bytes: int) -> str:
        """The last of what a kernel wrote outside Jupyter's channels; of one that ended, what is known of it."""
        if kernel_id not in self._records:
            return self._ended(self.keeper.ended_id(kernel_id)).log_tail
        lease = self._lease_of(kernel_id)
        return await self._cluster.call(lease, lambda agent: agent.logs(kernel_id, tail_bytes))

    def kernels(self) -> list[Kernel]:
        """All kernels that hold, or wait for, a lease."""
        return [record.view(self._queue) for record in self._records.values()]

    def kernel(self, kernel_id: str) -> Kernel:
        """One kernel with its connection, also some time after its end."""
        record = self._records.get(kernel_id)
        return record.view(self._queue, with_connection=True) if record else self._ended(kernel_id)

    async def adopt(self, kernel_id: str, owner: Owner) -> Kernel:
        """Have another application hold a kernel, whose end it then shares; the kernel with its connection.

        One that takes its kernels back keeps them, while it lives, from one that does not.
        """
        record = self._records.get(kernel_id)
        if record is not None and record.start is not None:
            await asyncio.wait([record.start])
            record = self._records.get(kernel_id)
        if record is None:
            return self._ended(kernel_id)
        self.keeper.owners.watch(owner)
        is_kept = record.owner.can_adopt and not owner.can_adopt and self.keeper.owners.is_alive(record.owner)
        if not is_kept:
            record.owner = replace(owner, user=record.owner.user)
            if (lease := record.lease) is not None:
                adopted = await self._cluster.backend.transfer(lease, record.owner)
                record.lease = adopted if record.lease is lease else record.lease
        return record.view(self._queue, with_connection=True)

    async def nodes(self) -> list[dict[str, Any]]:
        """All nodes, as JSON values."""
        snapshot = await self._cluster.snapshot()
        return [snapshot.node(node_id).to_dict() for node_id in snapshot.nodes]

    async def explain(self, request: Request, owner: Owner) -> dict[str, Any]:
        """Where such a kernel would go now, and why, as `explained`; raises what a start would be refused with.

        Where there is no room now, `soonest` has what would have to end.
        """
        await self._load_policy(request)
        request = self._admitted(request, owner)
        snapshot = await self._cluster.snapshot()
        decision = await self.policies.decide(request.policy, request, snapshot)
        document = build_explanation(decision, snapshot)
        if decision.placement is None and not decision.is_never:
            leases = (await self._cluster.backend.leases()).leases
            since = {record.kernel_id: record.created_at for record in self._records.values()}
            document["soonest"] = find_soonest(decision, snapshot, leases, since)
        return document

    async def drain(self, node_id: str, on: bool) -> None:
        """Stop or resume placing on a node."""
        if node_id not in self._cluster.draining and node_id not in await self._cluster.snapshot():
            raise ConfigError(f"there is no node {node_id}; see `roost nodes`.")
        self._cluster.drain(node_id, on)
        self.events.publish("nodes", detail=f"node {node_id} {'drains' if on else 'is open again'}")
        self._queue.wake()

    async def warm(self, asked: WarmUp, owner: Owner) -> None:
        """Prepare fast starts where such a kernel would go now."""
        request = with_defaults(asked.request, self._settings)
        wanted = replace(request, owner=owner.user, environment=asked.argv[0] if asked.argv else "")
        await self._load_policy(request)
        decision = await self.policies.decide(request.policy, wanted, await self._cluster.snapshot())
        if decision.placement is None:
            raise no_node(decision)
        node_id = decision.placement.node_id
        lease = Lease(id="", kernel_id="", node_id=node_id, device_ids=(), request=wanted, owner=owner)
        await self._cluster.call(lease, lambda agent: agent.warm(Warm(argv=asked.argv, env=asked.env)))

    async def up(self) -> int:
        """Bring up the agents of all nodes; their number."""
        return await self._cluster.backend.warm_up()

    async def doctor(self) -> list[Finding]:
        """What disagrees, and what to do about it."""
        return await findings(self._cluster, self.keeper, self.policies)

    def is_idle(self) -> bool:
        """Whether nobody has or wants a kernel."""
        return not self._records

    async def _end(self, record: Record, grace_s: float, reason: str) -> Kernel:
        try:
            await self._starts.take_back(record)
            await self._give_back(record, grace_s, reason)
            self.keeper.drop(record, reason)
            return self._ended(record.kernel_id)
        finally:
            record.end = None

    async def _give_back(self, record: Record, grace_s: float, reason: str) -> None:
        if record.lease is not None and self._records.get(record.kernel_id) is record:
            if record.process is None or record.process.is_running:
                record.reason = reason
            try:
                if record.process is not None and record.process.is_running:
                    record.process = await self._cluster.end_process(record.lease, grace_s) or record.process
                await self._cluster.backend.release(record.lease)
            except BackendUnavailable:
                self.keeper.end_later(record, reason)
                raise

    def _admitted(self, request: Request, owner: Owner, but: str = "", *, has_lease: bool = False) -> Request:
        """The request with the operator's defaults, if its owner may have it and it makes sense.

        A kernel that has its lease stays where it is: a restart does not fail for a policy that is gone.
        """
        request = replace(with_defaults(request, self._settings), owner=owner.user)
        others = [r for r in self._records.values() if r.owner.user == owner.user and r.kernel_id != but]
        held = {record.kernel_id: record.request for record in others}
        admit(request, owner.user, held, self._settings)
        if not has_lease:
            self.policies.check(request.policy)
        return request

    async def _load_policy(self, request: Request) -> None:
        await self.policies.load(request.policy or self._settings.default_policy)

    def _lease_of(self, kernel_id: str) -> Lease:
        record = self._records.get(kernel_id)
        if record is None or record.lease is None:
            raise self._unknown(kernel_id, f"there is no running kernel {kernel_id}.")
        return record.lease

    def _ended(self, kernel_id: str) -> Kernel:
        kernel = self.keeper.ended.get(kernel_id)
        if kernel is None:
            raise self._unknown(kernel_id, f"there is no kernel {kernel_id}; see `roost kernels`.")
        return kernel

    def _unknown(self, kernel_id: str, says: str) -> RoostError:
        """A kernel that is not known is not gone while nobody can tell what all nodes hold."""
        if silent := self.keeper.unreachable:
            names = ", ".join(sorted(silent))
            return BackendUnavailable(f"kernel {kernel_id} may live where no agent answers now: on {names}.")
        return UnknownKernel(says, kernel_id=kernel_id)

    def _on_moved(self, kernel_id: str) -> None:
        record = self._records.get(kernel_id)
        if record is not None and record.ticket is not None:
            position, waits_for = self._queue.place(record.ticket)
            self.events.publish("queued", record.view(self._queue), f"position {position}: {waits_for}")
