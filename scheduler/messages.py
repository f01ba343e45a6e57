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
from roost.placement.model import Request

Finding = dict[str, str]
"""A finding of `roost doctor`: its `level`, the problem (`what`) and the advice (`do`).

The levels are error, warning, fixed and ok. `fix`, if present, describes the step that can repair or has
repaired it.
"""

DEFAULT_LAUNCH_TIMEOUT_S = 60.0
"""How long a start may queue and launch, unless `KERNEL_LAUNCH_TIMEOUT` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartKernel:
    """A message that starts a kernel, or restarts it in its lease.

    A repeat with the same `launch_id` is harmless. `argv` keeps `{connection_file}` as a placeholder.
    `launch_timeout_s` limits queue and launch together. If `queue_timeout_s` is given, it limits the queue,
    and `launch_timeout_s` limits only the launch. `umask` is the application's own, and applies to a kernel
    on the same machine.
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
"""The states that users see. `unknown`: there is a lease, but its agent has not reported whether a kernel runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel as the scheduler knows it.

    `position` (1 is next) and `waits_for` (a sentence) are set while the kernel is queued. `timing_ms` is by
    stage: `queued`, `placed`, `leased`, `granted` if the lease was pending, `launched`, and the agent's own.
    `decision` is `placement.Decision.to_dict()`. `process` is the kernel's process as its agent reports it;
    `process.connection` has the keys, and is None in lists. `kernel_name` is the name of the kernelspec.
    `use` is set only if the caller asked for it. `is_held` is True if the owner lives. `is_stopped` is True
    if the kernel was stopped on purpose, or because it was idle. The answer to an adoption has `unheld_s`:
    the seconds since the last owner ended, or None if that time is not known.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state, as every reader of the stream gets it. `at` is in seconds since the epoch, UTC.

    `kind`: queued, placed, leased, running, conflict, exited, released, cancelled, failed, cull, warned,
    nodes, idle (the service checks whether clients and kernels still need it). The client adds resync: events
    may be missing.
    """

    kind: str
    at: float
    kernel: Kernel | None = None
    detail: str = ""
