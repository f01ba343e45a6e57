"""The scheduler of one backend, with all operations that clients can call. It puts this package's parts together."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from roost.launchers.daemon.tasks import Timers, cancel_all
from roost.launchers.protocol.messages import JournalLimits, JournalPage, Owner
from roost.launchers.protocol.process_context import UNKNOWN, ProcessContext
from roost.placement import Snapshot
from roost.placement.model import Request
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend, Lease
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    HeldElsewhere,
    LaunchError,
    LimitExceeded,
    RoostError,
    UnknownKernel,
)
from roost.scheduler.messages import SERVER, Finding, Kernel, KernelState, StartKernel
from roost.scheduler.policies.catalog import FALLBACK, PolicyCatalog
from roost.scheduler.policies.explain import build_explanation, describe_left, find_soonest
from roost.scheduler.policies.recent_requests import RecentRequests

from .backend_access import BackendAccess, in_time
from .caps import check_alone, check_beside, check_user, check_wait, has_user_cap, limit_wait, with_defaults
from .diagnosis import Doctor
from .ended_kernels import EndedKernels
from .ender import KernelEnder
from .events import EventStream
from .idle import IdleCuller
from .kernel_record import KernelRecord, Phase
from .kernel_table import KernelTable
from .lease_claim import LeaseClaimer, no_node
from .other_holders import find_others
from .other_schedulers import OtherSchedulers
from .owner_watch import OwnerWatch, owner_key
from .queue import Queue
from .reconcile import Reconciler
from .start import StartRunner
from .use import UseReader

_STOPS_S = 10.0
"""How much longer than its grace a stop may take before its client is told that it goes on."""
_LOOKS, _LOOK_S = 100, 0.05
"""How often a question looks whether the backend has read all nodes and all kinds of nodes, and the pause between."""


class Scheduler:
    """The scheduler of one backend: it starts, lists, explains and stops kernels for its clients.

    `name` marks its leases. `folder` keeps the drained nodes, recent requests, the last ended kernels, and
    ends that must be tried again.

    The scheduler belongs to the event loop that calls `open`. Every call may be repeated, and raises
    `RoostError`.
    """

    def __init__(
        self,
        backend: Backend,
        agents: Agents,
        settings: Settings,
        *,
        name: str = "scheduler",
        folder: Path | None = None,
    ) -> None:
        self.backend = backend
        self.events = EventStream()
        self._settings = settings
        self._timers = Timers()
        self._queue = Queue(on_moved=self._on_moved, timers=self._timers)
        self._access = BackendAccess(backend, agents, folder / "drained.json" if folder else None)
        ended = EndedKernels(self._timers, folder / "ended.json" if folder else None)
        self._table = KernelTable(self._queue, self.events, backend.book, ended, name=name)
        due = folder / "ends.json" if folder else None
        self._ender = KernelEnder(self._access, self._table, self._timers, due)
        self.owners = OwnerWatch(self._table, self._ender, self._timers, settings)
        self.reconciler = Reconciler(
            self._access, self._table, self._ender, self.owners, self._timers, settings.claim_grace_s
        )
        self._use = UseReader(self._access)
        self._idle = IdleCuller(
            self._table,
            self._ender,
            self.owners,
            partial(self._use.read, is_fresh=True),
            self._timers,
            settings,
        )
        self._recent = RecentRequests(folder / "requests.json" if folder else None, clock=time.monotonic)
        self.policies = PolicyCatalog(settings, self._recent)
        journal = JournalLimits(memory_bytes=settings.journal_memory)
        claimer = LeaseClaimer(self._access, self._table, self.policies, settings.reserve_after_s, journal)
        self._doctor = Doctor(
            self._access, self._table, self._ender, self.reconciler, self.owners, self.policies
        )
        self._others = OtherSchedulers(backend, self._table)
        self._starts = StartRunner(self._access, self._table, claimer, self.reconciler, self._ender)

    async def open(self) -> None:
        """Join the cluster and read back the kernels of earlier schedulers."""
        await self.backend.open()
        await self.reconciler.open()

    async def close(self) -> None:
        """Stop the scheduler.

        Kernels, leases and starts under way stay as they are, for the next scheduler.
        """
        await self._starts.close()
        await cancel_all({record.end for record in self._table.records.values() if record.end is not None})
        self._table.ended.close()
        self._timers.close()
        self._recent.close()
        await self.policies.close()
        self.owners.close()
        for part in (self._idle, self._use, self._ender, self.reconciler, self.backend, self._access.agents):
            await part.close()

    async def start(self, start: StartKernel) -> Kernel:
        """Start a kernel.

        A call that repeats a launch id waits for the same start, and gets the same answer.
        """
        await self._load_policy(start.request)  # first, because it may wait
        self._ender.want(start.kernel_id)
        if (failure := self._starts.failed.get((start.kernel_id, start.launch_id))) is not None:
            raise failure
        elsewhere = await self._held_elsewhere(start.request, start.owner, start.kernel_id)
        record = await self._find_after_end(start.kernel_id)
        is_other = record is not None and record.runs and record.launch_id != start.launch_id
        if is_other and record is not None and record.start is None and record.lease is not None:
            # Raises an error if the agent is silent: then nobody knows whether the kernel still runs.
            await self._access.call_in_time(record.lease, lambda agent: agent.signal(start.kernel_id, 0))
            record = await self._find_after_end(start.kernel_id)  # it may end, or be stopped, meanwhile
        # From here to the start, nothing waits: the record stays as it is.
        if record is not None and record.start is not None:
            if record.launch_id == start.launch_id:
                return await record.start.result()
            raise LaunchError(f"kernel {start.kernel_id} is being started already; cancel that start first.")
        if record is not None and record.process is not None:
            if record.process.launch_id == start.launch_id:
                return record.view(self._queue, with_connection=True)
            if record.runs:
                raise LaunchError(f"kernel {start.kernel_id} still runs; stop it before starting it again.")
        lease = record.lease if record is not None else None
        has_lease = lease is not None
        try:
            request = self._admit(start, elsewhere, lease)
        except RoostError as refusal:
            if start.asked_at and record is None:
                self._starts.refuse(start, refusal)
            if not isinstance(refusal, LimitExceeded) or has_lease or refusal.fields["is_never"]:
                raise
            raise await self._find_lasting_refusal(start) or refusal from None
        if not has_lease:
            self._check_wait(start)
        if start.queue_timeout_s is not None:  # the application's own; the caller has not asked for it
            start = replace(start, queue_timeout_s=limit_wait(start.queue_timeout_s, self._settings))
        self.owners.watch(start.owner)
        if not self.owners.is_alive(start.owner):
            raise Cancelled(f"kernel {start.kernel_id} is not started: its owner has ended.")
        if record is None:
            record = self._table.add(start, request)
            self._recent.note(request)
        elif (
            record.lease is None or record.lease.state == "pending"
        ):  # a claim shows less than its start asked for
            record.request = request
        return await self._starts.begin(record, start).result()

    async def _find_after_end(self, kernel_id: str) -> KernelRecord | None:
        """Return the kernel's record as soon as no end of it is under way; None if there is none then."""
        record = self._table.get(kernel_id)
        while record is not None and record.end is not None:
            await asyncio.wait([record.end])
            record = self._table.get(kernel_id)
        return record

    async def cancel(self, kernel_id: str, launch_id: str = "") -> None:
        """Cancel a start.

        With a `launch_id`, end the kernel of that launch if it runs already, and refuse the launch if it comes later.
        """
        record = self._table.get(kernel_id)
        if record is not None and launch_id in ("", record.launch_id):
            if record.start is not None:
                await record.start.take_back()
                return
            if launch_id and record.runs:
                await self._ender.stop(record, 0.0, "its start was taken back")
        if launch_id:
            error = Cancelled(f"the start of {kernel_id} was taken back.")
            self._starts.failed[kernel_id, launch_id] = error
            if record is None:  # an earlier scheduler may have sent this launch to an agent
                self._ender.end_launch_when_found(self._table.lease_id(kernel_id, launch_id), launch_id)

    async def stop(self, kernel_id: str, grace_s: float = 5.0) -> Kernel:
        """End a kernel or its start, and release its lease.

        If this raises an error, the end goes on, or is tried again later. A kernel that may live where no agent
        answers is ended once it is found.
        """
        record = self._table.get(kernel_id)
        if record is None:
            try:
                return self._ended(kernel_id)
            except BackendUnavailable as problem:
                self._ender.end_when_found(kernel_id)
                raise _promise_stop(problem) from None
        record.is_stopped = True
        ending = self._ender.stop(record, grace_s, "stopped")
        if record.lease is None:
            return await ending
        try:
            return await in_time(ending, record.lease, grace_s + _STOPS_S)
        except BackendUnavailable as problem:
            self._ender.keep(record)
            raise _promise_stop(problem) from None

    async def signal(self, kernel_id: str, signum: int) -> None:
        lease = self._lease_of(kernel_id)
        await self._access.call_in_time(lease, lambda agent: agent.signal(kernel_id, signum))

    async def logs(self, kernel_id: str, tail_bytes: int = 65_536) -> str:
        """Return the end of a kernel's log (stdout and stderr); of an ended kernel, the part that was kept."""
        if self._table.get(kernel_id) is None:
            return self._ended(kernel_id).log_tail
        lease = self._lease_of(kernel_id)
        return await self._access.call_in_time(lease, lambda agent: agent.logs(kernel_id, tail_bytes))

    def kernels(self) -> list[Kernel]:
        return [self._view(record) for record in self._table.records.values()]

    def list_kernels(self, after: str, most: int) -> list[Kernel]:
        """Return at most `most` kernels whose ids come after `after`, in the order of ids."""
        ids = heapq.nsmallest(most, (id_ for id_ in self._table.records if id_ > after))
        return [self._view(self._table.records[id_]) for id_ in ids]

    def _view(self, record: KernelRecord) -> Kernel:
        return replace(record.view(self._queue), is_held=self.owners.is_alive(record.owner))

    def count_kernels(self) -> Counter[tuple[KernelState, str]]:
        """Return how many kernels and waiting starts there are in each state, by user."""
        return self._table.count()

    async def with_use(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        """Return these kernels with `use` filled in; None if the agent does not report it."""
        kernels = list(kernels)
        records = [record for kernel in kernels if (record := self._table.get(kernel.id)) is not None]
        use = await self._use.read([each.lease for each in records if each.runs and each.lease])
        return [replace(kernel, use=use.get(kernel.id)) for kernel in kernels]

    def kernel(self, kernel_id: str) -> Kernel:
        """Return one kernel with its connection.

        An ended kernel is found by the beginning of its id, for some time.
        """
        record = self._table.get(kernel_id)
        return record.view(self._queue, with_connection=True) if record else self._ended(kernel_id)

    async def adopt(self, kernel_id: str, owner: Owner, takes_away: bool = True) -> Kernel:
        """Let another application hold a kernel or its start; return the kernel with its connection.

        Only one application holds a kernel. Host, pid and start time identify an application's process. While a
        Jupyter Server holds the kernel and runs, it stays the holder: a script gets the connection only, and another
        server gets `HeldElsewhere`. Without `takes_away`, any application that runs stays the holder, except an earlier
        server of the same name.
        """
        record = self._table.get(kernel_id)
        if record is None:
            return self._ended(kernel_id)
        self.owners.watch(owner)
        holder = record.owner
        is_held = owner_key(holder) != owner_key(owner) and self.owners.holds(holder)
        has_holder = is_held and _is_server(holder)
        is_same_server = bool(owner.server) and holder.server == owner.server
        keeps = not takes_away and is_held and not is_same_server
        if holder.pid and (keeps or (has_holder and _is_server(owner))):
            who = f"{holder.application or holder.user} (pid {holder.pid} on {holder.host})"
            raise HeldElsewhere(f"kernel {kernel_id} is held by {who}.", kernel_id=kernel_id)
        if not has_holder or _is_server(owner):
            record.adopted_at = time.monotonic()
            record.owner = replace(owner, user=holder.user)
            if (lease := record.lease) is not None and lease.state == "held":
                try:
                    await self._access.transfer(lease, record.owner)
                except RoostError:
                    record.owner = holder
                    raise
        kernel = record.view(self._queue, with_connection=True)
        if record.unheld_since is None or record.unheld_since == -math.inf:
            return kernel
        return replace(kernel, unheld_s=time.monotonic() - record.unheld_since)

    async def journal(
        self, kernel_id: str, after: int = 0, offset: int = 0, session: str = "", since_s: float | None = None
    ) -> JournalPage:
        """Return a page of a kernel's journal. The arguments are those of `Client.journal`."""
        lease = self._lease_of(kernel_id)
        choice = {"after": after, "offset": offset, "session": session, "since_s": since_s}
        return await self._access.call_in_time(lease, lambda agent: agent.journal(kernel_id, **choice))

    async def snapshot(self) -> Snapshot:
        """Return all nodes as they are now."""
        return await self._access.snapshot()

    async def nodes(self) -> list[dict[str, Any]]:
        snapshot = await self._access.snapshot()
        return [snapshot.node(node_id).to_dict() for node_id in snapshot.nodes]

    async def node_types(self) -> list[dict[str, Any]]:
        """Return the kinds of nodes that the cluster could start, as far as they are known."""
        return [each.to_dict() for each in (await self._access.snapshot()).node_types]

    async def _until_read(self) -> bool:
        """Wait until snapshots are complete, or some seconds. Return True if they were not complete before."""
        for look in range(_LOOKS):
            if not self.backend.is_still_reading:
                return look > 0
            await asyncio.sleep(_LOOK_S)
        return True

    async def explain(self, request: Request, owner: Owner, kernel_name: str = "") -> dict[str, Any]:
        """Return the decision for a request now, with its reasons; raise the error that a start would get.

        `kernel_name` is the name of the kernelspec; empty: none. If no node could ever hold the request, return that
        decision although a cap is used up now: the user can stop kernels, but that would not help.
        """
        await self._load_policy(request)
        elsewhere = await self._held_elsewhere(request, owner)
        request = self._check_alone(request, owner, kernel_name)
        used_up: LimitExceeded | None = None
        try:
            self._check_beside(request, owner, elsewhere)
        except LimitExceeded as refusal:
            used_up = refusal
        request = self.backend.to_placement(request)
        snapshot = await self._access.snapshot()
        decision = await self.policies.decide(request.policy, request, snapshot)
        if decision.fits_no_node and await self._until_read():  # whether waiting helps is known by now
            snapshot = await self._access.snapshot()
            decision = await self.policies.decide(request.policy, request, snapshot)
        document = build_explanation(decision, snapshot)
        if used_up is not None and not document["is_never"]:
            raise used_up
        if decision.placement is not None:
            document["agent"] = encode(self.backend.report_agent(decision.placement.node_id))
        if decision.is_never:
            document["left"] = describe_left(self.backend.left_nodes())
            if document["left"]:
                document["remedies"] = document["remedies"][:-1]  # that waiting does not help
        if decision.placement is None and not decision.is_never:
            leases = (await self.backend.leases()).leases
            since = {
                record.kernel_id: record.process.launched_at if record.process else record.created_at
                for record in self._table.records.values()
            }
            # The kernels whose end would make room.
            document["soonest"] = find_soonest(decision, snapshot, leases, since)
            document["others"] = find_others(decision, snapshot, leases, self.backend)
        return document

    async def drain(self, node_id: str, on: bool = True) -> None:
        """Place no more kernels on a node, or place kernels there again. Kernels on the node go on."""
        if node_id not in self._access.draining and node_id not in await self._access.snapshot():
            raise ConfigError(f"there is no node {node_id}; see `roost nodes`.")
        if on == (node_id in self._access.draining):
            return
        self._access.drain(node_id, on)
        self.events.publish("nodes", detail=f"node {node_id} {'drains' if on else 'is open again'}")
        self._queue.wake()

    async def warm(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        context: ProcessContext = UNKNOWN,
        request: Request = Request(),  # noqa: B008 - it cannot change
    ) -> None:
        """Warm a zygote for `argv` and `env` on the node where a kernel with this request would be placed now."""
        request = replace(request, environment=request.environment or (argv[0] if argv else ""))
        request = self.backend.to_placement(with_defaults(request, self._settings))
        await self._load_policy(request)
        decision = await self.policies.decide(request.policy, request, await self._access.snapshot())
        if decision.placement is None:
            raise no_node(decision, self.backend)
        node_id = decision.placement.node_id
        lease = Lease(id="", kernel_id="", node_id=node_id, request=request, owner=Owner(user=""))
        await self._access.call(lease, lambda agent: agent.warm(argv, env, context))

    async def doctor(self, fix: bool = False) -> list[Finding]:
        """Return all findings.

        With `fix`, repair disagreements first, and return each repair as a finding too.
        """
        return await (self._doctor.repair() if fix else self._doctor.diagnose())

    def is_idle(self) -> bool:
        """True if there is no kernel and no start."""
        return not self._table.records

    async def count_elsewhere(self, user: str) -> int:
        """Return how many kernels of this user other schedulers of the cluster have, on this machine or another."""
        return len(await self._others.held_by(user, is_fresh=True))

    async def _held_elsewhere(self, request: Request, owner: Owner, but: str = "") -> Mapping[str, Request]:
        """Return the user's requests in other schedulers by kernel id; empty if no cap is per user."""
        if not has_user_cap(self._settings):
            return {}
        held = await self._others.held_by(owner.user)
        try:
            self._check_beside(self._with_defaults(request, owner), owner, held, but)
        except RoostError:
            if held:  # these kernels may have ended meanwhile
                return await self._others.held_by(owner.user, is_fresh=True)
        return held

    def _check_wait(self, start: StartKernel) -> None:
        """Raise `LimitExceeded` if too many starts wait, or if this start wants to wait too long."""
        waiting = [record.owner.user for record in self._starts.list_waiting()]
        check_wait(start.owner.user, waiting, start.launch_timeout_s, self._settings)

    def _admit(self, start: StartKernel, elsewhere: Mapping[str, Request], lease: Lease | None) -> Request:
        """Return the request with the operator's defaults; raise if it is not allowed or not possible.

        `lease` is the one that the kernel has already. A restart in a held one takes nothing, so caps that are lower by
        now do not end the kernel.
        """
        name = start.connection.kernel_name
        if lease is not None and lease.state == "held":
            check_user(start.owner.user, name, self._settings)
            return self.backend.to_placement(self._with_defaults(start.request, start.owner))
        request = self._check_alone(start.request, start.owner, name, has_lease=lease is not None)
        self._check_beside(request, start.owner, elsewhere, start.kernel_id)
        return self.backend.to_placement(request)

    async def _find_lasting_refusal(self, start: StartKernel) -> RoostError | None:
        """Return the error that no node could ever hold the request; None if one could, or if that is unknown."""
        request = self.backend.to_placement(self._with_defaults(start.request, start.owner))
        try:
            decision = await self.policies.decide(FALLBACK, request, await self._access.snapshot())
        except RoostError:
            return None
        return no_node(decision, self.backend) if decision.is_never else None

    def _check_alone(
        self, request: Request, owner: Owner, kernel_name: str, *, has_lease: bool = False
    ) -> Request:
        """Return the request with the operator's defaults; raise if it is not possible without other kernels, too."""
        check_user(owner.user, kernel_name, self._settings)
        request = self._with_defaults(request, owner)
        check_alone(request, owner.user, self._settings)
        self.backend.check_request(request)
        if not has_lease:  # a restart keeps its lease, and needs no policy
            self.policies.check(request.policy)
        return request

    def _check_beside(
        self, request: Request, owner: Owner, elsewhere: Mapping[str, Request], but: str = ""
    ) -> None:
        """Raise `LimitExceeded` if the request exceeds a cap now. The kernel `but` is not counted."""
        others = {kernel_id: each for kernel_id, each in elsewhere.items() if kernel_id != but} | {
            record.kernel_id: record.request
            for record in (self._table.records.values() if has_user_cap(self._settings) else ())
            if record.owner.user == owner.user and record.kernel_id != but
        }
        check_beside(request, owner.user, others, self._settings)

    def _with_defaults(self, request: Request, owner: Owner) -> Request:
        return replace(with_defaults(request, self._settings), owner=owner.user)

    async def _load_policy(self, request: Request) -> None:
        await self.policies.load(request.policy or self._settings.default_policy)

    def _lease_of(self, kernel_id: str) -> Lease:
        record = self._table.get(kernel_id)
        if record is None:
            raise self._unknown(
                kernel_id, f"There is no running kernel {kernel_id!r}: `roost kernels` lists them."
            )
        if record.phase is Phase.UNCLAIMED:
            why = (record.lease.reason if record.lease else "") or "no agent says so"
            raise BackendUnavailable(f"nobody knows whether kernel {kernel_id} still runs: {why}.")
        if record.lease is None or record.lease.state == "pending":
            waits_for = record.view(self._queue).waits_for or "it is being placed"
            raise UnknownKernel(f"kernel {kernel_id} has not started yet: {waits_for}.", kernel_id=kernel_id)
        return record.lease

    def _ended(self, kernel_id: str) -> Kernel:
        kernel = self._table.ended.find(kernel_id)
        if kernel is None:
            raise self._unknown(kernel_id, f"There is no kernel {kernel_id!r}: `roost kernels` lists them.")
        return kernel

    def _unknown(self, kernel_id: str, message: str) -> BackendUnavailable | UnknownKernel:
        """Return `UnknownKernel`, or `BackendUnavailable` if an unreachable agent may have the kernel."""
        if self.reconciler.unreachable:
            names = ", ".join(sorted(self.reconciler.unreachable))
            return BackendUnavailable(f"kernel {kernel_id} may live where no agent answers now: on {names}.")
        return UnknownKernel(message, kernel_id=kernel_id)

    def _on_moved(self, kernel_id: str) -> None:
        record = self._table.get(kernel_id)
        if record is not None and record.ticket is not None:
            position, waits_for = self._queue.place(record.ticket)
            self._table.publish("queued", record, f"position {position}: {waits_for}")


def _promise_stop(problem: BackendUnavailable) -> BackendUnavailable:
    """Return the error of a stop that is tried again until it succeeds."""
    said = problem.user_message.rstrip(".")
    return BackendUnavailable(f"{said}. The kernel is stopped as soon as its agent answers.")


def _is_server(owner: Owner) -> bool:
    return owner.can_adopt or owner.application == SERVER
