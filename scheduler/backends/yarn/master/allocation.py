"""The asks and containers of the application: what each heartbeat carries, and what its answer changes.

No function here waits or connects. `Master` sends `next_request` and gives the answer to `take`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .hadoop_rpc import CallRefused
from .messages import Ask, Container, MasterEvent, Resources, State
from .schema import (
    AllocateRequest,
    AllocateResponse,
    ContainerId,
    ContainerStatus,
    Grant,
    Priority,
    RegisterApplicationMasterResponse,
    Resource,
    ResourceInformation,
    ResourceRequest,
)

log = logging.getLogger(__name__)

_PRIORITY = Priority(priority=1)
_ANY = "*"
_DEFAULT_RACK = "/default-rack"
_KEPT_S = 600.0
"""How long a container that has ended is reported, if the service does not release it."""
_UNCONFIRMED_S = 30.0
"""How long to wait for the report that a released container has ended.

A restarted ResourceManager may not know the container. Rarely, a ResourceManager loses the report of a container of an
earlier attempt. The reason is that an application's attempts share a list there without a common lock.
"""
_NODE_STATES = (
    "", "new", "running", "unhealthy", "decommissioned", "lost", "rebooted", "decommissioning", "shutdown"
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class AllocationEntry:
    """An ask, and its container once that is granted. `ask` is None for containers of earlier attempts.

    `is_released`: the service has released it, so the entry is removed once the container has ended.
    """

    number: int
    lease: str
    resources: Resources
    ask: Ask | None = None
    state: State = "asked"
    grant: Grant | None = None
    exit_status: int | None = None
    diagnostics: str = ""
    is_released: bool = False
    asked_at: float = 0.0
    changed_at: float = field(default_factory=time.monotonic)

    def describe(self) -> Container:
        """Return the entry for the service."""
        return Container(
            number=self.number,
            lease=self.lease,
            state=self.state,
            resources=self.resources,
            node=self.grant.node_id.host if self.grant else "",
            container_id=name_container(self.grant.id) if self.grant else "",
            exit_status=self.exit_status,
            diagnostics=self.diagnostics,
            asked_at=self.asked_at,
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a heartbeat that the ResourceManager accepts or refuses by itself: rows of one ask, or a release."""

    number: int
    rows: tuple[ResourceRequest, ...] = ()
    released: ContainerId | None = None


class Allocation:
    """All asks for containers, and the granted containers. `publish` gets the events.

    Methods raise `KeyError` for unknown numbers.
    """

    def __init__(self, publish: Callable[[MasterEvent], None]) -> None:
        self._publish = publish
        self._parts: deque[_Part] = deque()
        self._unanswered: list[_Part] | None = None
        self._singly = 0
        self._response_id = 0
        self.entries: dict[int, AllocationEntry] = {}
        self.headroom: Resources | None = None

    @property
    def has_parts(self) -> bool:
        return bool(self._parts)

    @property
    def newest_ask_at(self) -> float | None:
        """The monotonic time of the newest ask whose container is not granted yet; None if there is none."""
        waiting = [entry.changed_at for entry in self.entries.values() if entry.state == "asked"]
        return max(waiting, default=None)

    @property
    def wanted(self) -> list[AllocationEntry]:
        """All entries without the released ones, which are about to end: nobody may take over their containers."""
        return [entry for entry in self.entries.values() if not entry.is_released]

    @property
    def is_empty(self) -> bool:
        """True if there are neither asks nor containers that run."""
        return all(entry.state == "ended" for entry in self.entries.values())

    def ask(self, ask: Ask) -> AllocationEntry:
        """Add an ask. An ask with a known number changes nothing."""
        if ask.number not in self.entries:
            self.entries[ask.number] = AllocationEntry(
                number=ask.number,
                lease=ask.lease,
                resources=ask.resources,
                ask=ask,
                asked_at=time.time(),
            )
            self._parts.append(_Part(ask.number, build_rows(ask)))
        return self.entries[ask.number]

    def widen(self, number: int, nodes: tuple[str, ...], racks: Mapping[str, str]) -> AllocationEntry:
        """Let a waiting ask go to other nodes. An ask that was granted meanwhile stays as it is."""
        entry = self.entries[number]
        if entry.state == "asked" and entry.ask is not None:
            old, entry.ask = entry.ask, dataclasses.replace(entry.ask, nodes=nodes, racks=racks)
            rows = build_rows(entry.ask)
            kept = {row.resource_name for row in rows}
            removed = (row for row in build_rows(old, count=0) if row.resource_name not in kept)
            self._parts.append(_Part(number, (*removed, *rows)))
        return entry

    def release(self, number: int) -> AllocationEntry | None:
        """Withdraw an ask, or release its container. Return the entry if the caller has to stop a container."""
        entry = self.entries.get(number)
        if entry is None:
            return None
        entry.is_released, entry.changed_at = True, time.monotonic()
        if entry.grant is not None and entry.state != "ended":
            self._parts.append(_Part(number, released=entry.grant.id))
            return entry
        if entry.state == "asked" and entry.ask is not None:
            self._parts.append(_Part(number, build_rows(entry.ask, count=0)))
        del self.entries[number]
        return None

    def set_started(self, entry: AllocationEntry) -> None:
        if entry.state == "granted" and not entry.is_released:
            self._change(entry, "started")

    def fail(self, entry: AllocationEntry, reason: str) -> None:
        """End an entry that could not be started, and give its container back."""
        if entry.state != "ended":
            if entry.grant is not None:
                self._parts.append(_Part(entry.number, released=entry.grant.id))
            self._end(entry, None, reason)

    def next_request(self) -> AllocateRequest:
        """Return the next heartbeat. If the last one has no answer yet, return the same heartbeat again.

        The ResourceManager answers a repeated heartbeat from memory, and ignores additions to it.
        """
        if self._unanswered is None:
            count = 1 if self._singly else len(self._parts)
            self._unanswered = [self._parts.popleft() for _ in range(min(count, len(self._parts)))]
            self._singly = max(0, self._singly - 1)
        return AllocateRequest(
            response_id=self._response_id,
            ask=tuple(row for part in self._unanswered for row in part.rows),
            release=tuple(part.released for part in self._unanswered if part.released is not None),
        )

    def refuse(self, problem: CallRefused) -> bool:
        """Note that the last heartbeat was refused as a whole. Return False if it carried no asks and no releases.

        From then on its asks and releases are sent one by one, and only the refused one fails.
        """
        parts, self._unanswered = self._unanswered or [], None
        if len(parts) > 1:
            self._parts.extendleft(reversed(parts))
            self._singly = len(parts)
        elif parts:
            log.warning("number=%d: %s", parts[0].number, problem)
            entry = self.entries.get(parts[0].number)
            if entry is not None and entry.state == "asked":
                self._end(entry, None, f"the ResourceManager refused it: {problem}")
        return bool(parts)

    def resync(self, answer: RegisterApplicationMasterResponse) -> None:
        """Begin again with a ResourceManager that has registered this attempt: it knows none of the asks."""
        self._parts.clear()
        self._unanswered, self._response_id = None, 0
        self._adopt(answer.containers_from_previous_attempts)
        for entry in self.entries.values():
            if entry.state == "asked" and entry.ask is not None:
                self._parts.append(_Part(entry.number, build_rows(entry.ask)))
            elif entry.is_released and entry.grant is not None and entry.state != "ended":
                self._parts.append(_Part(entry.number, released=entry.grant.id))

    def take(self, answer: AllocateResponse) -> list[AllocationEntry]:
        """Apply an answer. Return the entries with a new container. The caller starts these."""
        self._unanswered, self._response_id = None, answer.response_id
        if answer.limit is not None:
            self.headroom = read_resource(answer.limit)
        self._adopt(answer.containers_from_previous_attempts)
        granted = [entry for grant in answer.allocated_containers if (entry := self._grant(grant))]
        for status in answer.completed_container_statuses:
            self._complete(status)
        self._warn(answer)
        if answer.updated_nodes:
            texts = (f"{node.node_id.host} {_name_state(node.node_state)}" for node in answer.updated_nodes)
            self._publish(MasterEvent(kind="nodes", text=", ".join(texts)))
        self._forget()
        return granted

    def _grant(self, grant: Grant) -> AllocationEntry | None:
        entry = self.entries.get(grant.allocation_request_id)
        if entry is None or entry.state != "asked" or entry.ask is None:
            log.info("container=%s crossed a withdrawal and is given back", name_container(grant.id))
            self._parts.append(_Part(grant.allocation_request_id, released=grant.id))
            return None
        if len(entry.ask.nodes) > 1:  # the rows of the other nodes are still there
            self._parts.append(_Part(entry.number, build_rows(entry.ask, count=0)))
        entry.grant, entry.resources = grant, read_resource(grant.resource)
        self._change(entry, "granted")
        return entry

    def _adopt(self, grants: Iterable[Grant]) -> None:
        """Note the containers of earlier attempts.

        After a restart of the ResourceManager, most of them are known.
        """
        known = {entry.grant.id for entry in self.entries.values() if entry.grant is not None}
        for grant in grants:
            number = grant.allocation_request_id
            if grant.id in known:
                continue
            if number in self.entries and self.entries[number].state != "asked":
                self._parts.append(_Part(number, released=grant.id))
                continue
            before = self.entries.get(number)
            if before is not None and before.ask is not None:
                self._parts.append(_Part(number, build_rows(before.ask, count=0)))
            entry = AllocationEntry(
                number=number,
                lease=before.lease if before else "",
                resources=read_resource(grant.resource),
                grant=grant,
                state="granted",
            )
            self.entries[number] = entry
            self._change(entry, "started")

    def _complete(self, status: ContainerStatus) -> None:
        for entry in self.entries.values():
            if entry.grant is not None and entry.grant.id == status.container_id and entry.state != "ended":
                self._end(entry, status.exit_status, status.diagnostics.strip())
                return

    def _warn(self, answer: AllocateResponse) -> None:
        contracts = {
            "strict": answer.preempt.strict_contract.container,
            "contract": answer.preempt.contract.container,
        }
        for text, containers in contracts.items():
            wanted = {container.id for container in containers}
            for entry in self.entries.values():
                if entry.grant is not None and entry.grant.id in wanted and entry.state != "ended":
                    self._publish(MasterEvent(kind="preempt", container=entry.describe(), text=text))

    def _end(self, entry: AllocationEntry, exit_status: int | None, diagnostics: str) -> None:
        entry.exit_status, entry.diagnostics = exit_status, diagnostics
        self._change(entry, "ended")

    def _change(self, entry: AllocationEntry, state: State) -> None:
        entry.state, entry.changed_at = state, time.monotonic()
        log.info("number=%d is %s %s", entry.number, state, entry.exit_status if state == "ended" else "")
        self._publish(MasterEvent(kind="container", container=entry.describe()))

    def _forget(self) -> None:
        now = time.monotonic()
        for entry in list(self.entries.values()):
            age_s = now - entry.changed_at
            if entry.is_released and entry.state != "ended" and age_s > _UNCONFIRMED_S:
                self._end(entry, None, "it was released, and the ResourceManager has not reported its end")
            if entry.state == "ended" and (entry.is_released or age_s > _KEPT_S):
                del self.entries[entry.number]


def build_rows(ask: Ask, *, count: int = 1) -> tuple[ResourceRequest, ...]:
    """Return the rows of an ask: its nodes, their racks, and `*`; with `count` 0, the rows that withdraw it.

    Only the rows of nodes relax the locality, because a container on another node is not wanted. If the ask names no
    node, the row `*` relaxes it. Only the row `*` may name a node label.
    """

    def row(name: str, *, relax: bool, label: str = "") -> ResourceRequest:
        return ResourceRequest(
            priority=_PRIORITY,
            resource_name=name,
            capability=build_resource(ask.resources),
            num_containers=count,
            relax_locality=relax,
            node_label_expression=label,
            allocation_request_id=ask.number,
        )

    racks = sorted({ask.racks.get(node, _DEFAULT_RACK) for node in ask.nodes})
    return (
        *(row(node, relax=True) for node in ask.nodes),
        *(row(rack, relax=False) for rack in racks),
        row(_ANY, relax=not ask.nodes, label=ask.label),
    )


def build_resource(resources: Resources) -> Resource:
    """Return these amounts as a message for YARN."""
    memory = ResourceInformation(key="memory-mb", value=resources.memory_mb, units="Mi")
    vcores = ResourceInformation(key="vcores", value=resources.vcores)
    others = (ResourceInformation(key=key, value=value) for key, value in resources.others.items() if value)
    return Resource(
        memory=resources.memory_mb,
        virtual_cores=resources.vcores,
        resource_value_map=(memory, vcores, *others),
    )


def read_resource(resource: Resource) -> Resources:
    """Return the amounts in a message of YARN. Hadoop before 3.0 sends memory and cores only."""
    amounts = {entry.key: entry.value for entry in resource.resource_value_map}
    memory_mb = amounts.pop("memory-mb", resource.memory)
    return Resources(
        memory_mb=memory_mb, vcores=amounts.pop("vcores", resource.virtual_cores), others=amounts
    )


def name_container(container: ContainerId) -> str:
    """Return the container's name as YARN writes it. The upper bits of `container.id` count the starts of YARN."""
    attempt, epoch = container.app_attempt_id, container.id >> 40
    application = attempt.application_id
    start = f"e{epoch:02d}_" if epoch else ""
    number = container.id & (1 << 40) - 1
    return (
        f"container_{start}{application.cluster_timestamp}_{application.id:04d}"
        f"_{attempt.attempt_id:02d}_{number:06d}"
    )


def _name_state(state: int) -> str:
    return _NODE_STATES[state] if 0 <= state < len(_NODE_STATES) else str(state)
