"""roost's applications in YARN, and the connections to their masters.

`Applications` finds the applications of this service by their tags, and submits one on demand for each queue and
priority. A `MasterLine` follows one application until that ends: its master may be started again by YARN on another
node, with the same keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import backoff, cancel_all, join_shared, start_shared
from roost.launchers.protocol.messages import Nothing
from roost.launchers.protocol.rpc import ClientKeys, RemoteError, RpcError
from roost.launchers.protocol.rpc_client import RpcClient
from roost.placement import Request
from roost.placement.model.json_codec import decode
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.errors import BackendUnavailable, LaunchError

from .archives import Archives, find_python
from .derived_keys import DerivedKeys
from .master.messages import PROTOCOL, Container, MasterEvent, MasterSettings, MasterStatus, Numbered
from .reasons import describe_application, explain_failure
from .rest import JsonObject, Rest, RestError, reading
from .settings import RoostYarnBackend
from .submission import TAG, build_context

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOKS_S = (0.1, 2.0)
"""First and longest pause between two readings of an application without a connection to its master."""
_CONNECT_S = 3.0
_CALL_S = 10.0
_REMEMBERED = 10_000
"""At most this many numbers of released containers are remembered."""
_ENDED = ("FINISHED", "FAILED", "KILLED")


class Listener(Protocol):
    """The receiver of news about masters."""

    def on_connected(self, line: MasterLine) -> None:
        """Called when the master begins to answer. `line.containers` has been read."""

    def on_event(self, line: MasterLine, event: MasterEvent) -> None:
        """Called when the master reports an event. `line.containers` contains the change already."""

    def on_ended(self, line: MasterLine, reason: str) -> None:
        """Called when the application has ended, with all its containers. `reason` is a clause."""


class MasterLine:
    """One application of roost, and the connection to its master while that answers.

    `reason` is a clause that says why the master does not serve. `failure` is a sentence once the application has
    ended; empty before. `containers` are the containers that the master has reported, by number.
    """

    def __init__(
        self,
        application_id: str,
        key: str,
        queue: str,
        rest: Rest,
        keys: ClientKeys,
        python: str,
        listener: Listener,
    ) -> None:
        self.application_id, self.key, self.queue = application_id, key, queue
        self.reason = f"roost's application master starts in queue {queue}"
        self.failure = ""
        self.containers: dict[int, Container] = {}
        self.status: MasterStatus | None = None
        self._rest, self._keys, self._python, self._listener = rest, keys, python, listener
        self._client: RpcClient | None = None
        self._released = LastEntries[int, None](_REMEMBERED)
        """Numbers of the containers that this service has released. The master may still report them."""
        self._changed = asyncio.Event()
        """Set when the master answers, and when the application ends."""

    @property
    def is_connected(self) -> bool:
        return self._client is not None

    async def wait(self, timeout_s: float) -> bool:
        """Wait until the master answers; return whether it does. Raises `LaunchError` if the application has ended."""
        if not self._changed.is_set():
            try:
                await asyncio.wait_for(self._changed.wait(), timeout_s)
            except asyncio.TimeoutError:
                return False
        # The end of the application sets the event too.
        if self.failure:
            raise LaunchError(self.failure)
        return self.is_connected

    async def call(self, kind: type[T], op: str, arguments: Any = None) -> T:
        """Call the master. Raises `RemoteError`, and `BackendUnavailable` if the master does not answer."""
        if self._client is None:
            raise BackendUnavailable(self.failure or f"{self.reason}.")
        try:
            answer = await self._client.call(op, arguments, timeout_s=_CALL_S)
        except RemoteError:
            raise
        except (RpcError, asyncio.TimeoutError) as problem:
            raise BackendUnavailable(
                f"roost's application master in queue {self.queue} does not answer: {str(problem) or 'too late'}."
            ) from None
        return decode(kind, answer or {}, ignore_unknown=True)

    async def release(self, number: int) -> None:
        """Withdraw the ask with this number, or end its container.

        Raises as `call` does. After an error, the release is repeated when the master is back.
        """
        # Noted before the call: the master's reports about this container can arrive before its answer.
        self._released[number] = None
        self.containers.pop(number, None)
        await self.call(Nothing, "release", Numbered(number=number))

    async def run(self) -> None:
        """Follow the application until it has ended."""
        pauses = backoff(*_LOOKS_S)
        while not self.failure:
            # YARN is asked before each connection: a lost one does not show whether the application has ended.
            try:
                application = await self._rest.application(self.application_id)
            except RestError as problem:
                if problem.status == 404:
                    self._end(f"YARN does not know roost's application in queue {self.queue} any more.")
                    return
                application = {}
            except BackendUnavailable:
                application = {}
            if application.get("state") in _ENDED:
                log.info("application=%s has ended (%s)", self.application_id, application["state"])
                self._end(explain_failure(application, self._python))
                return
            if application:
                self.reason = describe_application(application)
            # The port is -1 until the master has registered.
            address = application.get("amRPCAddress", "")
            if application.get("state") == "RUNNING" and ":" in address and not address.endswith(":-1"):
                try:
                    await self._follow(f"tcp://{address}")
                    pauses = backoff(*_LOOKS_S)
                except (RpcError, asyncio.TimeoutError, ValueError) as problem:
                    log.debug("application=%s its master does not answer: %s", self.application_id, problem)
            await asyncio.sleep(next(pauses))

    async def _follow(self, endpoint: str) -> None:
        """Connect to the master and return once the connection is lost. Raises `RpcError`."""
        lost = asyncio.Event()

        def on_lost() -> None:
            self._disconnect()
            lost.set()

        client = RpcClient(endpoint, keys=self._keys, on_event=self._on_event, on_lost=on_lost)
        await client.connect(timeout_s=_CONNECT_S)
        try:
            self.status = decode(
                MasterStatus, await client.call("hello", timeout_s=_CALL_S), ignore_unknown=True
            )
            if self.status.protocol != PROTOCOL:
                self.reason = (
                    f"roost's application master in queue {self.queue} is of another version of roost"
                )
                await lost.wait()
                return
            # Subscribed before the containers are read, so that each change is in the reading or in an event after it.
            await client.call("subscribe", timeout_s=_CALL_S)
            self._client = client
            self.containers = await self._read_containers()
            self._changed.set()
            log.info("application=%s master=%s answers", self.application_id, endpoint)
            # Callers of `wait` go on only after this method awaits again, so the listener comes first.
            self._listener.on_connected(self)
            await lost.wait()
        finally:
            self._disconnect()
            await client.close()

    def _disconnect(self) -> None:
        self._client = None
        # After the end of the application the event stays set: `wait` must raise at once.
        if not self.failure:
            self._changed.clear()

    async def _read_containers(self) -> dict[int, Container]:
        assert self._client is not None
        found = await self._client.call("containers", timeout_s=_CALL_S)
        containers = [decode(Container, one, ignore_unknown=True) for one in found]
        for container in containers:
            # Released while the master was not connected: it did not get the release.
            if container.number in self._released:
                await self._client.call("release", Numbered(number=container.number), timeout_s=_CALL_S)
        return {
            container.number: container for container in containers if container.number not in self._released
        }

    def _on_event(self, raw: JsonObject) -> None:
        event = decode(MasterEvent, raw, ignore_unknown=True)
        container = event.container
        if container is not None and event.kind == "container" and container.number not in self._released:
            self.containers[container.number] = container
        # Before `on_connected`, at which the listener reads all containers, it gets no events.
        if self._changed.is_set():
            self._listener.on_event(self, event)

    def _end(self, failure: str) -> None:
        self.failure = failure
        self._changed.set()
        self._listener.on_ended(self, failure.rstrip("."))


class Applications:
    """The applications that one service has in YARN. `keys` are derived from the key pair of the service."""

    def __init__(
        self,
        rest: Rest,
        keys: DerivedKeys,
        archives: Archives,
        settings: RoostYarnBackend,
        idle_exit_s: float,
        listener: Listener,
    ) -> None:
        self._rest, self._keys, self._archives, self._settings = rest, keys, archives, settings
        self._idle_exit_s = idle_exit_s
        self._listener = listener
        self._lines: dict[str, MasterLine] = {}
        self._submitting: dict[str, asyncio.Task[MasterLine]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.schedulers: tuple[str, ...] = ()
        """`host:port` of the ResourceManagers' scheduler addresses."""
        self.keeps_containers = True
        """True if the containers of new applications outlive a master that fails."""

    @property
    def lines(self) -> Iterable[MasterLine]:
        """The applications that have not ended, as far as is known."""
        return [line for line in self._lines.values() if not line.failure]

    async def close(self) -> None:
        await cancel_all(self._tasks)
        self._lines.clear()

    async def find(self) -> None:
        """Find the applications that this service has in YARN, whichever process submitted them."""
        for application in await self._rest.applications(self._service_tag):
            with reading():
                application_id, queue = str(application["id"]), str(application["queue"])
            tags = set(str(application.get("applicationTags", "")).split(","))
            key = next((tag for tag in tags if tag.startswith(f"{TAG}-for-")), "")
            if application_id not in self._lines and self._service_tag in tags:
                self._add(application_id, key, queue)

    async def line(self, queue: str, priority: int | None) -> MasterLine:
        """Return the application for this queue and priority; submit it if there is none."""
        key = _key(queue, priority)
        # If YARN's answer to a submission was lost, there may be two applications for a key: take the older one.
        for line in sorted(self.lines, key=lambda line: line.application_id):
            if line.key == key:
                return line
        task = self._submitting.get(key)
        if task is None:
            # Starts at the same moment share a submission. Its line is among `lines` before it leaves the dict.
            task = self._submitting[key] = start_shared(self._submit(key, queue, priority))
            task.add_done_callback(lambda _: self._submitting.pop(key, None))
        return await join_shared(task)

    async def _submit(self, key: str, queue: str, priority: int | None) -> MasterLine:
        application_id, _ = await self._rest.new_application()
        keys = self._keys.keys(application_id)
        master = MasterSettings(
            schedulers=self.schedulers,
            public_key=keys.public,
            secret_key=keys.secret,
            clients=tuple(keys.clients),
            ports=self._keys.ports(application_id),
            idle_exit_s=self._idle_exit_s,
            grace_s=self._settings.manager_grace_s,
        )
        tags = (self._service_tag, key)
        context = build_context(
            application_id,
            self._settings,
            master,
            tags=tags,
            queue=queue,
            priority=priority,
            keeps_containers=self.keeps_containers,
            unpacked=await self._archives.find(Request()),
        )
        try:
            await self._rest.submit(context)
        except RestError as problem:
            raise LaunchError(f"YARN refuses roost's application in queue {queue}: {problem.text}.") from None
        log.info("application=%s submitted to queue %s", application_id, queue)
        return self._add(application_id, key, queue)

    def _add(self, application_id: str, key: str, queue: str) -> MasterLine:
        client = self._keys.client_keys(application_id)
        python = find_python(Request(), self._settings)
        line = MasterLine(application_id, key, queue, self._rest, client, python, self._listener)
        self._lines[application_id] = line
        keep_running(line.run, self._tasks, log, f"the line to {application_id}")
        return line

    @property
    def _service_tag(self) -> str:
        return f"{TAG}-{self._keys.label}"


def _key(queue: str, priority: int | None) -> str:
    """Return the tag for a queue and a priority. YARN may report both in another form than they were asked for."""
    text = json.dumps([queue, priority])
    return f"{TAG}-for-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
