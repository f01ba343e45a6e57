"""What clients and the scheduler tell each other. Cheap to import: no numpy, no cluster library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from roost.launchers.protocol.shared_values import PORT_NAMES as PORT_NAMES
from roost.launchers.protocol.shared_values import Connection as Connection
from roost.launchers.protocol.shared_values import Owner as Owner

Finding = dict[str, str]
"""What `roost doctor` found: `level` (error, warning, ok), `what` is the matter, and what to `do`."""

DEFAULT_LAUNCH_TIMEOUT_S = 60.0
"""How long a start may queue and launch where `KERNEL_LAUNCH_TIMEOUT` says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRequest:
    """What one kernel asks for. All zero asks for no promise: it shares what is there.

    `gpus` is at most 1 (a share of one GPU) or a whole number. A node must have all `labels`, and is the better
    the more of `near` it has; `resources` are amounts of what else its manager counts (Ray's custom resources);
    `tolerates` are taints of nodes on which it may run all the same. `policy` names a placement policy (empty: the
    operator's default).
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    gpu_models: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    near: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)
    tolerates: tuple[str, ...] = ()
    policy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartKernel:
    """Starts a kernel, or starts it again within its lease; repeated with the same `launch_id`: the same answer.

    `argv` keeps `{connection_file}` as a placeholder. `launch_timeout_s` bounds queue and launch together.
    """

    kernel_id: str
    launch_id: str
    request: KernelRequest
    owner: Owner
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    connection: Connection
    may_fork: bool = True
    launch_timeout_s: float = DEFAULT_LAUNCH_TIMEOUT_S


KernelState = Literal["queued", "starting", "running", "exited"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel as the scheduler knows it.

    `position` (1 is next) and `waits_for` (a sentence) while queued. `timing_ms` by stage: `queued`,
    `placed`, `leased`, `launched` and the agent's own. `decision` is `placement.Decision.to_dict()`.
    `connection` has the keys and is given only by `start` and `kernel`; in lists it is None.
    """

    id: str
    launch_id: str
    state: KernelState
    owner: Owner
    request: KernelRequest
    node_id: str = ""
    lease_id: str = ""
    device_ids: tuple[str, ...] = ()
    pid: int = 0
    how: str = ""
    connection: Connection | None = None
    created_at: float = 0.0
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    decision: Mapping[str, Any] | None = None
    position: int | None = None
    waits_for: str = ""
    exit_code: int | None = None
    reason: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of state, as every reader of the stream gets it; `at` is seconds since the epoch, UTC.

    `kind`: queued, placed, leased, running, conflict, exited, released, cancelled, failed, cull, nodes, idle (the
    service is about to leave), and on the client's side resync (others may have been missed).
    """

    kind: str
    at: float
    kernel: Kernel | None = None
    detail: str = ""
