"""What agents are asked and what they answer: the agent's protocol as values.

Every message crosses a socket as JSON (`wire`). Amounts: CPUs and GPUs in units (0.25 is a quarter), memory
in bytes, times in seconds; `*_at` are seconds since the epoch, UTC, for people, and never used for waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .shared_values import PORT_NAMES as PORT_NAMES
from .shared_values import Connection as Connection
from .shared_values import Nothing as Nothing
from .shared_values import Owner as Owner

PROTOCOL = 3
"""Version of this protocol: an agent and a client talk only when they speak the same.

It does not change for a field added to an answer or an event, which an older client leaves out; it does for a
field added to a request, which an older agent refuses.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Asks the ledger for a slice of the node; repeated with the same `lease_id` it gives the same answer.

    `device_ids` are preferred devices; the agent may grant others. Where a cluster manager has granted the slice
    already (`is_granted`), the ledger notes it as it is; no ledger itself has any `resources` to give. `linger_s`:
    how long the reservation is kept after its kernel ended by itself, so that a restarter may start it again.
    """

    lease_id: str
    kernel_id: str
    owner: Owner
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    gpu_models: tuple[str, ...] = ()
    device_ids: tuple[str, ...] = ()
    resources: Mapping[str, float] = field(default_factory=dict)
    is_granted: bool = False
    linger_s: float = 10.0

    def __post_init__(self) -> None:
        if self.gpus > 1 and self.gpus != round(self.gpus):
            raise ValueError(f"gpus must be at most 1 (a share of one) or a whole number, not {self.gpus:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A slice that the ledger has handed out; `request.device_ids` are the devices granted."""

    request: Reserve
    reserved_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Gives a slice back, ending its kernel if one still runs. May be repeated."""

    lease_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Has a slice be held for another owner, if there is one of that id. May be repeated."""

    lease_id: str
    owner: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """The cluster manager on whose node the agent runs: what it watches, and what follows from that.

    `pid` and `process_started_at` (as `process.start_time` gives it) name a daemon of the manager's on this node;
    `address` is `host:port` of the manager itself. Where the last daemon ends and the manager is still there, this
    node is no part of the cluster any more: all leases here are lost. Where both are gone they are kept for `grace_s`.
    `is_gone`: this daemon says that it is about to end because the manager is gone, whatever answers there now.
    `has_left`: it ends, or has ended, though its process goes on. `probe` is a command that prints the id of the
    cluster at `address`: where that is not `cluster_id`, another cluster is there now, and this one is gone.
    """

    name: str
    pid: int
    process_started_at: float
    address: str
    grace_s: float = 300.0
    is_gone: bool = False
    has_left: bool = False
    cluster_id: str = ""
    probe: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Starts a kernel inside a reservation.

    `launch_id` names this one attempt: repeated with the same id, a launch answers what the first did. `argv`
    is the kernelspec's, with `{connection_file}` left in; the agent writes that file. `env` is the whole
    environment of the kernel, to which the agent adds the devices' visibility. An agent with an address of its own
    (`AgentSettings.address`) has the kernel listen there, puts its own environment beneath `env`, and starts in the
    home folder where there is no `cwd`.
    """

    launch_id: str
    lease_id: str
    kernel_id: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    connection: Connection
    may_fork: bool = True
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProcess:
    """A kernel as its agent knows it.

    `exit_code` as `subprocess` gives it (negative: the signal), or None while it runs or where it cannot be
    known (it ended while no agent watched); `reason` is a sentence for people.
    """

    kernel_id: str
    launch_id: str
    lease_id: str
    owner: Owner
    pid: int
    process_started_at: float
    how: Literal["forked", "exec"]
    connection: Connection
    launched_at: float
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    is_running: bool = True
    exit_code: int | None = None
    reason: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Sends `signum` to the process group of a kernel."""

    kernel_id: str
    signum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Ends a kernel: SIGTERM to its process group, SIGKILL after `grace_s`. Answers once it is gone."""

    kernel_id: str
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    """The last `tail_bytes` of what a kernel wrote to stdout and stderr outside Jupyter's channels."""

    kernel_id: str
    tail_bytes: int = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """Prepares a fast start for kernels of this `argv` in this environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """One GPU: what is promised of it by this agent's ledger, and what is really used (None: unknown)."""

    id: str
    model: str = ""
    memory_bytes: int = 0
    promised: float = 0.0
    used: float | None = None
    memory_used_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """The node as its agent sees it; `ledger_version` grows with every change of what is promised.

    `unreadable_leases` are files of the ledger that are kept although this version cannot read them. `warm` are
    the interpreters (paths) of which a zygote is ready. `is_cut_off`: the cluster manager's daemon here has ended.
    """

    hostname: str
    cpus: float
    memory_bytes: int
    devices: tuple[DeviceStatus, ...] = ()
    cpus_promised: float = 0.0
    memory_promised_bytes: int = 0
    gpus_promised: float = 0.0
    cpus_used: float | None = None
    memory_used_bytes: int | None = None
    kernels: int = 0
    metrics_age_s: float | None = None
    ledger_version: int = 0
    unreadable_leases: int = 0
    warm: tuple[str, ...] = ()
    is_cut_off: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStats:
    """What a kernel and all processes that it started use.

    `cpu_s` since their start (what ended processes used is not in it); `cpu_percent` of one CPU since the question
    before, or since the start. `rss_bytes` counts memory shared between processes once for each.
    """

    kernel_id: str
    processes: int = 0
    cpu_s: float = 0.0
    cpu_percent: float = 0.0
    rss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteStats:
    """A warm process that kernels are forked from; `files` are those that it depends on."""

    pid: int
    python: str
    files: int
    launches: int
    idle_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Answer to `stats`; the zygote used last comes first."""

    kernels: tuple[KernelStats, ...] = ()
    zygotes: tuple[ZygoteStats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """Answer to `hello`."""

    protocol: int
    version: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """Answer to `list`: all that this agent holds."""

    reservations: tuple[Reservation, ...] = ()
    kernels: tuple[KernelProcess, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEvent:
    """Pushed to subscribers.

    `launched` and `exited` carry the kernel; `reserved` and `released` the lease id; `lost` comes before the end of a
    lease that the manager has taken back, for `reason`, and without a lease id as soon as the manager's daemon here
    has ended; `leaving` means that the agent is about to go (an upgrade), its kernels stay.
    """

    kind: Literal["launched", "exited", "reserved", "released", "lost", "leaving"]
    lease_id: str = ""
    reason: str = ""
    kernel: KernelProcess | None = None
    ledger_version: int = 0
