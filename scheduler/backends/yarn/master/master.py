"""The application master: its heartbeats, its operations, and its end."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from typing import Any

from roost.launchers.daemon.tasks import backoff, cancel_all, spawn, wait_until_set
from roost.launchers.protocol.rpc import RemoteError

from .allocation import Allocation, AllocationEntry, name_container, read_resource
from .hadoop_rpc import CallRefused
from .messages import (
    PROTOCOL,
    Archive,
    Ask,
    Container,
    MasterEvent,
    MasterSettings,
    MasterStatus,
    Numbered,
    Probe,
    Probed,
    Resources,
    Update,
    Widen,
)
from .node_managers import NodeError, NodeManagers, build_context
from .resource_manager import Away, ResourceManager
from .schema import Grant

log = logging.getLogger(__name__)

_SHORTEST_BEAT_S = 0.02
_LONGEST_BEAT_S = 1.0
_BEATS_PER_AGE = 100
"""Heartbeats slow down while an ask waits, so that they delay its grant by at most a hundredth of its age."""
_SENT_S = 5.0
"""How long a release waits for the heartbeat that carries it."""
_KEPT_ARCHIVES = 4


class Ended(Exception):
    """The application has ended, or this attempt cannot go on. The text is the reason."""


class Master:
    """One attempt of the application. `publish` gets the events; `run` returns when the application has ended.

    `host` and `port` are registered as the master's own address. `count_listeners` returns how many services listen.
    """

    def __init__(
        self,
        manager: ResourceManager,
        settings: MasterSettings,
        *,
        application_id: str,
        attempt: int,
        host: str,
        port: int,
        publish: Callable[[MasterEvent], None],
        count_listeners: Callable[[], int],
    ) -> None:
        self._manager, self._settings = manager, settings
        self._application_id, self._attempt = application_id, attempt
        self._host, self._port = host, port
        self._publish, self._count_listeners = publish, count_listeners
        self._allocation = Allocation(publish)
        self._nodes = NodeManagers()
        self._archives: dict[str, bytes] = {}
        self._queue = ""
        self._maximum = Resources(memory_mb=0, vcores=0)
        self._is_registered = False
        self._is_ending = False
        self._finishers: list[asyncio.Future[None]] = []
        self._away_since: float | None = None
        self._distrusted_since: float | None = None
        self._idle_since = time.monotonic()
        self._wakeup = asyncio.Event()
        self._sent: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self.registered = asyncio.Event()

    # The service's operations

    def hello(self) -> MasterStatus:
        return MasterStatus(
            protocol=PROTOCOL,
            application_id=self._application_id,
            attempt=self._attempt,
            queue=self._queue,
            maximum=self._maximum,
            headroom=self._allocation.headroom,
            archives=tuple(self._archives),
            is_away=self._away_since is not None,
        )

    def put_archive(self, archive: Archive) -> None:
        """Keep an archive. Drop the oldest if there are more than `_KEPT_ARCHIVES`: a service uses one."""
        self._archives.pop(archive.digest, None)
        self._archives[archive.digest] = base64.b64decode(archive.data_base64)
        for digest in list(self._archives)[:-_KEPT_ARCHIVES]:
            del self._archives[digest]

    def ask(self, ask: Ask) -> Container:
        """Ask for a container with the next heartbeat, which is sent at once. May be repeated."""
        if self._is_ending or self._finishers:
            raise RemoteError("ending", "this application master is about to end; submit another application")
        if ask.number not in self._allocation.entries:
            if ask.archive not in self._archives:
                raise RemoteError("unknown_archive", f"the archive {ask.archive} was not sent")
            self._check_size(ask.resources)
        # Nothing is awaited since the check for the end, so `_is_over` cannot end the application in between.
        entry = self._allocation.ask(ask)
        self._wakeup.set()
        return entry.describe()

    def _check_size(self, wanted: Resources) -> None:
        """Raise `RemoteError` for more than the cluster's maximum: that would fail the asks of all kernels."""
        most = self._maximum
        excess = [name for name, amount in wanted.others.items() if amount > most.others.get(name, 0)]
        if wanted.memory_mb > most.memory_mb or wanted.vcores > most.vcores or excess:
            text = "the request is larger than the largest container of the cluster"
            raise RemoteError("too_large", text, {"maximum": most})

    def widen(self, widen: Widen) -> Container:
        self._find(widen.number)
        entry = self._allocation.widen(widen.number, widen.nodes, widen.racks)
        self._wakeup.set()
        return entry.describe()

    def update(self, update: Update) -> Container:
        entry = self._find(update.number)
        entry.lease = update.lease
        return entry.describe()

    def _find(self, number: int) -> AllocationEntry:
        entry = self._allocation.entries.get(number)
        if entry is None:
            raise RemoteError("unknown_container", f"there is no ask with number {number}")
        return entry

    async def probe(self, probe: Probe) -> Probed:
        """Return whether a NodeManager answers. The ResourceManager itself notices only after its expiry."""
        return Probed(answers=await self._nodes.answers(probe.address))

    async def release(self, request: Numbered) -> None:
        """Withdraw an ask, or stop its container.

        Return once this was sent, or after `_SENT_S` if YARN is away.
        """
        entry = self._allocation.release(request.number)
        # Waits for a heartbeat that begins from now on: one under way does not carry this release.
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sent.append(sent)
        self._wakeup.set()
        ways: list[asyncio.Future[None]] = [sent]
        if entry is not None and entry.grant is not None:
            ways.append(spawn(self._stop(entry.grant, sent), self._tasks, log))
        await asyncio.wait(ways, timeout=_SENT_S, return_when=asyncio.FIRST_COMPLETED)

    async def _stop(self, grant: Grant, sent: asyncio.Future[None]) -> None:
        """Stop a container at its NodeManager, which is sooner than by the ResourceManager."""
        try:
            await self._nodes.stop(grant)
        except NodeError as problem:
            log.warning("container=%s is not stopped at once: %s", name_container(grant.id), problem)
            await asyncio.wait([sent])

    def containers(self) -> tuple[Container, ...]:
        return tuple(entry.describe() for entry in self._allocation.wanted)

    async def finish(self) -> None:
        """End the application."""
        if not self._allocation.is_empty:
            raise RemoteError("not_empty", "the application still has asks or containers")
        # From here on `ask` refuses. An ask that was accepted now would end with the application.
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finishers.append(finished)
        self._wakeup.set()
        await finished

    # The heartbeats

    async def run(self) -> None:
        """Send heartbeats until the application has ended. Raises `Ended` if this attempt cannot go on."""
        pauses = backoff(0.2, 3.0)
        while True:
            try:
                await self._beat()
                if await self._is_over():
                    return
            except Away as problem:
                self._endure(problem)
                await asyncio.sleep(next(pauses))
            except CallRefused as problem:
                if not self._handle(problem):
                    await asyncio.sleep(next(pauses))
            else:
                self._come_back()
                pauses = backoff(0.2, 3.0)
                await self._pause()

    async def close(self) -> None:
        """End the tasks and the connection. Containers go on."""
        await cancel_all(self._tasks)
        self._manager.close()

    async def _beat(self) -> None:
        if not self._is_registered:
            await self._register()
        sent, self._sent = self._sent, []
        try:
            answer = await self._manager.allocate(self._allocation.next_request())
        except BaseException:
            self._sent += sent  # the heartbeat is repeated, and with it these releases
            raise
        for future in sent:
            if not future.done():
                future.set_result(None)
        # The tokens first: a NodeManager starts a new container only with its token.
        self._nodes.keep(answer.nm_tokens)
        for entry in self._allocation.take(answer):
            spawn(self._start(entry), self._tasks, log)

    async def _register(self) -> None:
        answer = await self._manager.register(self._host, self._port)
        self._is_registered = True
        self._queue, self._maximum = answer.queue, read_resource(answer.maximum_capability)
        self._nodes.keep(answer.nm_tokens_from_previous_attempts)
        self._allocation.resync(answer)
        # Set last: the service's operations wait for this, and must find the containers of earlier attempts.
        log.info("registered in queue %s, with %d containers", self._queue, len(self._allocation.entries))
        self.registered.set()

    def _handle(self, problem: CallRefused) -> bool:
        """Handle an exception of the ResourceManager. Return False if the next heartbeat should be later."""
        if problem.name == "ApplicationMasterNotRegisteredException":
            log.info("the ResourceManager was started again: registering again")
            self._is_registered = False
            return True
        if problem.name == "ApplicationAttemptNotFoundException":
            raise Ended(f"the ResourceManager does not know this attempt: {problem.text}")
        if not self._is_registered:
            raise Ended(f"the ResourceManager does not register this attempt: {problem}")
        if self._allocation.refuse(problem):
            return True
        log.warning("a heartbeat was refused: %s", problem)
        return False

    def _endure(self, problem: Away) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            log.warning("the ResourceManager is away: %s", problem)
            self._publish(MasterEvent(kind="away", text=str(problem)))
        self._distrusted_since = None if problem.is_trusted else self._distrusted_since or now
        if self._distrusted_since is not None and now - self._distrusted_since > self._settings.grace_s:
            raise Ended(f"the token is invalid: {problem}")
        # The application goes on, because YARN has not stored its end: asks are accepted again.
        self._is_ending = False
        finishers, self._finishers = self._finishers, []
        for finished in finishers:
            if not finished.done():
                finished.set_exception(RemoteError("away", f"YARN's ResourceManager is away: {problem}"))

    def _come_back(self) -> None:
        if self._away_since is not None:
            self._away_since = self._distrusted_since = None
            log.info("the ResourceManager is back")
            self._publish(MasterEvent(kind="back"))

    async def _pause(self) -> None:
        """Wait until the next heartbeat is due."""
        newest = self._allocation.newest_ask_at
        pause_s = _LONGEST_BEAT_S
        if newest is not None:
            age_s = time.monotonic() - newest
            pause_s = min(max(age_s / _BEATS_PER_AGE, _SHORTEST_BEAT_S), _LONGEST_BEAT_S)
        # Parts are left if they came during the heartbeat, or if they are sent one by one after a refusal.
        if self._allocation.has_parts:
            return
        # An ask that comes between the wait and `clear` is among the parts of the next heartbeat.
        await wait_until_set(self._wakeup, pause_s)
        self._wakeup.clear()

    async def _start(self, entry: AllocationEntry) -> None:
        assert entry.ask is not None
        assert entry.grant is not None
        if entry.is_released:  # between the grant and this task's first step
            return
        try:
            context = build_context(entry.ask, self._archives[entry.ask.archive])
            await self._nodes.start(entry.grant, context)
            self._allocation.set_started(entry)
        except (NodeError, KeyError) as problem:
            log.warning("number=%d: %s", entry.number, problem)
            self._allocation.fail(entry, f"its container did not start: {problem}")
            self._wakeup.set()

    async def _is_over(self) -> bool:
        """End the application if the service wants that, or if nobody has needed it for long. True if it has ended."""
        # Noted before anything is awaited, so that `ask` refuses while the end is stored.
        self._is_ending = bool(self._finishers) or self._is_left()
        if not self._is_ending:
            return False
        for pause_s in backoff(0.05, 0.5):
            if await self._manager.finish():
                break
            await asyncio.sleep(pause_s)  # until the ResourceManager has stored it
        for finished in self._finishers:
            if not finished.done():
                finished.set_result(None)
        return True

    def _is_left(self) -> bool:
        now = time.monotonic()
        if not self._allocation.is_empty:
            self._idle_since = now
        if now - self._idle_since < self._settings.idle_exit_s:
            return False
        self._publish(MasterEvent(kind="idle"))  # which finds services that have gone without a word
        if self._count_listeners():
            self._idle_since = now
            return False
        log.info("idle for %g s: this application ends", self._settings.idle_exit_s)
        return True
