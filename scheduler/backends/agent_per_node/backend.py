"""The backend for cluster managers with one agent per node.

The manager holds the leases, and the agents run the kernels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from roost.launchers.daemon.tasks import ask_all, backoff, cancel_all, spawn, start_shared
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import (
    AgentEvent,
    KernelProcess,
    Launch,
    Reserve,
)
from roost.placement import Node, Snapshot
from roost.scheduler.backends.base import (
    AgentAddress,
    AgentReport,
    Backend,
    BackendContext,
    BackendEvent,
    Lease,
    LeaseReading,
)
from roost.scheduler.backends.event_queue import EventQueue
from roost.scheduler.errors import BackendUnavailable, LeaseConflict, RoostError, UnknownKernel
from roost.scheduler.messages import Finding, format_names

from .agents import AgentPool
from .manager import ClusterManager, StartedAgent, has_claim
from .membership import N
from .new_nodes import NewNodes, WaitingLeases
from .node_table import NodeTable
from .outage import OutageRecovery

T = TypeVar("T")
log = logging.getLogger(__name__)

_FRESH_S = 0.05  # at most this old are the nodes on which a placement is made
_METRICS_S = 5.0
"""How long to wait between two readings of the manager's own figures of real use."""
_METRICS_SHARE = 20.0
"""At least this many times its own CPU time passes between two of these readings: 5 % of a core at most."""
_REJOIN_S = 1.0
_RELEASE_AGAIN_S = (1.0, 30.0)
"""First and longest pause between two attempts to give back the claim of a lease that its agent has released."""
_ENDS_S = 0.5
"""How long to wait between two looks whether a node has ended on which something is waited for."""
_FORGET_S = 60.0  # how long the agent of a node that left is remembered after the grace of its kernels


class AgentPerNodeBackend(Backend, Generic[N]):
    """A backend for the cluster of `manager`, with one agent per node.

    It keeps the agents' addresses in `agents.json` in the folder of `context`. Kernels live on for `grace_s` when the
    whole cluster is lost. A manager whose cluster can grow has `new_nodes`.
    """

    def __init__(
        self,
        name: str,
        manager: ClusterManager[N],
        agent_settings: AgentSettings,
        context: BackendContext,
        *,
        grace_s: float,
        new_nodes: NewNodes | None = None,
    ) -> None:
        self.name = name
        self.other_holders = manager.other_holders
        self._manager = manager
        self._membership = manager.membership
        self._pool = AgentPool(
            context.folder / "agents.json", context.agents, self._start_agent, agent_settings, grace_s
        )
        self.address = self._pool.cluster
        self._table: NodeTable[N] = NodeTable(self._build_node)
        self._recovery = OutageRecovery(
            manager,
            self.book,
            self._table,
            self._pool,
            grace_s,
            lose=self._lose,
            end=lambda lease: self._spawn(self._end(lease)),
        )
        self._restart_grace_s = context.restart_grace_s
        self._manager_grace_s = grace_s
        self._prospects: dict[str, str] = {}  # by lease
        self._is_open = True
        self._tasks: set[asyncio.Task[Any]] = set()
        self._events = EventQueue()
        self._new_nodes = new_nodes
        self._waiting = WaitingLeases(new_nodes, self.book, self._hold) if new_nodes is not None else None
        if new_nodes is not None:
            self.growth = new_nodes
            new_nodes.listen(lambda: self._events.put(BackendEvent(kind="nodes")))

    async def open(self) -> None:
        self._pool.listen(self._on_agent)
        self._membership.listen(self._on_nodes)
        try:
            await self._join()
        except BackendUnavailable as problem:
            if not self._pool.nodes:
                raise
            log.warning("%s is away, but its live kernels are served: %s", self._manager.name, problem)
        self._spawn(self._keep_up())
        await self._manager.wait_until_described()

    async def close(self) -> None:
        self._is_open = False
        self._pool.close()
        await cancel_all(self._tasks)
        if self._waiting is not None:
            await cancel_all(self._waiting.tasks)
        self._membership.close()
        await self._manager.close()
        self._events.close()

    async def snapshot(self) -> Snapshot:
        self._check_manager()
        try:
            await self._membership.read(max_age_s=_FRESH_S)
        except BackendUnavailable:
            self._check_manager()
            raise
        return self._table.snapshot()

    def _check_manager(self) -> None:
        """Raise `BackendUnavailable` while the manager is away."""
        if self._membership.away:
            cluster = f"the {self._manager.name} cluster" + (f" at {self.address}" if self.address else "")
            kernels = f", and {rule}" if (rule := self._recovery.describe_ends()) else ""
            raise BackendUnavailable(f"{cluster} is away{kernels}: {self._membership.away}")

    @property
    def is_still_reading(self) -> bool:
        return self._new_nodes is not None and self._new_nodes.is_still_reading

    def events(self) -> AsyncIterator[BackendEvent]:
        return self._events.read()

    async def claim(self, lease: Lease, launch: Launch | None = None) -> Lease:
        is_new = not self.book.is_shown(lease.id)
        self.book.want(lease)
        if not lease.node_id and self._waiting is not None:
            return await self._waiting.claim(lease, launch)
        if is_new and self._manager.holds_claims and lease.node_id in self._recovery.expected:
            # The manager does not know the leases of before the outage, and would grant their slices again.
            raise LeaseConflict(
                f"the kernels of node {lease.node_id} claim their slices again after an outage"
            )
        return await self._hold(lease, launch)

    async def _hold(self, lease: Lease, launch: Launch | None) -> Lease:
        """Claim the slice on the lease's node, and have the node's agent note the lease.

        Raises `LeaseConflict` as soon as the node ends: its manager and its agent might not answer for a minute.
        """
        node = self._membership.nodes.get(lease.node_id)
        if node is None:
            raise LeaseConflict(f"there is no node {lease.node_id} any more")
        try:
            return await self._while_there(node, self._hold_on(node, lease, launch))
        except BackendUnavailable:
            await asyncio.sleep(_ENDS_S)
            if not self._has_ended(node):
                raise
            with suppress(RoostError):  # the manager may have granted the claim
                await self._manager.release(lease)
            raise LeaseConflict(f"its {self._manager.daemon} has ended") from None

    async def _start_agent(self, node_id: str) -> StartedAgent:
        node = self._membership.nodes.get(node_id)
        starting = self._manager.start_agent(node_id)
        return await (starting if node is None else self._while_there(node, starting))

    async def _while_there(self, node: N, doing: Coroutine[Any, Any, T]) -> T:
        """Return the result of `doing`. Raises `BackendUnavailable` as soon as the node's daemon has ended."""
        task = asyncio.create_task(doing)
        try:
            while not task.done() and not self._has_ended(node):
                await asyncio.wait([task], timeout=_ENDS_S)
            if task.done():
                return task.result()
        finally:
            await cancel_all({task})
        raise BackendUnavailable(f"the {self._manager.daemon} of node {node.id} has ended")

    def _has_ended(self, node: N) -> bool:
        # Another daemon is no sign: on Dask and SSH hosts it is known only once the node has reported.
        is_shown = node.id in self._membership.nodes and node.daemon not in self._pool.ended_daemons
        return not (is_shown or self._membership.away)

    async def _hold_on(self, node: N, lease: Lease, launch: Launch | None) -> Lease:
        if self._new_nodes is not None:
            self._new_nodes.hold(lease)
        address = start_shared(self._pool.address(node.id))  # starts the agent while the manager decides
        try:
            device_ids = await self._manager.claim(lease, node, self._table.has_room)
            await address
            granted = replace(lease, device_ids=device_ids, state="held", reason="")
            if launch is not None:
                launch = replace(launch, env={**launch.env, **await self.environment(granted)})
            reserve = Reserve(
                lease=granted,
                linger_s=self._restart_grace_s,
                grace_s=self._manager_grace_s,
                is_granted=self._manager.holds_claims,
                launch=launch,
            )
            held = await self._pool.call(node.id, lambda agent: agent.reserve(reserve))
        except LeaseConflict:
            self._membership.expire()
            raise
        finally:
            address.cancel()
        if self._new_nodes is not None:
            await self._new_nodes.settle(held)
        self.book.show(held)
        self._membership.expire()
        self._update([node.id])
        return held

    async def release(self, lease: Lease) -> None:
        self.book.release(lease.id)
        if self._waiting is not None:
            await self._waiting.stop(lease.id)
        try:
            if lease.node_id:  # else its node has left, and the kernel with it, or it has none yet
                await self._pool.call(lease.node_id, lambda agent: agent.release(lease.id))
        except BackendUnavailable:
            is_there = self._membership.away or lease.node_id in self._membership.nodes
            if is_there and lease.node_id in self._pool.nodes:  # else no agent ever was there to end a kernel
                raise
        await self._release_claim(lease)

    async def leases(self) -> LeaseReading:
        agent_nodes = frozenset(self._pool.nodes)
        # The claims are complete for all nodes but these. There, the agents know more than the manager.
        knows_claims = self._manager.holds_claims and not self._membership.away
        incomplete = self._recovery.expected if knows_claims else agent_nodes
        claims = {lease.id: lease for lease in await self._manager.claims()} if knows_claims else {}
        waiting = {lease.id: lease for lease in claims.values() if _waits_for_node(lease)}
        claims = {name: lease for name, lease in claims.items() if name not in waiting}
        placed = {lease.node_id for lease in claims.values() if _is_placed(lease, agent_nodes)}
        held_before = {lease.id for lease in self.book if lease.state == "held"}
        node_ids = sorted(placed | incomplete | set(self.book.nodes()))
        found: dict[str, Lease] = {}
        unreachable, unanswered = set[str](), set[str]()
        processes: dict[str, KernelProcess | None] = {}
        for node_id, held in zip(node_ids, await ask_all(self._pool.held_on, node_ids), strict=True):
            if held is None:
                unreachable.add(node_id)
            else:
                processes |= held.by_lease()
            for lease in self.book.on(node_id) if held is None else held.leases:
                claim = claims.get(lease.id)
                if claim is not None and not _is_placed(claim, agent_nodes):
                    continue
                # A lease may be claimed after the claims were read. Without a claim, its kernel must be ended.
                is_sure = claim is not None or node_id in incomplete or held is None
                if is_sure or await has_claim(self._manager, lease):
                    found[lease.id] = lease
                    if held is None:  # an earlier reading may have shown only the claim
                        unanswered.add(lease.id)
                else:
                    reason = f"its {self._manager.claim_name} was removed"
                    found[lease.id] = replace(lease, state="lost", reason=reason)
        for claim in claims.values():
            if claim.id in found:
                continue
            if not _is_placed(claim, agent_nodes):
                found[claim.id] = replace(claim, node_id="")
            elif claim.id in held_before:  # the connection broke before its agent could say so
                reason = claim.reason if claim.state == "lost" else "its agent has given it back"
                found[claim.id] = replace(claim, state="lost", reason=reason)
            elif claim.node_id in unreachable:  # this service does not know yet whether it has a kernel
                reason = f"the agent of node {claim.node_id} does not answer"
                found[claim.id] = replace(claim, state="pending", reason=reason)
                unanswered.add(claim.id)
            else:  # its agent has not noted it yet
                found[claim.id] = replace(claim, state="pending", reason="")
                processes[claim.id] = None
        for lease in found.values():
            if lease.state == "held":
                self.book.show(lease)
                if self._new_nodes is not None:
                    await self._new_nodes.settle(lease)
        for name, claim in waiting.items():
            known = self.book.get(name)  # which knows the owner, and may have its node by now
            found[name] = claim if known is None or known.state == "lost" else known
            processes[name] = None
        self._update(list(self._membership.nodes))
        return LeaseReading(
            leases=tuple(found.values()),
            unreachable=frozenset(unreachable & incomplete),
            processes=processes,
            unanswered=frozenset(unanswered),
        )

    async def agent(self, lease: Lease) -> AgentAddress:
        is_known = (
            lease.node_id in self._membership.nodes
            or lease.node_id in self._recovery.expected
            or lease.id in [noted.id for noted in self.book.on(lease.node_id)]
        )
        if not self._membership.away and not is_known:
            problem = f"its node {lease.node_id} has left the {self._manager.name} cluster"
            raise UnknownKernel(problem, kernel_id=lease.kernel_id)
        return await self._pool.address(lease.node_id)

    async def warm_up(self) -> int:
        await self.snapshot()
        problems = [each for each in await ask_all(self._connect, self._membership.nodes) if each is not None]
        if problems:
            raise problems[0]
        return len(self._membership.nodes)

    async def diagnose(self) -> list[Finding]:
        return [*await self._manager.diagnose(), *self._recovery.report_missing(), *self._report_failures()]

    def report_agent(self, node_id: str) -> AgentReport:
        if self._has_earlier_agent(node_id):
            return AgentReport(has_run=True)
        problem = self._pool.failures.get(node_id, "")
        return AgentReport(has_run=node_id in self._pool.nodes and not problem, problem=problem)

    def left_nodes(self) -> Mapping[str, float]:
        return self._pool.left()

    def _has_earlier_agent(self, node_id: str) -> bool:
        """True if the latest attempt to start an agent has failed, but an agent from before is connected."""
        return node_id in self._pool.failures and self._pool.status(node_id) is not None

    def _report_failures(self) -> list[Finding]:
        """Return a finding for each cause why agents of nodes did not start at the latest attempt."""
        by_cause: dict[tuple[str, bool], list[str]] = {}
        for node_id, problem in sorted(self._pool.failures.items()):
            if node_id in self._membership.nodes:
                cause = problem.removeprefix(f"no agent on {node_id}: ")
                by_cause.setdefault((cause, self._has_earlier_agent(node_id)), []).append(node_id)
        return [_describe_failure(cause, nodes, is_served) for (cause, is_served), nodes in by_cause.items()]

    async def environment(self, lease: Lease) -> Mapping[str, str]:
        return await self._manager.environment(lease, self.address)

    async def _connect(self, node_id: str) -> RoostError | None:
        """Start the agent of a node, or connect to it. Return the error, or None."""
        try:
            status = await self._pool.call(node_id, lambda agent: agent.status())
        except RoostError as problem:
            return problem
        self._pool.note_status(node_id, status)
        self._table.update(self._membership.nodes, [node_id])
        return None

    async def _join(self) -> None:
        # The manager knows no leases yet in the moment in which it is not away any more.
        with self._recovery.restoring(self._pool.nodes):
            self.address = await self._membership.join(self.address)
            self._pool.forget_others(self.address)
            await self._recovery.restore(self._pool.nodes)

    async def _keep_up(self) -> None:
        due_at, was_away, must_read_leases = 0.0, False, False
        # Up to Python 3.11, `wait_for` loses a cancellation that arrives with its result.
        while self._is_open:
            try:
                is_away = bool(self._membership.away)
                if is_away and not was_away:
                    self._events.put(BackendEvent(kind="nodes"))  # starts that wait then say so
                was_away = is_away
                self._tell_prospects()
                if is_away:
                    # Even if the manager leaves again while its leases are claimed again.
                    must_read_leases = True
                    await asyncio.sleep(_REJOIN_S)
                    await self._join()
                else:
                    await self._manager.wait_for_change()
                    await self._membership.read()
                if must_read_leases:
                    must_read_leases = False
                    self._events.put(BackendEvent(kind="resync"))
                if not is_away:
                    self._forget_left()
                    if await self._recovery.restore_returned():
                        self._events.put(BackendEvent(kind="resync"))
                    await self._recovery.find_lost()
                    if self._waiting is not None:
                        await self._waiting.follow()
                if time.monotonic() >= due_at:
                    due_at, used_s = time.monotonic(), time.thread_time()
                    await self._read_metrics()
                    due_at += max(_METRICS_S, _METRICS_SHARE * (time.thread_time() - used_s))
            except RoostError as problem:
                log.debug("%s is away: %s", self._manager.name, problem)
            except Exception:
                log.exception("the nodes of the %s cluster cannot be kept up to date", self._manager.name)
                await asyncio.sleep(_REJOIN_S)

    async def _read_metrics(self) -> None:
        measured = () if self._membership.away else await self._manager.read_metrics()
        self._table.update_metrics(self._membership.nodes, measured)

    def _build_node(self, node: N) -> Node:
        built = self._manager.build_node(node, self._pool.status(node.id))
        if node.daemon not in self._pool.ended_daemons:
            return built
        # The manager still shows the node for some seconds.
        return replace(built, is_draining=True, drains_because=f"its {self._manager.daemon} has ended")

    def _on_nodes(self, changed: Collection[str], gone: Collection[str]) -> None:
        nodes = self._membership.nodes
        self._forget_left()  # before starts that wait ask which nodes have left
        for node_id in changed:
            node = nodes[node_id]
            if node.started_agent is not None:
                self._pool.put(node_id, node.started_agent)
            if self._pool.check(node):
                self._recovery.expect(node_id)  # so that its agent learns of the new daemon
        self._pool.ended_daemons &= {node.daemon for node in nodes.values()}
        self._update([*changed, *gone])

    def _tell_prospects(self) -> None:
        """Tell what becomes of the kernels, where that has changed."""
        found = {
            lease.id: self._recovery.describe_end(node_id)
            for node_id in self.book.nodes()
            for lease in self.book.on(node_id)
        }
        for lease_id, what in found.items():
            if self._prospects.get(lease_id, "") != what:
                self._events.put(BackendEvent(kind="prospect", lease_id=lease_id, reason=what))
        self._prospects = found

    def _forget_left(self) -> None:
        after_s = self._manager_grace_s + _FORGET_S
        self._pool.forget_left(self._membership.nodes, after_s, kept=self.book.nodes())

    def _update(self, node_ids: Collection[str]) -> None:
        """Build these nodes again, and publish an event if that changes the snapshot."""
        if self._table.update(self._membership.nodes, node_ids):
            self._events.put(BackendEvent(kind="nodes"))

    def _on_agent(self, node_id: str, event: AgentEvent | None) -> None:
        if event is None or event.node is not None:
            # Of these changes only a release makes room for a start that waits, and its claim is released next.
            self._table.update(self._membership.nodes, [node_id])
        if event is None or event.kind == "status":
            return
        if event.kind == "lost" and not event.lease_id:
            self._update([node_id])  # its daemon has ended
            self._tell_prospects()
        elif event.kind == "lost":
            self._lose(event.lease_id, event.reason)
        elif event.kind == "released":
            lease = self.book.get(event.lease_id)
            if lease is not None and not self.book.is_released(lease.id):
                self.book.release(lease.id)  # by the rules that the scheduler has given to the agent
                self._spawn(self._release_expired(lease))
        elif event.kind == "reserved" and event.lease_id not in self.book:
            self._spawn(self._learn(node_id))

    async def _end(self, lease: Lease) -> None:
        try:
            await self._pool.call(lease.node_id, lambda agent: agent.release(lease.id))
        except RoostError as problem:
            log.warning("lease=%s its kernel is not ended yet: %s", lease.id, problem)

    async def _release_expired(self, lease: Lease) -> None:
        for pause_s in backoff(*_RELEASE_AGAIN_S):
            try:
                await self._release_claim(lease)
                return
            except RoostError as problem:
                log.warning("lease=%s its claim is not given back yet: %s", lease.id, problem)
            await asyncio.sleep(pause_s)
            if not self.book.is_released(lease.id):  # it was claimed again
                return

    async def _release_claim(self, lease: Lease) -> None:
        if not self._membership.away:  # else the claim went with the cluster, or is found when that is back
            await self._manager.release(lease)
            self._membership.expire()
        self.book.miss(lease.id)
        self._table.update(self._membership.nodes, [lease.node_id])
        # Even if no snapshot shows a change: the agent has told of it before, and the manager may never have.
        self._events.put(BackendEvent(kind="nodes"))

    async def _learn(self, node_id: str) -> None:
        """Record the leases of other schedulers on a node, because they take shares of its devices."""
        held = await self._pool.held_on(node_id)
        for lease in held.leases if held else ():
            self.book.show(lease)
        self._update([node_id])

    def _lose(self, lease_id: str, reason: str) -> None:
        self.book.lose(lease_id, reason)
        if (lease := self.book.get(lease_id)) is not None:
            self._update([lease.node_id])

    def _spawn(self, coroutine: Any) -> None:
        spawn(coroutine, self._tasks, log)


def _describe_failure(cause: str, nodes: Sequence[str], is_served: bool) -> Finding:
    """Return the finding about nodes on which no agent has started. An earlier agent may serve them."""
    names = format_names(nodes)
    if is_served:
        what = f"earlier agents serve {names}, with their own settings, because no new agent starts there: {cause}"
        return {"level": "warning", "what": what, "do": "mend that, then run `roost up`"}
    do = "mend that, then run `roost up`: it starts the agents of all nodes"
    return {"level": "error", "what": f"no agent of roost starts on {names}: {cause}", "do": do}


def _waits_for_node(claim: Lease) -> bool:
    return claim.state == "pending" and not claim.node_id


def _is_placed(claim: Lease, agent_nodes: Collection[str]) -> bool:
    """True if a claim is on a node of the cluster, or if its node's agent may still run the kernel."""
    return claim.state != "lost" or claim.node_id in agent_nodes
