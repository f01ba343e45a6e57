"""`YarnCluster`: the containers of one service in a YARN cluster, for `AgentPerKernelBackend`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from roost.launchers.daemon.process import name_user
from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import cancel_all, join_shared, spawn
from roost.launchers.protocol.messages import Launch, Lease, Nothing
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange, PodCluster, dump_lease, load_lease
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.errors import (
    BackendUnavailable,
    ConfigError,
    LaunchError,
    LeaseConflict,
    NoNodeEver,
    NotAllowed,
)

from .applications import Applications, MasterLine
from .archives import Archives, find_python
from .container_agents import ContainerAgents
from .creation import ContainerCreator
from .derived_keys import DerivedKeys
from .hadoop_conf import Conf, keeps_containers, scheduler_addresses
from .held import Held
from .master.messages import Container, MasterEvent, Update
from .node_reader import NodeReader
from .nodes import to_placement
from .queues import Queues
from .reasons import describe_preemption, is_node_lost
from .rest import Rest, RestError
from .settings import RoostYarnBackend

log = logging.getLogger(__name__)

_JOIN_MASTER_S = 5.0
"""How long a service that starts waits for the masters of an earlier one."""
_SEARCH_S = 3.0
"""How long a reading waits for the addresses of agents."""
_READ_QUEUES_S = 10.0
"""How long a change of queues or node labels may go unnoticed."""
_WARM_S = 30.0
_CAUSE_S = 2.5
"""How long YARN may take to report the end of a container: a heartbeat of its node, and one of the master."""
_DELETE_S = 15.0
"""How long a release waits for a master that was started again."""


class YarnCluster(PodCluster):
    """Asks for, releases and follows the containers of the applications whose tag names this service's key pair.

    `rest` reaches the ResourceManager.
    """

    name = "YARN"
    unit = "container"

    def __init__(self, settings: RoostYarnBackend, rest: Rest, idle_exit_s: float) -> None:
        self._settings = settings
        key_pair = load_key_pair(settings.identity_file, name="yarn", section="RoostYarnBackend")
        self._keys = DerivedKeys(key_pair, settings.agent_ports)
        self._rest = rest
        self._queues = Queues(settings)
        archives = Archives(self._rest, settings)
        self._applications = Applications(self._rest, self._keys, archives, settings, idle_exit_s, self)
        self._nodes = NodeReader(self._rest, settings, self._queues, self._granted)
        self._agents = ContainerAgents(self._keys)
        self._creator = ContainerCreator(
            settings, self._keys, self._rest, self._queues, self._applications, self._nodes, archives
        )
        self._held: dict[int, Held] = {}
        """By number: the leases of this service that are not released, also those of its other processes."""
        self._identifying: dict[int, asyncio.Task[None]] = {}
        """By number: containers whose leases only their agents know."""
        self._changes: asyncio.Queue[Held | PodChange | Exception] = asyncio.Queue()
        """The changes to report.

        The state of a `Held` is read when it is taken from the queue. So no older state follows a newer one.
        """
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reader: set[asyncio.Task[Any]] = set()
        self._is_joined = False

    async def join(self) -> str:
        await cancel_all(self._reader)
        await self._rest.info()  # raises if no ResourceManager is active
        conf = await self._rest.conf()
        self._creator.heartbeat_s, self._creator.expiry_s = read_heartbeat_s(conf), read_expiry_s(conf)
        self._applications.schedulers = self._find_schedulers(conf)
        self._applications.keeps_containers = keeps_containers(conf)
        await self._queues.read(self._rest)
        await self._applications.find()
        if not self._is_joined:
            await asyncio.gather(
                *(line.wait(_JOIN_MASTER_S) for line in self._applications.lines), return_exceptions=True
            )
        await self._nodes.read()
        spawn(self._follow_nodes(), self._reader, log)
        keep_running(self._follow_queues, self._reader, log, "the reading of YARN's queues")
        self._is_joined = True
        self._explain_again()
        return self._rest.address

    async def close(self) -> None:
        await cancel_all(self._reader)
        await cancel_all(self._tasks)
        await self._applications.close()
        self._rest.close()

    async def nodes(self) -> Sequence[Node]:
        return self._nodes.nodes({held.number for held in self._held.values() if held.loss is None})

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError`, `NoNodeEver` or `NotAllowed` for a request that this cluster cannot serve."""
        if request.owner and request.owner not in (self._rest.user, name_user()):
            raise NotAllowed(
                f"containers run as {self._rest.user} here, so KERNEL_USERNAME = {request.owner!r:.80} is refused: "
                "leave it out, or let that user run a service of their own."
            )
        find_python(request, self._settings)
        self._queues.check(request)

    async def warm_up(self) -> None:
        """Start the application master of the default queue. Raises `LaunchError` if YARN refuses it."""
        line = await self._applications.line(self._queues.queue_of(Request()), None)
        await line.wait(_WARM_S)
        await self._nodes.read()

    def to_placement(self, request: Request) -> Request:
        return to_placement(request)

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        if (held := self._find(lease.id)) is not None:
            return self._view(held)
        held = await self._creator.prepare(lease, launch)
        self._held[held.number] = held
        try:
            await self._creator.create(held)
        except BaseException:
            self._held.pop(held.number, None)
            self._nodes.read_soon()
            raise
        self._search(held)
        return self._view(held)

    async def delete(self, lease_id: str) -> None:
        for held in [held for held in self._held.values() if held.lease.id == lease_id]:
            if held.cause is not None:  # YARN does not report the ends of released containers
                await asyncio.wait([held.cause])
            if held.loss is None and not held.line.failure and (held.is_asked or held.ask is None):
                if not await held.line.wait(_DELETE_S):
                    raise BackendUnavailable(f"{held.line.reason}.")
                await held.line.release(held.number)
            self._held.pop(held.number, None)
            self._nodes.read_soon()

    async def pods(self) -> Sequence[Pod]:
        await self._applications.find()
        for line in self._applications.lines:
            self._adopt(line)
        # The agents of another process's containers listen already. Without them, no kernel is known there.
        searches = [
            held.search for held in self._held.values() if held.ask is None and held.search is not None
        ]
        if tasks := (*searches, *self._identifying.values()):
            await asyncio.wait(tasks, timeout=_SEARCH_S)
        return [self._view(held) for held in self._held.values() if held.lease.id not in self.creating]

    async def explain_end(self, lease_id: str) -> str:
        held = self._find(lease_id)
        if held is None:
            return ""
        if held.cause is None:
            held.cause = spawn(held.wait_ended(_CAUSE_S), self._tasks, log)
        return self._view(held).lease.reason if await join_shared(held.cause) else ""

    async def changes(self) -> AsyncIterator[PodChange]:
        yield PodChange(kind="resync")
        while True:
            change = await self._changes.get()
            if isinstance(change, Exception):
                raise change
            if isinstance(change, PodChange):
                yield change
                continue
            yield PodChange(kind="pod", pod=self._view(change))
            if change.is_ended and (change.loss is not None or change.ask is None):
                self._held.pop(change.number, None)  # known by now; perhaps another process has released it

    # News from the masters

    def on_connected(self, line: MasterLine) -> None:
        """Compare the leases with the containers of a master that begins to answer.

        The master may be a new attempt, which does not know all of them.
        """
        for held in self._held_by(line):
            container = line.containers.get(held.number)
            if container is not None:
                self._note(held, container)
            elif held.is_granted:
                self._lose(held, "its container ended while roost's application master started again")
            elif held.ask is None:
                self._lose(held, "roost's application master was started again")
            elif not held.is_creating:
                spawn(self._ask_again(held), self._tasks, log)
        self._adopt(line)
        if self._is_joined:
            self._changes.put_nowait(PodChange(kind="resync"))

    def on_event(self, line: MasterLine, event: MasterEvent) -> None:
        if event.kind == "container" and event.container is not None:
            held = self._held.get(event.container.number)
            if held is not None:
                self._note(held, event.container)
            else:
                self._adopt(line)
                self._nodes.read_soon()  # a released container has ended, or another process has one more
        elif event.kind == "preempt" and event.container is not None:
            self._warn(event.container, event.text)
        elif event.kind == "nodes":
            self._nodes.read_soon()
        elif event.kind in ("away", "back"):
            self._explain_again()

    def on_ended(self, line: MasterLine, reason: str) -> None:
        for held in self._held_by(line):
            self._lose(held, reason, is_final=line.status is None)  # YARN refused the application

    def _note(self, held: Held, container: Container) -> None:
        """Note the state of a container, and report it."""
        before, held.container = held.container, container
        held.changed.set()
        if before is None or before.state != container.state:
            self._nodes.read_soon()
        if held.lease.id in self.creating:
            return  # `create` reports it
        if container.state == "ended" and is_node_lost(container):
            held.is_explained = False
            spawn(self._agents.end_stray(held), self._tasks, log)
            spawn(self._explain_loss(held, container.node), self._tasks, log)
            return
        self._search(held)
        self._changes.put_nowait(held)

    async def _explain_loss(self, held: Held, node: str) -> None:
        """Report a container on a lost node, with the node's trouble if YARN knows it."""
        try:
            with contextlib.suppress(BackendUnavailable):
                await self._nodes.read()
                self._changes.put_nowait(PodChange(kind="nodes"))
        finally:
            held.node_trouble, held.is_explained = self._nodes.book.trouble(node), True
            held.changed.set()
            self._changes.put_nowait(held)

    def _explain_again(self) -> None:
        """Find again why asks for containers wait, because the ResourceManager is away, or back."""
        for held in self._held.values():
            if held.is_waiting:
                spawn(self._explain(held), self._tasks, log)

    async def _explain(self, held: Held) -> None:
        with contextlib.suppress(BackendUnavailable):  # `_ask_again` explains it to the next attempt
            await self._creator.explain(held)
            self._changes.put_nowait(held)

    def _warn(self, container: Container, contract: str) -> None:
        """Report a container that YARN takes back soon. YARN repeats this at each heartbeat until it does."""
        held = self._held.get(container.number)
        reason = describe_preemption(contract)
        if held is not None and held.warning != reason:
            held.warning = reason
            self._changes.put_nowait(PodChange(kind="warning", lease_id=held.lease.id, reason=reason))

    def _adopt(self, line: MasterLine) -> None:
        """Record the master's containers that another process of this service asked for, now or earlier."""
        for container in line.containers.values():
            if container.number in self._held or container.state == "ended":
                continue
            if container.lease:
                held = Held(load_lease(container.lease), container.number, line, None, container)
                self._held[container.number] = held
                self._search(held)
                self._changes.put_nowait(held)
                if held.is_waiting:
                    spawn(self._explain(held), self._tasks, log)
            elif container.number not in self._identifying:
                identify = self._identify(line, container)
                self._identifying[container.number] = spawn(identify, self._tasks, log)

    async def _identify(self, line: MasterLine, container: Container) -> None:
        """Note a container of an earlier attempt of its master. Only the container's agent knows the lease."""
        try:
            found = await self._agents.read_lease(container)
        finally:
            self._identifying.pop(container.number, None)
        if found is None or container.number in self._held:
            return
        lease, address = found
        self._held[container.number] = Held(lease, container.number, line, None, container, address=address)
        self._changes.put_nowait(PodChange(kind="resync"))
        await line.call(Nothing, "update", Update(number=container.number, lease=dump_lease(lease)))

    async def _ask_again(self, held: Held) -> None:
        """Ask a master that has just begun to serve for the container of a lease.

        The lease is pending already, so a refusal makes it lost.
        """
        try:
            await self._creator.ask(held)
        except (LaunchError, NoNodeEver, LeaseConflict) as problem:
            await self._creator.withdraw(held)
            self._lose(held, str(problem).rstrip("."), is_final=not isinstance(problem, LeaseConflict))
        except BackendUnavailable as problem:  # `on_connected` comes here again
            held.reason = str(problem).rstrip(".")
        else:
            self._search(held)
            self._changes.put_nowait(held)

    def _lose(self, held: Held, reason: str, *, is_final: bool = False) -> None:
        if held.is_granted:
            spawn(self._agents.end_stray(held), self._tasks, log)
        held.loss = replace(held.lease, state="lost", reason=reason, is_final=is_final)
        held.changed.set()
        self._changes.put_nowait(held)
        self._nodes.read_soon()

    def _search(self, held: Held) -> None:
        """Start to look for the agent of a granted container, unless its search has begun already."""
        if held.is_granted and held.address is None and held.search is None:
            held.search = spawn(self._find_agent(held), self._tasks, log)

    async def _find_agent(self, held: Held) -> None:
        if await self._agents.find(held, lambda: self._held.get(held.number) is held and held.is_granted):
            self._changes.put_nowait(held)

    # Reading

    def _view(self, held: Held) -> Pod:
        return held.view(find_python(held.lease.request, self._settings))

    def _held_by(self, line: MasterLine) -> list[Held]:
        return [held for held in self._held.values() if held.line is line and held.loss is None]

    def _find(self, lease_id: str) -> Held | None:
        return next((held for held in self._held.values() if held.lease.id == lease_id), None)

    def _granted(self) -> dict[int, Lease]:
        return {
            number: replace(held.lease, node_id=held.container.node)
            for number, held in self._held.items()
            if held.container is not None and held.is_granted
        }

    def _find_schedulers(self, conf: Conf) -> tuple[str, ...]:
        found = tuple(self._settings.schedulers) or scheduler_addresses(conf)
        if not found:
            raise ConfigError(
                "the scheduler address of the ResourceManager is unknown: set c.RoostYarnBackend.schedulers to "
                "host:port (yarn.resourcemanager.scheduler.address)."
            )
        return found

    async def _follow_nodes(self) -> None:
        try:
            await self._nodes.follow(lambda: self._changes.put_nowait(PodChange(kind="nodes")))
        except BackendUnavailable as problem:
            self._changes.put_nowait(problem)
        except Exception as problem:
            log.exception("the nodes of YARN cannot be read")
            self._changes.put_nowait(BackendUnavailable(f"the nodes of YARN cannot be read ({problem})"))

    async def _follow_queues(self) -> None:
        """Read queues and node labels until cancelled, because operators change them."""
        while True:
            await asyncio.sleep(_READ_QUEUES_S)
            try:
                await self._queues.read_queues(self._rest)
                await self._queues.read_labels(self._rest)
            except (RestError, BackendUnavailable) as problem:  # the reader of the nodes reports it
                log.debug("the queues cannot be read: %s", problem)


def read_heartbeat_s(conf: Conf) -> float:
    """Return the longest time between two moments at which YARN grants containers on a node.

    It is the heartbeat interval of NodeManagers, or 0.5 s if YARN schedules asynchronously.
    """
    if conf.get("yarn.scheduler.capacity.schedule-asynchronously.enable") == "true":
        return 0.5
    return _read_s(conf, "yarn.resourcemanager.nodemanagers.heartbeat-interval-ms", 1.0)


def read_expiry_s(conf: Conf) -> float:
    """Return how long YARN waits for a NodeManager that does not report before it takes the node for lost."""
    return _read_s(conf, "yarn.nm.liveness-monitor.expiry-interval-ms", 600.0)


def _read_s(conf: Conf, name: str, default_s: float) -> float:
    text = conf.get(name, "")
    return int(text) / 1000 if text.isdigit() else default_s
