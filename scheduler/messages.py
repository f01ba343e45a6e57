"""The values that clients and the scheduler exchange. Cheap to import: no numpy, no cluster library."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, get_args

from roost.launchers.protocol.execution import Execution
from roost.launchers.protocol.kernel_message import MOST_ID_CHARACTERS as MOST_ID_CHARACTERS
from roost.launchers.protocol.kernel_message import Header as Header
from roost.launchers.protocol.kernel_message import UnreadableMessage as UnreadableMessage
from roost.launchers.protocol.kernel_message import find_parts as find_parts
from roost.launchers.protocol.kernel_message import read_content as read_content
from roost.launchers.protocol.kernel_message import read_display_id as read_display_id
from roost.launchers.protocol.kernel_message import read_header as read_header
from roost.launchers.protocol.kernel_message import read_message as read_message
from roost.launchers.protocol.kernel_message import read_parent as read_parent
from roost.launchers.protocol.process_context import UNKNOWN as UNKNOWN
from roost.launchers.protocol.process_context import ProcessContext as ProcessContext
from roost.launchers.protocol.process_context import read_context as read_context
from roost.launchers.protocol.process_log import hide_output as hide_output
from roost.launchers.protocol.shared_values import OUT_OF_MEMORY, KernelProcess, KernelUse
from roost.launchers.protocol.shared_values import PORT_NAMES as PORT_NAMES
from roost.launchers.protocol.shared_values import SERVER as SERVER
from roost.launchers.protocol.shared_values import Connection as Connection
from roost.launchers.protocol.shared_values import JournalEntry as JournalEntry
from roost.launchers.protocol.shared_values import JournalPage as JournalPage
from roost.launchers.protocol.shared_values import Owner as Owner
from roost.launchers.protocol.shared_values import is_loopback as is_loopback
from roost.placement.model import Request


class _Finding(TypedDict):
    level: Literal["error", "warning", "not now", "not asked", "fixed", "ok"]
    """`error`: it never works as it is. `not now`: it would work later, or elsewhere. `not asked`: nobody knows."""
    what: str
    """The problem."""
    do: str
    """The advice; empty if there is nothing to do."""


class Finding(_Finding, total=False):
    """A finding of `roost doctor`: a dict, because the command prints it and backends of other packages return it."""

    fix: str
    """The step that can repair or has repaired the problem."""


def format_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, and how many more there are: ``a, b, c and 2 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def format_time(at: float) -> str:
    """Return the time of day of a `time.time` here: ``08:35:26``."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def end_sentence(text: str) -> str:
    """Return the text with a full stop, unless it ends as a sentence already: with one, or with a question."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


class ServiceFacts(TypedDict):
    """The answer of a service to a client that connects."""

    protocol: int
    agent_protocol: int
    """The protocol of the agents that the service can use."""
    version: str
    """The service's version of roost."""
    pid: int
    backend: str
    """The name of the backend."""
    address: str
    """The address of the cluster, for people; empty if the cluster has none."""
    options: Mapping[str, Any]
    """The options with which the service was started, by the client or command that has started it."""
    launch_timeout_s: float
    """How long a start may take that names no time."""
    node_start_timeout_s: float
    """How long a start may wait for a new node besides, if its cluster can grow."""


DEFAULT_LAUNCH_TIMEOUT_S = 60.0
"""How long a start may queue and launch, unless the start or the operator names a time."""
SERVICE_TIMEOUT = 0.0
"""The launch timeout of a start that names none. The client then takes the one of the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartKernel(Execution):
    """A message that starts a kernel, or restarts it in its lease."""

    request: Request
    owner: Owner
    launch_timeout_s: float = DEFAULT_LAUNCH_TIMEOUT_S
    """Limits queue and launch together, or only the launch if `queue_timeout_s` is given.

    A client may give `SERVICE_TIMEOUT`.
    """
    queue_timeout_s: float | None = None
    """Limits the queue."""
    asked_at: float = 0.0
    """When this start was asked of a service that has ended meanwhile (`time.time`); 0: it is new.

    It keeps its place and its time in the queue, and waits while the manager is away.
    """

    @property
    def waited_s(self) -> float:
        """How long the start has waited with an earlier service."""
        return max(0.0, time.time() - self.asked_at) if self.asked_at else 0.0

    @property
    def wait_s(self) -> float:
        """How long the start may wait for its lease."""
        return self.launch_timeout_s if self.queue_timeout_s is None else self.queue_timeout_s


KernelState = Literal["queued", "starting", "running", "exited", "unknown"]
"""The states that users see. `unknown`: there is a lease, but its agent has not reported whether a kernel runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel as the scheduler knows it."""

    id: str
    launch_id: str
    state: KernelState
    owner: Owner
    request: Request
    kernel_name: str = ""
    """The name of the kernelspec."""
    notebook: str = ""
    """The file name of the notebook or console whose session started it; empty if it has none."""
    node_id: str = ""
    lease_id: str = ""
    device_ids: tuple[str, ...] = ()
    process: KernelProcess | None = None
    """The kernel's process as its agent reports it. `process.connection` has the keys, and is None in lists."""
    use: KernelUse | None = None
    """Set only if the caller asked for it."""
    created_at: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    """The time of each stage: `queued`, `placed`, `leased`, `launched`, and the agent's own.

    A lease that was pending also has `granted`.
    """
    decision: Mapping[str, Any] | None = None
    """The result of `placement.Decision.to_dict()`."""
    position: int | None = None
    """The place in the queue while the kernel is queued; 1 is next."""
    waits_for: str = ""
    """The reason for the wait while the kernel is queued: a sentence."""
    reason: str = ""
    """Why the kernel has ended, or why its start has failed."""
    prospect: str = ""
    """What will end the kernel soon, with its time, or what becomes of it while the cluster is away: a clause.

    Empty: nothing is known that would end it.
    """
    is_held: bool = True
    """True if the owner lives."""
    is_stopped: bool = False
    """True if the kernel was stopped on purpose, or because it was idle."""
    unheld_s: float | None = None
    """Set in the answer to an adoption: the seconds since the last owner ended.

    None if that time is not known.
    """

    @property
    def title(self) -> str:
        """What its user calls it: its notebook and kernelspec, as far as they are known."""
        return " · ".join(filter(None, (self.notebook, self.kernel_name)))

    @property
    def pid(self) -> int:
        """The kernel's process id on its node; 0 before it has one."""
        return self.process.pid if self.process else 0

    @property
    def how(self) -> str:
        """`forked` or `exec`; empty before the kernel has a process."""
        return self.process.how if self.process else ""

    @property
    def why_not_forked(self) -> str:
        """Why an executed kernel was not forked, as a clause; else empty."""
        return self.process.why_not_forked if self.process else ""

    @property
    def connection(self) -> Connection | None:
        """The addresses and keys of the kernel; None in lists, and before the kernel has a process."""
        return self.process.connection if self.process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the kernel runs, or if its agent did not see the end."""
        return self.process.exit_code if self.process else None

    @property
    def log_tail(self) -> str:
        """The last part of the log of a kernel that has ended; empty before."""
        return self.process.log_tail if self.process else ""

    @property
    def is_out_of_memory(self) -> bool:
        """True if the kernel was killed because it used more memory than it had asked for."""
        return (self.process is not None and self.process.is_out_of_memory) or OUT_OF_MEMORY in self.reason

    @property
    def is_pending(self) -> bool:
        """True if the kernel has a lease that the cluster manager has not granted yet. Its `state` is `queued`."""
        return self.state == "queued" and bool(self.lease_id)

    def without_keys(self) -> Kernel:
        """Return the kernel without its connection, which has keys."""
        if self.process is None or self.process.connection is None:
            return self
        return replace(self, process=replace(self.process, connection=None))


EventKind = Literal[
    "queued",
    "placed",
    "leased",
    "running",
    "conflict",
    "exited",
    "released",
    "cancelled",
    "failed",
    "cull",
    "warned",
    "nodes",
    "idle",
    "resync",
]
"""The kinds of events. `idle`: the service checks whether clients and kernels still need it.

`resync`: read the states of kernels again. The client adds it after a lost connection, as events may be missing. The
service sends it when agents that could not say which kernels they have have said so, or are gone.
"""
EVENT_KINDS: frozenset[EventKind] = frozenset(get_args(EventKind))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state, as every reader of the stream gets it."""

    kind: EventKind
    at: float
    """When it happened, in seconds since the epoch, UTC."""
    kernel: Kernel | None = None
    detail: str = ""
