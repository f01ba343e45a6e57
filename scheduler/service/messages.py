"""The values that clients and the scheduler exchange. Cheap to import: no numpy, no cluster library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from roost.launchers.protocol.shared_values import LAST_LINE as LAST_LINE
from roost.launchers.protocol.shared_values import OUT_OF_MEMORY, KernelProcess, KernelUse
from roost.launchers.protocol.shared_values import PORT_NAMES as PORT_NAMES
from roost.launchers.protocol.shared_values import Connection as Connection
from roost.launchers.protocol.shared_values import JournalEntry as JournalEntry
from roost.launchers.protocol.shared_values import JournalPage as JournalPage
from roost.launchers.protocol.shared_values import Owner as Owner
from roost.placement.request import Request

Finding = dict[str, str]
"""A finding of `roost doctor`: its `level`, the problem (`what`) and the advice (`do`).

The levels are error, warning, fixed and ok. `fix`, if there is one, is the step that repairs it, or that has done so.
"""

DEFAULT_LAUNCH_TIMEOUT_S = 60.0
"""How long a start may queue and launch, unless `KERNEL_LAUNCH_TIMEOUT` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartKernel:
    """Starts a kernel, or starts it again in its lease. Repeated with the same `launch_id`, it gets the same answer.

    `argv` keeps `{connection_file}` as a placeholder. `launch_timeout_s` bounds queue and launch together.
    With `queue_timeout_s`, which bounds the queue, it bounds the launch alone. `umask` is the application's, for a
    kernel on its machine.
    """

    kernel_id: str
    launch_id: str
    request: Request
    owner: Owner
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    connection: Connection
    may_fork: bool = True
    umask: int | None = None
    launch_timeout_s: float = DEFAULT_LAUNCH_TIMEOUT_S
    queue_timeout_s: float | None = None

    @property
    def wait_s(self) -> float:
        """How long the start may wait for its lease."""
        return self.launch_timeout_s if self.queue_timeout_s is None else self.queue_timeout_s


KernelState = Literal["queued", "starting", "running", "exited", "unknown"]
"""`unknown`: there is a lease, and its agent has not said yet whether a kernel runs in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel as the scheduler knows it.

    `position` (1 is next) and `waits_for` (a sentence) are set while the kernel is queued. `timing_ms` is by stage:
    `queued`, `placed`, `leased`, `granted` if the lease was pending, `launched`, and the agent's own. `decision` is
    `placement.Decision.to_dict()`.
    `process` is the kernel's process as its agent reports it. Its `connection` has the keys, and is None in lists.
    `kernel_name` is its kernelspec's. `use` is set only if the caller asked for it. `is_held`: its owner lives.
    `is_stopped`: it was stopped on purpose, or because it was idle. `unheld_s` is set in the answer to an adoption: so
    long ago the last owner ended; None if that is not known.
    """

    id: str
    launch_id: str
    state: KernelState
    owner: Owner
    request: Request
    kernel_name: str = ""
    node_id: str = ""
    lease_id: str = ""
    device_ids: tuple[str, ...] = ()
    process: KernelProcess | None = None
    use: KernelUse | None = None
    created_at: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    decision: Mapping[str, Any] | None = None
    position: int | None = None
    waits_for: str = ""
    reason: str = ""
    is_held: bool = True
    is_stopped: bool = False
    unheld_s: float | None = None

    @property
    def pid(self) -> int:
        """The kernel's process id on its node; 0 before it has one."""
        return self.process.pid if self.process else 0

    @property
    def how(self) -> str:
        """`forked` or `exec`; empty before the kernel has a process."""
        return self.process.how if self.process else ""

    @property
    def connection(self) -> Connection | None:
        """How to reach the kernel; None before it has a process, and in lists."""
        return self.process.connection if self.process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code, once the kernel has ended and if its agent saw that."""
        return self.process.exit_code if self.process else None

    @property
    def log_tail(self) -> str:
        """The end of the kernel's log, once the kernel has ended."""
        return self.process.log_tail if self.process else ""

    @property
    def is_out_of_memory(self) -> bool:
        """True if it was killed because it used more memory than it had asked for."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state, as every reader of the stream gets it. `at` is in seconds since the epoch, UTC.

    `kind`: queued, placed, leased, running, conflict, exited, released, cancelled, failed, cull, warned, nodes, idle
    (the service is about to leave). On the client's side also resync: events may be missing.
    """

    kind: str
    at: float
    kernel: Kernel | None = None
    detail: str = ""
