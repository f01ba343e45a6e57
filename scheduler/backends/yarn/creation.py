"""Asks for the containers of leases, and waits for YARN's decision."""

from __future__ import annotations

import asyncio
import logging
import time

from roost.launchers.protocol.messages import Launch, Lease, Nothing
from roost.launchers.protocol.rpc import RemoteError
from roost.placement import Request, Snapshot, get_policy
from roost.scheduler.errors import BackendUnavailable, LaunchError, LeaseConflict, NoNodeEver

from .applications import Applications, MasterLine
from .archives import Archives
from .asking import build_archive, build_ask
from .derived_keys import DerivedKeys
from .held import Held
from .master.messages import Ask, Container, MasterStatus, Probe, Probed, Widen
from .node_reader import NodeReader
from .nodes import to_placement
from .queues import Queues
from .reasons import describe_wait
from .rest import Rest
from .settings import RoostYarnBackend

log = logging.getLogger(__name__)

_MASTER_S = 5.0
"""How long a claim waits for a master. After that the lease is pending."""
_MARGIN_S = 0.5
"""How much longer than a heartbeat of the NodeManagers a claim waits for its container."""


class ContainerCreator:
    """Asks the masters for containers.

    `heartbeat_s` is the longest time between two moments at which YARN grants containers on a node. `expiry_s` is how
    long YARN waits for a NodeManager before it takes the node for lost.
    """

    def __init__(
        self,
        settings: RoostYarnBackend,
        keys: DerivedKeys,
        rest: Rest,
        queues: Queues,
        applications: Applications,
        nodes: NodeReader,
        archives: Archives,
    ) -> None:
        self._settings, self._keys, self._rest = settings, keys, rest
        self._queues, self._applications, self._nodes = queues, applications, nodes
        self._archives = archives
        self.heartbeat_s, self.expiry_s = 1.0, 600.0

    async def prepare(self, lease: Lease, launch: Launch | None) -> Held:
        """Return the lease with an ask for its container, for the application of its queue.

        Raises `NoNodeEver` and `LaunchError`.
        """
        nodes = (lease.node_id,) if lease.node_id else self._find_hosts(lease.request)
        priority = lease.request.options.get("priority")
        line = await self._applications.line(self._queues.queue_of(lease.request), priority)
        racks = self._nodes.book.racks(nodes)
        ask = build_ask(
            lease,
            launch,
            self._settings,
            self._keys,
            nodes,
            racks,
            unpacked=await self._archives.find(lease.request),
            expiry_s=self.expiry_s,
        )
        return Held(lease, ask.number, line, ask, reason=line.reason)

    async def create(self, held: Held) -> None:
        """Ask for the container, and wait for a while until YARN grants it.

        A master that does not answer may be started again, and the lease is pending until then. On failure,
        withdraws the ask and raises `LeaseConflict`, `NoNodeEver`, `LaunchError` or `BackendUnavailable`.
        """
        deadline = time.monotonic() + _MASTER_S
        held.is_creating = True
        try:
            while await self._is_served(held.line, deadline - time.monotonic()):
                try:
                    return await self.ask(held)
                except BackendUnavailable:
                    if held.line.is_connected:
                        raise
        except BaseException:
            await asyncio.shield(self.withdraw(held))
            raise
        finally:
            held.is_creating = False

    async def ask(self, held: Held) -> None:
        """Send the ask to its master, which must answer. If a node is chosen, wait for YARN's decision.

        May be repeated. Raises as `create` does.
        """
        assert held.ask is not None
        held.reason, held.is_asked = "YARN chooses its node", True
        try:
            container = await self._send(held.line, held.ask)
            if held.container is None:  # else an event was faster
                held.container = container
            if held.lease.node_id:
                await self._await_grant(held)
            else:
                await self.explain(held)
        except RemoteError as problem:
            if problem.kind in ("ending", "unknown_container"):  # it ends, or it has been started again
                raise _ended() from None
            kind = NoNodeEver if problem.kind == "too_large" else LaunchError
            raise kind(f"roost's application master refuses the request: {problem.message}") from None

    async def _is_served(self, line: MasterLine, timeout_s: float) -> bool:
        """Return True once the master answers, or False after `timeout_s`.

        Raises `LeaseConflict` if the application has ended, or `LaunchError` if its master never answered.
        """
        try:
            return await line.wait(timeout_s)
        except LaunchError:
            if line.status is None:
                raise
            raise _ended() from None

    async def _send(self, line: MasterLine, ask: Ask) -> Container:
        try:
            return await line.call(Container, "ask", ask)
        except RemoteError as problem:
            if problem.kind != "unknown_archive":
                raise
        await line.call(Nothing, "put_archive", build_archive())
        return await line.call(Container, "ask", ask)

    async def _await_grant(self, held: Held) -> None:
        """Wait until YARN has granted the chosen node, for one heartbeat of its NodeManager.

        Raises `LeaseConflict` if the node has no room any more. If the node has room, the queue or the user
        has reached a limit. Then any suitable node may take the ask, which waits in YARN's own queue.
        """
        deadline = time.monotonic() + self.heartbeat_s + _MARGIN_S
        while not (held.is_granted or held.is_ended):
            held.changed.clear()
            try:
                await asyncio.wait_for(held.changed.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                break
        else:
            return
        status = await self._read_cluster(held.line)
        if status is not None and not self._find_room(held.lease.request, held.lease.node_id):
            raise LeaseConflict(f"{held.lease.node_id} has no room for it any more, as YARN reports")
        hosts = self._find_hosts(held.lease.request)
        widen = Widen(number=held.number, nodes=hosts, racks=self._nodes.book.racks(hosts))
        await held.line.call(Container, "widen", widen)
        await self._describe(held, status)

    async def explain(self, held: Held) -> None:
        """Note why an ask for a container waits. Raises `BackendUnavailable` if its master does not answer."""
        await self._describe(held, await self._read_cluster(held.line))

    async def _read_cluster(self, line: MasterLine) -> MasterStatus | None:
        """Read nodes and queues. Return the master's status, or None while the ResourceManager is away."""
        status = await line.call(MasterStatus, "hello")
        if status.is_away:
            return None
        try:
            await self._nodes.read()
            await self._queues.read_queues(self._rest)
        except BackendUnavailable as problem:
            log.info("application=%s waits: %s", line.application_id, problem)
            return None
        return status

    async def _describe(self, held: Held, status: MasterStatus | None) -> None:
        """Note why YARN does not grant the container. YARN itself gives no reason."""
        assert held.container is not None
        request = held.lease.request
        node = self._find_room(request, held.lease.node_id) or self._find_room(request)
        if status is None:
            held.reason = "YARN's ResourceManager is away"
        elif not node:
            held.reason = "no node has room for it now"
        elif not await self._answers(held.line, node):
            held.reason = f"the NodeManager of {node} does not answer"
        else:
            queue = self._queues.find(held.line.queue)
            held.reason = describe_wait(held.container.resources, status.headroom, queue, self._rest.user)

    async def withdraw(self, held: Held) -> None:
        """Withdraw the ask for a container. If YARN has granted the container meanwhile, give it back."""
        try:
            if held.is_asked:
                await held.line.release(held.number)
        except (BackendUnavailable, RemoteError) as problem:
            log.warning("lease=%s is given back later: %s", held.lease.id, problem)

    async def _answers(self, line: MasterLine, node: str) -> bool:
        """True if the NodeManager of a node answers the master, or if the master cannot probe it."""
        try:
            probed = await line.call(Probed, "probe", Probe(address=self._nodes.book.daemon(node)))
        except RemoteError as problem:  # the node has left
            log.info("node=%s is not probed: %s", node, problem)
            return True
        return probed.answers

    def _find_room(self, request: Request, node_id: str = "") -> str:
        """Return the id of a node that had room at the last reading; empty if there is none.

        If `node_id` is given, look at that node only.
        """
        nodes = [node for node in self._nodes.nodes(()) if node_id in ("", node.id)]
        decision = get_policy("balanced").place(to_placement(request), Snapshot.of(nodes))
        return decision.placement.node_id if decision.placement is not None else ""

    def _find_hosts(self, request: Request) -> tuple[str, ...]:
        """Return the nodes that could take the request if they were empty; `()` if all could. Raises `NoNodeEver`."""
        nodes = [node.as_empty() for node in self._nodes.nodes(())]
        decision = get_policy("balanced").place(to_placement(request), Snapshot.of(nodes))
        if decision.placement is None:
            raise NoNodeEver(f"{decision.advised_reason}.", decision=decision.to_dict())
        refused = {refusal.node_id for refusal in decision.first_refusals(None)}
        hosts = tuple(node.id for node in nodes if node.id not in refused)
        return () if len(hosts) == len(nodes) else hosts


def _ended() -> LeaseConflict:
    """Return the error for a master that has ended, or was started again. The next claim finds or starts another."""
    return LeaseConflict("roost's application master has just ended", is_everywhere=True)
